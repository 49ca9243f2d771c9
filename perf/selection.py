"""Which ops, shapes, dtypes, reductions, modes and providers a command runs: its options, checked before any work."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from perf.errors import UsageError

if TYPE_CHECKING:
    from perf.cases import Point

MODES = ("forward", "backward", "full")
PROVIDERS = ("ours", "lucid.torch", "torch", "compile", "liger")
#: Those that are held to what is promised of our kernels.
OURS = ("ours", "lucid.torch")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

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
        some = ((int(match[1]), int(match[2])),) if match else SHAPE_SETS[part]
        found |= dict.fromkeys(some)
    return tuple(found)


def names(kind: str, accepted: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of names separated by commas, each once."""

    def parse(text: str) -> tuple[str, ...]:
        parts = tuple(dict.fromkeys(text.split(",")))
        for part in parts:
            if part not in accepted:
                raise argparse.ArgumentTypeError(f"unknown {kind} {part!r}, accepted: {', '.join(accepted)}")
        return parts

    return parse


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def whole(text: str) -> int:
    """A whole number above 0."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def add_arguments(
    parser: argparse.ArgumentParser,
    *,
    shape: str,
    dtype: str,
    reduction: str,
    mode: str = ",".join(MODES),
    providers: str = "ours,torch,compile,liger",
) -> None:
    """The options that say what to run; the keywords are their defaults."""
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops to run: kl_div, softmax, … (default: all there are)")
    parser.add_argument(
        "--shapes",
        type=shapes,
        default=shapes(shape),
        metavar="LIST",
        help=f"NxV and the sets {', '.join(SHAPE_SETS)}, separated by commas (default: {shape})",
    )
    reductions = ("none", "mean", "sum", "batchmean")
    options: tuple[tuple[str, str, Sequence[str], str], ...] = (
        ("--dtypes", "dtype", tuple(DTYPES), dtype),
        ("--reductions", "reduction", reductions, reduction),
        ("--modes", "mode", MODES, mode),
        ("--providers", "provider", PROVIDERS, providers),
    )
    for option, kind, accepted, default in options:
        note = "; ops without a reduction take no notice" if kind == "reduction" else ""
        parser.add_argument(
            option,
            type=names(kind, accepted),
            default=names(kind, accepted)(default),
            metavar="LIST",
            help=f"of {', '.join(accepted)}, separated by commas (default: {default}{note})",
        )
    parser.add_argument(
        "--variants", metavar="LIST", help="of those an op has: prob, log for kl_div's kinds of target (default: all)"
    )


def points(options: argparse.Namespace) -> list[Point]:
    """What to run, shape by shape; a UsageError where the registry does not have it."""
    from perf import cases  # not before a command runs: it decides whether Triton interprets

    for op in options.ops:
        if op not in cases.OPS:
            raise UsageError(f"argument OP: unknown op {op!r}, accepted: {', '.join(cases.OPS)}")
    ops = tuple(dict.fromkeys(options.ops)) or tuple(cases.OPS)
    known = [variant for op in ops for variant in cases.OPS[op].variants if variant]
    wanted = options.variants.split(",") if options.variants else known
    for variant in wanted:
        if variant not in known:
            accepted = ", ".join(dict.fromkeys(known)) or f"none, for {', '.join(ops)}"
            raise UsageError(f"argument --variants: unknown variant {variant!r}, accepted: {accepted}")
    return [
        cases.Point(op, variant, n, v, DTYPES[dtype], reduction)
        for n, v in options.shapes
        for op in ops
        for variant in cases.OPS[op].variants
        if variant in wanted or not variant
        for dtype in options.dtypes
        for reduction in (cases.OPS[op].reductions and options.reductions) or ("",)
    ]
