"""What commands of measurements share: lists on the command line, rows in CSV files, and how rows are read and named.

A row is a dict with the same keys throughout a file. The first column, ``format``, names the command that wrote it.
Writing needs no pandas.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from perf.environment import COLUMNS as ENVIRONMENT

if TYPE_CHECKING:
    from pandas import DataFrame, Series

ROOT = Path(__file__).parents[1]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}

#: Providers in the order of every table and legend, and some variants, as people call them.
PROVIDERS = {
    "ours": "ours",
    "lucid.torch": "ours, lucid.torch",
    "two-launches": "lucid.torch, two launches",
    "torch": "torch eager",
    "compile": "torch.compile",
    "liger": "Liger",
    "trl": "TRL",
    "products": "matrix products",
}
VARIANTS = {"prob": "probability target", "log": "log target"}
_ORDER = [*PROVIDERS, "forward", "backward", "full", "prob", "log", "bf16", "fp16", "fp32"]

#: Named sets of shapes, as (rows, columns), or (rows, columns, features) of ops of hidden states.
SHAPE_SETS: dict[str, tuple[tuple[int, ...], ...]] = {
    "target": ((8192, 131072),),
    "llama": tuple((n, 128256) for n in (512, 2048, 8192)),
    "qwen": tuple((n, 151936) for n in (512, 2048, 8192)),
    "small": ((41, 1271), (64, 1000), (512, 4096), (1024, 32000)),
    "rows": tuple((4**power, 16384) for power in range(9)),
    "vocab": tuple((2**27 // v, v) for v in (1024, 4096, 16384, 65536, 262144, 1048576)),
    "linear": tuple((n, v, 4096) for n in (512, 1024, 8192, 32768) for v in (128256, 151936)),
    "matmul": ((4096, 4096, 4096), (8192, 4096, 1024), (16, 4096, 4096)),
    "linear-small": ((9, 100, 16), (20, 257, 33)),
}

#: What a row of a sweep, of overhead or of traffic is about; with the provider, no two rows are about the same.
CASE = ["op", "variant", "mode", "dtype", "reduction", "n", "v", "d"]

#: Columns of text; all others have numbers.
_TEXTS = {*CASE[:-3], "provider", "status", "format", "kernel", "target", "load_bits", "store_bits", *ENVIRONMENT}

Row = dict[str, Any]


class UsageError(Exception):
    """Printed as one line, without a traceback."""


# Options


def names(*accepted: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of names separated by commas, each once."""

    def parse(text: str) -> tuple[str, ...]:
        for part in text.split(","):
            if part not in accepted:
                known = ", ".join(dict.fromkeys(accepted)) or "none"
                raise argparse.ArgumentTypeError(f"unknown {part!r}, accepted: {known}")
        return tuple(dict.fromkeys(text.split(",")))

    return parse


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """Shapes from names of sets, NxV and NxVxD, separated by commas; each once.

    >>> shapes("41x1271,target,9x100x16")
    ((41, 1271), (8192, 131072), (9, 100, 16))
    """
    found: dict[tuple[int, ...], None] = {}
    for part in text.split(","):
        sizes = part.split("x")
        if part in SHAPE_SETS:
            found |= dict.fromkeys(SHAPE_SETS[part])
        elif len(sizes) in (2, 3) and all(size.isdecimal() and int(size) for size in sizes):
            found[tuple(map(int, sizes))] = None
        else:
            known = f"NxV or NxVxD with N, V and D at least 1, or one of {', '.join(SHAPE_SETS)}"
            raise argparse.ArgumentTypeError(f"unknown shape {part!r}, accepted: {known}")
    return tuple(found)


def new_file(text: str) -> Path:
    """A file that can be written, as far as its folder shows."""
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: no such folder")
    return Path(text)


# Rows


def write_csv(path: Path, kind: str, rows: Sequence[Row], append: bool = False) -> None:
    """Write rows, or add them to those of a file."""
    with path.open("a" if append else "w", newline="") as file:
        writer = csv.DictWriter(file, ["format", *rows[0]], lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerows({"format": f"lucid-triton/{kind}/1", **row} for row in rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of any CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def positive(text: str) -> int:
    """Parser of a number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}, accepted: an integer from 1")
    return int(text)


def load(path: Path, kind: str) -> DataFrame:
    """The rows that a command wrote, numbers as floats; a UsageError where another wrote them, or one is no number."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # of which pandas' errors are
        raise UsageError(f"{path} is no CSV file with rows: {str(error).strip()}") from error
    if set(frame.get("format", ())) != {f"lucid-triton/{kind}/1"}:
        raise UsageError(f"{path} has not the rows of a {kind}")
    if "n" in frame and "d" not in frame:  # a file with rows of logits only
        frame["d"] = "0"
    for name in frame:
        if name not in _TEXTS and not str(name).endswith("_bound"):
            try:
                frame[name] = pd.to_numeric(frame[name]).astype(float)
            except ValueError as error:
                raise UsageError(f"{path}, column {name}: {error}") from error
    return frame


def label(row: Row) -> str:
    """What was run, in words."""
    shape = "x".join(str(row[name]) for name in ("n", "v", "d") if row[name])
    parts = (row["op"], row["variant"], row["mode"], row["reduction"], row["dtype"], shape)
    return " ".join(part for part in (*parts, row["provider"]) if part)


def number_text(value: Any) -> str:
    """A number in three digits, or in full from 1,000 on; nothing for None."""
    if value is None or value != value:
        return ""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def rank(cells: Series) -> Series:
    """A key to sort by: providers, modes, variants and dtypes as usual, then the rest by name; numbers as they are."""
    if cells.dtype.kind in "fi":
        return cells
    return cells.map(lambda name: f"{_ORDER.index(name):02}" if name in _ORDER else f"~{name}")


def ordered(cells: Series) -> list[Any]:
    """Each cell once, in the order of `rank`."""
    return list(cells.drop_duplicates().sort_values(key=rank))


def baseline(op: str) -> str:
    """The provider that the others of an op are compared with."""
    return "products" if op.startswith("linear_") else "ours"


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
    counts = frame[frame["status"] != "ok"].groupby(["provider", "status"]).size()
    return "; ".join(f"{PROVIDERS.get(who, who)} {count} × {why}" for (who, why), count in counts.items())
