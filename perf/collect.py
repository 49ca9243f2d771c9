"""collect: results of ``make gpu`` as those of a GPU.

    python -m perf collect FOLDER

copies the CSV files that `make gpu` left in FOLDER to the folder of their GPU in perf/results, draws pictures, and
writes the page of results and README's section anew. Files that FOLDER lacks stay as they are.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from types import ModuleType

from perf import output, plot, points, report
from perf.environment import folder_of
from perf.errors import UsageError

HELP = "take what `make gpu` wrote into perf/results"

#: Files that are results; rows of all name a GPU and a commit.
SUMMARY = "summary.csv"
FILES = ("sweep.csv", "overhead.csv", "graphs.csv", "dram.csv", "kernels.csv", "tiles.csv", SUMMARY)

#: Those that pictures are drawn of.
DRAWN = ("sweep", "overhead")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `make gpu` wrote")
    parser.add_argument("--commit", default="", metavar="HASH", help="the commit of rows that name none")
    parser.add_argument(
        "--results",
        type=Path,
        default=report.RESULTS,
        metavar="RESULTS_DIR",
        help="folder of results (default: perf/results)",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        default=report.ROOT / "README.md",
        metavar="FILE",
        help="whose section is written anew (default: the project's README.md)",
    )


def run(options: argparse.Namespace) -> int:
    """Copy, draw and report; print the paths."""
    if not options.folder.is_dir():
        raise UsageError(f"{options.folder} is not a folder")
    report.around(options.readme)  # an error comes before anything is written
    tables = {name: _read(options.folder / name, options.commit) for name in FILES}
    tables = {name: rows for name, rows in tables.items() if rows}
    if not tables:
        raise UsageError(f"{options.folder} has no rows of {', '.join(FILES)}")
    # The summary is of steps, whose GPU is what nvidia-smi calls it.
    measured = {name: rows for name, rows in tables.items() if name != SUMMARY} or tables
    gpus = sorted({row["gpu"] for rows in measured.values() for row in rows})
    if len(gpus) != 1 or not folder_of(gpus[0]):
        raise UsageError(f"{options.folder} must have rows of one GPU, has {', '.join(map(repr, gpus))}")
    for name, rows in tables.items():
        if not all(row["commit"] for row in rows):
            raise UsageError(f"{options.folder / name} has rows that name no commit; --commit names it")
    points.load([options.folder / f"{kind}.csv" for kind in DRAWN if f"{kind}.csv" in tables], *DRAWN)
    target = options.results / folder_of(gpus[0])
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{target} cannot be made: {error.strerror}") from error
    for name, rows in tables.items():
        output.check_writable(target / name)
        with (target / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(target / name)
    drawn = [str(target / f"{kind}.csv") for kind in DRAWN if f"{kind}.csv" in tables]
    if any(row["status"] == "ok" for kind in DRAWN for row in tables.get(f"{kind}.csv", [])):
        _command(plot, *drawn)
    page = options.results / "README.md"
    return _command(report, str(options.results), "--output", str(page), "--readme", str(options.readme))


def _read(path: Path, commit: str) -> list[dict[str, str]]:
    """Rows of a CSV, with a commit where they lack one; none where there is no such file."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for row in rows:
        if None in row or None in row.values() or not {"gpu", "commit"} <= set(row):
            raise UsageError(f"{path} has a row without a GPU, a commit or a cell of its header; make it anew")
        row["commit"] = row["commit"] or commit
    return rows


def _command(module: ModuleType, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    code: int = module.run(parser.parse_args(arguments))
    return code
