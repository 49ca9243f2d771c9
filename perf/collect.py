"""collect: results of ``make gpu`` as those of a GPU.

    python -m perf collect FOLDER

copies the CSV files that `make gpu` left in FOLDER to the folder of their GPU in perf/results, draws pictures, and
writes the page of results and README's section anew. Files that FOLDER lacks stay as they are.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from perf import __main__, results
from perf.environment import folder_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `make gpu` wrote")


def run(options: argparse.Namespace) -> int:
    """Copy, draw and report; print the paths."""
    tables = {file: results.read_csv(file) for file in sorted(options.folder.glob("*.csv"))}
    gpus = {row["gpu"] for rows in tables.values() for row in rows}
    if len(gpus) != 1 or not all(row["commit"] for rows in tables.values() for row in rows):
        named = ", ".join(map(repr, sorted(gpus))) or "none"
        raise results.UsageError(f"rows in {options.folder} must be of one GPU and name a commit; GPUs: {named}")
    target = results.ROOT / "perf/results" / folder_of(gpus.pop())
    target.mkdir(exist_ok=True)
    for file, rows in tables.items():
        if rows:
            print(shutil.copy(file, target))
    if (options.folder / "sweep.csv").exists():
        __main__.main(["plot", str(target / "sweep.csv")])
    readme, page = results.ROOT / "README.md", results.ROOT / "perf/results/README.md"
    return __main__.main(["report", "--output", str(page), "--readme", str(readme)])
