"""sweep: time providers over shapes, on a GPU.

Each provider runs each mode of each op, shape, dtype and reduction; what it calculates is compared with float64 before
it is timed, and what is wrong or fails is reported and not timed. Times are medians of CUDA events with cold caches.
Backward starts from leaf inputs and a gradient that is there already, so that it times nothing but the op.

GB/s are the least possible bytes, the same for every provider, over the time; the roof is what a device-to-device copy
reads and writes a second in the same run. Memory is what a step needs beyond its inputs. The error is the largest, as a
fraction of what arithmetic wholly in the dtype of the inputs may lose.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from perf import output, selection, timing
from perf import rows as shared
from perf.environment import COLUMNS as ENVIRONMENT
from perf.environment import environment
from perf.output import Row
from perf.progress import progress

if TYPE_CHECKING:
    from perf.cases import Point, Truth

HELP = "time providers over shapes, on a GPU"

NO_GPU = "there is no GPU here, so there is no time to measure; `traffic` and `static` prove what can be proved without"

MEASURED = (
    "median_ms",
    "p20_ms",
    "p80_ms",
    "least_bytes",
    "gbps",
    "copy_gbps",
    "roof_fraction",
    "peak_mib",
    "max_error",
)

#: Sets of inputs that a round goes through: no more than this many, however small they are.
MOST_SETS = 64

#: Seconds that compiling a point for `compile`, and making its inputs and its truth, are taken to last in the estimate.
COMPILE_S, CHECK_S = 6.0, 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    selection.add_arguments(parser, shape="target,512x4096", dtype="bf16,fp32", reduction="batchmean")
    parser.add_argument(
        "--budget-ms",
        type=selection.positive,
        default=80.0,
        metavar="MS",
        help=f"device time for a row, within {timing.LEAST} to {timing.MOST} repetitions (default: 80)",
    )
    parser.add_argument(
        "--time-limit",
        type=selection.positive,
        default=420.0,
        metavar="S",
        help="start no more points after so many seconds; the rest is reported as skipped (default: 420)",
    )
    output.add_arguments(parser)
    output.add_append(parser)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    output.check_writable(options.csv, options.json)
    points = selection.points(options)
    writing = output.writing("sweep", (*shared.COLUMNS, *MEASURED, *ENVIRONMENT), options)
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 1
    if not timing.compiled():
        return 1
    seconds = estimate(len(points), len(options.modes), options.providers, options.budget_ms)
    print(
        f"points: {len(points)}; about {seconds / 60:.0f} min, none started after {options.time_limit:g} s",
        file=sys.stderr,
    )
    rows: list[Row] = []
    try:
        with writing as write_row:
            for row in sweep(timing.Cuda(), points, options, environment()):
                write_row(row)
                rows.append(row)
    finally:  # an interrupted sweep shows what it has
        if rows:
            _show(rows)
    return 1 if shared.failures(rows) else 0


def estimate(points: int, modes: int, providers: Sequence[str], budget_ms: float) -> float:
    """About how many seconds a sweep takes: each row its budget twice over, for backward's untimed forward."""
    compiling = COMPILE_S if "compile" in providers else 0.0
    return points * (compiling + CHECK_S + len(providers) * modes * (2 * budget_ms / 1e3 + 0.1))


def sweep(
    device: timing.Device,
    points: Sequence[Point],
    options: argparse.Namespace,
    columns: Row,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Row]:
    """Yield a row for every point, provider and mode, as it is measured; each ends with `columns`."""
    deadline = clock() + options.time_limit
    copy = timing.copy_gbps(device, options.budget_ms)
    from perf import cases

    with cases.quiet(), progress(len(points)) as advance:
        for point in points:
            advance(f"{point.op} {point.n}x{point.v}")
            reason = _late(clock(), deadline, options.time_limit)
            if reason:
                outcomes: Iterator[Outcome] = (
                    (provider, mode, {"status": reason}) for provider in options.providers for mode in options.modes
                )
            else:
                outcomes = _point(device, point, options, copy)
            for outcome in outcomes:
                yield _row(point, *outcome, columns)


