"""Raises where files of another package lie among this project's: pip writes packages of one name into one folder.

Runs when it is imported, before what may have been replaced. Two other packages are named `triton_kernels` and `lucid`.
"""

from __future__ import annotations

import csv
import os
from importlib import metadata
from pathlib import Path

PROJECT = "lucid-triton"
PACKAGES = ("lucid", "triton_kernels")

#: How many names of files an error lists.
LISTED = 3


def check(folder: Path) -> None:
    """Raise an ImportError where the packages in a folder are not what pip installed there.

    Parameters
    ----------
    folder : Path
        The folder that has both packages. One that pip did not install them into, such as a checkout, is not checked.
    """
    for package, installed in _installed(folder).items():
        there = {entry.name for entry in os.scandir(folder / package) if _importable(entry)}
        others, gone = sorted(there - installed), sorted(installed - there)
        if others:
            raise ImportError(
                f"{folder / package} holds files of {PROJECT} and of another package, {_few(others)}: no environment "
                f"can have both; uninstall both, then install the one that is needed",
                name=package,
                path=str(folder / package),
            )
        if gone:
            raise ImportError(
                f"{folder / package} lacks {_few(gone)} of {PROJECT}, which goes when another package that is named "
                f"{package} is uninstalled: install {PROJECT} again",
                name=package,
                path=str(folder / package),
            )


def _installed(folder: Path) -> dict[str, set[str]]:
    """What pip wrote into each package's own folder; nothing where it wrote no packages here."""
    found: dict[str, set[str]] = {}
    for distribution in metadata.distributions(name=PROJECT, path=[str(folder)]):
        record = distribution.read_text("RECORD") or ""
        for path, *_ in csv.reader(record.splitlines()):
            package, _, rest = path.partition("/")
            name = rest.partition("/")[0]
            if package in PACKAGES and path.endswith(".py"):
                found.setdefault(package, set()).add(name)
    return found


def _importable(entry: os.DirEntry[str]) -> bool:
    """Whether it is a source file or has one; pip leaves folders behind that have none."""
    return entry.name.endswith(".py") or (entry.is_dir() and any(Path(entry).rglob("*.py")))


def _few(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


check(Path(__file__).parents[1])
