"""The options and the rows of commands that run providers on points: `sweep`, `overhead` and `traffic`."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from perf import results
from perf.environment import environment
from perf.measure.cases import MODES, quiet
from perf.measure.op import Point, UnsupportedError
from perf.measure.ops import OPS
from perf.results import DTYPES, PROVIDERS, Row, UsageError, number_text

#: Those that are held to what is promised of our kernels, and all that launch them.
PROMISED = ("ours", "lucid.torch")
OURS = (*PROMISED, "two-launches")

LISTS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "shapes": results.shapes,
    "dtypes": results.names(*DTYPES),
    "reductions": results.names("none", "mean", "sum", "batchmean"),
    "modes": results.names(*MODES),
    "providers": results.names(*PROVIDERS),
}


def add_lists(parser: argparse.ArgumentParser, **defaults: str) -> None:
    """Add options that are lists; the keywords are their defaults, empty for those that an op has for a sweep."""
    for name, default in defaults.items():
        parse = LISTS[name]
        text = f"separated by commas (default: {default or 'as the op has it'})"
        parser.add_argument(
            f"--{name}", type=parse, default=parse(default) if default else None, metavar="LIST", help=text
        )


def chosen(options: argparse.Namespace, op: str, name: str) -> tuple[Any, ...]:
    """The values of an option that is a list, for an op."""
    given: tuple[Any, ...] | None = getattr(options, name)
    return LISTS[name](OPS[op].sweep[name]) if given is None else given


def add_arguments(parser: argparse.ArgumentParser, **defaults: str) -> None:
    """Add the options that say what to run and where rows go."""
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)} (default: all)")
    add_lists(parser, **defaults)
    variants = "of those an op has, as prob, log for kl_div's kinds of target (default: all)"
    parser.add_argument("--variants", type=lambda text: text.split(","), metavar="LIST", help=variants)
    parser.add_argument("--csv", type=results.new_file, metavar="FILE", help="write each row as it is measured")
    parser.add_argument("--append", action="store_true", help="add to the rows of the file of --csv")


def points(options: argparse.Namespace) -> list[Point]:
    """Points to run, shape by shape."""
    for op in options.ops:
        if op not in OPS:
            raise UsageError(f"argument OP: unknown {op!r}, accepted: {', '.join(OPS)}")
    ops = tuple(dict.fromkeys(options.ops)) or tuple(OPS)
    known = [variant for op in ops for variant in OPS[op].variants if variant]
    if options.variants and not set(options.variants) <= set(known):
        accepted = ", ".join(dict.fromkeys(known)) or "none"
        raise UsageError(f"argument --variants: {','.join(options.variants)}, accepted: {accepted}")
    fitting = {op: [s for s in chosen(options, op, "shapes") if (len(s) == 3) == OPS[op].from_hidden] for op in ops}
    for op in options.ops:
        if not fitting[op]:
            raise UsageError(f"argument --shapes: {op} takes {'NxVxD' if OPS[op].from_hidden else 'NxV'}")
    return [
        Point(op, variant, n, v, DTYPES[dtype], reduction, *d)
        for n, v, *d in dict.fromkeys(shape for shapes in fitting.values() for shape in shapes)
        for op in ops
        if (n, v, *d) in fitting[op]
        for variant in OPS[op].variants
        if not variant or variant in (options.variants or known)
        for dtype in chosen(options, op, "dtypes")
        for reduction in (OPS[op].reductions and options.reductions) or ("",)
    ]


def record(
    kind: str, columns: Sequence[str], options: argparse.Namespace, measure: Callable[[Point, str, str], Row]
) -> int:
    """Measure every point, provider and mode; print and write each row as it comes; 1 where one of ours failed."""
    made_with, append, failed = environment(), options.append, False
    names = {dtype: name for name, dtype in DTYPES.items()}
    runs = [
        (point, *of_point)
        for point in points(options)
        for of_point in itertools.product(*(chosen(options, point.op, name) for name in ("providers", "modes")))
    ]
    for point, provider, mode in runs:
        row: Row = {"op": point.op, "variant": point.variant, "mode": mode, "provider": provider}
        row |= {"n": point.n, "v": point.v, "d": point.d, "dtype": names[point.dtype], "reduction": point.reduction}
        row |= {"status": "ok", **dict.fromkeys(columns)}
        try:
            with quiet():
                row |= measure(point, provider, mode)
        except (UnsupportedError, torch.OutOfMemoryError) as error:
            row["status"] = f"skipped: {_line(error)}"
        except Exception as error:  # whatever a provider raises is the finding
            row["status"] = f"failed: {type(error).__name__}: {_line(error)}"
        if options.csv:
            results.write_csv(options.csv, kind, [row | made_with], append)
            append = True
        found = ", ".join(f"{name} {number_text(row[name])}" for name in columns if row[name] is not None)
        print(f"{results.label(row)}: {found if row['status'] == 'ok' else row['status']}", flush=True)
        failed |= provider in OURS and row["status"].startswith("failed")
    if failed:
        print("a row of ours failed", file=sys.stderr)
    return int(failed)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
