"""``make perf`` and the targets of a stand-in for a GPU: their commands, without what they run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parent.parent / "Makefile"


@pytest.fixture(autouse=True)
def _no_outer_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """A make that runs these tests hands its options and variables on."""
    for name in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
        monkeypatch.delenv(name, raising=False)


def _make(folder: Path, arguments: str, codes: str) -> tuple[int, list[str]]:
    """The exit code, and the commands; `codes` is shell that says what they end with."""
    log = folder / "log"
    python = folder / "python"
    python.write_text(f'#!/bin/sh\necho "$2 $3" >> {log}\n[ $2 = perf.environment ] && echo a-gpu\n{codes}\nexit 0\n')
    python.chmod(0o755)
    command = ["make", "-s", "-f", str(MAKEFILE), "perf", "STAMP=", f"BIN={folder}", *arguments.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, [line.strip() for line in log.read_text().splitlines()]


ALL = ["perf.environment", "perf sweep", "perf overhead", "perf plot", "perf report"]


@pytest.mark.parametrize(
    ("codes", "succeeds", "commands"),
    [
        ("", True, ALL),
        ("[ $3 = sweep ] && exit 1", False, ALL),
        ("[ $3 = overhead ] && exit 1", False, ALL),
        ("[ $3 = sweep ] && exit 2", False, ALL[:2]),
        ("[ $3 = overhead ] && exit 130", False, ALL[:3]),
        ("[ $3 = plot ] && exit 1", False, ALL[:4]),
        ("[ $2 = perf.environment ] && exit 1", False, ALL[:1]),
    ],
)
def test_a_row_that_fails_is_reported_and_fails_in_the_end(
    codes: str, succeeds: bool, commands: list[str], tmp_path: Path
) -> None:
    code, made = _make(tmp_path, "", codes)
    assert (code == 0, made) == (succeeds, commands)


def test_without_a_gpu_one_line_says_so_before_anything_is_echoed(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no GPU is available >&2\nexit 1\n")
    python.chmod(0o755)
    command = ["make", "-f", str(MAKEFILE), "perf", "STAMP=", f"BIN={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    said, of_make = done.stderr.splitlines()
    assert said == "no GPU is available"
    assert of_make.startswith("make: ***")


def test_a_machine_without_a_gpu_is_told_what_it_can_do_instead() -> None:
    command = [sys.executable, "-m", "perf.environment"]
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=MAKEFILE.parent, env=environ, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no GPU is available" in done.stderr
    assert "make static" in done.stderr


def _stand_in(folder: Path, target: str) -> str:
    """What the target prints in a folder beside which there may be a stand-in for a GPU."""
    (folder / "checkout").mkdir()
    command = ["make", "-s", "-f", str(MAKEFILE), target]
    return subprocess.run(command, cwd=folder / "checkout", capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("target", ["standin", "standin-host"])
def test_where_no_stand_in_for_a_gpu_is_its_targets_say_that_they_are_skipped(target: str, tmp_path: Path) -> None:
    assert _stand_in(tmp_path, target) == f"{target}: skipped, ../shared/fakegpu is not there"


@pytest.mark.parametrize(
    ("target", "first"), [("standin", "ptx -n 2 tests"), ("standin-host", "compile -m perf overhead kl_div")]
)
def test_a_stand_in_for_a_gpu_is_run_where_it_is(target: str, first: str, tmp_path: Path) -> None:
    run = tmp_path / "shared" / "fakegpu" / "run"
    run.parent.mkdir(parents=True)
    run.write_text('#!/bin/sh\necho "$*"\n')
    run.chmod(0o755)
    assert _stand_in(tmp_path, target).startswith(first)
