"""Install those wheels of a folder whose packages this Python lacks: ``python -m perf.gpu.install WHEELS TARGET``."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path


def missing(wheels: Path) -> list[Path]:
    """Wheels of packages that are not installed."""
    found = []
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            metadata.version(wheel.name.partition("-")[0])
        except metadata.PackageNotFoundError:
            found.append(wheel)
    return found


def main(wheels: str, target: str) -> int:
    """Install into the folder `target`; packages that are there already stay as they are."""
    needed = missing(Path(wheels))
    print("missing here:", ", ".join(wheel.name for wheel in needed) or "nothing")
    if not needed:
        return 0
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target, *map(str, needed)]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
