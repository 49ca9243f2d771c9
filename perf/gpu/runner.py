"""Run steps one after another, each in its own process and with a time limit, and write down how each ended."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LOG, SUMMARY = "log.txt", "summary.csv"
COLUMNS = ("step", "seconds", "limit", "status", "gpu", "commit")

#: Bytes of the log that a step keeps, half from its beginning and half from its end.
LOG_BYTES = 2**20

#: Seconds between asking a process to end and killing it, and the least for which a step is started.
GRACE, LEAST = 3.0, 5.0


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes
    ----------
    name
        What the summary calls it.
    limit
        Seconds after which it is stopped.
    command
        Seconds that it has -> command line; an empty one says that there is nothing to do.
    environ
        Environment variables beside those that all steps have.
    needs
        A program that must be on PATH.
    """

    name: str
    limit: float
    command: Callable[[float], Sequence[str]]
    environ: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""


def run(
    steps: Sequence[Step],
    folder: Path,
    total: float,
    environ: Mapping[str, str],
    about: Mapping[str, str],
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Run all steps within `total` seconds; returns whether none failed.

    `folder` gets the output of all steps in log.txt, as it is printed, and a row for each step in summary.csv, as it
    ends. A step that fails or is stopped does not keep the next from running.
    """
    start, good = clock(), True
    summary = folder / SUMMARY
    with summary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(COLUMNS)
    (folder / LOG).write_bytes(b"")
    for step in steps:
        before = clock()
        limit = min(step.limit, total - (before - start))
        status = _run_one(step, limit, folder / LOG, {**environ, **step.environ})
        seconds = clock() - before
        good &= status == "ok" or status.startswith("skipped")
        row = {"step": step.name, "seconds": f"{seconds:.1f}", "limit": f"{max(limit, 0):.0f}", "status": status}
        with summary.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow({**row, **about})
        say(f"{step.name:<14} {seconds:6.1f} s  {status}")
    say(f"{'total':<14} {clock() - start:6.1f} s  {folder}")
    return good


def _run_one(step: Step, limit: float, log: Path, environ: Mapping[str, str]) -> str:
    """How a step ended."""
    if limit < LEAST:
        return "skipped: no time left"
    if step.needs and not shutil.which(step.needs, path=environ.get("PATH")):
        return f"skipped: {step.needs} is not on PATH"
    command = step.command(limit)
    if not command:
        return "skipped: not in the bundle"
    with log.open("ab") as file:
        start = file.tell()
        file.write(f"==== {step.name}: {' '.join(command)}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                start_new_session=True,
            )
        except OSError as error:
            return f"failed: {command[0]}: {error.strerror}"
        try:
            code = process.wait(timeout=limit)
            status = "ok" if code == 0 else f"failed: exit status {code}"
        except subprocess.TimeoutExpired:
            status = f"failed: stopped after {limit:.0f} s"
        finally:
            end(process)
    _shorten(log, start)
    return status


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, whatever comes meanwhile."""
    try:
        _signal(process, signal.SIGTERM)
        process.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _shorten(log: Path, start: int) -> None:
    """Leave out the middle of what was written since `start`, if it is long."""
    with log.open("r+b") as file:
        size = file.seek(0, os.SEEK_END) - start
        if size <= LOG_BYTES:
            return
        file.seek(-LOG_BYTES // 2, os.SEEK_END)
        end = file.read()
        file.seek(start + LOG_BYTES // 2)
        file.write(f"\n… {size - LOG_BYTES} bytes left out …\n".encode() + end)
        file.truncate()
