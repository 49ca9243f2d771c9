"""What is installed, and how: the extras, the archives, and the page of the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

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
