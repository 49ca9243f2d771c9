"""Print what the machine has: the GPU, the driver, and the versions of Python, torch and Triton."""

from __future__ import annotations

import os
import subprocess
import sys

from perf.environment import environment


def main() -> int:
    """Print; returns 1 where there is no GPU."""
    try:
        subprocess.run(["nvidia-smi"], timeout=15)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"nvidia-smi: {error}")
    found = environment()
    print(f"python {sys.version}, {os.cpu_count()} CPUs")
    for name, value in found.items():
        print(f"{name}: {value}")
    return 0 if found["gpu"] else 1


if __name__ == "__main__":
    sys.exit(main())
