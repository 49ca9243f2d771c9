"""Rows of results, read back for plots and reports: columns checked, numbers for text, names for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from perf import output
from perf.environment import COLUMNS as ENVIRONMENT
from perf.errors import UsageError
from perf.output import Row

#: What a row is about; with the provider, no two rows are about the same.
CASE = ("op", "variant", "mode", "dtype", "reduction", "n", "v")

_TEXTS = ("op", "variant", "mode", "provider", "dtype", "reduction", "status", *ENVIRONMENT)
_STATIC_TEXTS = ("kernel", "variant", "dtype", "target", "load_bits", "store_bits", *ENVIRONMENT)

#: Columns with numbers, and those of them that a row which is "ok" must have.
_NUMBERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sweep": (
        ("n", "v", "median_ms", "p20_ms", "p80_ms", "gbps", "copy_gbps", "roof_fraction", "peak_mib"),
        ("n", "v", "median_ms", "p20_ms", "p80_ms", "copy_gbps", "roof_fraction"),
    ),
    "overhead": (("n", "v", "median_us", "p20_us", "p80_us", "launches", "syncs", "python_calls"), ("n", "v")),
    "traffic": (
        ("n", "v", "read", "written", "launches", "allocated", "least_read", "least_written", "least_allocated"),
        ("n", "v", "read", "written", "launches", "least_read", "least_written"),
    ),
    "static": (
        ("registers", "spills", "shared", "warps", "occupancy", "instructions", "special", "fixed", "bytes"),
        (),
    ),
}

#: Providers in the order of every table and legend, as people call them.
PROVIDERS = {
    "ours": "ours",
    "lucid.torch": "ours, lucid.torch",
    "torch": "torch eager",
    "compile": "torch.compile",
    "liger": "Liger",
}

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
_VARIANTS = {"prob": "probability target", "log": "log target"}
_ORDER = {
    name: place for place, name in enumerate(("forward", "backward", "full", "prob", "log", "bf16", "fp16", "fp32"))
}


def load(paths: Sequence[Path], *kinds: str) -> list[tuple[str, list[Row]]]:
    """The kind and the rows of each CSV, numbers as float or None, short names of dtypes.

    Raises
    ------
    UsageError
        For a file that is not one of ours or lacks a column, and for a cell without the number that it must have.
    """
    return [
        (kind, [_row(path, kind, line, row) for line, row in enumerate(rows, 2)])
        for path, kind, rows in _read(paths, kinds)
    ]


def _read(paths: Sequence[Path], kinds: tuple[str, ...]) -> Iterable[tuple[Path, str, list[dict[str, str]]]]:
    for path in paths:
        kind, rows = output.read(path, *kinds)
        wanted = (*(_STATIC_TEXTS if kind == "static" else _TEXTS), *_NUMBERS[kind][0])
        missing = [column for column in wanted if column not in rows[0]]
        if missing:
            raise UsageError(f"{path} lacks columns that {kind} writes: {', '.join(missing)}; make it anew")
        yield path, kind, rows


def _row(path: Path, kind: str, line: int, cells: dict[str, str]) -> Row:
    if None in cells or None in cells.values():
        raise UsageError(f"{path}, row {line}, has not as many cells as the header; make it anew")
    numbers, needed = _NUMBERS[kind]
    row: Row = dict(cells)
    for column in (*numbers, *(column for column in cells if kind == "static" and column.endswith("_roof"))):
        row[column] = _number(path, line, column, cells[column])
        positive = column not in (
            "launches",
            "syncs",
            "python_calls",
            "allocated",
            "least_allocated",
            "read",
            "written",
        )
        required = column in needed and cells.get("status", "ok") == "ok"
        if required and (row[column] is None or (positive and row[column] <= 0)):
            raise UsageError(f"{path}, row {line}: {column} is {cells[column]!r}, a number above 0 is needed")
    row["dtype"] = _DTYPES.get(cells["dtype"], cells["dtype"])
    return row


def _number(path: Path, line: int, column: str, cell: str) -> float | None:
    if not cell:
        return None
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{path}, row {line}: {column} is {cell!r}, a number is needed")
    return number


def case(row: Row) -> tuple[str | float, ...]:
    """What the row is about, all but the provider."""
    return tuple(row[column] for column in CASE)


def shape(row: Row) -> tuple[int, int]:
    """Rows and columns, N and V."""
    return int(row["n"] or 0), int(row["v"] or 0)


def ordered(values: Iterable[str], first: Iterable[str] = ()) -> list[str]:
    """Each value once: those of `first`, then modes, variants and dtypes as usual, then the rest by name."""
    leading = {name: place for place, name in enumerate(first)}
    return sorted(set(values), key=lambda name: (leading.get(name, len(leading)), _ORDER.get(name, len(_ORDER)), name))


def provider_name(provider: str) -> str:
    """What people call a provider."""
    return PROVIDERS.get(provider, provider)


def variant_name(variant: str) -> str:
    """What people call a variant of an op."""
    return _VARIANTS.get(variant, variant)


def latest(rows: Iterable[Row]) -> list[Row]:
    """Without those rows that a later one, about the same case, provider and GPU, replaces."""
    return list({(*case(row), row["provider"], row["gpu"]): row for row in rows}.values())


def environment(rows: Sequence[Row]) -> str:
    """One line: GPU and versions, of all rows."""
    gpus = " / ".join(sorted({row["gpu"] for row in rows if row["gpu"]}))
    return ", ".join(part for part in (gpus or "no GPU", versions(rows)) if part)


def versions(rows: Sequence[Row]) -> str:
    """Driver, versions and commit, of all rows, so far as they say."""

    def values(column: str) -> str:
        return " / ".join(sorted({row[column] for row in rows if row[column]}))

    labels = {"driver": "driver ", "cuda": "CUDA ", "torch": "torch ", "triton": "triton ", "liger": "liger-kernel "}
    labels["commit"] = "commit "
    return ", ".join(label + values(column) for column, label in labels.items() if values(column))


def left_out(rows: Iterable[Row]) -> str:
    """Which providers' rows are not "ok", how many and why, in a line; empty if none."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["status"] != "ok":
            key = (row["provider"], " ".join(row["status"].split()))
            counts[key] = counts.get(key, 0) + 1
    return "; ".join(f"{provider_name(who)} {count} × {why}" for (who, why), count in sorted(counts.items()))
