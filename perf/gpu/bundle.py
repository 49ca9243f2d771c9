"""What a bare machine lacks: ``python -m perf.gpu.bundle``, or ``make gpu-bundle``.

Writes wheels for Python 3.12 on linux x86_64, without torch and triton, and a cache of kernels that Triton compiled for
cuda:90, where the stand-in for a GPU is there that compiles them. Both go to .gpu, which `make gpu` takes them from.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement

from perf.gpu import runner

ROOT = Path(__file__).parents[2]
STANDIN = ROOT.parent / "shared/fakegpu/run"

#: What tests and measurements import; what these depend on is added.
PACKAGES = (
    *("pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "expecttest"),
    *("numpy", "rich", "matplotlib", "liger-kernel"),
)

#: What the machine has.
LEFT_OUT = {"torch", "triton"}

#: Bytes that the folder may have.
MOST = 64 * 2**20

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MACHINE = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "extra": "",
}


def requirements(wheel: Path) -> set[str]:
    """Names of the packages that a wheel needs on the machine."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    found = [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]
    return {_normal(need.name) for need in found if need.marker is None or need.marker.evaluate(MACHINE)}


def closure(packages: Iterable[str], folder: Path, download: Callable[[Sequence[str]], None]) -> None:
    """Download packages and whatever they need, but nothing that the machine has."""
    done: set[str] = set(LEFT_OUT)
    wanted = {_normal(name) for name in packages} - done
    while wanted:
        download(sorted(wanted))
        done |= wanted
        wanted = {name for wheel in folder.glob("*.whl") for name in requirements(wheel)} - done


def wheels(folder: Path, packages: Iterable[str]) -> None:
    """Write wheels, in place of those of an earlier time once all are there."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        _download(Path(name), packages)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(name, folder)


def _download(folder: Path, packages: Iterable[str]) -> None:
    def download(names: Sequence[str]) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-q", "--no-deps"]
        machine = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12"]
        for platform in PLATFORMS:
            machine += ["--platform", platform]
        pins = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, *machine, *pins, "-d", str(folder), *names], check=True)

    closure(packages, folder, download)


def cache(archive: Path, standin: Path = STANDIN) -> bool:
    """Write the cache of compiled kernels; returns whether there is a stand-in that compiles them."""
    if not os.access(standin, os.X_OK):
        return False
    with tempfile.TemporaryDirectory() as name:
        environ = os.environ | {"TRITON_CACHE_DIR": name, "TRITON_STORE_BINARY_ONLY": "1"}
        environ.pop("TRITON_INTERPRET", None)
        command = [str(standin), "compile", "perf/gpu/precompile.py"]
        process = subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True)
        try:
            code = process.wait()
        finally:
            runner.end(process)
        if code:
            raise subprocess.CalledProcessError(code, command)
        made = archive.with_name(archive.name + ".part")
        with tarfile.open(made, "w:xz") as tar:
            for folder in sorted(path for path in Path(name).iterdir() if path.is_dir()):
                tar.add(folder, folder.name)
        made.replace(archive)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m perf.gpu.bundle", description="Make what a bare machine lacks.")
    parser.add_argument("--output", type=Path, default=ROOT / ".gpu", metavar="DIR", help="the folder (default: .gpu)")
    parser.add_argument(
        "--packages",
        default=",".join(PACKAGES),
        metavar="LIST",
        help=f"packages whose wheels travel, separated by commas (default: {', '.join(PACKAGES)})",
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        wheels(options.output / "wheels", filter(None, options.packages.split(",")))
        if not cache(options.output / "cache.tar.xz"):
            print("compiled kernels: skipped, ../shared/fakegpu is not there")
    except subprocess.CalledProcessError as error:
        print(f"{parser.prog}: error: exit status {error.returncode} of {' '.join(error.cmd[:4])} …", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{parser.prog}: error: argument --output: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    sizes = {path: path.stat().st_size for path in sorted(options.output.rglob("*")) if path.is_file()}
    for path, size in sizes.items():
        print(f"{size / 2**20:6.2f} MiB  {path.relative_to(options.output)}")
    total = sum(sizes.values())
    print(f"{total / 2**20:6.2f} MiB  in all")
    if total > MOST:
        print(f"{parser.prog}: error: more than {MOST / 2**20:.0f} MiB; name fewer --packages", file=sys.stderr)
    return 1 if total > MOST else 0


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
