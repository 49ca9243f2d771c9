"""sweep: time providers over shapes, on a GPU.

Each provider runs each mode of each op, shape, dtype and reduction; what it calculates is compared with float64 before
it is timed, and what is wrong or fails is reported and not timed. Times are medians of CUDA events with cold caches.
Backward starts from leaf inputs and a gradient that is there already, so that it times nothing but the op.

GB/s are the least possible bytes, the same for every provider, over the time; the roofline is what a device-to-device
copy reads and writes a second in the same run. Memory is what a step needs beyond its inputs. The error is the largest,
as a fraction of what arithmetic wholly in the dtype of the inputs may lose.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from perf import results, selection
from perf.errors import UnsupportedError
from perf.measure import cases, timing
from perf.measure.ops import Point
from perf.results import Row

NO_GPU = "no GPU is available: nothing to time; `traffic` and `static` count and predict without one"

MEASURED = (
    *("median_ms", "p20_ms", "p80_ms", "least_bytes"),
    *("gbps", "copy_gbps", "roof_fraction", "peak_mib", "max_error"),
)

#: Sets of inputs that a round goes through: no more than this many, however small they are.
MOST_SETS = 64

#: Seconds that compiling a point for `compile`, and making its inputs and its truth, are taken to last in the estimate.
COMPILE_S, CHECK_S = 6.0, 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    selection.add_arguments(parser, shape="target,512x4096", dtype="bf16,fp32", reduction="batchmean")
    limits = f"device time for a row, within {timing.LEAST} to {timing.MOST} repetitions (default: 50)"
    parser.add_argument("--budget-ms", type=selection.positive, default=50.0, metavar="MS", help=limits)
    limit = "start no more points after so many seconds; the rest is reported as skipped (default: 420)"
    parser.add_argument("--time-limit", type=selection.positive, default=420.0, metavar="S", help=limit)
    results.add_arguments(parser, append=True)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    results.check_writable(options.csv, options.json)
    points = selection.points(options)
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 1
    if not timing.compiled():
        return 1
    minutes = estimate(len(points), len(options.modes), options.providers, options.budget_ms) / 60
    limit = f"none started after {options.time_limit:g} s"
    print(f"points: {len(points)}; about {minutes:.0f} min, {limit}", file=sys.stderr)
    rows = sweep(timing.Cuda(), points, options)
    headings = {"median_ms": "ms", "gbps": "GB/s", "copy_gbps": "copy GB/s", "roof_fraction": "of roofline"}
    return cases.record("sweep", rows, MEASURED, options, "", headings | {"peak_mib": "MiB", "max_error": "error"})


def estimate(points: int, modes: int, providers: Sequence[str], budget_ms: float) -> float:
    """About how many seconds a sweep takes: each row its budget twice over, for backward's untimed forward."""
    compiling = COMPILE_S if "compile" in providers else 0.0
    return points * (compiling + CHECK_S + len(providers) * modes * (2 * budget_ms / 1e3 + 0.1))


def sweep(
    device: timing.Cuda,
    points: Sequence[Point],
    options: argparse.Namespace,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Row]:
    """Yield a row for every point, provider and mode, as it is measured."""
    deadline = clock() + options.time_limit
    copy = timing.copy_gbps(device, options.budget_ms)
    work = cases.Workload(device.torch, options.modes)
    late = False

    def fill(values: Row, point: Point, provider: str, mode: str) -> None:
        nonlocal late
        if work.enter(point):
            late = clock() >= deadline
            device.free_bytes()  # empties the allocator's cache
        if late:
            raise UnsupportedError(f"the time limit of {options.time_limit:g} s had passed")
        made = work.cases(point, provider, mode, input_sets(device, point))
        values["max_error"] = work.check(made[0])
        time = timing.measure(device, made, options.budget_ms)
        least = cases.least_cost(point, mode).bytes
        gbps = least / time.median / 1e6
        values |= {"median_ms": time.median, "p20_ms": time.p20, "p80_ms": time.p80, "least_bytes": least}
        values |= {"gbps": gbps, "copy_gbps": copy, "roof_fraction": gbps / copy}
        values["peak_mib"] = timing.peak(device, made[0]) / 2**20

    yield from cases.rows(points, options, MEASURED, fill)


def input_sets(device: timing.Cuda, point: Point) -> int:
    """How many sets of inputs exceed the L2 cache twice over; two at least."""
    inputs, dloss = cases.empty_inputs(point, torch.device("meta"))
    size = sum(tensor.nbytes for tensor in (*inputs.values(), dloss))
    return max(2, min(MOST_SETS, math.ceil(2 * device.cache_bytes / size)))
