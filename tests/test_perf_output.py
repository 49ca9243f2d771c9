"""perf's files of rows, its errors and its command line: what a user mistypes costs one line."""

from __future__ import annotations

import argparse
import csv
import errno
import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from perf import __main__ as command_line
from perf import environment, results
from perf.__main__ import COMMANDS, main
from perf.errors import UsageError
from perf.progress import progress
from tests import synthetic

pytest.importorskip("pandas")


@pytest.fixture
def overhead(tmp_path: Path) -> Path:
    return synthetic.write(tmp_path / "overhead.csv", "overhead", synthetic.overhead()[:4])


def _changed(file: Path, change: Any) -> Path:
    """The CSV with its lines, a list of lists of cells, changed in place."""
    with file.open(newline="") as opened:
        lines = list(csv.reader(opened))
    change(lines)
    with file.open("w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows(lines)
    return file


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_explains_every_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: python -m perf {command}" in capsys.readouterr().out
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[command][0]).add_arguments(parser)
    assert not [action.dest for action in parser._actions if not action.help]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("swep", "invalid choice: 'swep'"),
        ("plot", "the following arguments are required: FILE"),
        ("plot x.csv --format gif", "invalid choice: 'gif'"),
        ("report --nonsense", "unrecognized arguments: --nonsense"),
        ("plot missing.csv", "missing.csv cannot be read: No such file or directory"),
    ],
)
def test_arguments_that_make_no_sense_get_one_line_and_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(arguments.split())
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert message in printed.err
    assert printed.err.startswith("python -m perf")


@pytest.mark.parametrize("name", command_line.EXTRA)
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
    monkeypatch.setitem(command_line.COMMANDS, "plot", ("perf.nowhere", "nothing"))
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


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    row: dict[str, Any] = {"op": "kl_div", "status": 'failed: a, b\nand "c"', "n": 3, "median_ms": None, "gbps": 0.5}
    files = argparse.Namespace(csv=tmp_path / "rows.csv", json=tmp_path / "rows.json")
    results.write("sweep", [row], files)
    kind, (back,) = results.read(files.csv)
    assert kind == "sweep"
    assert back == row | {"format": "lucid-triton/sweep/1", "n": "3", "median_ms": "", "gbps": "0.5"}
    assert json.loads(files.json.read_text()) == {"format": "lucid-triton/sweep/1", "rows": [row]}


@pytest.mark.parametrize(("where", "why"), [("", "it is a folder"), ("no/where.csv", "no such folder")])
def test_a_path_that_cannot_be_written_is_refused_with_the_reason(where: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"cannot be written: {why}"):
        results.check_writable(None, tmp_path / where)


def test_two_files_at_one_path_and_one_without_permission_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="cannot be two files at once"):
        results.check_writable(tmp_path / "a.csv", tmp_path / "b/../a.csv")

    def locked(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", locked)  # root, who may write everywhere, runs tests too
    with pytest.raises(UsageError, match=r"locked\.csv cannot be written: Permission denied"):
        results.check_writable(tmp_path / "locked.csv")


def test_checking_a_path_leaves_no_trace(tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    kept.write_text("as it was")
    results.check_writable(tmp_path / "new.csv", kept)
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_text() == "as it was"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"format,op\n", "has no rows"),
        (b"a,b\n1,2\n", "has format none"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"format,op\nlucid-triton/sweep/1,x\nlucid-triton/sweep/2,x\n", "has format"),
        (b"format,op\nlucid-triton/sweep/0,x\n", "has format lucid-triton/sweep/0, accepted: lucid-triton/sweep/1;"),
        (b"format,op\nlucid-triton/static/1,x\n", "has format lucid-triton/static/1, accepted: lucid-triton/sweep/1;"),
    ],
)
def test_a_file_of_another_kind_or_version_is_refused_with_what_is_accepted(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        results.read(tmp_path / "x.csv", "sweep")


def test_a_folder_for_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        results.read(tmp_path)


def test_missing_columns_are_named(overhead: Path) -> None:
    def rename(lines: list[list[str]]) -> None:
        lines[0] = [{"launches": "lunches", "commit": "comet"}.get(cell, cell) for cell in lines[0]]

    with pytest.raises(UsageError, match="lacks columns that overhead writes: commit, launches; make"):
        results.load(_changed(overhead, rename))


def test_a_row_with_a_cell_too_few_or_too_many_is_refused(overhead: Path) -> None:
    for change in (lambda lines: lines[3].pop(), lambda lines: lines[3].extend(["x", "y"])):
        with pytest.raises(UsageError, match="row 4, has not as many cells as the header"):
            results.load(_changed(overhead, change))


@pytest.mark.parametrize("cell", ["fast", "nan", "inf"])
def test_a_cell_that_is_no_number_is_named(cell: str, overhead: Path) -> None:
    def spoil(lines: list[list[str]]) -> None:
        lines[2][lines[0].index("median_us")] = cell

    with pytest.raises(UsageError, match=f"row 3: median_us is '{cell}', a number is needed"):
        results.load(_changed(overhead, spoil))


@pytest.mark.parametrize("cell", ["", "0", "-1"])
def test_a_row_that_is_ok_must_have_its_time(cell: str, tmp_path: Path) -> None:
    row = next(row for row in synthetic.sweep() if row["status"] == "ok")
    file = synthetic.write(tmp_path / "sweep.csv", "sweep", [row, {**row, "median_ms": cell}])
    with pytest.raises(UsageError, match=f"row 3: median_ms is '{cell}', a number above 0 is needed"):
        results.load(file)
    synthetic.write(file, "sweep", [{**row, "median_ms": "", "status": "failed: slow"}])
    assert results.load(file)[1]["median_ms"].isna().all()


def test_a_table_shows_numbers_short_and_nothing_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"op": "kl_div", "time": 0.123456, "n": 131072, "x": None},
        {"op": "softmax", "time": 1234.5, "n": 1, "x": 2},
    ]
    results.show("Times", rows, {"op": "op", "time": "ms", "n": "N", "x": "x"})
    shown = capsys.readouterr().out
    for text in ("Times", "kl_div", " 0.123 ", "1,234", "131,072"):
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
