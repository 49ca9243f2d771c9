"""Time on a GPU: events around each step, cold caches, and a device kept busy while the host enqueues.

Before each step the L2 cache is filled with something else, and the device is held for as long as the host needs to
enqueue the step, so that what lies between two events is the device's work and not the host's (which `overhead`
measures).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

#: Timed steps at least and at most, whatever the budget; and the longest that the device is held, in ms.
LEAST, MOST, LONGEST_HOLD = 10, 200, 20.0


class Steps(Protocol):
    """What can be timed: `prepare` and `clear` are not."""

    def prepare(self) -> None: ...
    def step(self) -> Any: ...
    def clear(self) -> None: ...


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
    p20, *_, p80 = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), p20, p80)


class Gpu:
    """The current GPU: NVIDIA's, or AMD's by the same names."""

    def __init__(self) -> None:
        self.torch = torch.device("cuda", torch.cuda.current_device())
        l2 = torch.cuda.get_device_properties(self.torch).L2_cache_size
        self._other = torch.zeros(max(1, 2 * l2 // 4), dtype=torch.float32, device=self.torch)

    def empty_cache(self) -> None:
        """Return unused memory to the device."""
        torch.cuda.empty_cache()

    def measure(self, case: Steps, budget_ms: float) -> Timing:
        """Times of a step in ms, for about `budget_ms` of the device's time."""
        for _ in range(2):  # the first compiles, and fills the allocator's pools
            case.prepare()
            torch.cuda.synchronize()
            start = time.perf_counter()
            case.step()
            hold = min(LONGEST_HOLD, 0.1 + 1.5e3 * (time.perf_counter() - start))
            case.clear()
        estimate = self._once(case, hold)
        repeats = max(LEAST, min(MOST, int(budget_ms / max(estimate, 1e-3))))
        return summary([self._once(case, hold) for _ in range(repeats)])

    def _once(self, case: Steps, hold_ms: float) -> float:
        case.prepare()
        self._other.sum()  # reads: nothing is left to be written back later
        if torch.version.hip is None:  # ROCm's sleep has another unit
            torch.cuda._sleep(int(hold_ms * 2e6))  # cycles of a clock of 2 GHz
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        case.step()
        after.record()
        torch.cuda.synchronize()
        case.clear()
        return float(before.elapsed_time(after))

    def peak_bytes(self, case: Steps) -> int:
        """The bytes that a step needs beyond what is there before it: results and temporaries."""
        case.prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(self.torch)
        before = torch.cuda.memory_allocated(self.torch)
        case.step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated(self.torch) - before
        case.clear()
        return peak

    def copy_gbps(self, budget_ms: float) -> float:
        """Bytes read and written a second by torch's copy of at most 2 GiB, in GB/s: the roofline."""
        size = min(2**31, torch.cuda.mem_get_info(self.torch)[0] // 4)
        # Random: memory and its caches may compress bytes that are all the same.
        a, b = (torch.randint(256, (size,), dtype=torch.uint8, device=self.torch) for _ in range(2))
        return 2 * size / self.measure(Call(lambda: a.copy_(b)), budget_ms).median / 1e6


class Call:
    """A function as what can be timed."""

    def __init__(self, function: Any) -> None:
        self.step = function

    def prepare(self) -> None: ...

    def clear(self) -> None: ...