Outcome = tuple[str, str, dict[str, Any]]


def _point(device: timing.Device, point: Point, options: argparse.Namespace, copy: float) -> Iterator[Outcome]:
    from perf import cases, providers

    count, names = _sets(device, point), cases.result_names(point, options.modes)
    reasons = _too_large(device, point, options, count, names)
    fits = not all(reasons.values())
    sets = [cases.make_inputs(point, device.torch, seed) for seed in range(count if fits else 0)]
    truth = cases.Truth(point, *sets[0], names) if fits else None
    for provider in options.providers:
        if all(reasons[provider, mode] for mode in options.modes):
            yield from ((provider, mode, {"status": reasons[provider, mode]}) for mode in options.modes)
            continue
        try:
            function = providers.function(provider, point)
        except Exception as error:  # whatever a provider raises is the finding
            status = shared.failure(error)
            yield from ((provider, mode, {"status": status}) for mode in options.modes)
            continue
        for mode in options.modes:
            if reasons[provider, mode]:
                yield provider, mode, {"status": reasons[provider, mode]}
                continue
            subjects: list[providers.Subject] = []
            try:
                subjects += [providers.Subject(provider, function, point, mode, *inputs) for inputs in sets]
                assert truth is not None
                values = _measured(device, point, mode, subjects, truth, options.budget_ms, copy)
            except Exception as error:
                values = {"status": shared.failure(error)}
            del subjects  # with what a failure left in them
            yield provider, mode, values


def _measured(
    device: timing.Device,
    point: Point,
    mode: str,
    subjects: Sequence[Any],
    truth: Truth,
    budget_ms: float,
    copy: float,
) -> dict[str, Any]:
    from perf import cases

    error = truth.error(subjects[0].results())
    if error > 1:
        return {"status": f"failed: wrong by {error:.3g} times what it may be", "max_error": error}
    time = timing.measure(device, subjects, budget_ms)
    least = cases.least_cost(point, mode).bytes
    gbps = least / time.median / 1e6
    return {
        "status": "ok",
        "median_ms": time.median,
        "p20_ms": time.p20,
        "p80_ms": time.p80,
        "least_bytes": least,
        "gbps": gbps,
        "copy_gbps": copy,
        "roof_fraction": gbps / copy,
        "peak_mib": timing.peak(device, subjects[0]) / 2**20,
        "max_error": error,
    }


def _sets(device: timing.Device, point: Point) -> int:
    """How many sets of inputs exceed the L2 cache twice over; two at least."""
    from perf import cases

    size = sum(size for name, size in cases.input_bytes(point).items() if name != "output")
    return max(2, min(MOST_SETS, math.ceil(2 * device.cache_bytes / size)))


def _too_large(
    device: timing.Device, point: Point, options: argparse.Namespace, sets: int, names: tuple[str, ...]
) -> dict[tuple[str, str], str]:
    """Why a provider's row of a mode is skipped, if it does not fit; empty where it does."""
    from perf import memory

    free, reasons = device.free_bytes(), {}
    for provider in options.providers:
        for mode in options.modes:
            needed = memory.needed(point, provider, mode, sets, names)
            gib = f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} free"
            reasons[provider, mode] = f"skipped: needs {gib}" if needed > free else ""
    return reasons


def _late(now: float, deadline: float, limit: float) -> str:
    return f"skipped: the time limit of {limit:g} s had passed" if now >= deadline else ""


def _row(point: Point, provider: str, mode: str, values: dict[str, Any], columns: Row) -> Row:
    row = {**shared.identity(point, provider, mode), "status": values["status"]}
    return row | {key: values.get(key) for key in MEASURED} | columns


def _show(rows: Sequence[Row]) -> None:
    copies = [row["copy_gbps"] for row in rows if row["copy_gbps"]]
    headings = {"median_ms": "ms", "gbps": "GB/s", "roof_fraction": "of roof", "peak_mib": "MiB", "max_error": "error"}
    shared.show(f"{rows[0]['gpu']}; copy {copies[0] if copies else 0:,.0f} GB/s", rows, headings)
