"""Layer normalization and normalization by the root mean square (RMS), forward and backward.

With the mean m of a row (0 for RMS), the deviations d = x − m and rstd = 1/√(mean d² + eps):

    out = d·rstd·weight + bias
    dx = rstd·(g − mean g − d·rstd·mean(g·d·rstd)) with g = dout·weight, without its second term for RMS
    dweight = Σ dout·d·rstd,  dbias = Σ dout, over rows

(J. Ba, J. Kiros and G. Hinton, "Layer normalization", 2016; B. Zhang and R. Sennrich, "Root mean square layer
normalization", 2019.) A program has a tile of whole rows, which it keeps; rows of more than a tile are read again for
each sum, of the cache as a rule. Gradients of weight and bias are partial sums, one per program of backward, in a fixed
order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit import math
from ..jit.tiles import program_rows
from ..runtime import launch, tile_configs
from ..runtime.replay import replayable


@triton.jit
def _load(x, offs_n, offs_v, mask, ACC_DTYPE: tl.constexpr):
    """Load and upcast a tile of (pointer, strides)."""
    at = x[0] + (offs_n * x[1][0])[:, None] + (offs_v * x[1][1])[None, :]
    return tl.load(at, mask=mask, other=0).to(ACC_DTYPE)


@triton.jit
def _load_normal(x, offs_n, offs_v, mask, mean, rstd, ACC_DTYPE: tl.constexpr):
    """Load a tile of x, and return (x − mean)·rstd, 0 beyond the end."""
    return tl.where(mask, (_load(x, offs_n, offs_v, mask, ACC_DTYPE) - mean) * rstd, 0.0)


@triton.jit
def _mask(mask_n, offs_v, columns):
    return mask_n[:, None] & (offs_v < columns)[None, :]


@triton.jit
def _load_vector(ptr, offs_v, columns, DEFAULT: tl.constexpr, ACC_DTYPE: tl.constexpr):
    """Load and upcast weights or biases of columns, (1, BLOCK_V); DEFAULT if ptr is None."""
    if ptr is None:
        value = tl.full(offs_v.shape, DEFAULT, ACC_DTYPE)
    else:
        value = tl.load(ptr + offs_v, mask=offs_v < columns, other=0).to(ACC_DTYPE)
    return value[None, :]


@triton.jit(do_not_specialize=["rows"])
def _normalize_kernel(
    x,  # (rows, columns)
    weight_ptr,  # (columns,), or None
    bias_ptr,  # (columns,), or None
    out_ptr,  # (rows, columns), contiguous
    mean_ptr,  # (rows,), or None for RMS
    rstd_ptr,  # (rows,)
    rows,
    columns,
    eps: tl.float64,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    ONE_TILE: tl.constexpr,  # per row
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, _ = program_rows(rows, 1, BLOCK_N, INDEX_DTYPE)
    count = tl.full((), columns, ACC_DTYPE)
    end = BLOCK_V if ONE_TILE else columns
    if ONE_TILE:
        offs_v = tl.arange(0, BLOCK_V)
        x_tile = _load(x, offs_n, offs_v, _mask(mask_n, offs_v, columns), ACC_DTYPE)
    mean = tl.zeros((BLOCK_N,), ACC_DTYPE)
    if mean_ptr is not None:
        total = tl.zeros((BLOCK_N,), ACC_DTYPE)
        for start in range(0, end, BLOCK_V):
            offs_v = start + tl.arange(0, BLOCK_V)
            mask = _mask(mask_n, offs_v, columns)
            total += tl.sum(x_tile if ONE_TILE else _load(x, offs_n, offs_v, mask, ACC_DTYPE), axis=1)
        mean = math.div(total, count)
        tl.store(mean_ptr + offs_n, mean, mask=mask_n)
    squares = tl.zeros((BLOCK_N,), ACC_DTYPE)
    for start in range(0, end, BLOCK_V):
        offs_v = start + tl.arange(0, BLOCK_V)
        mask = _mask(mask_n, offs_v, columns)
        value = x_tile if ONE_TILE else _load(x, offs_n, offs_v, mask, ACC_DTYPE)
        d = tl.where(mask, value - mean[:, None], 0.0)
        squares += tl.sum(d * d, axis=1)
    rstd = math.div(1.0, math.sqrt(math.div(squares, count) + tl.full((), eps, ACC_DTYPE)))
    tl.store(rstd_ptr + offs_n, rstd, mask=mask_n)
    for start in range(0, end, BLOCK_V):
        offs_v = start + tl.arange(0, BLOCK_V)
        mask = _mask(mask_n, offs_v, columns)
        d = (x_tile if ONE_TILE else _load(x, offs_n, offs_v, mask, ACC_DTYPE)) - mean[:, None]
        weight = _load_vector(weight_ptr, offs_v, columns, 1.0, ACC_DTYPE)
        out = d * rstd[:, None] * weight + _load_vector(bias_ptr, offs_v, columns, 0.0, ACC_DTYPE)
        out_at = out_ptr + (offs_n * columns)[:, None] + offs_v[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "tiles"])
def _normalize_backward_kernel(
    x,  # (rows, columns)
    dout,  # (rows, columns)
    weight_ptr,
    dx_ptr,  # (rows, columns), contiguous
    dweight_ptr,  # (programs, columns), partial sums, or None
    dbias_ptr,  # the same
    mean_ptr,  # (rows,), or None for RMS
    rstd_ptr,
    rows,
    columns,
    tiles,  # of rows per program
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    ONE_TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    pid = tl.program_id(0).to(INDEX_DTYPE)
    count = tl.full((), columns, ACC_DTYPE)
    end = BLOCK_V if ONE_TILE else columns
    for tile in range(0, tiles):
        offs_n = (pid * tiles + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = offs_n < rows
        rstd = tl.load(rstd_ptr + offs_n, mask=mask_n, other=0)[:, None]
        mean = tl.zeros((BLOCK_N, 1), ACC_DTYPE)
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + offs_n, mask=mask_n, other=0)[:, None]
        if ONE_TILE:
            offs_v = tl.arange(0, BLOCK_V)
            mask = _mask(mask_n, offs_v, columns)
            grad_tile = _load(dout, offs_n, offs_v, mask, ACC_DTYPE)
            normal_tile = _load_normal(x, offs_n, offs_v, mask, mean, rstd, ACC_DTYPE)
        sum_g = tl.zeros((BLOCK_N,), ACC_DTYPE)
        sum_gx = tl.zeros((BLOCK_N,), ACC_DTYPE)
        for start in range(0, end, BLOCK_V):
            offs_v = start + tl.arange(0, BLOCK_V)
            mask = _mask(mask_n, offs_v, columns)
            grad = grad_tile if ONE_TILE else _load(dout, offs_n, offs_v, mask, ACC_DTYPE)
            normal = normal_tile if ONE_TILE else _load_normal(x, offs_n, offs_v, mask, mean, rstd, ACC_DTYPE)
            g = grad * _load_vector(weight_ptr, offs_v, columns, 1.0, ACC_DTYPE)
            sum_g += tl.sum(g, axis=1)
            sum_gx += tl.sum(g * normal, axis=1)
        mean_g = math.div(sum_g, count)[:, None]
        mean_gx = math.div(sum_gx, count)[:, None]
        for start in range(0, end, BLOCK_V):
            offs_v = start + tl.arange(0, BLOCK_V)
            mask = _mask(mask_n, offs_v, columns)
            grad = grad_tile if ONE_TILE else _load(dout, offs_n, offs_v, mask, ACC_DTYPE)
            normal = normal_tile if ONE_TILE else _load_normal(x, offs_n, offs_v, mask, mean, rstd, ACC_DTYPE)
            dx = grad * _load_vector(weight_ptr, offs_v, columns, 1.0, ACC_DTYPE) - normal * mean_gx
            if mean_ptr is not None:
                dx -= mean_g
            dx_at = dx_ptr + (offs_n * columns)[:, None] + offs_v[None, :]
            tl.store(dx_at, (dx * rstd).to(dx_ptr.dtype.element_ty), mask=mask)
            if dweight_ptr is not None:
                _add(dweight_ptr, pid, offs_v, columns, tl.sum(grad * normal, axis=0), tile)
            if dbias_ptr is not None:
                _add(dbias_ptr, pid, offs_v, columns, tl.sum(grad, axis=0), tile)
        tl.debug_barrier()  # what this tile added to partial sums, other threads may read for the next


@triton.jit
def _add(partials_ptr, pid, offs_v, columns, value, tile):
    """Add the sum of a tile of rows to the program's partial sum, which the first tile starts."""
    at = partials_ptr + pid * columns + offs_v
    before = tl.load(at, mask=(offs_v < columns) & (tile > 0), other=0)
    tl.store(at, before + value, mask=offs_v < columns)


