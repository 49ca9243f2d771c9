"""Rows of results: shown as a table, written as CSV or JSON, and read back.

A row is a dict with the same keys throughout a file. A CSV's first column, ``format``, names what wrote it and the
version of its columns, so that a file is never read as what it is not.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from perf.errors import UsageError

#: Version of each command's columns; raised whenever they change.
FORMATS = {"sweep": 1, "cpu": 1, "overhead": 1, "traffic": 1, "static": 1}

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options every command that prints rows has."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows as CSV")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")


def add_append(parser: argparse.ArgumentParser) -> None:
    """The option of commands that write rows as they are measured."""
    parser.add_argument(
        "--append", action="store_true", help="add to the file of --csv, if it exists and has the same columns"
    )


def check_writable(*paths: Path | None) -> None:
    """Raise a UsageError, before any work is done, for a path that cannot be written, or that is given twice."""
    given = [path.resolve() for path in paths if path is not None]
    if len(set(given)) < len(given):
        raise UsageError(f"{given[0]} cannot be two files at once")
    for path in paths:
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'no such folder'}")
        existed = path.exists()
        try:
            path.open("a").close()
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        if not existed:
            path.unlink()


@contextmanager
def writing(kind: str, columns: Sequence[str], options: argparse.Namespace) -> Iterator[Callable[[Row], None]]:
    """Yield a function that writes a row to the file of ``--csv`` at once; that of ``--json`` is written at the end.

    An existing CSV is replaced when the first row comes, or added to with ``--append``. A process that is killed
    leaves the rows that it had.

    Raises
    ------
    UsageError
        For ``--append`` without ``--csv``, or with a file of other columns.
    """
    name = f"lucid-triton/{kind}/{FORMATS[kind]}"
    header = ["format", *columns]
    rows: list[Row] = []
    adding = options.append and _has_header(options.csv, header)

    def write_row(row: Row) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, header, lineterminator="\n")
        if not rows and not adding:
            writer.writeheader()
        writer.writerow({"format": name, **row})
        rows.append(row)
        if options.csv:
            with options.csv.open("a" if adding or len(rows) > 1 else "w", newline="") as file:
                file.write(text.getvalue())

    try:
        yield write_row
    finally:
        if options.json:
            write(kind, rows, argparse.Namespace(csv=None, json=options.json))


def _has_header(path: Path | None, header: Sequence[str]) -> bool:
    """Whether a file exists and has rows of these columns."""
    if path is None:
        raise UsageError("argument --append: needs --csv FILE")
    if not path.exists() or not path.stat().st_size:
        return False
    content = path.read_bytes()
    try:
        found = next(csv.reader(io.StringIO(content.decode())), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"argument --append: {path} cannot be read: {error}") from error
    if found != list(header):
        raise UsageError(f"argument --append: {path} has other columns: {', '.join(found)}")
    if not content.endswith(b"\n"):
        raise UsageError(f"argument --append: the last row of {path} is cut off; remove it")
    return True


def write(kind: str, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Write rows where ``--csv`` and ``--json`` say."""
    name = f"lucid-triton/{kind}/{FORMATS[kind]}"
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["format", *(rows[0] if rows else ())], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"format": name, **row} for row in rows)
    if options.json:
        options.json.write_text(json.dumps({"format": name, "rows": list(rows)}, indent=1) + "\n")


def read(path: Path, *kinds: str) -> tuple[str, list[dict[str, str]]]:
    """The kind and the rows, as text, of a CSV that `write` made; of one of `kinds`, if any are given."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise UsageError(f"{path} has no rows")
    found = {row.get("format") for row in rows}
    kinds = kinds or tuple(FORMATS)
    accepted = {f"lucid-triton/{kind}/{FORMATS[kind]}": kind for kind in kinds}
    name = found.pop()
    if found or name not in accepted:
        raise UsageError(f"{path} has format {name or 'none'}, accepted: {', '.join(accepted)}; make it anew")
    return accepted[name], rows


def show(title: str, rows: Sequence[Row], columns: dict[str, str], *, console: Console | None = None) -> None:
    """Print a table; `columns` maps keys to headings, and numbers are right-aligned."""
    table = Table(title=title, title_justify="left")
    for key, heading in columns.items():
        number = all(isinstance(row.get(key), int | float | None) for row in rows)
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(key)) for key in columns))
    (console or wide_console()).print(table)


def wide_console() -> Console:
    """The terminal, or something wide enough for a table where output goes elsewhere."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
