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
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from perf import output, selection
from perf import rows as shared
from perf.environment import COLUMNS as ENVIRONMENT
from perf.environment import environment
from perf.output import Row
from perf.progress import progress

if TYPE_CHECKING:
    from perf.cases import Point

HELP = "count bytes, launches and allocations, without a GPU"

COUNTED = ("read", "written", "launches", "allocated", "least_read", "least_written", "least_allocated")

#: Small terms (partial results, statistics of chunks, scalars read by each program): bytes a program may move, and the
#: fraction of the least possible bytes that they may come to in all, or bytes where there is almost nothing to move.
PROGRAM_BYTES, SMALL_FRACTION, SMALL_BYTES = 16, 0.01, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    selection.add_arguments(
        parser,
        shape="41x1271,8x32000",
        dtype="bf16,fp32",
        reduction="none,mean",
        providers="ours,lucid.torch,torch,liger",
        mode="forward,backward",
    )
    parser.add_argument(
        "--tiles",
        choices=("gpu", "interpreter"),
        default="gpu",
        help="whose tile sizes ours uses: a GPU's, or the interpreter's larger ones (default: gpu)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="fail where ours moves or allocates more than the least and small terms, or launches too often",
    )
    output.add_arguments(parser)
    output.add_append(parser)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    output.check_writable(options.csv, options.json)
    if not interpret():
        return 1
    from perf import cases

    points = selection.points(options)
    columns = environment()
    rows: list[Row] = []
    complaints: list[str] = []
    writing = output.writing("traffic", (*shared.COLUMNS, *COUNTED, *ENVIRONMENT), options)
    with writing as write_row, cases.quiet(), progress(len(points)) as advance:
        for point in points:
            advance(f"{point.op} {point.n}x{point.v}")
            for provider in options.providers:
                for mode in options.modes:
                    row, complaint = count(point, provider, mode, options.tiles == "interpreter")
                    rows.append(row | columns)
                    write_row(rows[-1])
                    complaints += [complaint] if complaint else []
    _show(rows)
    problems = shared.failures(rows) + (complaints if options.check else [])
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.check and not problems:
        checked = sum(row["provider"] in selection.OURS for row in rows)
        print(f"{checked} of ours move the least possible bytes, but for small terms and declared second reads")
    return 1 if problems else 0


def interpret() -> bool:
    """Switch Triton's interpreter on, on any machine; says so in one line where it is too late."""
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    from triton_kernels.runtime import backend

    if not backend.INTERPRETED:
        print("bytes are counted in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts", file=sys.stderr)
    return backend.INTERPRETED


def count(point: Point, provider: str, mode: str, interpreted: bool) -> tuple[Row, str]:
    """A row without the environment, and what is wrong with it, if anything."""
    import lucid.torch
    from perf import cases, counting
    from triton_kernels.runtime import launch, tile_configs

    least = cases.least_cost(point, mode)
    row: Row = {**shared.identity(point, provider, mode), "status": "ok"} | dict.fromkeys(COUNTED)
    row |= {"least_read": least.read, "least_written": least.written, "least_allocated": least.written}
    with tile_configs.use_tile_configs(interpreted=interpreted), lucid.torch.kernels_on_cpu():
        subject, row["status"] = prepared(point, provider, mode)
        if subject is None:
            return row, ""
        # Grids alone: a launch that is kept keeps its results, and a gradient that somebody keeps is copied by torch.
        grids: list[tuple[int, ...]] = []
        with launch.launch_hook(lambda launched: grids.append(launched.grid)), counting.counted() as counts:
            subject.step()
    row |= {name: getattr(counts, name) for name in ("read", "written", "launches", "allocated")}
    return row, _complaint(point, mode, row, grids) if provider in selection.OURS else ""


def prepared(point: Point, provider: str, mode: str) -> tuple[Any, str]:
    """A subject that has been run once and stands before its step, and a status; None where it does not run here."""
    from triton.runtime.errors import InterpreterError

    from perf import cases, providers

    if provider == "compile":
        return None, "skipped: what torch.compile makes for a GPU cannot run without one"
    try:
        function = providers.function(provider, point)
        inputs, dloss = cases.make_inputs(point, torch.device("cpu"), 0)
        subject = providers.Subject(provider, function, point, mode, inputs, dloss)
        error = cases.largest_error(point, inputs, dloss, subject.results())
        subject.prepare()
    except InterpreterError as reason:
        return None, f"skipped: its kernel does not run in Triton's interpreter: {reason}"
    except Exception as reason:  # whatever a provider raises is the finding
        return None, shared.failure(reason)
    if error > 1 and provider in selection.OURS:
        return None, f"failed: wrong by {error:.3g} times what it may be"
    # The interpreter multiplies bf16 values as if they were integers, which is no fault of theirs.
    return (None, "skipped: its result is wrong in Triton's interpreter") if error > 1 else (subject, "ok")


def _complaint(point: Point, mode: str, row: Row, grids: Iterable[tuple[int, ...]]) -> str:
    from perf import cases

    op = cases.OPS[point.op]
    # A program of a split row reads what each of the row's chunks found.
    small = sum(PROGRAM_BYTES * math.prod(grid) * math.prod(grid[1:]) for grid in grids)
    small = op.statistics(point, mode) + min(
        small, max(SMALL_BYTES, int(SMALL_FRACTION * (row["least_read"] + row["least_written"])))
    )
    limits = {
        "read": row["least_read"] + op.rereads(point, mode) + small,
        "written": row["least_written"] + small,
        "allocated": row["least_allocated"] + small,
        "launches": op.launches[mode],
    }
    over = [f"{key} {row[key]:,}, at most {limit:,}" for key, limit in limits.items() if row[key] > limit]
    return f"{shared.label(row)}: {'; '.join(over)}" if over else ""


def _show(rows: Sequence[Row]) -> None:
    shown = []
    for row in rows:
        done = row["read"] is not None
        moved, least = row["read"] + row["written"] if done else None, row["least_read"] + row["least_written"]
        shown.append(row | {"least": least, "ratio": moved / least if done else None})
    headings = {"read": "read", "written": "written", "least": "least", "ratio": "ratio"}
    headings |= {"launches": "launches", "allocated": "allocated"}
    shared.show("Bytes moved, in Triton's interpreter", shown, headings)
