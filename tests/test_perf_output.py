"""perf's files of rows, its errors and its command line: what a user mistypes costs one line."""

from __future__ import annotations

import argparse
import importlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from perf import environment, results
from perf.__main__ import COMMANDS, main
from perf.results import UsageError
from tests import synthetic

pytest.importorskip("pandas")


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
        ("report --nonsense", "unrecognized arguments: --nonsense"),
        ("plot missing.csv", "No such file or directory: 'missing.csv'"),
        ("traffic frobnicate", "argument OP: unknown 'frobnicate', accepted: kl_div, softmax, log_softmax"),
        (
            "sweep --shapes 8x",
            "unknown shape '8x', accepted: NxV or NxVxD with N, V and D at least 1, or one of target",
        ),
        ("sweep --shapes 8x8x8x8", "unknown shape '8x8x8x8'"),
        ("traffic softmax --shapes 8x8x8", "argument --shapes: softmax takes NxV"),
        ("traffic linear_distillation", "argument --shapes: linear_distillation takes NxVxD"),
        ("cpu --shapes 8x8x8", "argument --shapes: losses of logits take NxV"),
        ("linear_distillation --shapes 8x8", "argument --shapes: losses from hidden states take NxVxD"),
        ("sweep --shapes 0x8", "unknown shape '0x8'"),
        ("cpu nosuch", "argument LOSS: unknown 'nosuch', accepted: forward_kl, reverse_kl,"),
        ("cpu --repeats 0", "argument --repeats: 0, accepted: an integer from 1"),
        ("static --jobs 0", "argument --jobs: 0, accepted: an integer from 1"),
        ("plot README.md", "README.md is no CSV file with rows: "),
        ("static --diff nosuch", "--diff: git knows no triton_kernels at 'nosuch'"),
        ("overhead --dtypes int8", "argument --dtypes: unknown 'int8', accepted: bf16, fp16, fp32, fp64"),
        ("traffic --reductions avg", "unknown 'avg', accepted: none, mean, sum, batchmean"),
        ("traffic --modes sideways", "unknown 'sideways', accepted: forward, backward, full"),
        ("traffic --providers x", "unknown 'x', accepted: ours, lucid.torch, two-launches, torch, compile, liger,"),
        ("traffic kl_div --variants exp", "argument --variants: exp, accepted: prob, log"),
        ("traffic softmax --variants log", "argument --variants: log, accepted: none"),
        ("traffic --csv /nowhere/rows.csv", "/nowhere/rows.csv cannot be written: no such folder"),
    ],
)
def test_arguments_that_make_no_sense_are_named_with_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(arguments.split())
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert message in printed.err
    assert printed.err.splitlines()[-1].startswith("python -m perf")


def test_rows_come_back_as_they_were_written_and_more_are_added_below_one_header(tmp_path: Path) -> None:
    row: dict[str, Any] = {"op": "kl_div", "status": 'failed: a, b and "c"', "n": 3, "median_ms": None, "gbps": 0.5}
    file = tmp_path / "rows.csv"
    for append in (False, False, True):
        results.write_csv(file, "sweep", [row], append)
    back = row | {"format": "lucid-triton/sweep/1", "n": "3", "median_ms": "", "gbps": "0.5"}
    assert results.read_csv(file) == [back, back]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "has not the rows of a sweep"),
        ("format,op\nlucid-triton/sweep/1,x\nlucid-triton/sweep/2,x\n", "has not the rows of a sweep"),
        ("format,op\nlucid-triton/static/1,x\n", "has not the rows of a sweep"),
        ("format,median_ms\nlucid-triton/sweep/1,1\nlucid-triton/sweep/1,fast\n", "column median_ms: .*fast"),
    ],
)
def test_a_file_of_another_kind_or_without_a_number_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        results.load(tmp_path / "x.csv", "sweep")


def test_of_two_rows_about_the_same_the_later_counts(tmp_path: Path) -> None:
    rows = synthetic.overhead()[:4]
    file = synthetic.write(tmp_path / "rows.csv", "overhead", [*rows, {**rows[0], "median_us": 123.0}])
    kept = results.latest(results.load(file, "overhead"))
    assert len(kept) == len(rows)
    assert kept["median_us"].max() == 123.0


def test_numbers_are_short_and_nothing_stands_for_none() -> None:
    assert [results.number_text(x) for x in (0.123456, 1234.5, 131072, None, "a")] == [
        "0.123",
        "1,234",
        "131,072",
        "",
        "a",
    ]


def test_sets_of_shapes_are_what_they_say() -> None:
    sets = results.SHAPE_SETS
    assert {v for _, v in sets["llama"]} == {128256}
    assert {v for _, v in sets["qwen"]} == {151936}
    assert {n * v for n, v in sets["vocab"]} == {2**27}
    assert {n for n, _, _ in sets["linear"]} == {512, 1024, 8192, 32768}
    assert {(v, d) for _, v, d in sets["linear"]} == {(128256, 4096), (151936, 4096)}


def test_a_commit_is_marked_where_files_differ_from_it_but_for_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("perf/environment.py", "perf/results/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "perf/environment.py"))
    assert environment.commit() == ""
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    commit = environment.commit()
    assert len(commit) == 12
    (tmp_path / "perf/results/README.md").write_text("a time")
    (tmp_path / "perf/results/new.csv").write_text("a time")
    assert environment.commit() == commit
    (tmp_path / "a file").write_text("")
    assert environment.commit() == commit + "+"