def _as_rows(x: torch.Tensor, columns: int) -> torch.Tensor:
    """Return a tensor as (rows, columns): a view where its strides allow one."""
    return x if x.dim() == 2 and x.shape[1] == columns else x.reshape(-1, columns)


@replayable
def normalize_forward(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, *, columns: int, eps: float, centred: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return normalized rows, and each row's mean and rstd.

    Parameters
    ----------
    x
        (…, columns), any number of last dimensions of so many elements, any strides; columns is at least 1.
    weight, bias
        (columns,), contiguous, any floating dtype, or None. The arithmetic is float32, or float64 if x is.
    eps
        What is added to the mean of squares.
    centred
        Subtract the mean: layer normalization; else RMS.

    Returns
    -------
    out
        Of x's shape and dtype, contiguous.
    mean
        (rows,), None unless `centred`.
    rstd
        (rows,), float32 or float64.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 3.0]]).to(DEVICE)
    >>> normalize_forward(x, None, None, columns=2, eps=0.0, centred=True)[0].tolist()
    [[-1.0, 1.0]]
    """
    flat = _as_rows(x, columns)
    rows = flat.shape[0]
    acc_dtype = launch.compute_dtype(x.dtype)
    out = torch.empty(tuple(x.shape), dtype=x.dtype, device=x.device)
    rstd = torch.empty((rows,), dtype=acc_dtype, device=x.device)
    mean = torch.empty((rows,), dtype=acc_dtype, device=x.device) if centred else None
    config = tile_configs.normalized_rows(x.dtype.itemsize, rows, columns)
    launch.run(
        _normalize_kernel,
        (tile_configs.cdiv(rows, config["BLOCK_N"]),),
        config,
        x=(flat, flat.stride()),
        weight_ptr=weight,
        bias_ptr=bias,
        out_ptr=out,
        mean_ptr=mean,
        rstd_ptr=rstd,
        rows=rows,
        columns=columns,
        eps=eps,
        ACC_DTYPE=launch.tl_dtype(acc_dtype),
        INDEX_DTYPE=_index_dtype(flat, config),
        ONE_TILE=columns <= config["BLOCK_V"],
    )
    return out, mean, rstd


@replayable
def normalize_backward(
    x: torch.Tensor,
    dout: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    *,
    columns: int,
    to_weight: bool,
    to_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of `normalize_forward`: to x; and those to weight and bias as partial sums, or None.

    Parameters
    ----------
    x, weight, mean, rstd
        Arguments and results of forward.
    dout
        Of x's shape, any strides.
    to_weight, to_bias
        Which gradients are wanted beside that to x.

    Returns
    -------
    dx
        Of x's shape and dtype, contiguous.
    dweight, dbias
        (programs, columns), float32 or float64, to be summed over programs.

    Examples
    --------
    >>> x = torch.tensor([[3.0, 4.0]]).to(DEVICE)
    >>> _, _, rstd = normalize_forward(x, None, None, columns=2, eps=0.0, centred=False)
    >>> _, _, dbias = normalize_backward(x, x, None, None, rstd, columns=2, to_weight=False, to_bias=True)
    >>> dbias.tolist()
    [[3.0, 4.0]]
    """
    flat, flat_dout = _as_rows(x, columns), _as_rows(dout, columns)
    rows = flat.shape[0]
    dx = torch.empty(tuple(x.shape), dtype=x.dtype, device=x.device)
    config = tile_configs.normalized_rows(x.dtype.itemsize, rows, columns)
    tiles = tile_configs.cdiv(tile_configs.cdiv(rows, config["BLOCK_N"]), tile_configs.NORMALIZATION_PROGRAMS)
    programs = tile_configs.cdiv(rows, config["BLOCK_N"] * max(tiles, 1))
    dweight = torch.empty((programs, columns), dtype=rstd.dtype, device=x.device) if to_weight else None
    dbias = torch.empty((programs, columns), dtype=rstd.dtype, device=x.device) if to_bias else None
    launch.run(
        _normalize_backward_kernel,
        (programs,),
        config,
        x=(flat, flat.stride()),
        dout=(flat_dout, flat_dout.stride()),
        weight_ptr=weight,
        dx_ptr=dx,
        dweight_ptr=dweight,
        dbias_ptr=dbias,
        mean_ptr=mean,
        rstd_ptr=rstd,
        rows=rows,
        columns=columns,
        tiles=tiles,
        ACC_DTYPE=launch.tl_dtype(rstd.dtype),
        INDEX_DTYPE=max((_index_dtype(t, config) for t in (flat, flat_dout)), key=lambda d: d.primitive_bitwidth),
        ONE_TILE=columns <= config["BLOCK_V"],
    )
    return dx, dweight, dbias


def _index_dtype(rows: torch.Tensor, config: tile_configs.Config) -> tl.dtype:
    padding = config["BLOCK_N"] * tile_configs.NORMALIZATION_PROGRAMS
    padded = (rows.shape[0] + padding, rows.shape[1] + config["BLOCK_V"])
    strides = (max(abs(rows.stride(0)), rows.shape[1]), max(abs(rows.stride(1)), 1))
    return launch.index_dtype(sum(size * stride for size, stride in zip(padded, strides, strict=True)))
