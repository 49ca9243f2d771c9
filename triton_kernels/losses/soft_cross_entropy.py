"""Cross-entropy of logits x with class probabilities y, class weights c and label smoothing ε, of each row; gradients.

    loss = Σ w_v·(−log q_v),   w = c·((1 − ε)·y + ε/V),   q = softmax(x)
    dx   = W·q − w,   W = Σ w_v
    dy   = (1 − ε)·c·(−log q)

In base 2 as in `cross_entropy`: with m = log₂e·max x, z = log₂e·x − m and d = Σ 2^z of a row, −log q = log d − z·log 2,
so that loss = W·log d − log 2·Σ w·z. A program takes one chunk of a row, another kernel merges chunks in order. Where
x = −inf a column with w = 0 adds exactly 0, and dy is 0 if (1 − ε)·c is. Probabilities need not add up to 1.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..jit import math
from ..jit.tiles import get, load_row, load_tile, place, put, store_tile
from ..runtime import launch, strides, tile_configs
from ..runtime.replay import replayable
from ..runtime.row_tiling import Rows, row_jit
from .cross_entropy_rows import classes, merge_chunks

#: What is kept of a row: m, d, W.
STATISTICS = 3
_M, _D, _W = (tl.constexpr(number) for number in range(STATISTICS))


@triton.jit
def _weights(y_operand, class_ptr, offs_n, offs_v, V, sizes, mask, smoothing, SMOOTH: tl.constexpr):
    """w of a tile; 0 for columns that are not there."""
    w = load_tile(y_operand, offs_n, offs_v, sizes, mask, 0.0, smoothing.dtype)
    if SMOOTH:
        w = (1 - smoothing) * w + smoothing / V
    if SMOOTH or class_ptr is not None:
        w *= classes(class_ptr, offs_v, offs_v < V, w)
    return w


@triton.jit
def _look(x_operand, y_operand, class_ptr, offs_n, offs_v, V, sizes, mask, scalars, SMOOTH: tl.constexpr):
    """Of each row of a tile m, d, Σ w·z and Σ w."""
    factor, smoothing = scalars
    x = load_tile(x_operand, offs_n, offs_v, sizes, mask, float("-inf"), factor.dtype)
    w = _weights(y_operand, class_ptr, offs_n, offs_v, V, sizes, mask, smoothing, SMOOTH)
    m, z, e = math.tile_exp2(x, factor)
    d = tl.sum(e, axis=1)
    wz = w * z
    # NaN is 0·∞, or of a row whose d or Σ w are NaN, too. To compare w would take halves apart where y is float16.
    return m, d, tl.sum(tl.where(wz == wz, wz, 0.0), axis=1), tl.sum(w, axis=1)


@triton.jit
def _finish(losses_ptr, stats_ptr, offs_n, mask_n, rows, of_row):
    """Store the losses of rows, and what backward needs."""
    m, d, a, total = of_row
    tl.store(losses_ptr + offs_n, total * math.log(d) - a * math.LN_2, mask=mask_n)
    put(stats_ptr, _M, rows, offs_n, m, mask_n)
    put(stats_ptr, _D, rows, offs_n, d, mask_n)
    put(stats_ptr, _W, rows, offs_n, total, mask_n)


@row_jit
def _soft_cross_entropy_kernel(
    x_ptr,  # (rows, V), strided
    y_ptr,
    class_ptr,  # (V,), dense, or None
    losses_ptr,  # (rows,)
    stats_ptr,  # (STATISTICS, rows)
    partials_ptr,  # (4, rows, chunks), written instead where rows have several chunks; else None
    sizes,
    x_row_strides,
    y_row_strides,
    rows,
    V,
    chunks,
    stride_xv,
    stride_yv,
    factor: tl.float64,
    smoothing: tl.float64,
    SMOOTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = place(rows, chunks, BLOCK_N, WIDE)
    offs_v = chunk * BLOCK_V + tl.arange(0, BLOCK_V)
    x, y = (x_ptr, x_row_strides, stride_xv, UNIT), (y_ptr, y_row_strides, stride_yv, UNIT)
    scalars = (tl.full((), factor, COMPUTE), tl.full((), smoothing, COMPUTE))
    if (chunk + 1) * BLOCK_V <= V and tl.min(mask_n.to(tl.int32), axis=0) > 0:
        of_row = _look(x, y, class_ptr, offs_n, offs_v, V, sizes, None, scalars, SMOOTH)
    else:
        mask = mask_n[:, None] & (offs_v < V)[None, :]
        of_row = _look(x, y, class_ptr, offs_n, offs_v, V, sizes, mask, scalars, SMOOTH)
    if partials_ptr is None:
        _finish(losses_ptr, stats_ptr, offs_n, mask_n, rows, of_row)
    else:
        at, size = offs_n * chunks + chunk, tl.cast(rows, offs_n.dtype) * chunks
        for number in tl.static_range(4):
            put(partials_ptr, number, size, at, of_row[number], mask_n)


@row_jit
def _soft_cross_entropy_merge_kernel(
    losses_ptr,  # (rows,)
    stats_ptr,  # (STATISTICS, rows)
    partials_ptr,  # (4, rows, chunks)
    rows,
    chunks,
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge the chunks of rows."""
    offs_n, mask_n, _ = place(rows, 1, BLOCK_N, WIDE)
    of_row = merge_chunks(partials_ptr, offs_n, mask_n, rows, chunks, True, COMPUTE, BLOCK_N, BLOCK_C)
    _finish(losses_ptr, stats_ptr, offs_n, mask_n, rows, of_row)


