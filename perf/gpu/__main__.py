"""``python -m perf.gpu``: everything that only a GPU shows, within ten minutes.

Steps run in order, each in a process of its own and with a time limit; one that fails does not keep the next from
running. Their output goes to log.txt, how each ended to summary.csv, results to CSV files, all in the folder of
--output. The exit status is 1 where a step failed. Imported here is the standard library alone: the first step installs
what a bare machine lacks.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from perf.environment import commit, folder_of, output
from perf.gpu.steps import CACHE, GROUPS, STEPS, Step

ROOT = Path(__file__).parents[2]

#: Seconds before its limit at which a step stops by itself; between asking a process to end and killing it; and the
#: least for which a step is started.
MARGIN, GRACE, LEAST = 8.0, 3.0, 5.0


def run(steps: Mapping[str, Step], folder: Path, total: float, environ: Mapping[str, str], about: Sequence[str]) -> int:
    """Run all steps within `total` seconds; 1 where one failed.

    `folder` gets the output of all steps in log.txt, as it is printed, and a row for each step in summary.csv, as it
    ends.
    """
    start, bad = time.monotonic(), 0
    with (folder / "summary.csv").open("w", newline="") as summary, (folder / "log.txt").open("wb") as log:
        writer = csv.writer(summary, lineterminator="\n")
        writer.writerow(("step", "seconds", "limit", "status", "gpu", "commit"))
        for name, step in steps.items():
            before = time.monotonic()
            limit = min(step.limit, total - (before - start))
            log.write(f"==== {name}: {step.command}\n".encode())
            log.flush()
            status = _run_one(step, limit, log, dict(environ) | {"SECONDS_LEFT": f"{max(limit - MARGIN, 1):.0f}"})
            seconds = f"{time.monotonic() - before:.1f}"
            writer.writerow((name, seconds, f"{max(limit, 0):.0f}", status, *about))
            summary.flush()
            print(f"{name:<16} {seconds:>6} s  {status}", flush=True)
            bad |= status.startswith("failed")
    print(f"{'total':<16} {time.monotonic() - start:6.1f} s  {folder}")
    return bad


def _run_one(step: Step, limit: float, log: IO[bytes], environ: Mapping[str, str]) -> str:
    """How a step ended."""
    needs = step.needs.replace("$BUNDLE", environ.get("BUNDLE", ""))
    if not (shutil.which(needs, path=environ.get("PATH")) or os.path.exists(needs)):
        return f"skipped: there is no {needs}"
    if limit < LEAST:
        return "skipped: no time left"
    command = ["sh", "-c", step.command]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
    )
    try:
        code = process.wait(limit)
        return f"failed: exit status {code}" if code else "ok"
    except subprocess.TimeoutExpired:
        return f"failed: stopped after {limit:.0f} s"
    finally:  # end it and those that it started
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            try:
                os.killpg(process.pid, number)
                process.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; returns the exit status."""
    groups = "; ".join(f"{name}: {', '.join(steps)}" for name, steps in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m perf.gpu",
        description=f"Steps: {', '.join(STEPS)}.",
        epilog=f"Groups of steps, which --steps takes, too: {groups}.",
    )
    where = "folder for the results of this run, which replace another's (default: $OUT, or perf/results/<gpu>)"
    parser.add_argument("--output", type=Path, default=os.environ.get("OUT"), metavar="DIR", help=where)
    parser.add_argument("--steps", default=",".join(STEPS), metavar="LIST", help="steps or groups (default: all)")
    parser.add_argument("--total", type=float, default=530, metavar="S", help="seconds for all steps (default: 530)")
    parser.add_argument("--scale", type=float, default=1, metavar="FACTOR", help="of the steps' time limits")
    parser.add_argument("--commit", metavar="HASH", help="what results name, where there is no git history")
    parser.add_argument("--shape", default="8192x131072", metavar="NxV", help="headline shape (default: 8192x131072)")
    options = parser.parse_args(arguments)
    chosen = [step for name in options.steps.split(",") for step in GROUPS.get(name, (name,))]
    if not set(chosen) <= set(STEPS):
        parser.error(f"argument --steps: {options.steps}, accepted: {', '.join((*STEPS, *GROUPS))}")
    gpu = output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").partition("\n")[0]
    if not (gpu or options.output):
        parser.error("no GPU available: nvidia-smi names none")
    folder = Path(options.output or ROOT / "perf/results" / folder_of(gpu)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(name.startswith("sweep") for name in chosen):  # which add to what is there
        (folder / "sweep.csv").unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, which ends the running step, too
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="lucid-gpu-") as site:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), site]
        environ = os.environ | {
            "PATH": f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/local/cuda/bin",
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRITON_CACHE_DIR": CACHE,
            "TRITON_INTERPRET": "0",
            "LUCID_PERF_COMMIT": options.commit or commit(),
        }
        environ |= {"PYTHON": sys.executable, "OUT": str(folder), "BUNDLE": str(ROOT / ".gpu"), "SITE": site}
        environ |= {"CACHE": CACHE, "SHAPE": options.shape, "ROWS": options.shape.partition("x")[0]}
        steps = {
            name: step._replace(limit=step.limit * options.scale) for name, step in STEPS.items() if name in chosen
        }
        return run(steps, folder, options.total, environ, (gpu, environ["LUCID_PERF_COMMIT"]))


if __name__ == "__main__":
    sys.exit(main())
