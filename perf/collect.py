"""collect: results of ``make gpu`` as those of a GPU.

    python -m perf collect FOLDER...

writes the rows of the CSV files that runs of `make gpu` left in the folders to the folder of their GPU in perf/results,
those of files of one name one after the other. It draws pictures, and writes the page of results and README's section
anew. Files that no folder has stay as they are.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from perf import __main__, results
from perf.environment import folder_of

#: What `report` and `plot` read, by the file's name.
_KINDS = {"sweep.csv": "sweep", "overhead.csv": "overhead"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="what a run of `make gpu` wrote")


def run(options: argparse.Namespace) -> int:
    """Write, draw and report; print the paths."""
    tables = _tables(options.folders)
    gpus, commits = ({row[name] for rows in tables.values() for row in rows} for name in ("gpu", "commit"))
    if len(gpus) != 1 or len(commits) != 1 or not (all(gpus) and all(commits)):
        found = f"GPUs: {_named(gpus)}; commits: {_named(commits)}"
        raise results.UsageError(f"rows must be of one GPU and name one commit; {found}")
    target = results.ROOT / "perf/results" / folder_of(gpus.pop())
    target.mkdir(exist_ok=True)
    for name, rows in tables.items():
        with (target / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(target / name)
    if "sweep.csv" in tables:
        __main__.main(["plot", str(target / "sweep.csv")])
    readme, page = results.ROOT / "README.md", results.ROOT / "perf/results/README.md"
    return __main__.main(["report", "--output", str(page), "--readme", str(readme)])


def _tables(folders: Sequence[Path]) -> dict[str, list[dict[str, str]]]:
    """The rows of all folders' files, by the file's name; a UsageError where one has none, or other columns."""
    tables = dict[str, list[dict[str, str]]]()
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise results.UsageError("argument FOLDER: one is named twice")
    for folder in folders:
        files = sorted(folder.glob("*.csv"))
        if not files:
            raise results.UsageError(f"argument FOLDER: {folder} is no folder with CSV files")
        for file in files:
            try:
                rows = results.read_csv(file)
            except ValueError as error:  # of which those of a coding are
                raise results.UsageError(f"{file} is no CSV file: {error}") from error
            columns = [name for name in (tables.get(file.name) or rows or [{}])[0] if name is not None]
            if rows and not {"gpu", "commit"} <= set(columns):
                raise results.UsageError(f"{file} lacks a column gpu or commit")
            if any(list(row) != columns or None in row or None in row.values() for row in rows):
                raise results.UsageError(f"{file} has a row of other columns than {', '.join(columns)}")
            if file.name in _KINDS and rows:
                results.load(file, _KINDS[file.name])
            if rows:
                tables.setdefault(file.name, []).extend(rows)
    return tables


def _named(values: set[str]) -> str:
    return ", ".join(map(repr, sorted(values))) or "none"
