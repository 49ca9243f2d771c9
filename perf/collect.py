"""collect: results of ``make gpu`` as those of a GPU.

    python -m perf collect FOLDER...

writes the rows of the CSV files that runs of `make gpu` left in the folders to the folder of their GPU in perf/results,
those of files of one name one after the other. It draws pictures, and writes the page of results and README's section
anew. Files that no folder has stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from perf import __main__, results
from perf.environment import folder_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="what a run of `make gpu` wrote")


def run(options: argparse.Namespace) -> int:
    """Write, draw and report; print the paths."""
    texts, gpus, commits = dict[str, str](), set[str](), set[str]()
    for file in (file for folder in options.folders for file in sorted(folder.glob("*.csv"))):
        rows, text = results.read_csv(file), file.read_text()
        gpus |= {row["gpu"] for row in rows}
        commits |= {row["commit"] for row in rows}
        before, header = texts.get(file.name), text.partition("\n")[0]
        if rows and before and before.partition("\n")[0] != header:
            raise results.UsageError(f"{file} has other columns than the file of that name in another FOLDER")
        if rows:
            texts[file.name] = before + text.partition("\n")[2] if before else text
    if len(gpus) != 1 or len(commits) != 1 or not all(commits):
        found = f"GPUs: {_named(gpus)}; commits: {_named(commits)}"
        raise results.UsageError(f"rows must be of one GPU and name one commit; {found}")
    target = results.ROOT / "perf/results" / folder_of(gpus.pop())
    target.mkdir(exist_ok=True)
    for name, text in texts.items():
        (target / name).write_text(text)
        print(target / name)
    if "sweep.csv" in texts:
        __main__.main(["plot", str(target / "sweep.csv")])
    readme, page = results.ROOT / "README.md", results.ROOT / "perf/results/README.md"
    return __main__.main(["report", "--output", str(page), "--readme", str(readme)])


def _named(values: set[str]) -> str:
    return ", ".join(map(repr, sorted(values))) or "none"
