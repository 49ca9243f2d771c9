"""Softmax and log-softmax along any dimension, and their gradients.

    y = exp(x − m) / d,   log y = x − m − log d,   with m = max x and d = Σ exp(x − m) of a row
    dx = y·(dy − Σ dy·y)   and, from log y,   dx = dy − exp(log y)·Σ dy

A program takes a tile of rows. A row that fits the tile is read once. A longer one is read chunk by chunk for its
statistics, merged in order, and again, last chunk first, for its results: what was read last is most likely in the L2
cache. Where such rows are too few to fill the chip, each chunk gets a program of its own, in two launches: statistics
per chunk, then results, which merge the same statistics in the same order. A row has at most `tile_configs.MOST_CHUNKS`
chunks, of as many tiles as that takes, so that merging stays cheap. How a row is cut depends on its length, its stride
and the dtype; its result does not depend on how many rows there are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit import math, partials
from ..jit.tiles import place, row_offsets
from ..runtime import launch, strides, tile_configs
from ..runtime.replay import replayable
from ..runtime.row_tiling import row_jit


@triton.jit
def _columns(chunk, tile, tiles, V, mask_n, BLOCK_V: tl.constexpr, INDEX: tl.constexpr):
    """Offsets of the columns of a tile of a chunk, and the in-bounds mask. tiles None: a chunk is one tile."""
    number = chunk if tiles is None else chunk * tiles + tile
    offs_v = tl.cast(number, INDEX) * BLOCK_V + tl.arange(0, BLOCK_V)
    return offs_v, mask_n[:, None] & (offs_v < V)[None, :]


@triton.jit
def _load_tile(
    ptr, row_offs, offs_v, stride_v, mask, OTHER: tl.constexpr, DTYPE: tl.constexpr, AGAIN: tl.constexpr = None
):
    """Load and upcast a tile. AGAIN: whether it will be read again, which the L2 cache is told; None for neither."""
    EVICTION: tl.constexpr = "" if AGAIN is None else "evict_last" if AGAIN else "evict_first"
    at = ptr + row_offs[:, None] + (offs_v * stride_v)[None, :]
    return tl.load(at, mask=mask, other=OTHER, eviction_policy=EVICTION).to(DTYPE)


@triton.jit
def _store_tile(ptr, row_offs, offs_v, stride_v, value, mask):
    at = ptr + row_offs[:, None] + (offs_v * stride_v)[None, :]
    tl.store(at, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _output(x, m, d, LOG: tl.constexpr):
    if LOG:
        y = (x - m[:, None]) - tl.log(d)[:, None]
    else:
        y = math.exp(x - m[:, None]) * math.div(1.0, d)[:, None]
    return y


@triton.jit
def _chunk_statistics(x, chunk, tiles, V, mask_n, COMPUTE: tl.constexpr, BLOCK_V: tl.constexpr):
    """m and d of one chunk of each row: of its tiles, merged in order. x: (pointer, row offsets, column stride)."""
    INDEX: tl.constexpr = x[1].dtype
    if tiles is None:
        offs_v, mask = _columns(chunk, 0, tiles, V, mask_n, BLOCK_V, INDEX)
        m, d, _ = math.tile_softmax(_load_tile(x[0], x[1], offs_v, x[2], mask, float("-inf"), COMPUTE, AGAIN=True))
    else:
        m = tl.full(mask_n.shape, float("-inf"), COMPUTE)
        d = tl.zeros(mask_n.shape, COMPUTE)
        for tile in range(0, tiles):
            offs_v, mask = _columns(chunk, tile, tiles, V, mask_n, BLOCK_V, INDEX)
            of_tile = _load_tile(x[0], x[1], offs_v, x[2], mask, float("-inf"), COMPUTE, AGAIN=True)
            m_tile, d_tile, _ = math.tile_softmax(of_tile)
            m, d = math.merge_softmax(m, d, m_tile, d_tile)
    return m, d


@triton.jit
def _chunk_results(x, y, chunk, tiles, V, mask_n, m, d, LOG: tl.constexpr, BLOCK_V: tl.constexpr):
    """Results of one chunk of each row, last tile first."""
    INDEX: tl.constexpr = x[1].dtype
    for i in range(0, 1 if tiles is None else tiles):
        tile = 0 if tiles is None else tiles - 1 - i
        offs_v, mask = _columns(chunk, tile, tiles, V, mask_n, BLOCK_V, INDEX)
        of_tile = _load_tile(x[0], x[1], offs_v, x[2], mask, float("-inf"), m.dtype, AGAIN=False)
        _store_tile(y[0], y[1], offs_v, y[2], _output(of_tile, m, d, LOG), mask)


@row_jit
def _softmax_kernel(
    x_ptr,  # (rows, V), strided
    y_ptr,  # (rows, V), strided; None: write the statistics of the program's chunk
    m_ptr,  # (rows, chunks), statistics; None: this program computes them
    d_ptr,
    row_sizes,
    x_row_strides,
    y_row_strides,
    rows,
    V,
    chunks,
    tiles,  # of a chunk; None for one
    stride_xv,
    stride_yv,
    LOG: tl.constexpr,
    LOOP: tl.constexpr,  # over the chunks of a row, in one program
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = place(rows, 1 if LOOP else chunks, BLOCK_N, WIDE)
    x = (x_ptr, row_offsets(offs_n, row_sizes, x_row_strides, UNIT), stride_xv)
    y = (y_ptr, row_offsets(offs_n, row_sizes, y_row_strides, UNIT), stride_yv)
    m = tl.full((BLOCK_N,), float("-inf"), COMPUTE)
    d = tl.zeros((BLOCK_N,), COMPUTE)
    if LOOP:
        for i in range(0, chunks):
            m_chunk, d_chunk = _chunk_statistics(x, i, tiles, V, mask_n, COMPUTE, BLOCK_V)
            m, d = math.merge_softmax(m, d, m_chunk, d_chunk)
        for i in range(0, chunks):
            _chunk_results(x, y, chunks - 1 - i, tiles, V, mask_n, m, d, LOG, BLOCK_V)
    elif y_ptr is None:
        m, d = _chunk_statistics(x, chunk, tiles, V, mask_n, COMPUTE, BLOCK_V)
        tl.store(m_ptr + offs_n * chunks + chunk, m, mask=mask_n)
        tl.store(d_ptr + offs_n * chunks + chunk, d, mask=mask_n)
    elif m_ptr is None:
        offs_v, mask = _columns(0, 0, None, V, mask_n, BLOCK_V, x[1].dtype)
        row = _load_tile(x[0], x[1], offs_v, x[2], mask, float("-inf"), COMPUTE)
        m, d, e = math.tile_softmax(row, FLUSH=LOG)
        _store_tile(y[0], y[1], offs_v, y[2], _output(row, m, d, LOG) if LOG else e * math.div(1.0, d)[:, None], mask)
    else:
        for i in range(0, chunks):
            m_chunk = tl.load(m_ptr + offs_n * chunks + i, mask=mask_n, other=0)
            d_chunk = tl.load(d_ptr + offs_n * chunks + i, mask=mask_n, other=1)
            m, d = math.merge_softmax(m, d, m_chunk, d_chunk)
        _chunk_results(x, y, chunk, tiles, V, mask_n, m, d, LOG, BLOCK_V)


@replayable
def softmax_forward(x: torch.Tensor, dim: int, *, log: bool = False) -> torch.Tensor:
    """Softmax, or log-softmax, of `x` along `dim`.

    Parameters
    ----------
    x
        Floating dtype, any shape and strides.
    dim
        A dimension of x; a 0-d x counts as one row of one column.
    log
        log-softmax.

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
    plan = _Plan(dim, x, y)
    compute = launch.tl_dtype(launch.compute_dtype(x.dtype))
    shared = {**plan.shared, "x_ptr": x, "stride_xv": x.stride(dim), "stride_yv": y.stride(dim), "COMPUTE": compute}
    shared |= {"x_row_strides": plan.strides[0], "y_row_strides": plan.strides[1], "LOG": log}
    m = d = None
    if plan.split:
        m, d = (partials.allocate(plan.rows, plan.chunks, launch.compute_dtype(x.dtype), x.device) for _ in range(2))
        launch.run(_softmax_kernel, plan.grid, plan.config, **shared, y_ptr=None, m_ptr=m, d_ptr=d)
    launch.run(_softmax_kernel, plan.grid, plan.config, **shared, y_ptr=y, m_ptr=m, d_ptr=d)
    return y


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
def _chunk_sum(y, dy, chunk, tiles, V, mask_n, LOG: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_V: tl.constexpr):
    """Σ dy·y (or Σ dy) of one chunk of each row: of its tiles, in order."""
    INDEX: tl.constexpr = dy[1].dtype
    total = tl.zeros(mask_n.shape, COMPUTE)
    for tile in range(0, 1 if tiles is None else tiles):
        offs_v, mask = _columns(chunk, tile, tiles, V, mask_n, BLOCK_V, INDEX)
        of_dy = _load_tile(dy[0], dy[1], offs_v, dy[2], mask, 0, COMPUTE, AGAIN=True)
        # From log y the sum does not need y.
        of_y = of_dy if LOG else _load_tile(y[0], y[1], offs_v, y[2], mask, 0, COMPUTE, AGAIN=True)
        total += _row_sum(of_y, of_dy, LOG)
    return total


