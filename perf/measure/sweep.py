"""sweep: time providers over shapes, on a GPU.

Each provider runs each mode of each op, shape, dtype and reduction; what it calculates is compared with float64 before
it is timed, and what is wrong or fails is reported and not timed. Times are medians of CUDA events with cold caches.
Backward starts from leaf inputs and a gradient that is there already, so that it times nothing but the op. The upstream
gradient of a reduced loss is 1. Losses of logits may compute their gradient with the loss, so that backward has little
to do, and are to be compared in the mode full; `two-launches` is lucid.torch with `gradient_in_forward(False)`.

GB/s are the least possible bytes, the same for every provider, over the time; the roofline is what a device-to-device
copy reads and writes a second in the same run. Memory is what a step needs beyond its inputs. The error is the largest,
as a fraction of what arithmetic wholly in the dtype of the inputs may lose.

linear_distillation and matmul, of hidden states and weights, have shapes NxVxD. Arithmetic bounds them, so they have no
roofline. linear_distillation is compared with `products`, its matrix products alone: the two of logits in the mode
forward, all four in full. matmul, (N, D) times the transpose of (V, D), is compared with torch's own, which is cuBLAS;
backward has two products. float32 products are of float32 operands, not tf32, for both.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch

from perf.measure import cases, rows
from perf.measure.op import Point, UnsupportedError
from perf.measure.timing import Gpu
from perf.results import Row

COLUMNS = (
    *("median_ms", "p20_ms", "p80_ms", "least_bytes"),
    *("gbps", "copy_gbps", "roof_fraction", "peak_mib", "max_error"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    rows.add_arguments(parser, shapes="", dtypes="", reductions="batchmean", modes="", providers="")
    parser.add_argument("--budget-ms", type=float, default=50.0, metavar="MS", help="device time a row (default: 50)")
    limit = "measure no more rows after so many seconds; the rest is reported as skipped (default: 420)"
    parser.add_argument("--time-limit", type=float, default=420.0, metavar="S", help=limit)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    if not torch.cuda.is_available():
        print("no GPU is available: nothing to time; `traffic` and `static` do without one", file=sys.stderr)
        return 1
    return rows.record("sweep", COLUMNS, options, Sweep(Gpu(), options))


@contextmanager
def nan_memory() -> Iterator[None]:
    """Within, torch fills memory that it allocates with NaN, so that what a kernel does not write is wrong."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Sweep:
    """Measures rows; inputs and truth of one point are shared by its rows."""

    def __init__(self, gpu: Any, options: argparse.Namespace) -> None:
        self._gpu, self._budget = gpu, options.budget_ms
        self._end, self._limit = time.monotonic() + options.time_limit, options.time_limit
        self._copy = gpu.copy_gbps(options.budget_ms)
        self._point: Point | None = None
        self._inputs = lru_cache(1)(lambda point: cases.make_inputs(point, gpu.torch))
        self._truth = lru_cache(1)(lambda point: cases.truth(point, *self._inputs(point)))

    def __call__(self, point: Point, provider: str, mode: str) -> Row:
        if time.monotonic() > self._end:
            raise UnsupportedError(f"the time limit of {self._limit:g} s had passed")
        if point != self._point:  # free what the last one had
            self._point = point
            self._inputs.cache_clear()
            self._truth.cache_clear()
            self._gpu.empty_cache()
        case = cases.Case(point, provider, mode, *self._inputs(point))
        expected = self._truth(point)
        # Not for others: torch.compile compiles anew within.
        with nan_memory() if provider in rows.OURS else nullcontext():
            error = case.check(expected)
        found = self._gpu.measure(case, self._budget)
        least = cases.least_cost(point, mode).bytes
        # Nothing where there is nothing to move: backward of a gradient that was computed with the loss.
        gbps = least / found.median / 1e6 if least >= point.n * point.v and not point.d else None
        roof = None if gbps is None else gbps / self._copy
        values = (*found, least, gbps, self._copy, roof, self._gpu.peak_bytes(case) / 2**20, error)
        return dict(zip(COLUMNS, values, strict=True))
