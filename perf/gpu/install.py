"""Install those wheels of a folder whose packages this Python lacks: ``python -m perf.gpu.install WHEELS TARGET``."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path


def main(wheels: str, target: str) -> int:
    """Install into the folder `target`; packages that are there already stay as they are."""
    known = {found.metadata["Name"].lower().replace("-", "_") for found in metadata.distributions()}
    needed = [str(wheel) for wheel in Path(wheels).glob("*.whl") if wheel.name.partition("-")[0].lower() not in known]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target]
    print("missing here:", *needed)
    return subprocess.run([*pip, *needed]).returncode if needed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
