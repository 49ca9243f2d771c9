"""Softmax and log-softmax along any dimension, and their gradients.

    y = exp(x − row_max)/sum_exp,   log y = x − row_max − log sum_exp
    with row_max = max x and sum_exp = Σ exp(x − row_max) of a row
    dx = y·(dy − Σ dy·y)   and, from log y,   dx = dy − exp(log y)·Σ dy

One launch reads each element once and writes each result once. A program holds one chunk of a row in registers. If the
row has several, it stores the chunk's statistics, waits for those of the others (`jit.chunk_flags`) and merges all in
order. A row of more than `tile_configs.MAX_ROW_CHUNKS` tiles has chunks of several tiles, which are loaded again for
results. The chunks of a row depend on its length, its stride and the dtype only, so results are batch-invariant.

Results are not stored over operands, so a program may compute and publish the statistics of any chunk at any time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..jit import chunk_flags, math
from ..jit.tiles import (
    chunk_block,
    chunk_tile,
    load_in_bounds,
    load_stat,
    load_tile,
    program_tile,
    store_in_bounds,
    store_stat,
    store_tile,
    tile_columns,
    tile_mask,
)
from ..runtime import launch, strides, tile_configs
from ..runtime.replay import replayable
from ..runtime.row_tiling import RowTiling, row_jit

#: Statistics of chunks: forward maximum and sum_exp; backward Σ dy·y, or Σ dy.
_MAX, _SUM = tl.constexpr(0), tl.constexpr(1)
_TOTAL = tl.constexpr(0)


@row_jit
def _softmax_kernel(
    x,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    y,  # (N, V)
    partials_ptr,  # (2, N, chunks), or None: rows have one chunk
    flags_ptr,  # (blocks of rows, chunks), zeros; or None
    sizes,  # of the dimensions of rows: runtime.strides
    rows,
    V,
    chunks,
    tiles,  # per chunk, or None: 1
    polls,  # of the flags of a row
    LOG: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    WHOLE_ROW: tl.constexpr = partials_ptr is None
    offs_n, mask_n, chunk = program_tile(rows, 1 if WHOLE_ROW else chunks, BLOCK_N)
    if WHOLE_ROW:
        kept, chunk_max, chunk_sum = _chunk_stats(
            x, offs_n, mask_n, sizes, chunk, tiles, V, LOG, WHOLE_ROW, ACC_DTYPE, BLOCK_V
        )
        row_max, sum_exp = chunk_max, chunk_sum
    else:
        flags, size = flags_ptr + (tl.program_id(0) - chunk).to(tl.int64), tl.cast(rows, tl.int64) * chunks
        kept, chunk_max = tl.zeros((BLOCK_N, BLOCK_V), ACC_DTYPE), tl.zeros((BLOCK_N,), ACC_DTYPE)
        todo, polls_left = chunk, polls
        while todo >= 0:
            kept, chunk_max, chunk_sum = _chunk_stats(
                x, offs_n, mask_n, sizes, todo, tiles, V, LOG, WHOLE_ROW, ACC_DTYPE, BLOCK_V
            )
            _publish(partials_ptr, size, offs_n * chunks + todo, mask_n, (chunk_max, chunk_sum), flags + todo)
            todo, polls_left = chunk_flags.next_chunk(flags, todo, chunk, chunks, polls_left, BLOCK_C)
        at, mask = chunk_block(offs_n, mask_n, 0, chunks, BLOCK_C)
        maxima = load_stat(partials_ptr, _MAX, size, at, mask, float("-inf"), VOLATILE=True)
        sums = load_stat(partials_ptr, _SUM, size, at, mask, 0.0, VOLATILE=True)
        row_max = math.row_max(maxima)
        sum_exp = math.row_sum(sums * math.exp(maxima - math.neg_inf_to_zero(row_max)[:, None]))
    if tiles is None:
        if LOG:
            value = _log_softmax(kept, row_max, sum_exp)
        else:
            scale = math.div(1.0, sum_exp)
            if not WHOLE_ROW:
                scale *= math.exp(chunk_max - math.neg_inf_to_zero(row_max))
            value = kept * scale[:, None]
        _store(y, offs_n, mask_n, sizes, chunk, V, value, WHOLE_ROW, BLOCK_V)
    else:
        for i in range(0, tiles):
            tile = chunk_tile(chunk, tiles, tiles - 1 - i)  # what was loaded last is most likely in a cache
            values = _load(x, offs_n, mask_n, sizes, tile, V, float("-inf"), False, ACC_DTYPE, BLOCK_V)
            if LOG:
                value = _log_softmax(values, row_max, sum_exp)
            else:
                value = math.exp(values - row_max[:, None]) * math.div(1.0, sum_exp)[:, None]
            _store(y, offs_n, mask_n, sizes, tile, V, value, False, BLOCK_V)


@triton.jit
def _log_softmax(x, row_max, sum_exp):
    return (x - row_max[:, None]) - tl.log(sum_exp)[:, None]


@triton.jit
def _load(
    operand,
    offs_n,
    mask_n,
    sizes,
    tile,
    V,
    OTHER: tl.constexpr,
    WHOLE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Load and upcast a tile, OTHER out of bounds. A tile of a WHOLE row is seldom full, so it always has a mask."""
    if WHOLE:
        offs_v = tile_columns(tile, V, BLOCK_V)
        value = load_tile(operand, offs_n, offs_v, sizes, tile_mask(mask_n, offs_v, V), OTHER, DTYPE)
    else:
        value = load_in_bounds(operand, offs_n, mask_n, sizes, tile, V, OTHER, DTYPE, BLOCK_V)
    return value


