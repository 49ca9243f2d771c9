"""Time on a device: events around each step, cold caches, and a device kept busy while the host prepares.

A round times each of a few cases, with inputs of their own, once. Before it the L2 cache is filled with something else,
and the device is held for as long as the host needs to enqueue the round, so that what lies between two events is the
device's work and not the host's (which `overhead` measures).
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from triton_kernels.runtime import backend

#: Timed steps at least and at most, whatever the budget; and the longest that the device is held, in ms.
LEAST, MOST, LONGEST_HOLD = 10, 200, 50.0


class Steps(Protocol):
    """What can be timed: `prepare` and `clear` are not."""

    def prepare(self) -> None: ...
    def step(self) -> Any: ...
    def clear(self) -> None: ...


class Call:
    """A function as what can be timed."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self._result = function, None

    def prepare(self) -> None: ...

    def step(self) -> None:
        self._result = self._function()

    def clear(self) -> None:
        self._result = None


class Cuda:
    """The current GPU, through torch.cuda: NVIDIA's, or AMD's by the same names."""

    def __init__(self) -> None:
        self.torch = torch.device("cuda", torch.cuda.current_device())
        self.cache_bytes: int = torch.cuda.get_device_properties(self.torch).L2_cache_size
        self._other = torch.zeros(max(1, 2 * self.cache_bytes // 4), dtype=torch.float32, device=self.torch)
        self._before = 0

    def free_bytes(self) -> int:
        """Return how much tensors can have, once caches of unused memory are emptied."""
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.torch)[0]

    def empty_caches(self) -> None:
        """Fill the L2 cache with something else; by reading, which leaves nothing to be written back later."""
        self._other.sum()

    def hold(self, ms: float) -> None:
        """Keep the device busy for about so long: cycles of a clock of 2 GHz; ROCm's sleep has another unit."""
        if torch.version.hip is None:
            torch.cuda._sleep(int(ms * 2e6))

    def mark(self) -> Any:
        """Return a point in the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed(self, before: Any, after: Any) -> float:
        """Return the ms between two marks that the device has passed."""
        return float(before.elapsed_time(after))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)

    def start_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.torch)
        self._before = torch.cuda.memory_allocated(self.torch)

    def peak_bytes(self) -> int:
        """Return the most that was in use since `start_peak`, beyond what was in use then."""
        return torch.cuda.max_memory_allocated(self.torch) - self._before


def compiled() -> bool:
    """Return whether kernels are compiled, as they must be to be timed; say so in one line where they are not."""
    if backend.INTERPRETED:
        print("timing requires compiled kernels: unset TRITON_INTERPRET", file=sys.stderr)
    return not backend.INTERPRETED


class Timing(NamedTuple):
    """The median and the 20 % and 80 % quantiles of repeated timings, in their unit."""

    median: float
    p20: float
    p80: float


def summary(times: Sequence[float]) -> Timing:
    """
    >>> summary([5.0, 1.0, 2.0, 3.0, 4.0])
    Timing(median=3.0, p20=1.8, p80=4.2)
    """
    return Timing(*np.quantile(times, (0.5, 0.2, 0.8)).tolist())


@contextmanager
def ready(device: Cuda, cases: Sequence[Steps]) -> Iterator[None]:
    """Have cases prepared and the device idle; wait for it at the end, and clear the cases."""
    for case in cases:
        case.prepare()
    device.synchronize()
    yield
    device.synchronize()
    for case in cases:
        case.clear()


def measure(device: Cuda, cases: Sequence[Steps], budget_ms: float) -> Timing:
    """Times of a step in ms, over rounds of all cases, for about `budget_ms` of the device's time."""
    for _ in range(2):  # compile, and fill the allocator's pools
        with ready(device, cases[:1]):
            start = time.perf_counter()
            cases[0].step()
            host_ms = (time.perf_counter() - start) * 1e3
    hold = min(LONGEST_HOLD, 0.1 + 1.5 * host_ms * len(cases))
    estimate = statistics.median(_round(device, cases, hold))
    wanted = min(MOST, max(LEAST, budget_ms / max(estimate, 1e-3)))
    rounds = range(math.ceil(wanted / len(cases)))
    return summary([ms for _ in rounds for ms in _round(device, cases, hold)])


def _round(device: Cuda, cases: Sequence[Steps], hold: float) -> list[float]:
    with ready(device, cases):
        device.empty_caches()
        device.hold(hold)
        marks = []
        for case in cases:
            before = device.mark()
            case.step()
            marks.append((before, device.mark()))
    return [device.elapsed(before, after) for before, after in marks]


def peak(device: Cuda, case: Steps) -> int:
    """The bytes that a step needs beyond what is there before it: results and temporaries."""
    with ready(device, [case]):
        device.start_peak()
        case.step()
        device.synchronize()
        return device.peak_bytes()


def copy_gbps(device: Cuda, budget_ms: float, most: int = 2**31) -> float:
    """Bytes read and written a second by torch's copy of at most `most` random bytes, in GB/s: the roofline.

    Memory and its caches may compress bytes that are all the same.
    """
    size = min(most, device.free_bytes() // 4)
    a, b = (torch.randint(256, (size,), dtype=torch.uint8, device=device.torch) for _ in range(2))
    timing = measure(device, [Call(lambda: a.copy_(b)), Call(lambda: b.copy_(a))], budget_ms)
    return 2 * size / timing.median / 1e6
