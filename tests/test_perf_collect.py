"""``python -m perf collect``: what `make gpu` wrote becomes the results of its GPU."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest

pytest.importorskip("pandas")

from perf import plot, report
from perf.__main__ import main
from tests import synthetic

SHAPES = ((8192, 131072), (512, 4096))
DRAWN: list[Path] = []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `make gpu` leaves."""
    made = tmp_path / "out"
    made.mkdir()
    synthetic.write(made / "sweep.csv", "sweep", synthetic.sweep(shapes=SHAPES))
    synthetic.write(made / "overhead.csv", "overhead", synthetic.overhead())
    (made / "summary.csv").write_text("step,seconds,limit,status,gpu,commit\nsweep,1,2,ok,SYNTHETIC GPU,0123456789ab\n")
    (made / "log.txt").write_text("a log")
    return made


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of results with the page and the README around it."""
    made = tmp_path / "results"
    (made / "predicted").mkdir(parents=True)
    for kind, rows in (("static", synthetic.static()), ("traffic", synthetic.traffic())):
        synthetic.write(made / f"predicted/{kind}.csv", kind, rows)
    (tmp_path / "README.md").write_text(f"Above.\n{report.BEGIN}\nold\n{report.END}\n")
    return made


def _collect(folder: Path, results: Path, *more: str) -> int:
    return main(
        ["collect", str(folder), "--results", str(results), "--readme", str(results.parent / "README.md"), *more]
    )


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note what would be drawn, which takes a while."""

    def run(options: argparse.Namespace) -> int:
        DRAWN[:] = options.files
        return 0

    monkeypatch.setattr(plot, "run", run)


def test_results_go_to_the_folder_of_their_gpu_and_into_the_report(folder: Path, results: Path) -> None:
    assert _collect(folder, results) == 0
    target = results / "synthetic-gpu"
    for name in ("sweep.csv", "overhead.csv", "summary.csv"):
        assert (target / name).read_text() == (folder / name).read_text()
    assert not (target / "log.txt").exists()
    assert [target / "sweep.csv", target / "overhead.csv"] == DRAWN
    assert "Measured on SYNTHETIC GPU" in (results / "README.md").read_text()
    assert "Measured on SYNTHETIC GPU" in (results.parent / "README.md").read_text()
    (folder / "overhead.csv").unlink()
    before = (target / "overhead.csv").read_text()
    assert _collect(folder, results) == 0
    assert (target / "overhead.csv").read_text() == before  # a file that a run lacks stays as it is


def _change(file: Path, column: str, value: str) -> None:
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    rows[0][column] = value
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_rows_without_a_commit_are_refused_and_given_one_by_an_option(
    folder: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _change(folder / "summary.csv", "commit", "")
    assert _collect(folder, results) == 2
    assert capsys.readouterr().err.endswith("summary.csv has rows that name no commit; --commit names it\n")
    assert _collect(folder, results, "--commit", "fedcba987654") == 0
    assert ",fedcba987654" in (results / "synthetic-gpu/summary.csv").read_text()


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("gpu", "another", "must have rows of one GPU, has 'SYNTHETIC GPU', 'another'"), ("n", "x", "a number is needed")],
)
def test_rows_that_make_no_sense_are_refused_and_nothing_is_written(
    column: str, value: str, said: str, folder: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _change(folder / "sweep.csv", column, value)
    assert _collect(folder, results) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (results / "synthetic-gpu").exists()


def test_a_folder_without_results_is_refused(tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _collect(tmp_path, results) == 2
    assert "has no rows of sweep.csv, overhead.csv, " in capsys.readouterr().err


def test_what_cannot_be_read_or_made_is_refused_before_anything_is_written(
    folder: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _collect(folder / "missing", results) == 2
    assert _collect(folder, results, "--readme", str(folder / "log.txt")) == 2
    assert _collect(folder, folder / "log.txt", "--readme", str(results.parent / "README.md")) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("error: ")[2].split(" ", 1)[1] for line in said] == [
        "is not a folder",
        f"needs the lines {report.BEGIN} and {report.END}, once and in this order",
        "cannot be made: Not a directory",
    ]
    assert not (results / "synthetic-gpu").exists()
