"""What the rows of `sweep`, `overhead` and `traffic` have in common."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perf import output
from perf.errors import NotOfferedError
from perf.output import Row
from perf.selection import DTYPE_NAMES, OURS

if TYPE_CHECKING:
    from perf.cases import Point


#: Columns that say what was run and how it ended; `identity` gives all but the last.
COLUMNS = ("op", "variant", "mode", "provider", "n", "v", "dtype", "reduction", "status")


def identity(point: Point, provider: str, mode: str) -> Row:
    """The columns that say what was run."""
    return {
        "op": point.op,
        "variant": point.variant,
        "mode": mode,
        "provider": provider,
        "n": point.n,
        "v": point.v,
        "dtype": DTYPE_NAMES[point.dtype],
        "reduction": point.reduction,
    }


def label(row: Row) -> str:
    """What was run, in words, without its provider."""
    parts = (row["op"], row["variant"], row["mode"], row["reduction"], row["dtype"], f"{row['n']}x{row['v']}")
    return " ".join(part for part in parts if part)


def failure(error: Exception) -> str:
    """The status of what raised an error: its type and the first line of its message, or why it is not offered."""
    if isinstance(error, NotOfferedError):
        return f"skipped: {error}"
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}".rstrip(": ")


def show(title: str, rows: Sequence[Row], columns: dict[str, str]) -> None:
    """Print a table of rows that have something to show, and a line for each reason why others have not."""
    headings = {"what": "", "provider": "provider", **columns}
    done = [row | {"what": label(row)} for row in rows if row["status"] == "ok"]
    if done:
        output.show(title, done, headings)
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            reasons.setdefault(f"{row['provider']} {row['status']}", []).append(label(row))
    for reason, labels in reasons.items():
        print(f"{reason} ({labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''})", file=sys.stderr)


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each of our own that failed."""
    return [f"{label(r)}: {r['status']}" for r in rows if r["provider"] in OURS and r["status"].startswith("failed")]
