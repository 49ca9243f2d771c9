"""The committed results as Markdown.

    python -m perf report --output perf/results/README.md --readme README.md

writes the page with all rows, and the section of the README between its markers; with `--check`, nothing is written and
the exit code is 1 where either is not what the results give. A folder of results holds `predicted/static.csv`,
`traffic.csv` and `overhead.csv`, made without a GPU, and for each GPU a folder with `sweep*.csv`, `overhead*.csv` and
pictures.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from perf import output, points, render
from perf.errors import UsageError
from perf.output import Row

HELP = "render the committed results as Markdown"

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf/results"
PREDICTED = "predicted"
BEGIN, END = "<!-- perf:begin -->", "<!-- perf:end -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        default=RESULTS,
        metavar="RESULTS_DIR",
        help="folder of results (default: perf/results)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the page goes (default: standard output)")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help=f"rewrite what this file has between {BEGIN} and {END}"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 where the files differ from what the results give "
        "(default: RESULTS_DIR/README.md and the project's README.md)",
    )


def run(options: argparse.Namespace) -> int:
    """Render; write, print or compare."""
    if not options.results.is_dir():
        raise UsageError(f"{options.results} is no folder of results")
    page_file, readme = options.output, options.readme
    if options.check and not page_file and not readme:
        page_file, readme = options.results / "README.md", ROOT / "README.md"
    parts = around(readme) if readme else None
    results = load(options.results)
    wanted: dict[Path, str] = {}
    if page_file:
        wanted[page_file] = render.page(results, page_file.parent)
    if readme and parts:
        link = os.path.relpath(options.results.resolve() / "README.md", readme.resolve().parent)
        wanted[readme] = f"{parts[0]}{BEGIN}\n{render.section(results, Path(link).as_posix())}\n{END}{parts[1]}"
    if options.check:
        return _check(wanted, options.results)
    if not wanted:
        print(render.page(results, options.results), end="")
        return 0
    output.check_writable(*wanted)
    for file, text in wanted.items():
        file.write_text(text, encoding="utf-8")
        print(file)
    return 0


def load(folder: Path) -> render.Results:
    """Read a folder of results; whatever is missing is empty."""
    gpus = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != PREDICTED):
        sweeps = {kind: _tables(sorted(inner.glob(f"{kind}*.csv")), kind) for kind in ("sweep", "overhead")}
        rows = [row for files in sweeps.values() for table in files.values() for row in table]
        plots = sorted(inner.glob("*.png"))
        names = sorted({row["gpu"] for row in rows})
        if "" in names:
            raise UsageError(f"{inner} has rows that name no GPU; what is counted without one belongs in {PREDICTED}/")
        if rows:
            gpus.append(render.Gpu(" and ".join(names), sweeps["sweep"], sweeps["overhead"], plots))
    predicted = {
        kind: _tables([file for file in [folder / PREDICTED / f"{kind}.csv"] if file.exists()], kind)
        for kind in ("static", "traffic", "overhead")
    }
    return render.Results(gpus, predicted["static"], predicted["traffic"], predicted["overhead"])


def _tables(files: list[Path], kind: str) -> dict[str, list[Row]]:
    return {_from_root(file): points.load([file], kind)[0][1] for file in files}


def _from_root(file: Path) -> str:
    file = file.resolve()
    return (file.relative_to(ROOT) if file.is_relative_to(ROOT) else file).as_posix()


def around(readme: Path) -> tuple[str, str]:
    """What stands before and after the section."""
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{readme} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in after:
        raise UsageError(f"{readme} needs the lines {BEGIN} and {END}, once and in this order")
    return before, after


def _check(wanted: dict[Path, str], results: Path) -> int:
    stale = [str(file) for file, text in wanted.items() if not file.is_file() or file.read_bytes() != text.encode()]
    if stale:
        remedy = f"python -m perf report --output {_from_root(results)}/README.md --readme README.md"
        print(f"out of date with {results}: {' and '.join(stale)}; run {remedy}", file=sys.stderr)
    return 1 if stale else 0