@triton.jit
def _chunk_gradient(y, dy, dx, chunk, tiles, V, mask_n, total, LOG: tl.constexpr, BLOCK_V: tl.constexpr):
    """The gradient of one chunk of each row, last tile first."""
    INDEX: tl.constexpr = dy[1].dtype
    for i in range(0, 1 if tiles is None else tiles):
        tile = 0 if tiles is None else tiles - 1 - i
        offs_v, mask = _columns(chunk, tile, tiles, V, mask_n, BLOCK_V, INDEX)
        of_y = _load_tile(y[0], y[1], offs_v, y[2], mask, 0, total.dtype, AGAIN=False)
        of_dy = _load_tile(dy[0], dy[1], offs_v, dy[2], mask, 0, total.dtype, AGAIN=False)
        _store_tile(dx[0], dx[1], offs_v, dx[2], _input_gradient(of_y, of_dy, total, LOG), mask)


@row_jit
def _softmax_backward_kernel(
    y_ptr,  # (rows, V), strided
    dy_ptr,  # (rows, V), strided
    dx_ptr,  # (rows, V), strided; None: write the sum of the program's chunk
    sums_ptr,  # (rows, chunks); None: this program computes the sum
    row_sizes,
    y_row_strides,
    dy_row_strides,
    dx_row_strides,
    rows,
    V,
    chunks,
    tiles,  # of a chunk; None for one
    stride_yv,
    stride_dyv,
    stride_dxv,
    LOG: tl.constexpr,
    LOOP: tl.constexpr,  # over the chunks of a row, in one program
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = place(rows, 1 if LOOP else chunks, BLOCK_N, WIDE)
    y = (y_ptr, row_offsets(offs_n, row_sizes, y_row_strides, UNIT), stride_yv)
    dy = (dy_ptr, row_offsets(offs_n, row_sizes, dy_row_strides, UNIT), stride_dyv)
    dx = (dx_ptr, row_offsets(offs_n, row_sizes, dx_row_strides, UNIT), stride_dxv)
    total = tl.zeros((BLOCK_N,), COMPUTE)
    if LOOP:
        for i in range(0, chunks):
            total += _chunk_sum(y, dy, i, tiles, V, mask_n, LOG, COMPUTE, BLOCK_V)
        for i in range(0, chunks):
            _chunk_gradient(y, dy, dx, chunks - 1 - i, tiles, V, mask_n, total, LOG, BLOCK_V)
    elif dx_ptr is None:
        total = _chunk_sum(y, dy, chunk, tiles, V, mask_n, LOG, COMPUTE, BLOCK_V)
        tl.store(sums_ptr + offs_n * chunks + chunk, total, mask=mask_n)
    elif sums_ptr is None:
        offs_v, mask = _columns(0, 0, None, V, mask_n, BLOCK_V, dy[1].dtype)
        of_dy = _load_tile(dy[0], dy[1], offs_v, dy[2], mask, 0, COMPUTE)
        of_y = _load_tile(y[0], y[1], offs_v, y[2], mask, 0, COMPUTE)
        gradient = _input_gradient(of_y, of_dy, _row_sum(of_y, of_dy, LOG), LOG)
        _store_tile(dx[0], dx[1], offs_v, dx[2], gradient, mask)
    else:
        for i in range(0, chunks):
            total += tl.load(sums_ptr + offs_n * chunks + i, mask=mask_n, other=0)
        _chunk_gradient(y, dy, dx, chunk, tiles, V, mask_n, total, LOG, BLOCK_V)


@replayable
def softmax_backward(y: torch.Tensor, dy: torch.Tensor, dim: int, *, log: bool = False) -> torch.Tensor:
    """Gradient of `softmax_forward` to its input, from its output `y` and that output's gradient `dy` (y's shape).

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
    plan = _Plan(dim, y, dy, dx, tiles=2)
    compute = launch.compute_dtype(y.dtype)
    shared = {**plan.shared, "y_ptr": y, "dy_ptr": dy, "COMPUTE": launch.tl_dtype(compute), "LOG": log}
    shared |= {"stride_yv": y.stride(dim), "stride_dyv": dy.stride(dim), "stride_dxv": dx.stride(dim)}
    shared |= dict(zip(("y_row_strides", "dy_row_strides", "dx_row_strides"), plan.strides, strict=True))
    sums = None
    if plan.split:
        sums = partials.allocate(plan.rows, plan.chunks, compute, y.device)
        launch.run(_softmax_backward_kernel, plan.grid, plan.config, **shared, dx_ptr=None, sums_ptr=sums)
    launch.run(_softmax_backward_kernel, plan.grid, plan.config, **shared, dx_ptr=dx, sums_ptr=sums)
    return dx


class _Plan:
    """How the rows of equally shaped tensors along `dim` are tiled, and whether they are split."""

    def __init__(self, dim: int, *tensors: torch.Tensor, tiles: int = 1) -> None:
        first = tensors[0]
        dim %= first.dim()
        lead = [d for d in range(first.dim()) if d != dim]
        given_strides = [tuple(tensor.stride(d) for d in lead) for tensor in tensors]
        unit = strides.row_unit(tensors, dim)
        walk = strides.coalesce_rows(
            [first.shape[d] for d in lead], given_strides, [unit] * len(tensors), in_order=False
        )
        columns = first.shape[dim]
        self.rows, self.strides = walk.rows, walk.strides
        self.config = tile_configs.rows(first.dtype.itemsize, columns, first.stride(dim) == 1, tiles)
        self.chunks, per_chunk = tile_configs.chunks(self.config, columns)
        self.split = tile_configs.split_rows(self.config, self.rows, columns)
        blocks = tile_configs.cdiv(self.rows, self.config["BLOCK_N"]) if columns else 0
        self.grid = (blocks * (self.chunks if self.split else 1),)
        reach = max(tensor.stride(dim) for tensor in tensors) * (columns + per_chunk * self.config["BLOCK_V"])
        wide = max((self.rows + self.config["BLOCK_N"]) * self.chunks, walk.extent + reach) >= 2**31
        self.shared = {"row_sizes": walk.sizes, "rows": self.rows, "V": columns, "chunks": self.chunks}
        self.shared |= {"tiles": per_chunk if per_chunk > 1 else None, "UNIT": unit, "WIDE": wide}
        self.shared |= {"LOOP": self.chunks > 1 and not self.split}
