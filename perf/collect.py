"""collect: results of ``make gpu`` as those of a GPU.

    python -m perf collect FOLDER

copies the CSV files that `make gpu` left in FOLDER to the folder of their GPU in perf/results, draws pictures, and
writes the page of results and README's section anew. Files that FOLDER lacks stay as they are.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from perf import __main__, report, results
from perf.environment import folder_of
from perf.errors import UsageError

#: Files that are results; rows of all name a GPU and a commit.
SUMMARY = "summary.csv"
FILES = ("sweep.csv", "overhead.csv", "graphs.csv", "dram.csv", "kernels.csv", "tiles.csv", SUMMARY)

#: Those that pictures are drawn of.
DRAWN = ("sweep.csv", "overhead.csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `make gpu` wrote")
    parser.add_argument("--commit", default="", metavar="HASH", help="the commit of rows that name none")
    where = "folder of results (default: perf/results)"
    parser.add_argument("--results", type=Path, default=report.RESULTS, metavar="RESULTS_DIR", help=where)
    readme = "whose section is written anew (default: the project's README.md)"
    parser.add_argument("--readme", type=Path, default=report.ROOT / "README.md", metavar="FILE", help=readme)


def run(options: argparse.Namespace) -> int:
    """Copy, draw and report; print the paths."""
    folder = options.folder
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    report.around(options.readme)  # an error comes before anything is written
    tables = {name: results.read_csv(folder / name) for name in FILES if (folder / name).exists()}
    tables = {name: rows for name, rows in tables.items() if rows}
    if not tables:
        raise UsageError(f"{folder} has no rows of {', '.join(FILES)}")
    for name, rows in tables.items():
        for row in rows:
            if None in row or None in row.values() or not {"gpu", "commit"} <= set(row):
                raise UsageError(f"{folder / name} has a row without a GPU, a commit or a cell of its header")
            row["commit"] = row["commit"] or options.commit
        if not all(row["commit"] for row in rows):
            raise UsageError(f"{folder / name} has rows that name no commit; --commit names it")
    # The summary is of steps, whose GPU is what nvidia-smi calls it.
    gpus = sorted({row["gpu"] for name in (set(tables) - {SUMMARY} or tables) for row in tables[name]})
    if len(gpus) != 1 or not folder_of(gpus[0]):
        raise UsageError(f"{folder} must have rows of one GPU, has {', '.join(map(repr, gpus))}")
    drawn = [name for name in DRAWN if name in tables]
    for name in drawn:
        results.load(folder / name, name.removesuffix(".csv"))
    target = options.results / folder_of(gpus[0])
    results.make_folder(target)
    results.check_writable(*(target / name for name in tables))
    for name, rows in tables.items():
        with (target / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(target / name)
    if any(row["status"] == "ok" for name in drawn for row in tables[name]):
        __main__.main(["plot", *(str(target / name) for name in drawn)])
    page = str(options.results / "README.md")
    return __main__.main(["report", str(options.results), "--output", page, "--readme", str(options.readme)])
