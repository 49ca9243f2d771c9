"""What a bare machine lacks: ``python -m perf.gpu.bundle``, or ``make gpu-bundle``.

Writes wheels for Python 3.12 on linux x86_64, without torch and triton, and a cache of kernels that Triton compiled for
cuda:90, where the stand-in for a GPU is there that compiles them. Both go to .gpu, which `make gpu` takes them from.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from perf.gpu.steps import CACHE

ROOT = Path(__file__).parents[2]
STANDIN = ROOT.parent / "shared/fakegpu/run"

#: What tests and measurements import, and what that needs.
PACKAGES = (
    *("pytest", "iniconfig", "packaging", "pluggy", "pygments", "pytest-xdist", "execnet", "pytest-timeout"),
    *("hypothesis", "sortedcontainers", "expecttest", "numpy", "liger-kernel", "rich", "markdown-it-py", "mdurl"),
    *("matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pillow", "pyparsing"),
    *("python-dateutil", "tzdata"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(prog="python -m perf.gpu.bundle", description="Make what a bare machine lacks.")
    parser.add_argument("--output", type=Path, default=ROOT / ".gpu", metavar="DIR", help="the folder (default: .gpu)")
    folder = parser.parse_args().output
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version=3.12"]
    wheels = [*pip, *platforms, "-c", str(ROOT / "constraints.txt"), "-d", str(folder / "wheels"), *PACKAGES]
    subprocess.run(wheels, check=True)
    if STANDIN.exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        environ = os.environ | {"TRITON_CACHE_DIR": CACHE, "TRITON_STORE_BINARY_ONLY": "1", "TRITON_INTERPRET": "0"}
        subprocess.run([STANDIN, "compile", "perf/gpu/precompile.py"], cwd=ROOT, env=environ, check=True)
        subprocess.run(["tar", "-cJf", folder.resolve() / "cache.tar.xz", "-C", CACHE, "."], check=True)
    else:
        print("compiled kernels: skipped, ../shared/fakegpu is not there")
    subprocess.run(["du", "-ah", folder], check=True)


if __name__ == "__main__":
    main()
