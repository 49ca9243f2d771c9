"""Packaging: the extras, the archives, and the page of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _sources() -> list[Path]:
    """Everything that tells a user what to type."""
    folders = ("lucid", "triton_kernels", "perf")
    return [*ROOT.glob("*.md"), ROOT / "Makefile", *(file for name in folders for file in ROOT.glob(f"{name}/**/*.py"))]


def test_extras_are_installed_from_the_projects_folder_since_no_index_has_it() -> None:
    commands = [command for file in _sources() for command in re.findall(r"pip install.*", file.read_text())]
    assert not [command for command in commands if "lucid-triton[" in command]
    named = {extra for command in commands for extra in re.findall(r"\.\[(.+?)\]", command)} - {"{extra}"}
    assert named == {"demo", "examples", "perf", "dev"}
    assert named <= set(PROJECT["optional-dependencies"])


#: Folders of the project, and files beside them.
PACKAGES, FOLDERS = ("lucid", "triton_kernels"), ("lucid", "triton_kernels", "perf", "tests")
FILES = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"),
    *("MANIFEST.in", "Makefile", "conftest.py", "constraints.txt", "pyproject.toml", ".ci/run", ".gitignore"),
)


def _files(root: Path, *folders: str) -> set[str]:
    found = (file for folder in folders for file in (root / folder).rglob("*") if file.is_file())
    return {file.relative_to(root).as_posix() for file in found if "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel."""
    tree, built = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("built")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for kind in ("build_sdist", "build_wheel"):
        build = f"from setuptools import build_meta; build_meta.{kind}({str(built)!r})"
        done = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    return built


def test_the_source_archive_has_every_file_of_the_project(archives: Path) -> None:
    with tarfile.open(next(archives.glob("*.tar.gz"))) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    written = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert names - written == {*FILES, *_files(ROOT, *FOLDERS)}


def test_the_wheel_has_the_packages_and_nothing_else(archives: Path) -> None:
    with zipfile.ZipFile(next(archives.glob("*.whl"))) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name for name in _files(ROOT, *PACKAGES) if name.endswith((".py", "py.typed"))}


README = (ROOT / PROJECT["readme"]).read_text()
IMAGE = re.compile(r"!\[([^]]*)\]\(([^)]*)\)")


def test_readme_has_no_link_that_a_page_of_the_package_cannot_follow() -> None:
    links = re.findall(
        r"\]\(([^)]*)\)|^\[[^]]+\]: *(\S+)|(?:src|href)=[\"']([^\"']*)", IMAGE.sub("", README), re.MULTILINE
    )
    targets = [target for link in links for target in link if target]
    assert not [target for target in targets if not target.startswith(("https://", "#"))]


def test_readmes_picture_is_a_file_of_the_project_and_its_alternative_text_has_the_numbers() -> None:
    """A page outside the project shows the text."""
    ((text, target),) = IMAGE.findall(README)
    assert (ROOT / target).is_file()
    assert re.search(r"\d", text)
