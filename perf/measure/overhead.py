"""overhead: what a call costs the host, for small inputs.

On a GPU: host time per call, over many calls that are enqueued without waiting; kernel launches and host syncs per
call, as the profiler sees them. Anywhere: Python calls, the frames that the calling thread enters in a call, without
those of Triton's launcher; they do not depend on the machine.

Without a GPU, or with --count-only, there are no times; launches and syncs are counted in Triton's interpreter. There
an aten operation that does arithmetic, copies or fills counts as a launch, and an operation that hands a value to the
host as a sync.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from perf import results, selection
from perf.count import counting, traffic
from perf.errors import UsageError
from perf.measure import cases, timing
from perf.measure.ops import Point
from perf.results import Row
from triton_kernels.runtime import tile_configs

MEASURED = ("median_us", "p20_us", "p80_us", "launches", "syncs", "python_calls")

#: Calls that are enqueued one after another before the host waits: few enough to fit the launch queue.
CALLS = 64

#: The largest input: all those calls have gradients of their own.
MOST_ELEMENTS = 2**22

#: Calls that are profiled. Starting and stopping the profiler synchronizes, fewer times than this.
PROFILED = 16

_LAUNCH = re.compile(r"(cuda|cu|hip)\w*Launch\w*Kernel\w*")
_SYNC = re.compile(r"(cuda|cu|hip)(Device|Ctx|Stream|Event)Synchronize\w*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    # `compile` takes seconds for each row, and `make perf` 10 minutes in all.
    providers = "ours,lucid.torch,torch,liger"
    selection.add_arguments(parser, shape="64x1000", dtype="fp32", reduction="batchmean", providers=providers)
    repeats = f"timings of {CALLS} calls each, of which the median and quantiles are shown (default: 50)"
    parser.add_argument("--repeats", type=selection.whole, default=50, metavar="N", help=repeats)
    counts = "count launches, syncs and Python calls, and measure no time"
    parser.add_argument("--count-only", action="store_true", help=counts)
    results.add_arguments(parser, append=True)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    results.check_writable(options.csv, options.json)
    counting_only = options.count_only or not torch.cuda.is_available()
    if not (traffic.interpreted() if counting_only else timing.compiled()):
        return 1
    points = selection.points(options)
    for point in points:
        if point.n * point.v > MOST_ELEMENTS:
            accepted = f"at most {MOST_ELEMENTS:,} elements"
            raise UsageError(f"argument --shapes: {point.n}x{point.v} is no small input, accepted: {accepted}")
    if counting_only and not options.count_only:
        print("no GPU is available: launches, syncs and Python calls are counted, times are left out", file=sys.stderr)
    headings = {} if counting_only else {"median_us": "µs", "p20_us": "20 %", "p80_us": "80 %"}
    headings |= {"launches": "launches", "syncs": "syncs", "python_calls": "Python calls"}
    rows = overhead(None if counting_only else timing.Cuda(), points, options)
    return cases.record("overhead", rows, MEASURED, options, "Per call", headings)


def overhead(device: timing.Cuda | None, points: Sequence[Point], options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for every point, provider and mode, as it is measured; counted where there is no device."""
    work = cases.Workload(device.torch if device else torch.device("cpu"), options.modes)

    def count(values: Row, point: Point, provider: str, mode: str) -> None:
        with tile_configs.use_tile_configs(interpreted=False):
            case = traffic.prepared(work, point, provider, mode)
            with counting.counted() as counts:
                case.step()
            case.clear()
            case.prepare()
            calls = counting.python_calls(case.step)
        values |= {"launches": counts.launches, "syncs": counts.syncs, "python_calls": calls}

    def measure(values: Row, point: Point, provider: str, mode: str) -> None:
        assert device is not None
        made = work.cases(point, provider, mode, copies=CALLS)
        work.check(made[0])
        host = host_us(device, made, options.repeats)
        launches, syncs = profiled(device, made[:PROFILED])
        made[0].prepare()
        calls = counting.python_calls(made[0].step)
        values |= {"median_us": host.median, "p20_us": host.p20, "p80_us": host.p80}
        values |= {"launches": launches, "syncs": syncs, "python_calls": calls}

    return cases.rows(points, options, MEASURED, measure if device else count)


def host_us(
    device: timing.Cuda,
    cases: Sequence[timing.Steps],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> timing.Timing:
    """Host time per call in µs, each timing over all cases; the device is waited for only before and after."""
    times, collecting = [], gc.isenabled()
    for _ in range(repeats + 1):
        with timing.ready(device, cases):
            gc.disable()
            start = clock()
            for case in cases:
                case.step()
            times.append((clock() - start) * 1e6 / len(cases))
            if collecting:
                gc.enable()
    return timing.summary(times[1:])  # the first compiled, and filled the allocator's pools


def profiled(device: timing.Cuda, cases: Sequence[timing.Steps]) -> tuple[int, int]:
    """Kernel launches and host syncs per call."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with timing.ready(device, cases), torch.profiler.profile(activities=activities) as profile:
        for case in cases:
            case.step()
    return per_call([event.name for event in profile.events()], len(cases))


def per_call(names: Sequence[str], calls: int) -> tuple[int, int]:
    """Launches and syncs per call, from the names of what was called on the driver and the runtime.

    >>> per_call(["cudaLaunchKernel", "cuLaunchKernelEx", "aten::mul", "cudaDeviceSynchronize"], 2)
    (1, 0)
    """
    launches = sum(_LAUNCH.fullmatch(name) is not None for name in names)
    syncs = sum(_SYNC.fullmatch(name) is not None for name in names)
    return launches // calls, syncs // calls