@replayable
def soft_cross_entropy_forward(
    x: torch.Tensor, y: torch.Tensor, *, class_weight: torch.Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each row of logits with class probabilities.

    Parameters
    ----------
    x, y
        Logits and probabilities (..., V), of floating dtypes and any strides; the same shape.
    class_weight
        (V,), dense, floating.
    label_smoothing
        ε in [0, 1].

    Returns
    -------
    tuple
        Losses, of the leading dimensions' shape, float32 (float64 where x or y is); and the rows' statistics,
        (STATISTICS, rows), for `soft_cross_entropy_backward`.

    Examples
    --------
    >>> x, y = torch.tensor([[0.0, 0.0]]).to(DEVICE), torch.tensor([[0.25, 0.75]]).to(DEVICE)
    >>> losses, statistics = soft_cross_entropy_forward(x, y)
    >>> round(losses.item(), 4), statistics.tolist()
    (0.6931, [[0.0], [2.0], [1.0]])
    """
    V = x.shape[-1]
    plan = Rows(V, (x, y), ())
    compute = launch.compute_dtype(x.dtype, y.dtype)
    losses = torch.empty(x.shape[:-1], dtype=compute, device=x.device)
    stats = torch.empty((STATISTICS, plan.rows), dtype=compute, device=x.device)
    partials = None
    if plan.chunks > 1:
        partials = torch.empty((4, plan.rows, plan.chunks), dtype=compute, device=x.device)
    common: dict[str, Any] = {"losses_ptr": losses, "stats_ptr": stats, "partials_ptr": partials}
    common |= {"rows": plan.rows, "chunks": plan.chunks, "COMPUTE": launch.tl_dtype(compute), "WIDE": plan.wide}
    launch.run(
        _soft_cross_entropy_kernel,
        plan.grid,
        plan.config,
        **common,
        x_ptr=x,
        y_ptr=y,
        class_ptr=class_weight,
        sizes=plan.sizes,
        x_row_strides=plan.strides[0],
        y_row_strides=plan.strides[1],
        V=V,
        stride_xv=x.stride(-1),
        stride_yv=y.stride(-1),
        factor=math.factors(1.0)[0],
        smoothing=label_smoothing,
        SMOOTH=label_smoothing != 0,
        UNIT=plan.unit,
    )
    if partials is not None:
        merge = tile_configs.merge(compute.itemsize, plan.rows, plan.chunks)
        grid = (tile_configs.cdiv(plan.rows, merge["BLOCK_N"]),)
        launch.run(_soft_cross_entropy_merge_kernel, grid, merge, **common)
    return losses, stats


@row_jit
def _soft_cross_entropy_backward_kernel(
    x_ptr,  # (rows, V), strided
    y_ptr,  # (rows, V), strided; read for dx only
    class_ptr,  # (V,), dense, or None
    stats_ptr,  # (STATISTICS, rows)
    dloss_ptr,  # (rows,), strided, or a scalar
    dloss_factor_ptr,  # a scalar, or None
    dx_ptr,  # (rows, V), strided, or None
    dy_ptr,  # (rows, V), strided, or None
    sizes,
    x_row_strides,
    y_row_strides,
    dloss_strides,
    dx_row_strides,
    dy_row_strides,
    rows,
    V,
    chunks,
    stride_xv,
    stride_yv,
    stride_dxv,
    stride_dyv,
    factor: tl.float64,
    smoothing: tl.float64,
    SMOOTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = place(rows, chunks, BLOCK_N, WIDE)
    offs_v = chunk * BLOCK_V + tl.arange(0, BLOCK_V)
    x, y = (x_ptr, x_row_strides, stride_xv, UNIT), (y_ptr, y_row_strides, stride_yv, UNIT)
    outs = ((dx_ptr, dx_row_strides, stride_dxv, UNIT), (dy_ptr, dy_row_strides, stride_dyv, UNIT))
    scalars = (tl.full((), factor, COMPUTE), tl.full((), smoothing, COMPUTE))
    g = load_row((dloss_ptr, dloss_strides), offs_n, sizes, mask_n, 0, COMPUTE)
    if dloss_factor_ptr is not None:
        g *= tl.load(dloss_factor_ptr).to(COMPUTE)
    m, d = get(stats_ptr, _M, rows, offs_n, mask_n, 0.0), get(stats_ptr, _D, rows, offs_n, mask_n, 1.0)
    of_row = (g, m, d, get(stats_ptr, _W, rows, offs_n, mask_n, 0.0))
    if (chunk + 1) * BLOCK_V <= V and tl.min(mask_n.to(tl.int32), axis=0) > 0:
        _backward(x, y, class_ptr, outs, offs_n, offs_v, V, sizes, None, of_row, scalars, SMOOTH)
    else:
        mask = mask_n[:, None] & (offs_v < V)[None, :]
        _backward(x, y, class_ptr, outs, offs_n, offs_v, V, sizes, mask, of_row, scalars, SMOOTH)


@triton.jit
def _backward(
    x_operand,
    y_operand,
    class_ptr,
    outs,
    offs_n,
    offs_v,
    V,
    sizes,
    mask,  # None: every element of the tile counts
    of_row,
    scalars,
    SMOOTH: tl.constexpr,
):
    factor, smoothing = scalars
    g, m, d, total = of_row
    dx_operand, dy_operand = outs
    x = load_tile(x_operand, offs_n, offs_v, sizes, mask, float("-inf"), factor.dtype)
    z = math.rebase(x, factor, m)
    if dx_operand[0] is not None:
        w = _weights(y_operand, class_ptr, offs_n, offs_v, V, sizes, mask, smoothing, SMOOTH)
        dx = math.exp2(z) * math.div(g * total, d)[:, None] - g[:, None] * w
        store_tile(dx_operand, offs_n, offs_v, sizes, dx, mask)
    if dy_operand[0] is not None:
        to_y = tl.broadcast_to((g * (1 - smoothing))[:, None], x.shape)
        if class_ptr is not None:
            to_y *= classes(class_ptr, offs_v, offs_v < V, x)
        nll = math.log(d)[:, None] - z * math.LN_2
        dy = to_y * tl.where((to_y == 0) & (nll == float("inf")), 0.0, nll)
        store_tile(dy_operand, offs_n, offs_v, sizes, dy, mask)


@replayable
def soft_cross_entropy_backward(
    x: torch.Tensor,
    y: torch.Tensor,
    statistics: torch.Tensor,
    dloss: torch.Tensor,
    *,
    class_weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    dloss_factor: torch.Tensor | None = None,
    dx_dtype: torch.dtype | None = None,
    dy_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `soft_cross_entropy_forward` to logits and probabilities, in one launch; arguments as there.

    Parameters
    ----------
    statistics
        From the forward pass.
    dloss
        The gradient of the losses: of the leading dimensions' shape, or 0-d. Read on the device.
    dloss_factor
        A 0-d factor on dloss, read on the device.
    dx_dtype, dy_dtype
        Dtypes of the gradients; None leaves that gradient out. The probabilities are read for dx only.

    Returns
    -------
    tuple
        (dx, dy), None where not asked for; laid out in memory as x and y are, without gaps.

    Examples
    --------
    >>> x, y = torch.tensor([[0.0, 0.0]]).to(DEVICE), torch.tensor([[0.25, 0.75]]).to(DEVICE)
    >>> _, statistics = soft_cross_entropy_forward(x, y)
    >>> dx, _ = soft_cross_entropy_backward(x, y, statistics, torch.tensor(1.0).to(DEVICE), dx_dtype=x.dtype)
    >>> dx.tolist()
    [[0.25, -0.25]]
    """
    dx = dy = None
    if dx_dtype is not None:
        dx = strides.coalesce(x.shape, x).empty(x.shape, dx_dtype, x.device)
    if dy_dtype is not None:
        dy = strides.coalesce(y.shape, y).empty(y.shape, dy_dtype, x.device)
    tensors = {"x": x, "y": y, "dx": dx, "dy": dy}
    used = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    plan = Rows(x.shape[-1], tuple(used.values()), (dloss,), whole_rows=False)
    operand_strides = dict(zip(used, plan.strides, strict=True))
    args: dict[str, Any] = {}
    for name, tensor in tensors.items():
        args[f"{name}_ptr"], args[f"{name}_row_strides"] = tensor, operand_strides.get(name)
        args[f"stride_{name}v"] = 1 if tensor is None else tensor.stride(-1)
    launch.run(
        _soft_cross_entropy_backward_kernel,
        plan.grid,
        plan.config,
        **args,
        class_ptr=class_weight,
        stats_ptr=statistics,
        dloss_ptr=dloss,
        dloss_factor_ptr=dloss_factor,
        sizes=plan.sizes,
        dloss_strides=plan.row_strides[0],
        rows=plan.rows,
        V=x.shape[-1],
        chunks=plan.chunks,
        factor=math.factors(1.0)[0],
        smoothing=label_smoothing,
        SMOOTH=label_smoothing != 0,
        COMPUTE=launch.tl_dtype(launch.compute_dtype(x.dtype, y.dtype)),
        UNIT=plan.unit,
        WIDE=plan.wide,
    )
    return dx, dy
