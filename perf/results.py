"""Rows of results: written as CSV or JSON, shown as a table, and read back, as dicts or as a DataFrame.

A row is a dict with the same keys throughout a file. A CSV's first column, ``format``, names what wrote it and the
version of its columns, so that a file is never read as what it is not. Writing needs no pandas.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perf.environment import COLUMNS as ENVIRONMENT
from perf.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

#: Version of each command's columns; raised whenever they change.
FORMATS = {"sweep": 1, "cpu": 1, "overhead": 1, "traffic": 1, "static": 1}

#: What a row of a sweep, of overhead or of traffic is about; with the provider, no two rows are about the same.
CASE = ["op", "variant", "mode", "dtype", "reduction", "n", "v"]

#: Providers in the order of every table and legend, and some variants, as people call them.
PROVIDERS = {
    "ours": "ours",
    "lucid.torch": "ours, lucid.torch",
    "torch": "torch eager",
    "compile": "torch.compile",
    "liger": "Liger",
}
VARIANTS = {"prob": "probability target", "log": "log target"}
_ORDER = [*PROVIDERS, "forward", "backward", "full", "prob", "log", "bf16", "fp16", "fp32"]

#: Columns of numbers: those that a row which is "ok" must have above 0, those that it must have, and the others.
_NUMBERS = {
    "sweep": ("n v median_ms p20_ms p80_ms copy_gbps roof_fraction", "", "gbps peak_mib"),
    "overhead": ("n v", "", "median_us p20_us p80_us launches syncs python_calls"),
    "traffic": ("n v least_read least_written", "read written launches", "allocated least_allocated"),
    "static": ("", "", "registers spills shared warps occupancy instructions special fixed bytes"),
}
_TEXTS = {"static": ["kernel", "variant", "dtype", "target", "load_bits", "store_bits"]}

Row = dict[str, Any]


# Writing


def add_arguments(parser: argparse.ArgumentParser, *, append: bool = False) -> None:
    """Add the options of every command that prints rows; `append` is for those that write each as it is measured."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows as CSV")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    if append:
        wanted = "add to the file of --csv, if it exists and has the same columns"
        parser.add_argument("--append", action="store_true", help=wanted)


def check_writable(*paths: Path | None) -> None:
    """Raise a UsageError, before any work is done, for a path that cannot be written, or that is given twice."""
    given = [path for path in paths if path is not None]
    if len({path.resolve() for path in given}) < len(given):
        raise UsageError(f"{given[0]} cannot be two files at once")
    for path in given:
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'no such folder'}")
        existed = path.exists()
        try:
            path.open("a").close()
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        if not existed:
            path.unlink()


def make_folder(path: Path, name: str = "") -> None:
    """Make a folder, with a UsageError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{name}{path} cannot be made: {error.strerror}") from error


def write(kind: str, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Write rows where ``--csv`` and ``--json`` say."""
    if options.csv:
        write_csv(options.csv, kind, rows)
    if options.json:
        content = {"format": f"lucid-triton/{kind}/{FORMATS[kind]}", "rows": list(rows)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, kind: str, rows: Sequence[Row], how: str = "w") -> None:
    with path.open(how, newline="") as file:
        writer = csv.DictWriter(file, ["format", *(rows[0] if rows else ())], lineterminator="\n")
        if how == "w":
            writer.writeheader()
        writer.writerows({"format": f"lucid-triton/{kind}/{FORMATS[kind]}", **row} for row in rows)


def has_header(path: Path | None, header: list[str]) -> bool:
    """Return whether a file exists, whose rows have these columns."""
    if path is None:
        raise UsageError("argument --append: needs --csv FILE")
    if not path.exists() or not path.stat().st_size:
        return False
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise UsageError(f"argument --append: {path} cannot be read: {error}") from error
    found = next(csv.reader(text.splitlines()[:1]), [])
    if found != header:
        raise UsageError(f"argument --append: {path} has other columns: {', '.join(found)}")
    if not text.endswith("\n"):
        raise UsageError(f"argument --append: the last row of {path} is cut off; remove it")
    return True


# Showing


def label(row: Row) -> str:
    """What was run, in words, without its provider."""
    parts = (row["op"], row["variant"], row["mode"], row["reduction"], row["dtype"], f"{row['n']}x{row['v']}")
    return " ".join(part for part in parts if part)


def show_cases(title: str, rows: Sequence[Row], columns: dict[str, str]) -> None:
    """Print a table of the rows that are ok, and a line for each reason why others are not."""
    done = [row | {"what": label(row)} for row in rows if row["status"] == "ok"]
    if done:
        show(title, done, {"what": "", "provider": "provider", **columns})
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            reasons.setdefault(f"{row['provider']} {row['status']}", []).append(label(row))
    for reason, labels in reasons.items():
        print(f"{reason} ({labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''})", file=sys.stderr)


