"""The GPU, versions and commit that a measurement was made with."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

#: Columns that every row of a measurement ends with.
COLUMNS = ("gpu", "driver", "cuda", "torch", "triton", "liger", "python", "commit", "date")


def folder_of(gpu: str) -> str:
    """The name of the folder that a GPU's results go to.

    >>> folder_of("NVIDIA H200")
    'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def environment() -> dict[str, str]:
    """The GPU, the versions, the commit and the time; an empty string where there is none."""
    import torch  # not to read results

    has_gpu = torch.cuda.is_available()
    values = (
        torch.cuda.get_device_name() if has_gpu else "",
        _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        torch.version.cuda or (f"hip {torch.version.hip}" if torch.version.hip else ""),
        torch.__version__,
        _version("triton"),
        _version("liger-kernel"),
        platform.python_version(),
        _commit(),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    """Return what a command prints, or nothing where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _commit() -> str:
    """Return the commit, with a + where other files than results, which measuring writes, differ from it.

    The environment variable names it where there is no git history.
    """
    named = os.environ.get("LUCID_PERF_COMMIT")
    if named:
        return named
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    changes = _output("git", "status", "--porcelain", "--", ":/", ":(top,exclude)perf/results")
    return commit + "+" if commit and changes else commit


if __name__ == "__main__":
    folder = folder_of(environment()["gpu"])
    if not folder:
        sys.exit("no GPU is available to measure on; `make static` proves what can be proved without")
    print(folder)
