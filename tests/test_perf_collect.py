"""``python -m perf collect``: what `make gpu` wrote becomes the results of its GPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

pytest.importorskip("pandas")

from perf import results
from perf.__main__ import main
from tests import synthetic

RESULTS = ("sweep.csv", "overhead.csv", "summary.csv")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `make gpu` leaves, beside a project's folder."""
    made = tmp_path / "out"
    made.mkdir()
    synthetic.write(made / "sweep.csv", "sweep", synthetic.sweep(shapes=((8192, 131072), (512, 4096))))
    synthetic.write(made / "overhead.csv", "overhead", synthetic.overhead())
    (made / "summary.csv").write_text("step,seconds,limit,status,gpu,commit\nsweep,1,2,ok,SYNTHETIC GPU,0123456789ab\n")
    (made / "log.txt").write_text("a log")
    (tmp_path / "perf/results").mkdir(parents=True)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return made


def test_results_go_to_the_folder_of_their_gpu_and_are_drawn_and_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Mock(return_value=0)
    monkeypatch.setattr("perf.__main__.main", run)
    assert main(["collect", str(folder)]) == 0
    target = tmp_path / "perf/results/synthetic-gpu"
    assert sorted(path.name for path in target.iterdir()) == sorted(RESULTS)
    assert all((target / name).read_text() == (folder / name).read_text() for name in RESULTS)
    assert [call.args[0][0] for call in run.call_args_list] == ["plot", "report"]


def test_rows_of_two_runs_come_one_after_the_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("perf.__main__.main", Mock(return_value=0))
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "overhead.csv").unlink()
    (other / "summary.csv").write_text("step,seconds,limit,status,gpu,commit\ndram,3,4,ok,SYNTHETIC GPU,0123456789ab\n")
    assert main(["collect", str(folder), str(other)]) == 0
    target = tmp_path / "perf/results/synthetic-gpu"
    rows = results.read_csv(target / "summary.csv")
    assert [row["step"] for row in rows] == ["sweep", "dram"]
    assert results.read_csv(target / "sweep.csv") == 2 * results.read_csv(folder / "sweep.csv")
    assert (target / "overhead.csv").read_text() == (folder / "overhead.csv").read_text()
    (other / "summary.csv").write_text("step,status,gpu,commit\ndram,ok,SYNTHETIC GPU,0123456789ab\n")
    assert main(["collect", str(folder), str(other)]) == 2
    assert "other columns" in capsys.readouterr().err
    assert results.read_csv(target / "summary.csv") == rows


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("summary.csv", "step,commit\nsweep,0123456789ab\n", "lacks a column gpu or commit"),
        ("summary.csv", "step,gpu,commit\nsweep,SYNTHETIC GPU\n", "has a row of other columns"),
        ("summary.csv", "step,gpu,commit\nsweep,SYNTHETIC GPU,0123456789ab,7\n", "has a row of other columns"),
        ("summary.csv", "step,gpu,commit\nsweep,,0123456789ab\n", "GPUs: '', 'SYNTHETIC GPU'"),
        ("sweep.csv", "step,gpu,commit\nsweep,SYNTHETIC GPU,0123456789ab\n", "has not the rows of a sweep"),
    ],
)
def test_a_file_that_no_run_wrote_is_named_and_nothing_is_written(
    name: str, text: str, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_text(text)
    assert main(["collect", str(folder)]) == 2
    assert said in capsys.readouterr().err
    (folder / "summary.csv").write_bytes(b"\xff\xfe")
    (folder / "sweep.csv").unlink()
    assert main(["collect", str(folder)]) == 2
    assert "is no CSV file" in capsys.readouterr().err
    assert not [*(tmp_path / "perf/results").iterdir()]


def test_folders_are_there_and_each_is_named_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folders, said in (((folder, folder), "one is named twice"), ((folder, tmp_path / "none"), "is no folder")):
        assert main(["collect", *map(str, folders)]) == 2
        assert said in capsys.readouterr().err


def test_a_last_line_that_was_not_ended_is_a_row_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perf.__main__.main", Mock(return_value=0))
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (folder / "summary.csv").write_text((folder / "summary.csv").read_text().rstrip())
    assert main(["collect", str(folder), str(other)]) == 0
    assert len(results.read_csv(tmp_path / "perf/results/synthetic-gpu/summary.csv")) == 2


@pytest.mark.parametrize(("old", "new"), [("SYNTHETIC GPU", "another"), ("0123456789ab", ""), ("0123456789ab", "ba")])
def test_rows_of_two_gpus_or_commits_or_without_one_are_refused_and_nothing_is_written(
    old: str, new: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "summary.csv"
    file.write_text(file.read_text().replace(old, new))
    assert main(["collect", str(folder)]) == 2
    assert "must be of one GPU and name one commit" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert main(["collect", str(folder)]) == 2
    assert not [*(tmp_path / "perf/results").iterdir()]