def show(title: str, rows: Sequence[Row], columns: dict[str, str]) -> None:
    """Print a table; `columns` maps keys to headings, and numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for key, heading in columns.items():
        number = all(isinstance(row.get(key), int | float | None) for row in rows)
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(number_text(row.get(key)) for key in columns))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def number_text(value: Any) -> str:
    """A number in three digits, or in full from 1,000 on; nothing for None."""
    if value is None or value != value:
        return ""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


# Reading


def read(path: Path, *kinds: str) -> tuple[str, list[dict[str, str]]]:
    """The kind and the rows, as text, of a CSV that `write` made; of one of `kinds`, if any are given."""
    rows = read_csv(path)
    if not rows:
        raise UsageError(f"{path} has no rows")
    found = {row.get("format") for row in rows}
    accepted = {f"lucid-triton/{kind}/{FORMATS[kind]}": kind for kind in kinds or FORMATS}
    name = found.pop()
    if found or name not in accepted:
        raise UsageError(f"{path} has format {name or 'none'}, accepted: {', '.join(accepted)}; make it anew")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UsageError(f"{path}, row {line}, has not as many cells as the header; make it anew")
    return accepted[name], rows


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of any CSV, with a UsageError where it cannot be read."""
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def load(path: Path, *kinds: str) -> tuple[str, DataFrame]:
    """The kind and the rows of a CSV, checked, numbers as floats.

    Raises
    ------
    UsageError
        For a file that is not one of ours or lacks a column, and for a cell without the number that it must have.
    """
    import numpy as np
    import pandas as pd

    kind, rows = read(path, *kinds)
    positive, required, others = (names.split() for names in _NUMBERS[kind])
    texts = _TEXTS.get(kind, [*CASE[:-2], "provider", "status"])
    missing = [name for name in (*texts, *ENVIRONMENT, *positive, *required, *others) if name not in rows[0]]
    if missing:
        raise UsageError(f"{path} lacks columns that {kind} writes: {', '.join(missing)}; make it anew")
    frame = pd.DataFrame(rows, dtype=object)
    ok = frame["status"] == "ok" if "status" in frame else True
    for name in (*positive, *required, *others, *(name for name in frame if name.endswith("_roof"))):
        cells = frame[name]
        numbers = pd.to_numeric(cells, errors="coerce").astype(float)
        _refuse(path, cells, (cells != "") & ~np.isfinite(numbers), "a number is needed")
        if name in positive + required:
            _refuse(
                path, cells, ok & ~(numbers > 0 if name in positive else numbers >= 0), "a number above 0 is needed"
            )
        frame[name] = numbers
    return kind, frame


def _refuse(path: Path, cells: Series, wrong: Series, needed: str) -> None:
    for line in cells.index[wrong]:
        raise UsageError(f"{path}, row {line + 2}: {cells.name} is {cells[line]!r}, {needed}")


def rank(cells: Series) -> Series:
    """A key to sort by: providers, modes, variants and dtypes as usual, then the rest by name; numbers as they are."""
    if cells.dtype.kind in "fi":
        return cells
    return cells.map(lambda name: f"{_ORDER.index(name):02}" if name in _ORDER else f"~{name}")


def ordered(cells: Series) -> list[Any]:
    """Each cell once, in the order of `rank`."""
    return list(cells.drop_duplicates().sort_values(key=rank))


def latest(frame: DataFrame) -> DataFrame:
    """Without those rows that a later one, about the same case, provider and GPU, replaces."""
    return frame.drop_duplicates([*CASE, "provider", "gpu"], keep="last")


def case_name(mode: str, variant: str, *more: str) -> str:
    """Mode, variant and so on in words."""
    return ", ".join(part for part in (mode, VARIANTS.get(variant, variant), *more) if part)


def environment_line(frame: DataFrame) -> str:
    """GPUs, driver, versions and commits of all rows, so far as they say."""
    names = {"gpu": "", "driver": "driver ", "cuda": "CUDA ", "torch": "torch ", "triton": "triton "}
    names |= {"liger": "liger-kernel ", "commit": "commit "}
    values = {name: " / ".join(sorted(set(frame[name]) - {""})) for name in names}
    values["gpu"] = values["gpu"] or "no GPU"
    return ", ".join(before + values[name] for name, before in names.items() if values[name])


def left_out(frame: DataFrame) -> str:
    """Which providers' rows are not "ok", how many and why, in a line; empty if none."""
    rows = frame[frame["status"] != "ok"]
    counts = rows.groupby(["provider", rows["status"].str.split().str.join(" ")]).size()
    return "; ".join(f"{PROVIDERS.get(who, who)} {count} × {why}" for (who, why), count in counts.items())
