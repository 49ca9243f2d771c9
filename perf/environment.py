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

    versions = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    values = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        torch.version.cuda or (f"hip {torch.version.hip}" if torch.version.hip else ""),
        torch.__version__,
        versions.get("triton", ""),
        versions.get("liger_kernel", versions.get("liger-kernel", "")),
        platform.python_version(),
        commit(),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return dict(zip(COLUMNS, values, strict=True))


def output(*command: str) -> str:
    """What a command prints, or nothing where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """The commit, with a + where other files than results, which measuring writes, differ from it.

    The environment variable names it where there is no git history.
    """
    named = os.environ.get("LUCID_PERF_COMMIT") or output("git", "rev-parse", "--short=12", "HEAD")
    changes = output("git", "status", "--porcelain", "--", ":/", ":(top,exclude)perf/results")
    return named + "+" if named and changes and not os.environ.get("LUCID_PERF_COMMIT") else named


if __name__ == "__main__":
    folder = folder_of(environment()["gpu"])
    print(
        folder or "no GPU is available to measure on; `make static` proves what can be proved without",
        file=None if folder else sys.stderr,
    )
    sys.exit(not folder)
