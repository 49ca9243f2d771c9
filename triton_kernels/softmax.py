"""Softmax and log-softmax along any dimension, and their gradients.

    y = exp(x − m) / d,   log y = x − m − log d,   with m = max x and d = Σ exp(x − m) of a row
    dx = y·(dy − Σ dy·y)   and, from log y,   dx = dy − exp(log y)·Σ dy

A program takes a tile of rows. A row that fits the tile is read once. A longer one is read chunk by chunk for its
statistics, merged in order, and again, last chunk first, for its results: what was read last is most likely in the L2
cache. Where such rows are too few to fill the chip, each chunk gets a program of its own, in two launches: statistics
per chunk, then results, which merge the same statistics in the same order. So a row's result does not depend on how
many rows there are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, layout, math, partials
from .layout import offsets


@triton.jit
def _rows(program, rows, BLOCK_N: tl.constexpr, WIDE: tl.constexpr):
    """The rows of a program, and which of them there are."""
    if WIDE:
        program = program.to(tl.int64)
    offs_n = program * BLOCK_N + tl.arange(0, BLOCK_N)
    return offs_n, offs_n < rows


@triton.jit
def _columns(start, V, mask_n, BLOCK_V: tl.constexpr, WIDE: tl.constexpr):
    """The columns of a chunk, and which elements of the tile there are."""
    offs_v = tl.arange(0, BLOCK_V)
    if WIDE:
        offs_v = offs_v.to(tl.int64)
    offs_v += start
    return offs_v, mask_n[:, None] & (offs_v < V)[None, :]


@triton.jit
def _row_offsets(offs_n, sizes, strides):
    if strides is None:
        result = offs_n * 0
    else:
        result = offsets(offs_n, sizes, strides)
    return result


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
        y = math.exp(x - m[:, None]) * (1 / d)[:, None]
    return y


@triton.jit(do_not_specialize=["chunks"])
def _softmax_kernel(
    x_ptr,  # (rows, V), strided
    y_ptr,  # (rows, V), strided; None: write the statistics of chunk program_id(1)
    m_ptr,  # (rows, chunks), statistics; None: this program finds them
    d_ptr,
    row_sizes,
    x_row_strides,
    y_row_strides,
    rows,
    V,
    chunks,
    stride_xv,
    stride_yv,
    LOG: tl.constexpr,
    LOOP: tl.constexpr,  # over the chunks of a row, in one program
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n = _rows(tl.program_id(0), rows, BLOCK_N, WIDE)
    x_offs = _row_offsets(offs_n, row_sizes, x_row_strides)
    y_offs = _row_offsets(offs_n, row_sizes, y_row_strides)
    m = tl.full((BLOCK_N,), float("-inf"), COMPUTE)
    d = tl.zeros((BLOCK_N,), COMPUTE)
    if LOOP:
        for start in range(0, V, BLOCK_V):
            offs_v, mask = _columns(start, V, mask_n, BLOCK_V, WIDE)
            x = _load_tile(x_ptr, x_offs, offs_v, stride_xv, mask, float("-inf"), COMPUTE, AGAIN=True)
            m_chunk, d_chunk, _ = math.tile_softmax(x)
            m, d = math.merge_softmax(m, d, m_chunk, d_chunk)
        for start in range(0, V, BLOCK_V):
            offs_v, mask = _columns((chunks - 1) * BLOCK_V - start, V, mask_n, BLOCK_V, WIDE)
            x = _load_tile(x_ptr, x_offs, offs_v, stride_xv, mask, float("-inf"), COMPUTE, AGAIN=False)
            _store_tile(y_ptr, y_offs, offs_v, stride_yv, _output(x, m, d, LOG), mask)
    else:
        pid_v = tl.program_id(1)
        offs_v, mask = _columns(pid_v * BLOCK_V, V, mask_n, BLOCK_V, WIDE)
        AGAIN: tl.constexpr = True if y_ptr is None else None if m_ptr is None else False
        x = _load_tile(x_ptr, x_offs, offs_v, stride_xv, mask, float("-inf"), COMPUTE, AGAIN)
        if y_ptr is None:
            m, d, _ = math.tile_softmax(x)
            tl.store(m_ptr + offs_n * chunks + pid_v, m, mask=mask_n)
            tl.store(d_ptr + offs_n * chunks + pid_v, d, mask=mask_n)
        else:
            if m_ptr is None:
                m, d, e = math.tile_softmax(x, FLUSH=LOG)
                y = _output(x, m, d, LOG) if LOG else e * (1 / d)[:, None]
            else:
                for chunk in range(0, chunks):
                    m_chunk = tl.load(m_ptr + offs_n * chunks + chunk, mask=mask_n, other=0)
                    d_chunk = tl.load(d_ptr + offs_n * chunks + chunk, mask=mask_n, other=1)
                    m, d = math.merge_softmax(m, d, m_chunk, d_chunk)
                y = _output(x, m, d, LOG)
            _store_tile(y_ptr, y_offs, offs_v, stride_yv, y, mask)


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
    y = layout.walk(x.shape, x).empty(x.shape, x.dtype, x.device)
    plan = _Plan(dim, x, y)
    compute = launch.tl_dtype(launch.arithmetic(x.dtype))
    shared = {**plan.shared, "x_ptr": x, "stride_xv": x.stride(dim), "stride_yv": y.stride(dim), "COMPUTE": compute}
    shared |= {"x_row_strides": plan.strides[0], "y_row_strides": plan.strides[1], "LOG": log}
    m = d = None
    if plan.split:
        m, d = (partials.allocate(plan.rows, plan.chunks, launch.arithmetic(x.dtype), x.device) for _ in range(2))
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


@triton.jit(do_not_specialize=["chunks"])
def _softmax_backward_kernel(
    y_ptr,  # (rows, V), strided
    dy_ptr,  # (rows, V), strided
    dx_ptr,  # (rows, V), strided; None: write the sum of chunk program_id(1)
    sums_ptr,  # (rows, chunks); None: this program finds the sum
    row_sizes,
    y_row_strides,
    dy_row_strides,
    dx_row_strides,
    rows,
    V,
    chunks,
    stride_yv,
    stride_dyv,
    stride_dxv,
    LOG: tl.constexpr,
    LOOP: tl.constexpr,  # over the chunks of a row, in one program
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n = _rows(tl.program_id(0), rows, BLOCK_N, WIDE)
    y_offs = _row_offsets(offs_n, row_sizes, y_row_strides)
    dy_offs = _row_offsets(offs_n, row_sizes, dy_row_strides)
    dx_offs = _row_offsets(offs_n, row_sizes, dx_row_strides)
    total = tl.zeros((BLOCK_N,), COMPUTE)
    if LOOP:
        for start in range(0, V, BLOCK_V):
            offs_v, mask = _columns(start, V, mask_n, BLOCK_V, WIDE)
            dy = _load_tile(dy_ptr, dy_offs, offs_v, stride_dyv, mask, 0, COMPUTE, AGAIN=True)
            # From log y the sum does not need y.
            y = dy if LOG else _load_tile(y_ptr, y_offs, offs_v, stride_yv, mask, 0, COMPUTE, AGAIN=True)
            total += _row_sum(y, dy, LOG)
        for start in range(0, V, BLOCK_V):
            offs_v, mask = _columns((chunks - 1) * BLOCK_V - start, V, mask_n, BLOCK_V, WIDE)
            y = _load_tile(y_ptr, y_offs, offs_v, stride_yv, mask, 0, COMPUTE, AGAIN=False)
            dy = _load_tile(dy_ptr, dy_offs, offs_v, stride_dyv, mask, 0, COMPUTE, AGAIN=False)
            _store_tile(dx_ptr, dx_offs, offs_v, stride_dxv, _input_gradient(y, dy, total, LOG), mask)
    else:
        pid_v = tl.program_id(1)
        offs_v, mask = _columns(pid_v * BLOCK_V, V, mask_n, BLOCK_V, WIDE)
        AGAIN: tl.constexpr = True if dx_ptr is None else None if sums_ptr is None else False
        dy = _load_tile(dy_ptr, dy_offs, offs_v, stride_dyv, mask, 0, COMPUTE, AGAIN)
        if LOG and dx_ptr is None:
            y = dy
        else:
            y = _load_tile(y_ptr, y_offs, offs_v, stride_yv, mask, 0, COMPUTE, AGAIN)
        if dx_ptr is None:
            tl.store(sums_ptr + offs_n * chunks + pid_v, _row_sum(y, dy, LOG), mask=mask_n)
        else:
            if sums_ptr is None:
                total = _row_sum(y, dy, LOG)
            else:
                for chunk in range(0, chunks):
                    total += tl.load(sums_ptr + offs_n * chunks + chunk, mask=mask_n, other=0)
            _store_tile(dx_ptr, dx_offs, offs_v, stride_dxv, _input_gradient(y, dy, total, LOG), mask)


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
    dx = layout.walk(y.shape, y).empty(y.shape, y.dtype, y.device)
    plan = _Plan(dim, y, dy, dx, tiles=2)
    compute = launch.arithmetic(y.dtype)
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
        walk = layout.walk_dims([d for d in range(first.dim()) if d != dim], *tensors)
        columns = first.shape[dim]
        self.rows, self.strides = walk.numel, walk.strides
        self.config = launch.rows(first.dtype.itemsize, self.rows, columns, first.stride(dim) == 1, tiles)
        self.chunks = launch.cdiv(columns, self.config["BLOCK_V"])
        self.split = launch.split_rows(self.config, self.rows, columns)
        blocks = launch.cdiv(self.rows, self.config["BLOCK_N"]) if columns else 0
        self.grid = (blocks, self.chunks if self.split else 1)
        reach = max(tensor.stride(dim) * (columns + self.config["BLOCK_V"]) for tensor in tensors)
        wide = max((self.rows + self.config["BLOCK_N"]) * self.chunks, walk.span + reach) >= 2**31
        self.shared = {"row_sizes": walk.inner_sizes, "rows": self.rows, "V": columns, "chunks": self.chunks}
        self.shared |= {"WIDE": wide, "LOOP": self.chunks > 1 and not self.split}
