"""Bytes that softmax of long rows moves, counted."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from typing import Any

import pytest
import torch

import triton_kernels as tk
from tests.device import DEVICE
from triton_kernels.devtools import cost, trace
from triton_kernels.runtime import backend, launch

#: A stand-in for a GPU, which executes compiled code and counts what it moves.
EMULATE: Any = importlib.import_module("emulate") if importlib.util.find_spec("emulate") else None
DTYPES = [torch.bfloat16, torch.float32, torch.float64]

#: Shape and dimension of contiguous rows, of strided rows, and of strided rows that have chunks of several tiles.
CONTIGUOUS, STRIDED, MANY_COLUMNS = ((3, 36001), 1), ((1000, 10), 0), ((8001, 10), 0)


def _partials(made: launch.Launch, statistics: int) -> tuple[int, int]:
    """Bytes of chunks' statistics that a launch reads, each program those of its rows' chunks, and writes."""
    chunks, rows = made.args["chunks"], made.args["rows"]
    written = statistics * rows * chunks * made.args["partials_ptr"].dtype.itemsize
    return written * chunks, written


@pytest.mark.interpreter_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("case", "looks"), [(CONTIGUOUS, 1), (STRIDED, 1), (MANY_COLUMNS, 2)], ids=str)
def test_each_element_is_moved_once_where_no_program_is_late(
    case: tuple[tuple[int, int], int], looks: int, log: bool, dtype: torch.dtype
) -> None:
    shape, dim = case
    x = torch.randn(shape).to(dtype)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        with trace.traffic() as moved, trace.launches() as made:
            y = tk.softmax_forward(x, dim, log=log)
        least, (read, written) = cost.softmax_forward(x), _partials(made[0], 2)
        assert (moved.read, moved.written) == (looks * least.read + read, least.written + written)
        with trace.traffic() as moved, trace.launches() as backward:
            tk.softmax_backward(y, x, dim, log=log)
        least, (read, written) = cost.softmax_backward(y, x), _partials(backward[0], 1)
        if looks == 1:
            assert moved.read == least.read + read
        assert moved.read <= looks * least.read + read
        assert moved.written == least.written + written
    assert len(made) == len(backward) == 1
    assert (made[0].args["tiles"] is None) == (looks == 1)


@pytest.mark.skipif(EMULATE is None or backend.INTERPRETED, reason="needs the stand-in for a GPU, ../shared/fakegpu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log", [False, True])
def test_compiled_programs_that_run_together_move_each_element_once(log: bool, dtype: torch.dtype) -> None:
    """Each warp loads the chunks' statistics, perhaps twice; a chunk that is loaded again is more."""
    shape, dim = CONTIGUOUS
    x, dy = (torch.randn(shape).to(DEVICE, dtype) for _ in range(2))
    resident = EMULATE.cell("vm_resident", ctypes.c_int)
    before, resident.value = resident.value, 256
    try:
        with trace.launches() as made, EMULATE.counted() as moved:
            y = tk.softmax_forward(x, dim, log=log)
        least, (read, written) = cost.softmax_forward(x), _partials(made[0], 2)
        assert least.read <= moved.load_bytes <= least.read + 8 * read
        assert least.written <= moved.store_bytes <= least.written + written
        with trace.launches() as made, EMULATE.counted() as moved:
            tk.softmax_backward(y, dy, dim, log=log)
        least, (read, written) = cost.softmax_backward(y, dy), _partials(made[0], 1)
        assert least.read <= moved.load_bytes <= least.read + 8 * read
        assert least.written <= moved.store_bytes <= least.written + written
    finally:
        resident.value = before
