"""Which ops, shapes, dtypes, reductions, modes and providers a command runs: its options, checked before any work."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from perf import results
from perf.errors import UsageError

if TYPE_CHECKING:
    from perf.measure.ops import Point

MODES = ("forward", "backward", "full")
PROVIDERS = tuple(results.PROVIDERS)
#: Those that are held to what is promised of our kernels.
OURS = ("ours", "lucid.torch")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: Options that are lists of names, and the names.
_LISTS = {
    "dtypes": tuple(DTYPES),
    "reductions": ("none", "mean", "sum", "batchmean"),
    "modes": MODES,
    "providers": PROVIDERS,
}

Shape = tuple[int, int]

#: Named sets of shapes, as (rows, columns).
SHAPE_SETS: dict[str, tuple[Shape, ...]] = {
    "target": ((8192, 131072),),
    "llama": tuple((n, 128256) for n in (512, 2048, 8192)),
    "qwen": tuple((n, 151936) for n in (512, 2048, 8192)),
    "small": ((41, 1271), (64, 1000), (512, 4096), (1024, 32000)),
    "rows": tuple((4**power, 16384) for power in range(9)),
    "vocab": tuple((2**27 // v, v) for v in (1024, 4096, 16384, 65536, 262144, 1048576)),
}


def shapes(text: str) -> tuple[Shape, ...]:
    """Shapes from names of sets and NxV, separated by commas; each once.

    >>> shapes("41x1271,target")
    ((41, 1271), (8192, 131072))
    """
    found: dict[Shape, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part)
        if match is None and part not in SHAPE_SETS:
            accepted = f"NxV with N and V at least 1, or one of {', '.join(SHAPE_SETS)}"
            raise argparse.ArgumentTypeError(f"unknown shape {part!r}, accepted: {accepted}")
        found |= dict.fromkeys([(int(match[1]), int(match[2]))] if match else SHAPE_SETS[part])
    return tuple(found)


def names(kind: str, accepted: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of names separated by commas, each once."""

    def parse(text: str) -> tuple[str, ...]:
        for part in text.split(","):
            if part not in accepted:
                raise argparse.ArgumentTypeError(f"unknown {kind} {part!r}, accepted: {', '.join(accepted)}")
        return tuple(dict.fromkeys(text.split(",")))

    return parse


def positive(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be > 0")
    return value


def whole(text: str) -> int:
    """Parse a positive integer."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive integer")
    return int(text)


def add_lists(parser: argparse.ArgumentParser, **defaults: str) -> None:
    """Add options of lists: shapes, dtypes, reductions, modes, providers; the keywords are their defaults."""
    for option, default in defaults.items():
        parse = shapes if option == "shapes" else names(option[:-1], _LISTS[option])
        accepted = f"NxV and the sets {', '.join(SHAPE_SETS)}" if option == "shapes" else ", ".join(_LISTS[option])
        note = "; ops without a reduction take no notice" if option == "reductions" else ""
        text = f"of {accepted}, separated by commas (default: {default}{note})"
        parser.add_argument(f"--{option}", type=parse, default=parse(default), metavar="LIST", help=text)


def add_arguments(
    parser: argparse.ArgumentParser,
    *,
    shape: str,
    dtype: str,
    reduction: str,
    mode: str = ",".join(MODES),
    providers: str = "ours,torch,compile,liger",
) -> None:
    """Add the options that say what to run; the keywords are their defaults."""
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops to run: kl_div, softmax, … (default: all)")
    add_lists(parser, shapes=shape, dtypes=dtype, reductions=reduction, modes=mode, providers=providers)
    variants = "of those an op has: prob, log for kl_div's kinds of target (default: all)"
    parser.add_argument("--variants", metavar="LIST", help=variants)


def points(options: argparse.Namespace) -> list[Point]:
    """Points to run, shape by shape; a UsageError where the registry does not have them."""
    from perf.measure.ops import OPS, Point

    for op in options.ops:
        if op not in OPS:
            raise UsageError(f"argument OP: unknown op {op!r}, accepted: {', '.join(OPS)}")
    ops = tuple(dict.fromkeys(options.ops)) or tuple(OPS)
    known = [variant for op in ops for variant in OPS[op].variants if variant]
    wanted = options.variants.split(",") if options.variants else known
    for variant in wanted:
        if variant not in known:
            accepted = ", ".join(dict.fromkeys(known)) or f"none, for {', '.join(ops)}"
            raise UsageError(f"argument --variants: unknown variant {variant!r}, accepted: {accepted}")
    return [
        Point(op, variant, n, v, DTYPES[dtype], reduction)
        for n, v in options.shapes
        for op in ops
        for variant in OPS[op].variants
        if variant in wanted or not variant
        for dtype in options.dtypes
        for reduction in (OPS[op].reductions and options.reductions) or ("",)
    ]
