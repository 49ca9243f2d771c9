"""``python -m perf.gpu``: everything that only a GPU shows, within ten minutes.

Steps run in order, each in a process of its own and with a time limit; one that fails does not keep the next from
running. Their output goes to log.txt, how each ended to summary.csv, results to CSV files, all in the folder of
--output. The exit status is 1 where a step failed. Imported here is the standard library alone: the first step installs
what a bare machine lacks.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from perf.gpu import runner
from perf.gpu.steps import NAMES, TESTS, Settings, steps

ROOT = Path(__file__).parents[2]
COMMIT = "LUCID_PERF_COMMIT"
CUDA = "/usr/local/cuda/bin"


class _Parser(argparse.ArgumentParser):
    """Reports a bad value in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = _Parser(prog="python -m perf.gpu", description="Run everything that only a GPU shows, within ten minutes.")
    made.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the results (default: $OUT, or perf/results/<gpu> where it is not set)",
    )
    made.add_argument(
        "--steps",
        type=_names,
        default=NAMES,
        metavar="LIST",
        help=f"of {', '.join(NAMES)}, separated by commas (default: all)",
    )
    made.add_argument(
        "--total",
        type=_seconds,
        default=530.0,
        metavar="S",
        help="start and let run no step longer than so many seconds from the start (default: 530)",
    )
    made.add_argument(
        "--scale",
        type=_seconds,
        default=1.0,
        metavar="FACTOR",
        help="multiply the time limits of steps, for slow machines; not the total (default: 1)",
    )
    made.add_argument(
        "--commit",
        type=_commit,
        metavar="HASH",
        help="the commit that results name, where there is no git history (default: git's)",
    )
    made.add_argument(
        "--bundle", type=_folder, metavar="DIR", help="what `make gpu-bundle` made (default: .gpu, where it exists)"
    )
    made.add_argument(
        "--tests",
        default=" ".join(TESTS),
        metavar="ARGS",
        help="arguments of pytest in the step tests (default: those that compiled kernels can fail)",
    )
    made.add_argument(
        "--shape", type=_shape, default="8192x131072", metavar="NxV", help="the headline shape (default: 8192x131072)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; returns the exit status, 130 where Ctrl-C ended them."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    environ = os.environ | {"PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), CUDA])}
    gpu = _first_line(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], environ)
    folder = options.output or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    if folder is None:
        if not gpu:
            print("python -m perf.gpu: error: no GPU available: nvidia-smi names none", file=sys.stderr)
            return 1
        folder = ROOT / "perf/results" / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (runner.LOG, runner.SUMMARY):
            (folder / name).open("a").close()
        if any(step.startswith("sweep") for step in options.steps):  # which add to what is there
            (folder / "sweep.csv").unlink(missing_ok=True)
    except OSError as error:
        print(f"python -m perf.gpu: error: argument --output: {folder}: {error.strerror}", file=sys.stderr)
        return 2
    folder = folder.resolve()
    commit = options.commit or _first_line(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], environ)
    with tempfile.TemporaryDirectory(prefix="lucid-gpu-") as name:
        work = Path(name)
        bundle = (options.bundle or ROOT / ".gpu").resolve()
        settings = Settings(folder, bundle, work / "site", work / "cache", shlex.split(options.tests), options.shape)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), str(settings.site)]
        environ |= {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRITON_CACHE_DIR": str(settings.cache),
            "TRITON_INTERPRET": "0",
        }
        if options.commit:
            environ[COMMIT] = options.commit
        os.chdir(ROOT)
        chosen = [
            dataclasses.replace(step, limit=step.limit * options.scale)
            for step in steps(settings)
            if step.name in options.steps
        ]
        try:
            good = runner.run(chosen, folder, options.total, environ, {"gpu": gpu, "commit": commit}, say=_say)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    return 0 if good else 1


def _say(line: str) -> None:
    print(line, flush=True)


def _terminated(number: int, frame: Any) -> NoReturn:
    """End as an exception does: the running step is ended, too."""
    raise SystemExit(128 + number)


def _first_line(command: Sequence[str], environ: dict[str, str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout.strip().splitlines() or [""])[0] if done.returncode == 0 else ""


def _names(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    for part in parts:
        if part not in NAMES:
            raise argparse.ArgumentTypeError(f"unknown step {part!r}, accepted: {', '.join(NAMES)}")
    return parts


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def _commit(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{7,40}\+?", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be 7 to 40 hexadecimal digits")
    return text if text.endswith("+") else text[:12]


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder; `make gpu-bundle` makes it")
    return Path(text)


def _shape(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be NxV with N and V at least 1")
    return text


if __name__ == "__main__":
    sys.exit(main())