@triton.jit
def _store(operand, offs_n, mask_n, sizes, tile, V, value, WHOLE: tl.constexpr, BLOCK_V: tl.constexpr):
    if WHOLE:
        offs_v = tile_columns(tile, V, BLOCK_V)
        store_tile(operand, offs_n, offs_v, sizes, value, tile_mask(mask_n, offs_v, V))
    else:
        store_in_bounds(operand, offs_n, mask_n, sizes, tile, value, V, BLOCK_V)


@triton.jit
def _publish(partials_ptr, size, at, mask, stats, flag_ptr):
    """Store a chunk's statistics, each of `size` numbers, and set its flag."""
    for i in tl.static_range(len(stats)):
        store_stat(partials_ptr, i, size, at, stats[i], mask)
    chunk_flags.publish(flag_ptr)


@triton.jit
def _chunk_stats(
    x,
    offs_n,
    mask_n,
    sizes,
    chunk,
    tiles,
    V,
    LOG: tl.constexpr,
    WHOLE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Load a chunk; return x (LOG) or e^(x − maximum) of its first tile, and maximum and sum_exp of each row."""
    tile = chunk_tile(chunk, tiles, 0)
    values = _load(x, offs_n, mask_n, sizes, tile, V, float("-inf"), WHOLE, DTYPE, BLOCK_V)
    row_max, sum_exp, kept = math.tile_softmax(values, FTZ=LOG)
    if LOG:
        kept = values
    if tiles is not None:
        for i in range(1, tiles):
            tile = chunk_tile(chunk, tiles, i)
            values = _load(x, offs_n, mask_n, sizes, tile, V, float("-inf"), WHOLE, DTYPE, BLOCK_V)
            tile_max, tile_sum, _ = math.tile_softmax(values)
            row_max, sum_exp = math.merge_softmax(row_max, sum_exp, tile_max, tile_sum)
    return kept, row_max, sum_exp


@replayable
def softmax_forward(x: torch.Tensor, dim: int, *, log: bool = False, polls: int | None = None) -> torch.Tensor:
    """Return the softmax or log-softmax of `x` along `dim`.

    Parameters
    ----------
    x
        Floating dtype, any shape and strides.
    dim
        A dimension of x; a 0-d x is one row of one column.
    log
        Return the log-softmax.
    polls
        How often a program polls for the statistics of other chunks before it computes them itself.

    Returns
    -------
    torch.Tensor
        Of x's shape and dtype; dense, with dimensions in the memory order of x.

    Examples
    --------
    >>> softmax_forward(torch.tensor([[0.0, 0.0, 0.0, 0.0]]).to(DEVICE), 1).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    if x.dim() == 0:
        return softmax_forward(x.view(1), 0, log=log).view(())
    y = strides.empty_as(x)
    _launch(_softmax_kernel, {"x": x, "y": y}, dim, statistics=2, registers=80, LOG=log, polls=polls)
    return y


@row_jit
def _softmax_backward_kernel(
    y,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    dy,  # (N, V)
    dx,  # (N, V)
    partials_ptr,  # (1, N, chunks), or None: rows have one chunk
    flags_ptr,  # (blocks of rows, chunks), zeros; or None
    sizes,  # of the dimensions of rows: runtime.strides
    rows,
    V,
    chunks,
    tiles,  # per chunk, or None: 1
    polls,  # of the flags of a row
    LOG: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    WHOLE_ROW: tl.constexpr = partials_ptr is None
    offs_n, mask_n, chunk = program_tile(rows, 1 if WHOLE_ROW else chunks, BLOCK_N)
    if WHOLE_ROW:
        y_tile, dy_tile, total = _chunk_sum(
            y, dy, offs_n, mask_n, sizes, chunk, tiles, V, LOG, WHOLE_ROW, ACC_DTYPE, BLOCK_V
        )
    else:
        flags, size = flags_ptr + (tl.program_id(0) - chunk).to(tl.int64), tl.cast(rows, tl.int64) * chunks
        y_tile, dy_tile = tl.zeros((BLOCK_N, BLOCK_V), ACC_DTYPE), tl.zeros((BLOCK_N, BLOCK_V), ACC_DTYPE)
        todo, polls_left = chunk, polls
        while todo >= 0:
            y_tile, dy_tile, found = _chunk_sum(
                y, dy, offs_n, mask_n, sizes, todo, tiles, V, LOG, WHOLE_ROW, ACC_DTYPE, BLOCK_V
            )
            _publish(partials_ptr, size, offs_n * chunks + todo, mask_n, (found,), flags + todo)
            todo, polls_left = chunk_flags.next_chunk(flags, todo, chunk, chunks, polls_left, BLOCK_C)
        at, mask = chunk_block(offs_n, mask_n, 0, chunks, BLOCK_C)
        total = math.row_sum(load_stat(partials_ptr, _TOTAL, size, at, mask, 0.0, VOLATILE=True))
    if tiles is None:
        _store(dx, offs_n, mask_n, sizes, chunk, V, _gradient(y_tile, dy_tile, total, LOG), WHOLE_ROW, BLOCK_V)
    else:
        for i in range(0, tiles):
            tile = chunk_tile(chunk, tiles, tiles - 1 - i)  # what was loaded last is most likely in a cache
            y_tile = _load(y, offs_n, mask_n, sizes, tile, V, 0, False, ACC_DTYPE, BLOCK_V)
            dy_tile = _load(dy, offs_n, mask_n, sizes, tile, V, 0, False, ACC_DTYPE, BLOCK_V)
            _store(dx, offs_n, mask_n, sizes, tile, V, _gradient(y_tile, dy_tile, total, LOG), WHOLE_ROW, BLOCK_V)


@triton.jit
def _gradient(y, dy, total, LOG: tl.constexpr):
    if LOG:
        dx = dy - math.exp(y) * total[:, None]
    else:
        dx = y * (dy - total[:, None])
    return dx


@triton.jit
def _chunk_sum(
    y,
    dy,
    offs_n,
    mask_n,
    sizes,
    chunk,
    tiles,
    V,
    LOG: tl.constexpr,
    WHOLE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Load a chunk; return its first tile of y and of dy, and Σ dy·y, or Σ dy, of each row."""
    tile = chunk_tile(chunk, tiles, 0)
    dy_tile = _load(dy, offs_n, mask_n, sizes, tile, V, 0, WHOLE, DTYPE, BLOCK_V)
    y_tile = _load(y, offs_n, mask_n, sizes, tile, V, 0, WHOLE, DTYPE, BLOCK_V)
    total = _row_sum(y_tile, dy_tile, LOG)
    if tiles is not None:
        for i in range(1, tiles):
            tile = chunk_tile(chunk, tiles, i)
            other_dy = _load(dy, offs_n, mask_n, sizes, tile, V, 0, WHOLE, DTYPE, BLOCK_V)
            other_y = other_dy  # log-softmax needs Σ dy alone
            if not LOG:
                other_y = _load(y, offs_n, mask_n, sizes, tile, V, 0, WHOLE, DTYPE, BLOCK_V)
            total += _row_sum(other_y, other_dy, LOG)
    return y_tile, dy_tile, total


@triton.jit
def _row_sum(y, dy, LOG: tl.constexpr):
    if LOG:
        total = tl.sum(dy, axis=1)
    else:
        total = tl.sum(dy * y, axis=1)
    return total


@replayable
def softmax_backward(
    y: torch.Tensor, dy: torch.Tensor, dim: int, *, log: bool = False, polls: int | None = None
) -> torch.Tensor:
    """Return the gradient of `softmax_forward` to its input, from its output `y` and the upstream gradient `dy`.

    Returns
    -------
    torch.Tensor
        Of y's shape and dtype; dense, with dimensions in the memory order of y.

    Examples
    --------
    >>> y, dy = torch.tensor([0.25, 0.75]).to(DEVICE), torch.tensor([1.0, 0.0]).to(DEVICE)
    >>> softmax_backward(y, dy, 0).tolist()
    [0.1875, -0.1875]
    """
    if y.dim() == 0:
        return softmax_backward(y.view(1), dy.view(1), 0, log=log).view(())
    dx = strides.empty_as(y)
    _launch(
        _softmax_backward_kernel, {"y": y, "dy": dy, "dx": dx}, dim, statistics=1, registers=96, LOG=log, polls=polls
    )
    return dx


def _launch(
    kernel: Any,
    tensors: dict[str, torch.Tensor],
    dim: int,
    *,
    statistics: int,
    registers: int,
    LOG: bool,
    polls: int | None,
) -> None:
    """Launch a kernel on equally shaped tensors with rows along `dim`.

    A chunk has `statistics` numbers per row, and a thread of a program that waits at most so many registers.
    """
    first = next(iter(tensors.values()))
    columns, dtype, device = first.shape[dim], launch.compute_dtype(first.dtype), first.device
    if columns == 0:
        return
    config = tile_configs.rows(first.dtype.itemsize, columns, first.stride(dim) == 1, len(tensors) - 1)
    meeting = None
    if columns > config["BLOCK_V"]:
        # An operand whose columns are strided takes registers for addresses.
        meeting = registers if all(t.stride(dim) == 1 for t in tensors.values()) else 128
    tiling = RowTiling(columns, tensors, dim=dim, config=config, in_order=False, meeting=meeting)
    partials, flags = None, None
    if tiling.chunks > 1:
        partials = torch.empty((statistics, tiling.rows, tiling.chunks), dtype=dtype, device=device)
        flags = launch.zeros(tiling.grid, dtype=torch.int32, device=device)
    launch.run(
        kernel,
        tiling.grid,
        tiling.config,
        **tiling.args(*tensors),
        partials_ptr=partials,
        flags_ptr=flags,
        V=columns,
        tiles=tiling.tiles,
        polls=tile_configs.polls() if polls is None else polls,
        LOG=LOG,
        ACC_DTYPE=launch.tl_dtype(dtype),
    )
