"""What chips can do, from their makers' documents, and what that allows a kernel.

Bandwidth, multiprocessors and boost clock: NVIDIA's A100 and H100 whitepapers, the H200 and HGX B200 datasheets. Lanes
(four schedulers of 32 a clock), special functions (16 a clock) and the limits of occupancy: "CUDA C++ Programming
Guide", tables of arithmetic throughput and of technical specifications per compute capability.
"""

from __future__ import annotations

from typing import NamedTuple

#: Of each multiprocessor, a clock: instructions of one thread that can be issued, special functions.
LANES, SPECIAL = 128, 16

#: Of each multiprocessor.
WARPS, BLOCKS, REGISTERS = 64, 32, 65536


class Chip(NamedTuple):
    """A GPU: its target, bandwidth in GB/s, multiprocessors, their clock in GHz and their shared memory in KiB."""

    name: str
    target: str
    bandwidth: float
    processors: int
    clock: float
    shared: int

    def bound(self, moved: float, least: float, instructions: float, special: float) -> tuple[str, float]:
        """What limits a kernel of these costs per element, and the fraction of the memory roof it can reach at most.

        The roof is that of the `least` bytes; all that are `moved` come from memory, as if there were no cache.
        """
        clocks = self.processors * self.clock
        times = {
            "memory": moved / self.bandwidth,
            "issue": instructions / (LANES * clocks),
            "special": special / (SPECIAL * clocks),
        }
        slowest = max(times, key=lambda name: times[name])
        return slowest, least / self.bandwidth / times[slowest]

    def occupancy(self, registers: int, shared: int, warps: int) -> float:
        """The fraction of a multiprocessor's warps that can be resident at once."""
        # Registers are handed out to warps by 256, shared memory to blocks with 1 KiB for the system.
        by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // warps
        by_shared = self.shared * 1024 // (shared + 1024)
        return min(BLOCKS, WARPS // warps, by_registers, by_shared) * warps / WARPS


CHIPS = (
    Chip("a100", "cuda:80", 2039, 108, 1.41, 164),
    Chip("h100", "cuda:90", 3350, 132, 1.98, 228),
    Chip("h200", "cuda:90", 4800, 132, 1.98, 228),
    Chip("b200", "cuda:100", 8000, 148, 1.965, 228),
)
