"""traffic: bytes, launches and allocations, counted without a GPU.

Ops run in Triton's interpreter, which counts every byte that a kernel loads and stores. An aten operation counts as one
launch that reads its operands once and writes its results once, the least it can do. Compared with the least possible:
every distinct byte needed read once, every byte of a result written once and allocated.

There are no caches in these counts. A row of softmax that is longer than what fits on chip is read a second time, which
a GPU's L2 cache mostly serves; the least stays one read.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable

import torch

import lucid.torch
from perf import results, selection
from perf.count import counting
from perf.errors import UnsupportedError, WrongResultError
from perf.measure import cases
from perf.measure.ops import OPS, Point
from perf.results import Row
from triton_kernels.runtime import backend, device_errors, launch, tile_configs

COUNTED = ("read", "written", "launches", "allocated", "least_read", "least_written", "least_allocated")

#: Small terms (partial results, statistics of chunks, scalars read by each program): bytes a program may move, and the
#: fraction of the least possible bytes that they may come to in all, or bytes where there is almost nothing to move.
PROGRAM_BYTES, SMALL_FRACTION, SMALL_BYTES = 16, 0.01, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    defaults = dict(shape="41x1271,8x32000", dtype="bf16,fp32", reduction="none,mean", mode="forward,backward")
    selection.add_arguments(parser, **defaults, providers="ours,lucid.torch,torch,liger")
    tiles = "whose tile sizes ours uses: a GPU's, or the interpreter's larger ones (default: gpu)"
    parser.add_argument("--tiles", choices=("gpu", "interpreter"), default="gpu", help=tiles)
    check = "fail where ours moves or allocates more than the least and small terms, or launches too often"
    parser.add_argument("--check", action="store_true", help=check)
    results.add_arguments(parser, append=True)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    results.check_writable(options.csv, options.json)
    if not interpreted():
        return 1
    work, violations = cases.Workload(torch.device("cpu"), options.modes), []

    def count(values: Row, point: Point, provider: str, mode: str) -> None:
        least = cases.least_cost(point, mode)
        values |= {"least_read": least.read, "least_written": least.written, "least_allocated": least.written}
        # Grids alone: a launch that is held holds its results, and torch copies a gradient that is referenced.
        grids: list[tuple[int, ...]] = []
        with tile_configs.use_tile_configs(interpreted=options.tiles == "interpreter"), lucid.torch.kernels_on_cpu():
            case = prepared(work, point, provider, mode)
            with launch.launch_hook(lambda launched: grids.append(launched.grid)), counting.counted() as counts:
                case.step()
        values |= {name: getattr(counts, name) for name in ("read", "written", "launches", "allocated")}
        if provider in selection.OURS:
            violations.append(_violation(point, mode, values, grids))

    rows = cases.rows(selection.points(options), options, COUNTED, count)
    names = ("read", "written", "least_read", "least_written", "launches", "allocated")
    title = "Bytes moved, in Triton's interpreter"
    code = cases.record("traffic", rows, COUNTED, options, title, {name: name.replace("_", " ") for name in names})
    problems = [line for line in violations if line] if options.check else []
    for line in problems:
        print(line, file=sys.stderr)
    if options.check and not problems and not code:
        print(f"{len(violations)} of ours move the least possible bytes, up to small terms and declared second reads")
    return 1 if problems else code


def interpreted() -> bool:
    """Return whether kernels are interpreted, as they must be to be counted; say so in one line where they are not."""
    if not backend.INTERPRETED:
        print("bytes are counted in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts", file=sys.stderr)
    return backend.INTERPRETED


def prepared(work: cases.Workload, point: Point, provider: str, mode: str) -> cases.BenchCase:
    """A case that has been run once and stands before its step."""
    from triton.runtime.errors import InterpreterError

    if provider == "compile":
        raise UnsupportedError("what torch.compile makes for a GPU cannot run without one")
    device_errors.buffer(torch.device("cpu"))  # made once in a process
    try:
        (case,) = work.cases(point, provider, mode)
        work.check(case)
        case.prepare()
    except InterpreterError as reason:
        raise UnsupportedError(f"its kernel does not run in Triton's interpreter: {reason}") from reason
    except WrongResultError as reason:
        if provider in selection.OURS:
            raise
        # The interpreter multiplies bf16 values as if they were integers, which is no fault of the provider's.
        raise UnsupportedError("its result is wrong in Triton's interpreter") from reason
    return case


def _violation(point: Point, mode: str, row: Row, grids: Iterable[tuple[int, ...]]) -> str:
    op, least = OPS[point.op], row["least_read"] + row["least_written"]
    # A program of a split row reads what each of the row's chunks found.
    small = sum(PROGRAM_BYTES * math.prod(grid) * math.prod(grid[1:]) for grid in grids)
    small = op.statistics(point, mode) + min(small, max(SMALL_BYTES, int(SMALL_FRACTION * least)))
    limits = {
        "read": row["least_read"] + op.rereads(point, mode) + small,
        "written": row["least_written"] + small,
        "allocated": row["least_allocated"] + small,
        "launches": sum({"forward": op.launches[:1], "backward": op.launches[1:]}.get(mode, op.launches)),
    }
    over = [f"{key} {row[key]:,}, at most {limit:,}" for key, limit in limits.items() if row[key] > limit]
    return f"{results.label(cases.about(point, '', mode))}: {'; '.join(over)}" if over else ""
