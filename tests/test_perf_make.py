"""``make perf``: its commands, without what they run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parent.parent / "Makefile"


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
