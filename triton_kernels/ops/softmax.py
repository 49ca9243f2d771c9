"""Softmax and log-softmax along any dimension, and their gradients.

    y = exp(x − row_max)/sum_exp,   log y = x − row_max − log sum_exp
    with row_max = max x and sum_exp = Σ exp(x − row_max) of a row
    dx = y·(dy − Σ dy·y)   and, from log y,   dx = dy − exp(log y)·Σ dy

A program handles a tile of rows. A row that fits the tile is loaded once. A longer one is loaded chunk by chunk for
statistics, merged in order as in online softmax, and again, last chunk first, for results: what was loaded last is most
likely in the L2 cache. If such rows are too few to fill the GPU, each chunk has its own program, in two launches:
statistics per chunk, then results, which merge the same statistics in the same order. A row has at most
`tile_configs.MAX_CHUNKS` chunks, of one or several tiles, so merging stays cheap. The chunks of a row depend on its
length, its stride and the dtype only, so results are batch-invariant.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..jit import math, partials
from ..jit.tiles import load_tile, program_tile, store_tile, tile_columns, tile_mask
from ..runtime import launch, strides, tile_configs
from ..runtime.replay import replayable
from ..runtime.row_tiling import RowTiling, row_jit


@row_jit
def _softmax_kernel(
    x,  # (N, V): (pointer, row strides, column stride, unit)
    y,  # (N, V), or None
    max_ptr,  # (N, chunks), statistics, or None: this program computes them
    sum_ptr,  # (N, chunks), or None
    sizes,
    rows,
    V,
    chunks,
    tiles,  # per chunk, or None: 1
    LOG: tl.constexpr,
    MULTI_CHUNK: tl.constexpr,  # the program handles all chunks of its rows
    STATS_ONLY: tl.constexpr,  # store the chunk's statistics only
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = program_tile(rows, 1 if MULTI_CHUNK else chunks, BLOCK_N)
    row_max = tl.full((BLOCK_N,), float("-inf"), ACC_DTYPE)
    sum_exp = tl.zeros((BLOCK_N,), ACC_DTYPE)
    if MULTI_CHUNK:
        for i in range(0, chunks):
            chunk_max, chunk_sum = _chunk_stats(x, offs_n, mask_n, sizes, i, tiles, V, ACC_DTYPE, BLOCK_V)
            row_max, sum_exp = math.merge_softmax(row_max, sum_exp, chunk_max, chunk_sum)
        for i in range(0, chunks):
            _chunk_results(x, y, offs_n, mask_n, sizes, chunks - 1 - i, tiles, V, row_max, sum_exp, LOG, BLOCK_V)
    elif STATS_ONLY:
        row_max, sum_exp = _chunk_stats(x, offs_n, mask_n, sizes, chunk, tiles, V, ACC_DTYPE, BLOCK_V)
        tl.store(max_ptr + offs_n * chunks + chunk, row_max, mask=mask_n)
        tl.store(sum_ptr + offs_n * chunks + chunk, sum_exp, mask=mask_n)
    elif max_ptr is None:
        offs_v = tile_columns(0, V, BLOCK_V)
        mask = tile_mask(mask_n, offs_v, V)
        row = load_tile(x, offs_n, offs_v, sizes, mask, float("-inf"), ACC_DTYPE)
        row_max, sum_exp, e = math.tile_softmax(row, FTZ=LOG)
        value = _softmax(row, row_max, sum_exp, LOG) if LOG else e * math.div(1.0, sum_exp)[:, None]
        store_tile(y, offs_n, offs_v, sizes, value, mask)
    else:
        for i in range(0, chunks):
            chunk_max = tl.load(max_ptr + offs_n * chunks + i, mask=mask_n, other=0)
            chunk_sum = tl.load(sum_ptr + offs_n * chunks + i, mask=mask_n, other=1)
            row_max, sum_exp = math.merge_softmax(row_max, sum_exp, chunk_max, chunk_sum)
        _chunk_results(x, y, offs_n, mask_n, sizes, chunk, tiles, V, row_max, sum_exp, LOG, BLOCK_V)


@triton.jit
def _softmax(x, row_max, sum_exp, LOG: tl.constexpr):
    if LOG:
        y = (x - row_max[:, None]) - tl.log(sum_exp)[:, None]
    else:
        y = math.exp(x - row_max[:, None]) * math.div(1.0, sum_exp)[:, None]
    return y


@triton.jit
def _chunk_stats(x, offs_n, mask_n, sizes, chunk, tiles, V, DTYPE: tl.constexpr, BLOCK_V: tl.constexpr):
    """Return row_max and sum_exp of one chunk of each row: of its tiles, merged in order."""
    if tiles is None:
        row_max, sum_exp = _tile_stats(x, offs_n, mask_n, sizes, chunk, V, DTYPE, BLOCK_V)
    else:
        row_max = tl.full(mask_n.shape, float("-inf"), DTYPE)
        sum_exp = tl.zeros(mask_n.shape, DTYPE)
        for tile in range(0, tiles):
            tile_max, tile_sum = _tile_stats(x, offs_n, mask_n, sizes, chunk * tiles + tile, V, DTYPE, BLOCK_V)
            row_max, sum_exp = math.merge_softmax(row_max, sum_exp, tile_max, tile_sum)
    return row_max, sum_exp


@triton.jit
def _tile_stats(x, offs_n, mask_n, sizes, tile, V, DTYPE: tl.constexpr, BLOCK_V: tl.constexpr):
    offs_v = tile_columns(tile, V, BLOCK_V)
    mask = tile_mask(mask_n, offs_v, V)
    values = load_tile(x, offs_n, offs_v, sizes, mask, float("-inf"), DTYPE, EVICT_FIRST=False)
    row_max, sum_exp, _ = math.tile_softmax(values)
    return row_max, sum_exp


@triton.jit
def _chunk_results(
    x, y, offs_n, mask_n, sizes, chunk, tiles, V, row_max, sum_exp, LOG: tl.constexpr, BLOCK_V: tl.constexpr
):
    """Store the results of one chunk of each row, last tile first."""
    for i in range(0, 1 if tiles is None else tiles):
        offs_v = tile_columns(chunk if tiles is None else chunk * tiles + (tiles - 1 - i), V, BLOCK_V)
        mask = tile_mask(mask_n, offs_v, V)
        values = load_tile(x, offs_n, offs_v, sizes, mask, float("-inf"), row_max.dtype, EVICT_FIRST=True)
        store_tile(y, offs_n, offs_v, sizes, _softmax(values, row_max, sum_exp, LOG), mask)


@replayable
def softmax_forward(x: torch.Tensor, dim: int, *, log: bool = False) -> torch.Tensor:
    """Return the softmax or log-softmax of `x` along `dim`.

    Parameters
    ----------
    x
        Floating dtype, any shape and strides.
    dim
        A dimension of x; a 0-d x is one row of one column.
    log
        Return the log-softmax.

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
    y = strides.coalesce(x.shape, x).empty(x.shape, x.dtype, x.device)
    dtype = launch.compute_dtype(x.dtype)
    plan = _Plan({"x": x, "y": y}, dim)
    args = {**plan.args, "LOG": log, "ACC_DTYPE": launch.tl_dtype(dtype)}
    stats: dict[str, Any] = {"max_ptr": None, "sum_ptr": None}
    if plan.split:
        stats = {name: partials.allocate(plan.rows, plan.chunks, dtype, x.device) for name in stats}
        launch.run(_softmax_kernel, plan.grid, plan.config, **{**args, "y": None}, **stats, STATS_ONLY=True)
    launch.run(_softmax_kernel, plan.grid, plan.config, **args, **stats, STATS_ONLY=False)
    return y


