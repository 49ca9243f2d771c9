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
import time
from collections.abc import Sequence

import torch

from perf import results
from perf.count import counting, traffic
from perf.measure import cases, rows, timing
from perf.measure.op import Point
from perf.results import Row
from triton_kernels.runtime import tile_configs

COLUMNS = ("median_us", "p20_us", "p80_us", "launches", "syncs", "python_calls")

#: Calls that are enqueued one after another before the host waits: few enough to fit the launch queue.
CALLS = 64

#: Calls that are profiled. Starting and stopping the profiler synchronizes, fewer times than this.
PROFILED = 16

_LAUNCH = re.compile(r"(cuda|cu|hip)\w*Launch\w*Kernel\w*")
_SYNC = re.compile(r"(cuda|cu|hip)(Device|Ctx|Stream|Event)Synchronize\w*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    # `compile` takes seconds for each row, and `make perf` 10 minutes in all.
    defaults = dict(shapes="64x1000", dtypes="fp32", reductions="batchmean", modes=",".join(cases.MODES))
    rows.add_arguments(parser, **defaults, providers="ours,lucid.torch,torch,liger")
    parser.add_argument(
        "--repeats", type=results.positive, default=50, metavar="N", help=f"timings of {CALLS} calls (default: 50)"
    )
    counts = "count launches, syncs and Python calls, and measure no time"
    parser.add_argument("--count-only", action="store_true", help=counts)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""

    def measure(point: Point, provider: str, mode: str) -> Row:
        inputs, dloss = cases.make_inputs(point, torch.device("cuda"))
        made = [cases.Case(point, provider, mode, inputs, dloss) for _ in range(CALLS)]
        made[0].check(cases.truth(point, inputs, dloss))
        host = host_us(made, options.repeats)
        launches, syncs = profiled(made[:PROFILED])
        made[0].prepare()
        return dict(zip(COLUMNS, (*host, launches, syncs, counting.python_calls(made[0].step)), strict=True))

    return rows.record(
        "overhead", COLUMNS, options, count if options.count_only or not torch.cuda.is_available() else measure
    )


def count(point: Point, provider: str, mode: str) -> Row:
    """Launches, syncs and Python calls, in Triton's interpreter."""
    with tile_configs.use_tile_configs(interpreted=False):
        case = traffic.prepared(point, provider, mode)
        with counting.counted() as counts:
            case.step()
        case.clear()
        case.prepare()
        calls = counting.python_calls(case.step)
    return {"launches": counts.launches, "syncs": counts.syncs, "python_calls": calls}


def host_us(made: Sequence[timing.Steps], repeats: int) -> timing.Timing:
    """Host time per call in µs, each timing over all cases; the device is waited for only before and after."""
    times, collecting = [], gc.isenabled()
    for _ in range(repeats + 1):
        for case in made:
            case.prepare()
        torch.cuda.synchronize()
        gc.disable()
        start = time.perf_counter()
        for case in made:
            case.step()
        times.append((time.perf_counter() - start) * 1e6 / len(made))
        if collecting:
            gc.enable()
        torch.cuda.synchronize()
        for case in made:
            case.clear()
    return timing.summary(times[1:])  # the first compiled, and filled the allocator's pools


def profiled(made: Sequence[timing.Steps]) -> tuple[int, int]:
    """Kernel launches and host syncs per call."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for case in made:
        case.prepare()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        for case in made:
            case.step()
    for case in made:
        case.clear()
    return per_call([event.name for event in profile.events()], len(made))


def per_call(names: Sequence[str], calls: int) -> tuple[int, int]:
    """Launches and syncs per call, from the names of what was called on the driver and the runtime.

    >>> per_call(["cudaLaunchKernel", "cuLaunchKernelEx", "aten::mul", "cudaDeviceSynchronize"], 2)
    (1, 0)
    """
    launches = sum(_LAUNCH.fullmatch(name) is not None for name in names)
    syncs = sum(_SYNC.fullmatch(name) is not None for name in names)
    return launches // calls, syncs // calls
