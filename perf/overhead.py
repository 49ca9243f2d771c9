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
from typing import TYPE_CHECKING, Any

import torch

from perf import output, selection, timing, traffic
from perf import rows as shared
from perf.environment import COLUMNS as ENVIRONMENT
from perf.environment import environment
from perf.errors import UsageError
from perf.output import Row
from perf.progress import progress

if TYPE_CHECKING:
    from perf.cases import Point, Tensors, Truth

HELP = "host time, launches and host syncs per call"

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
    parser.add_argument(
        "--repeats",
        type=selection.whole,
        default=50,
        metavar="N",
        help=f"timings of {CALLS} calls each, of which the median and quantiles are shown (default: 50)",
    )
    parser.add_argument(
        "--count-only", action="store_true", help="count launches, syncs and Python calls, and measure no time"
    )
    output.add_arguments(parser)
    output.add_append(parser)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    output.check_writable(options.csv, options.json)
    counting = options.count_only or not torch.cuda.is_available()
    if not (traffic.interpret() if counting else timing.compiled()):
        return 1
    points = selection.points(options)
    for point in points:
        if point.n * point.v > MOST_ELEMENTS:
            accepted = f"at most {MOST_ELEMENTS:,} elements"
            raise UsageError(f"argument --shapes: {point.n}x{point.v} is no small input, accepted: {accepted}")
    if counting and not options.count_only:
        print("there is no GPU here: launches, syncs and Python calls are counted, times are left out", file=sys.stderr)
    device = None if counting else timing.Cuda()
    rows: list[Row] = []
    with output.writing("overhead", (*shared.COLUMNS, *MEASURED, *ENVIRONMENT), options) as write_row:
        for row in overhead(device, points, options, environment()):
            write_row(row)
            rows.append(row)
    headings = {"median_us": "µs", "p20_us": "20 %", "p80_us": "80 %"} if device else {}
    headings |= {"launches": "launches", "syncs": "syncs", "python_calls": "Python calls"}
    shared.show("Per call", rows, headings)
    return 1 if shared.failures(rows) else 0


def overhead(
    device: timing.Device | None, points: Sequence[Point], options: argparse.Namespace, columns: Row
) -> Iterator[Row]:
    """Yield a row for every point, provider and mode, as it is measured; counted where there is no device."""
    from perf import cases

    total = len(points) * len(options.providers) * len(options.modes)
    with cases.quiet(), progress(total) as advance:
        for point in points:
            if device is not None:
                inputs = cases.make_inputs(point, device.torch, 0)
                truth = cases.Truth(point, *inputs, cases.result_names(point, options.modes))
            for provider in options.providers:
                for mode in options.modes:
                    advance(f"{point.op} {point.n}x{point.v} {provider} {mode}")
                    values = (
                        _counted(point, provider, mode)
                        if device is None
                        else _measured(device, point, provider, mode, inputs, truth, options.repeats)
                    )
                    row = {**shared.identity(point, provider, mode), "status": values["status"]}
                    yield row | {key: values.get(key) for key in MEASURED} | columns


def _counted(point: Point, provider: str, mode: str) -> dict[str, Any]:
    from perf import counting
    from triton_kernels.runtime import tile_configs

    with tile_configs.use_tile_configs(interpreted=False):
        subject, status = traffic.prepared(point, provider, mode)
        if subject is None:
            return {"status": status}
        with counting.counted() as counts:
            subject.step()
        subject.clear()
        subject.prepare()
        calls = counting.python_calls(subject.step)
    return {"status": status, "launches": counts.launches, "syncs": counts.syncs, "python_calls": calls}


def _measured(
    device: timing.Device,
    point: Point,
    provider: str,
    mode: str,
    inputs: tuple[Tensors, torch.Tensor],
    truth: Truth,
    repeats: int,
) -> dict[str, Any]:
    from perf import counting, providers

    try:
        function = providers.function(provider, point)
        subjects = [providers.Subject(provider, function, point, mode, *inputs) for _ in range(CALLS)]
        error = truth.error(subjects[0].results())
        if error > 1:
            return {"status": f"failed: wrong by {error:.3g} times what it may be"}
        host = host_us(device, subjects, repeats)
        launches, syncs = profiled(device, subjects[:PROFILED])
        subjects[0].prepare()
        calls = counting.python_calls(subjects[0].step)
    except Exception as reason:  # whatever a provider raises is the finding
        return {"status": shared.failure(reason)}
    times = {"median_us": host.median, "p20_us": host.p20, "p80_us": host.p80}
    return {"status": "ok", **times, "launches": launches, "syncs": syncs, "python_calls": calls}


def host_us(
    device: timing.Device,
    subjects: Sequence[timing.Steps],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> timing.Timing:
    """Host time per call in µs, each timing over all subjects; the device is waited for only before and after."""
    times = []
    for _ in range(repeats + 1):
        for subject in subjects:
            subject.prepare()
        device.synchronize()
        collecting = gc.isenabled()
        gc.disable()
        start = clock()
        for subject in subjects:
            subject.step()
        times.append((clock() - start) * 1e6 / len(subjects))
        if collecting:
            gc.enable()
        device.synchronize()
        for subject in subjects:
            subject.clear()
    return timing.Timing.of(times[1:])  # the first compiled, and filled the allocator's pools


def profiled(device: timing.Device, subjects: Sequence[timing.Steps]) -> tuple[int, int]:
    """Kernel launches and host syncs per call."""
    for subject in subjects:
        subject.prepare()
    device.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for subject in subjects:
            subject.step()
    device.synchronize()
    for subject in subjects:
        subject.clear()
    return per_call([event.name for event in profile.events()], len(subjects))


def per_call(names: Sequence[str], calls: int) -> tuple[int, int]:
    """Launches and syncs per call, from the names of what was called on the driver and the runtime.

    >>> per_call(["cudaLaunchKernel", "cuLaunchKernelEx", "aten::mul", "cudaDeviceSynchronize"], 2)
    (1, 0)
    """
    launches = sum(_LAUNCH.fullmatch(name) is not None for name in names)
    syncs = sum(_SYNC.fullmatch(name) is not None for name in names)
    return launches // calls, syncs // calls
