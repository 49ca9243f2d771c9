"""perf's files of rows, its errors and its command line: what a user mistypes costs one line."""

from __future__ import annotations

import argparse
import csv
import errno
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from perf import __main__ as command_line
from perf import environment, output, points
from perf.__main__ import COMMANDS, main
from perf.errors import UsageError
from perf.progress import progress
from tests import synthetic

ROOT = Path(output.__file__).parents[1]


@pytest.fixture
def overhead(tmp_path: Path) -> Path:
    return synthetic.write(tmp_path / "overhead.csv", "overhead", synthetic.overhead())


def _changed(file: Path, change: Any) -> Path:
    """The CSV with its lines, a list of lists of cells, changed in place."""
    with file.open(newline="") as opened:
        lines = list(csv.reader(opened))
    change(lines)
    with file.open("w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows(lines)
    return file


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_exits_with_0(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: python -m perf {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_of_every_command_is_explained(command: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"perf.{command}").add_arguments(parser)
    assert not [action.dest for action in parser._actions if not action.help]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["swep"], "invalid choice: 'swep'"),
        (["plot"], "the following arguments are required: FILE"),
        (["plot", "x.csv", "--format", "gif"], "invalid choice: 'gif'"),
        (["report", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_arguments_that_make_no_sense_get_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("python -m perf")
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_a_file_that_is_not_there_gets_one_line_without_a_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    done = subprocess.run(
        [sys.executable, "-m", "perf", "plot", missing], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"python -m perf plot: error: {missing} cannot be read: No such file or directory\n"


@pytest.mark.parametrize("name", ["rich", "matplotlib"])
def test_a_missing_package_of_the_perf_extra_is_named_with_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(command_line.importlib, "import_module", without)
    assert main(["plot", "x.csv"]) == 1
    line = f'python -m perf: error: {name} is missing: pip install ".[perf]"\n'
    assert capsys.readouterr().err == line


def test_a_missing_module_of_our_own_is_no_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(module: str) -> Any:
        raise ModuleNotFoundError("No module named 'perf.nowhere'", name="perf.nowhere")

    monkeypatch.setattr(command_line.importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError):
        main(["plot", "x.csv"])


def test_progress_without_a_terminal_is_a_line_at_once_and_then_one_in_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    with progress(30, clock=lambda: now) as advance:
        for number in range(30):
            advance(f"item {number}")
            now += 1
    said = capsys.readouterr().err.rstrip()  # rich 13.0 ends a bar that was never shown with an empty line
    assert said.split("\n") == ["1/30 item 0", "11/30 item 10", "21/30 item 20"]


def test_rows_come_back_from_csv_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"op": "kl_div", "status": 'failed: a, b\nand "c"', "n": 3, "median_ms": None}]
    path = tmp_path / "rows.csv"
    output.write("sweep", rows, argparse.Namespace(csv=path, json=None))
    kind, back = output.read(path)
    assert kind == "sweep"
    assert back == [
        {"format": "lucid-triton/sweep/1", "op": "kl_div", "status": rows[0]["status"], "n": "3", "median_ms": ""}
    ]


def test_json_holds_the_format_and_the_rows_with_their_types(tmp_path: Path) -> None:
    rows = [{"op": "kl_div", "n": 3, "median_ms": None, "gbps": 0.5}]
    path = tmp_path / "rows.json"
    output.write("sweep", rows, argparse.Namespace(csv=None, json=path))
    assert json.loads(path.read_text()) == {"format": "lucid-triton/sweep/1", "rows": rows}


@pytest.mark.parametrize(("where", "why"), [("", "it is a folder"), ("no/where.csv", "no such folder")])
def test_a_path_that_cannot_be_written_is_refused_with_the_reason(where: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"cannot be written: {why}"):
        output.check_writable(None, tmp_path / where)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", locked)  # root, who may write everywhere, runs tests too
    with pytest.raises(UsageError, match=r"locked\.csv cannot be written: Permission denied"):
        output.check_writable(tmp_path / "locked.csv")


def test_checking_a_path_leaves_no_trace(tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    kept.write_text("as it was")
    output.check_writable(tmp_path / "new.csv", kept)
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_text() == "as it was"


def test_a_csv_of_another_version_is_refused_with_what_is_accepted(overhead: Path) -> None:
    overhead.write_text(overhead.read_text().replace("lucid-triton/overhead/1", "lucid-triton/overhead/0"))
    with pytest.raises(UsageError) as refused:
        points.load([overhead])
    assert str(refused.value).startswith(
        f"{overhead} has format lucid-triton/overhead/0, accepted: lucid-triton/sweep/1,"
    )


def test_a_csv_of_another_kind_is_refused(overhead: Path) -> None:
    with pytest.raises(UsageError, match="has format lucid-triton/overhead/1, accepted: lucid-triton/sweep/1; make"):
        output.read(overhead, "sweep")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"format,op\n", "has no rows"),
        (b"a,b\n1,2\n", "has format none"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"format,op\nlucid-triton/sweep/1,x\nlucid-triton/sweep/2,x\n", "has format"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        output.read(tmp_path / "x.csv")


def test_a_folder_for_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        output.read(tmp_path)


def test_missing_columns_are_named(overhead: Path) -> None:
    def rename(lines: list[list[str]]) -> None:
        lines[0] = [{"launches": "lunches", "commit": "comet"}.get(cell, cell) for cell in lines[0]]

    with pytest.raises(UsageError, match="lacks columns that overhead writes: commit, launches; make"):
        points.load([_changed(overhead, rename)])


def test_a_row_with_a_cell_too_few_or_too_many_is_refused(overhead: Path) -> None:
    for change in (lambda lines: lines[3].pop(), lambda lines: lines[3].extend(["x", "y"])):
        with pytest.raises(UsageError, match="row 4, has not as many cells as the header"):
            points.load([_changed(overhead, change)])


@pytest.mark.parametrize("cell", ["fast", "nan", "inf"])
def test_a_cell_that_is_no_number_is_named(cell: str, overhead: Path) -> None:
    def spoil(lines: list[list[str]]) -> None:
        lines[2][lines[0].index("median_us")] = cell

    with pytest.raises(UsageError, match=f"row 3: median_us is '{cell}', a number is needed"):
        points.load([_changed(overhead, spoil)])


@pytest.mark.parametrize("cell", ["", "0", "-1"])
def test_a_row_that_is_ok_must_have_its_time(cell: str, tmp_path: Path) -> None:
    rows = [row for row in synthetic.sweep() if row["status"] == "ok"][:1]
    file = synthetic.write(tmp_path / "sweep.csv", "sweep", [{**rows[0], "median_ms": cell}])
    with pytest.raises(UsageError, match=f"row 2: median_ms is '{cell}', a number above 0 is needed"):
        points.load([file])


def test_a_table_shows_numbers_short_and_nothing_for_none() -> None:
    written = io.StringIO()
    rows = [
        {"op": "kl_div", "time": 0.123456, "n": 131072, "x": None},
        {"op": "softmax", "time": 1234.5, "n": 1, "x": 2},
    ]
    output.show("Times", rows, {"op": "op", "time": "ms", "n": "N", "x": "x"}, console=Console(width=60, file=written))
    shown = written.getvalue()
    for text in ("Times", "kl_div", "0.123", "1,234", "131,072"):
        assert text in shown
    assert "None" not in shown


def test_a_commit_is_marked_where_files_differ_from_it_but_for_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("perf/environment.py", "perf/results/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "perf/environment.py"))
    assert environment.environment()["commit"] == ""
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    commit = environment.environment()["commit"]
    assert len(commit) == 12
    (tmp_path / "perf/results/README.md").write_text("a time")
    (tmp_path / "perf/results/new.csv").write_text("a time")
    assert environment.environment()["commit"] == commit
    (tmp_path / "a file").write_text("")
    assert environment.environment()["commit"] == commit + "+"
