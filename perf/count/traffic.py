"""traffic: bytes, launches and allocations, counted without a GPU.

Ops run in Triton's interpreter, which counts every byte that a kernel loads and stores. An aten operation counts as one
launch that reads its operands once and writes its results once, the least it can do. Compared with the least possible:
every distinct byte needed read once, every byte of a result written once and allocated. The gradient of a loss of
logits can be computed with the loss; an upstream gradient of 1, as that of a reduced loss is here, then moves nothing.

There are no caches in these counts. Tiles of a matrix product read operands again: ops of shapes NxVxD are beyond the
least, and are counted only where such a shape is given. Programs that wait for the others of a long row are taken not
to wait in vain.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable

import torch

import lucid.torch
from perf.count import counting
from perf.measure import cases, rows
from perf.measure.op import Point, UnsupportedError
from perf.measure.ops import OPS
from perf.results import Row
from triton_kernels.runtime import device_errors, launch, tile_configs

COLUMNS = ("read", "written", "launches", "allocated", "least_read", "least_written", "least_allocated")

#: Small terms (partial results, statistics of chunks, scalars read by each program): bytes a program may move, and the
#: fraction of the least possible bytes that they may come to in all, or bytes where there is almost nothing to move.
PROGRAM_BYTES, SMALL_FRACTION, SMALL_BYTES = 16, 0.01, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    defaults = dict(shapes="41x1271,8x32000", dtypes="bf16,fp32", reductions="none,mean", modes="forward,backward")
    rows.add_arguments(parser, **defaults, providers="ours,lucid.torch,torch,liger")
    check = "fail where ours moves or allocates more than the least and small terms, or launches too often"
    parser.add_argument("--check", action="store_true", help=check)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    violations = []

    def count(point: Point, provider: str, mode: str) -> Row:
        least = cases.least_cost(point, mode)
        # Grids alone: a launch that is held holds its results, and torch copies a gradient that is referenced.
        grids: list[tuple[int, ...]] = []
        with tile_configs.use_tile_configs(interpreted=False), lucid.torch.kernels_on_cpu():
            case = prepared(point, provider, mode)
            with launch.launch_hook(lambda launched: grids.append(launched.grid)), counting.counted() as counts:
                case.step()
        values: Row = {name: getattr(counts, name) for name in ("read", "written", "launches", "allocated")}
        values |= {"least_read": least.read, "least_written": least.written}
        values |= {"least_allocated": cases.least_allocated(point, mode)}
        if provider in rows.PROMISED:
            violations.append(_violation(point, mode, values, grids))
        return values

    code = rows.record("traffic", COLUMNS, options, count)
    if options.check:
        problems = [line for line in violations if line]
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        print(f"{len(violations)} rows of ours, {len(problems)} beyond the least bytes and small terms")
        return 1 if problems else code
    return code


def prepared(point: Point, provider: str, mode: str) -> cases.Case:
    """A case that has been run once and stands before its step."""
    from triton.runtime.errors import InterpreterError

    if provider == "compile":
        raise UnsupportedError("what torch.compile makes for a GPU cannot run without one")
    device_errors.buffer(torch.device("cpu"))  # made once in a process
    inputs, dloss = cases.make_inputs(point, torch.device("cpu"))
    case = cases.Case(point, provider, mode, inputs, dloss)
    try:
        case.check(cases.truth(point, inputs, dloss))
        case.prepare()
    except InterpreterError as reason:
        raise UnsupportedError(f"its kernel does not run in Triton's interpreter: {reason}") from reason
    except cases.WrongResultError as reason:
        if provider in rows.OURS:
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
        "read": row["least_read"] + small,
        "written": row["least_written"] + small,
        "allocated": row["least_allocated"] + small,
        "launches": op.launches[mode],
    }
    over = [f"{key} {row[key]:,}, at most {limit:,}" for key, limit in limits.items() if row[key] > limit]
    return f"{point} {mode}: {'; '.join(over)}" if over else ""
