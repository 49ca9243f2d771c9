"""Other packages that are named `lucid` or `triton_kernels`: in one folder with ours, and elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("lucid", "triton_kernels")

#: Files of OpenAI's triton_kernels and of another lucid; reduce.py and nn/__init__.py are ours, too.
OTHERS = {
    "triton_kernels": ("__init__.py", "matmul_ogs.py", "reduce.py", "topk_details/_topk.py"),
    "lucid": ("__init__.py", "_tensor.py", "nn/__init__.py", "models/__init__.py"),
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder in which pip installed ours, as far as one sees on disk."""
    folder = tmp_path / "site"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    about = folder / "lucid_triton-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: lucid-triton\nVersion: 0.1.0\n")
    (about / "RECORD").write_text("".join(f"{name},sha256=x,1\n" for name in files))
    return folder


def _write(folder: Path, package: str, over: bool) -> None:
    """Install another package; `over` says whether after ours, else what both have stays ours."""
    for name in OTHERS[package]:
        file = folder / package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if over or not file.exists():
            file.write_text("raise RuntimeError('another package runs')\n" if name != "__init__.py" else "")


def _uninstall(folder: Path, package: str) -> None:
    for name in OTHERS[package]:
        (folder / package / name).unlink()


def _error(statement: str, *path: Path) -> str:
    """Return the last line that an import writes to stderr."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-P", "-c", statement]
    done = subprocess.run(command, cwd=path[0], env=environ, capture_output=True, text=True, timeout=120)
    return done.stderr.strip().splitlines()[-1] if done.stderr else ""


def _check(error: str, *words: str) -> None:
    assert error.startswith("ImportError: "), error
    missing = [word for word in words if word not in error]
    assert not missing, error


@pytest.mark.parametrize("statement", ["import lucid", "import triton_kernels", "import lucid.torch"])
def test_ours_alone_is_imported_from_the_folder_that_pip_wrote(statement: str, site: Path) -> None:
    (site / "lucid/__pycache__").mkdir(exist_ok=True)
    (site / "lucid/notes.txt").write_text("no code")
    found = "sys.modules['triton_kernels'].__file__"
    assert not _error(f"{statement}, sys; assert {found}.startswith({str(site)!r}), {found}", site)


@pytest.mark.parametrize("statement", ["import lucid", "import lucid.torch", "import lucid.nn.functional"])
def test_another_triton_kernels_over_ours_is_named_with_its_file(statement: str, site: Path) -> None:
    _write(site, "triton_kernels", over=True)
    file = site / "triton_kernels/__init__.py"
    _check(_error(statement, site), str(file), "overwritten by another package", "no environment can have both")


@pytest.mark.parametrize("statement", ["import lucid", "import triton_kernels", "import lucid.torch"])
@pytest.mark.parametrize("package", PACKAGES)
def test_ours_over_another_package_is_refused_with_the_others_files(package: str, statement: str, site: Path) -> None:
    _write(site, package, over=False)
    others = {"triton_kernels": "matmul_ogs.py, reduce.py, topk_details", "lucid": "_tensor.py, models"}
    _check(_error(statement, site), str(site / package), others[package], "no environment can have both")


@pytest.mark.parametrize("statement", ["import triton_kernels", "import lucid.torch"])
def test_another_lucid_over_ours_is_refused_by_what_is_still_ours(statement: str, site: Path) -> None:
    _write(site, "lucid", over=True)
    _check(_error(statement, site), str(site / "lucid"), "_tensor.py, models")


def test_another_triton_kernels_elsewhere_on_the_path_is_named_with_both_files(site: Path, tmp_path: Path) -> None:
    _write(tmp_path / "other", "triton_kernels", over=True)
    other, ours = (folder / "triton_kernels/__init__.py" for folder in (tmp_path / "other", site))
    first = f"import sys; sys.path.insert(0, {str(other.parents[1])!r}); "
    for statement in ("import lucid", "import triton_kernels; del sys.path[0]; import lucid.torch"):
        _check(_error(first + statement, site), str(other), str(ours), "no environment can have both")


@pytest.mark.parametrize(
    ("package", "statement"),
    [("triton_kernels", "import lucid"), ("lucid", "import triton_kernels"), ("lucid", "import lucid.torch")],
)
def test_after_the_other_is_uninstalled_ours_lacks_files_and_says_which(
    package: str, statement: str, site: Path
) -> None:
    _write(site, package, over=True)
    _uninstall(site, package)
    _check(_error(statement, site), str(site / package), "__init__.py", "install lucid-triton again")