@row_jit
def _softmax_backward_kernel(
    y,  # (N, V): (pointer, row strides, column stride, unit)
    dy,  # (N, V)
    dx,  # (N, V), or None
    sums_ptr,  # (N, chunks), or None: this program computes the sum
    sizes,
    rows,
    V,
    chunks,
    tiles,  # per chunk, or None: 1
    LOG: tl.constexpr,
    MULTI_CHUNK: tl.constexpr,  # the program handles all chunks of its rows
    STATS_ONLY: tl.constexpr,  # store the chunk's statistics only
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = program_tile(rows, 1 if MULTI_CHUNK else chunks, BLOCK_N)
    total = tl.zeros((BLOCK_N,), ACC_DTYPE)
    if MULTI_CHUNK:
        for i in range(0, chunks):
            total += _chunk_sum(y, dy, offs_n, mask_n, sizes, i, tiles, V, LOG, ACC_DTYPE, BLOCK_V)
        for i in range(0, chunks):
            _chunk_gradient(y, dy, dx, offs_n, mask_n, sizes, chunks - 1 - i, tiles, V, total, LOG, BLOCK_V)
    elif STATS_ONLY:
        total = _chunk_sum(y, dy, offs_n, mask_n, sizes, chunk, tiles, V, LOG, ACC_DTYPE, BLOCK_V)
        tl.store(sums_ptr + offs_n * chunks + chunk, total, mask=mask_n)
    elif sums_ptr is None:
        offs_v = tile_columns(0, V, BLOCK_V)
        mask = tile_mask(mask_n, offs_v, V)
        row_dy = load_tile(dy, offs_n, offs_v, sizes, mask, 0, ACC_DTYPE)
        row_y = load_tile(y, offs_n, offs_v, sizes, mask, 0, ACC_DTYPE)
        gradient = _input_gradient(row_y, row_dy, _row_sum(row_y, row_dy, LOG), LOG)
        store_tile(dx, offs_n, offs_v, sizes, gradient, mask)
    else:
        for i in range(0, chunks):
            total += tl.load(sums_ptr + offs_n * chunks + i, mask=mask_n, other=0)
        _chunk_gradient(y, dy, dx, offs_n, mask_n, sizes, chunk, tiles, V, total, LOG, BLOCK_V)


@triton.jit
def _row_sum(y, dy, LOG: tl.constexpr):
    if LOG:
        total = tl.sum(dy, axis=1)
    else:
        total = tl.sum(dy * y, axis=1)
    return total


@triton.jit
def _input_gradient(y, dy, total, LOG: tl.constexpr):
    if LOG:
        dx = dy - math.exp(y) * total[:, None]
    else:
        dx = y * (dy - total[:, None])
    return dx


@triton.jit
def _chunk_sum(
    y, dy, offs_n, mask_n, sizes, chunk, tiles, V, LOG: tl.constexpr, DTYPE: tl.constexpr, BLOCK_V: tl.constexpr
):
    """Return Σ dy·y (or Σ dy) of one chunk of each row: of its tiles, in order."""
    total = tl.zeros(mask_n.shape, DTYPE)
    for i in range(0, 1 if tiles is None else tiles):
        offs_v = tile_columns(chunk if tiles is None else chunk * tiles + i, V, BLOCK_V)
        mask = tile_mask(mask_n, offs_v, V)
        tile_dy = load_tile(dy, offs_n, offs_v, sizes, mask, 0, DTYPE, EVICT_FIRST=False)
        tile_y = tile_dy  # log-softmax needs Σ dy alone
        if not LOG:
            tile_y = load_tile(y, offs_n, offs_v, sizes, mask, 0, DTYPE, EVICT_FIRST=False)
        total += _row_sum(tile_y, tile_dy, LOG)
    return total


@triton.jit
def _chunk_gradient(y, dy, dx, offs_n, mask_n, sizes, chunk, tiles, V, total, LOG: tl.constexpr, BLOCK_V: tl.constexpr):
    """Store the gradient of one chunk of each row, last tile first."""
    for i in range(0, 1 if tiles is None else tiles):
        offs_v = tile_columns(chunk if tiles is None else chunk * tiles + (tiles - 1 - i), V, BLOCK_V)
        mask = tile_mask(mask_n, offs_v, V)
        tile_y = load_tile(y, offs_n, offs_v, sizes, mask, 0, total.dtype, EVICT_FIRST=True)
        tile_dy = load_tile(dy, offs_n, offs_v, sizes, mask, 0, total.dtype, EVICT_FIRST=True)
        store_tile(dx, offs_n, offs_v, sizes, _input_gradient(tile_y, tile_dy, total, LOG), mask)


@replayable
def softmax_backward(y: torch.Tensor, dy: torch.Tensor, dim: int, *, log: bool = False) -> torch.Tensor:
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
    dx = strides.coalesce(y.shape, y).empty(y.shape, y.dtype, y.device)
    dtype = launch.compute_dtype(y.dtype)
    plan = _Plan({"y": y, "dy": dy, "dx": dx}, dim, tiles_on_chip=2)
    args = {**plan.args, "LOG": log, "ACC_DTYPE": launch.tl_dtype(dtype)}
    sums = None
    if plan.split:
        sums = partials.allocate(plan.rows, plan.chunks, dtype, y.device)
        launch.run(
            _softmax_backward_kernel, plan.grid, plan.config, **{**args, "dx": None}, sums_ptr=sums, STATS_ONLY=True
        )
    launch.run(_softmax_backward_kernel, plan.grid, plan.config, **args, sums_ptr=sums, STATS_ONLY=False)
    return dx


class _Plan:
    """Tiles of the rows of equally shaped tensors along `dim`, and whether a row is split across programs."""

    def __init__(self, tensors: dict[str, torch.Tensor], dim: int, *, tiles_on_chip: int = 1) -> None:
        first = next(iter(tensors.values()))
        columns = first.shape[dim]
        self.config = tile_configs.rows(first.dtype.itemsize, columns, first.stride(dim) == 1, tiles_on_chip)
        tiling = RowTiling(columns, tensors, dim=dim, config=self.config, in_order=False)
        self.rows = tiling.rows
        self.chunks, tiles = tile_configs.chunks(self.config, columns)
        self.split = tile_configs.split_rows(self.config, self.rows, columns)
        blocks = tile_configs.cdiv(self.rows, self.config["BLOCK_N"]) if columns else 0
        self.grid = (blocks * (self.chunks if self.split else 1),)
        self.args = {**tiling.args(*tensors), "V": columns, "chunks": self.chunks}
        self.args |= {"tiles": tiles if tiles > 1 else None, "MULTI_CHUNK": self.chunks > 1 and not self.split}
