"""What a measurement was made with."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

#: Columns that every row of a measurement ends with.
COLUMNS = ("gpu", "driver", "cuda", "torch", "triton", "liger", "python", "commit", "date")


def folder() -> str:
    """The name of the folder that results of the GPU in use go to."""
    return folder_of(environment()["gpu"])


def folder_of(gpu: str) -> str:
    """The name of the folder that a GPU's results go to.

    >>> folder_of("NVIDIA H200")
    'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def environment() -> dict[str, str]:
    """The GPU, the versions, the commit and the time; an empty string where there is none."""
    has_gpu = torch.cuda.is_available()
    hip = f"hip {torch.version.hip}" if torch.version.hip else ""
    values = {
        "gpu": torch.cuda.get_device_name() if has_gpu else "",
        "driver": _driver() if has_gpu else "",
        "cuda": torch.version.cuda or hip,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "liger": _version("liger-kernel"),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return {column: values[column] for column in COLUMNS}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    """What a command prints, or nothing where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _driver() -> str:
    printed = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return printed.splitlines()[0] if printed else ""


def _commit() -> str:
    """The commit, with a + where other files than results differ from it: measuring writes those.

    The environment variable names it where there is no git history.
    """
    named = os.environ.get("LUCID_PERF_COMMIT")
    if named:
        return named
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    changes = _output("git", "status", "--porcelain", "--", ":/", ":(top,exclude)perf/results")
    return commit + "+" if commit and changes else commit


if __name__ == "__main__":
    if not folder():
        sys.exit("there is no GPU here to measure on; `make static` proves what can be proved without")
    print(folder())
