"""Cross-entropy of logits x with class probabilities y, class weights c and label smoothing ε, of each row; gradients.

    loss = Σ w_v·(−log q_v),   w = c·((1 − ε)·y + ε/V),   q = softmax(x)
    dx   = W·q − w,   W = Σ w_v
    dy   = (1 − ε)·c·(−log q)

In base 2, with row_max = max x, z = log₂e·(x − row_max) and sum_exp = Σ 2^z of a row,
−log q = log sum_exp − z·log 2, so that loss = W·log sum_exp − log 2·Σ w·z. A program computes the statistics of one
chunk of a row, as online softmax does, and a second kernel merges the chunks in order. Where x = −inf a column with
w = 0 adds exactly 0, and dy is 0 if (1 − ε)·c is. Probabilities need not add up to 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit import math
from ..jit.tiles import (
    load_class_weights,
    load_row,
    load_stat,
    load_tile,
    merge_chunks,
    program_tile,
    store_stat,
    store_tile,
    tile_columns,
    tile_is_full,
    tile_mask,
)
from ..runtime import launch, strides
from ..runtime.replay import replayable
from ..runtime.row_tiling import RowTiling, row_jit

#: Row statistics that forward saves: row_max, sum_exp, W.
STATISTICS = 3
_MAX, _SUM, _W = (tl.constexpr(stat) for stat in range(STATISTICS))


@row_jit
def _soft_cross_entropy_kernel(
    x,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    y,  # (N, V)
    class_ptr,  # (V,), contiguous, or None
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (4, N, chunks): written instead where rows have several chunks; else None
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    log2e: tl.float64,
    smoothing: tl.float64,
    SMOOTH: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Row statistics of a chunk, which are partial results or, where it is the whole row, its loss."""
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    scalars = (tl.full((), log2e, ACC_DTYPE), tl.full((), smoothing, ACC_DTYPE))
    offs_v = tile_columns(chunk, V, BLOCK_V)
    if tile_is_full(mask_n, chunk, V, BLOCK_V):
        stats = _tile_stats(x, y, class_ptr, offs_n, offs_v, None, sizes, V, scalars, SMOOTH)
    else:
        stats = _tile_stats(x, y, class_ptr, offs_n, offs_v, tile_mask(mask_n, offs_v, V), sizes, V, scalars, SMOOTH)
    if partials_ptr is None:
        _finalize_rows(losses_ptr, stats_ptr, offs_n, mask_n, rows, stats)
    else:
        at, size = offs_n * chunks + chunk, tl.cast(rows, tl.int64) * chunks
        for stat in tl.static_range(4):
            store_stat(partials_ptr, stat, size, at, stats[stat], mask_n)


@triton.jit
def _tile_stats(x, y, class_ptr, offs_n, offs_v, mask, sizes, V, scalars, SMOOTH: tl.constexpr):
    """row_max and sum_exp of each row of a tile, Σ w·z and Σ w. mask None: the tile is full."""
    log2e, smoothing = scalars
    x_tile = load_tile(x, offs_n, offs_v, sizes, mask, float("-inf"), log2e.dtype)
    w = _tile_weights(y, class_ptr, offs_n, offs_v, mask, sizes, V, smoothing, SMOOTH)
    row_max, z, e = math.tile_exp2(x_tile, log2e)
    wz = w * z
    # NaN is 0·∞, or of a row whose sum_exp or Σ w is NaN, too. To compare w would unpack halves where y is float16.
    return row_max, tl.sum(e, axis=1), tl.sum(tl.where(wz == wz, wz, 0.0), axis=1), tl.sum(w, axis=1)


@triton.jit
def _tile_weights(y, class_ptr, offs_n, offs_v, mask, sizes, V, smoothing, SMOOTH: tl.constexpr):
    """w of a tile; 0 out of bounds."""
    w = load_tile(y, offs_n, offs_v, sizes, mask, 0.0, smoothing.dtype)
    if SMOOTH:
        w = (1 - smoothing) * w + smoothing / V
    if SMOOTH or class_ptr is not None:
        w *= load_class_weights(class_ptr, offs_v, V, w.dtype)
    return w


@triton.jit
def _finalize_rows(losses_ptr, stats_ptr, offs_n, mask_n, rows, stats):
    """Store the losses of rows, and what backward needs."""
    row_max, sum_exp, weighted_sum, weight_sum = stats
    tl.store(losses_ptr + offs_n, weight_sum * math.log(sum_exp) - weighted_sum * math.LN_2, mask=mask_n)
    store_stat(stats_ptr, _MAX, rows, offs_n, row_max, mask_n)
    store_stat(stats_ptr, _SUM, rows, offs_n, sum_exp, mask_n)
    store_stat(stats_ptr, _W, rows, offs_n, weight_sum, mask_n)


@row_jit
def _soft_cross_entropy_merge_kernel(
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (4, N, chunks)
    rows,
    chunks,
    log2e: tl.float64,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge the chunks of rows, in order, into losses."""
    offs_n, mask_n, _ = program_tile(rows, 1, BLOCK_N)
    stats = merge_chunks(
        partials_ptr, tl.full((), log2e, ACC_DTYPE), offs_n, mask_n, rows, chunks, True, ACC_DTYPE, BLOCK_C
    )
    _finalize_rows(losses_ptr, stats_ptr, offs_n, mask_n, rows, stats)


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
    tiling = RowTiling(x.shape[-1], {"x": x, "y": y})
    dtype = launch.compute_dtype(x.dtype, y.dtype)
    losses = torch.empty(x.shape[:-1], dtype=dtype, device=x.device)
    stats = torch.empty((STATISTICS, tiling.rows), dtype=dtype, device=x.device)
    partials = None
    if tiling.chunks > 1:
        partials = torch.empty((4, tiling.rows, tiling.chunks), dtype=dtype, device=x.device)
    outputs = {"losses_ptr": losses, "stats_ptr": stats, "partials_ptr": partials}
    launch.run(
        _soft_cross_entropy_kernel,
        tiling.grid,
        tiling.config,
        **tiling.args("x", "y"),
        **outputs,
        class_ptr=class_weight,
        V=x.shape[-1],
        log2e=math.LOG2_E.value,
        smoothing=label_smoothing,
        SMOOTH=label_smoothing != 0,
        ACC_DTYPE=launch.tl_dtype(dtype),
    )
    if partials is not None:
        grid, config = tiling.merging(dtype)
        launch.run(
            _soft_cross_entropy_merge_kernel,
            grid,
            config,
            **outputs,
            rows=tiling.rows,
            chunks=tiling.chunks,
            log2e=math.LOG2_E.value,
            ACC_DTYPE=launch.tl_dtype(dtype),
        )
    return losses, stats


@row_jit
def _soft_cross_entropy_backward_kernel(
    x,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    y,  # (N, V); read for dx only
    class_ptr,  # (V,), contiguous, or None
    stats_ptr,  # (STATISTICS, N)
    dloss_ptr,  # (N,), or a scalar
    dloss_factor_ptr,  # a scalar, or None
    dx,  # (N, V), or None
    dy,  # (N, V), or None
    dloss_strides,
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    log2e: tl.float64,
    smoothing: tl.float64,
    TO_X: tl.constexpr,  # with dx
    TO_Y: tl.constexpr,  # with dy
    SMOOTH: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    scalars = (tl.full((), log2e, ACC_DTYPE), tl.full((), smoothing, ACC_DTYPE))
    g = load_row((dloss_ptr, dloss_strides), offs_n, sizes, mask_n, 0, ACC_DTYPE)
    if dloss_factor_ptr is not None:
        g *= tl.load(dloss_factor_ptr).to(ACC_DTYPE)
    row_max = load_stat(stats_ptr, _MAX, rows, offs_n, mask_n, 0.0)
    sum_exp = load_stat(stats_ptr, _SUM, rows, offs_n, mask_n, 1.0)
    weight_sum = load_stat(stats_ptr, _W, rows, offs_n, mask_n, 0.0)
    of_rows = (g, row_max, math.div(g * weight_sum, sum_exp), math.log(sum_exp))
    offs_v = tile_columns(chunk, V, BLOCK_V)
    if tile_is_full(mask_n, chunk, V, BLOCK_V):
        _tile_gradients(x, y, dx, dy, class_ptr, offs_n, offs_v, None, sizes, V, of_rows, scalars, TO_X, TO_Y, SMOOTH)
    else:
        mask = tile_mask(mask_n, offs_v, V)
        _tile_gradients(x, y, dx, dy, class_ptr, offs_n, offs_v, mask, sizes, V, of_rows, scalars, TO_X, TO_Y, SMOOTH)


@triton.jit
def _tile_gradients(
    x,
    y,
    dx,
    dy,
    class_ptr,
    offs_n,
    offs_v,
    mask,
    sizes,
    V,
    of_rows,
    scalars,
    TO_X: tl.constexpr,
    TO_Y: tl.constexpr,
    SMOOTH: tl.constexpr,
):
    """Store the gradients of a tile. mask None: the tile is full."""
    log2e, smoothing = scalars
    g, row_max, dloss_softmax, log_sum_exp = of_rows
    z = math.shifted(load_tile(x, offs_n, offs_v, sizes, mask, float("-inf"), log2e.dtype), log2e, row_max)
    if TO_X:
        w = _tile_weights(y, class_ptr, offs_n, offs_v, mask, sizes, V, smoothing, SMOOTH)
        to_x = math.exp2(z) * dloss_softmax[:, None] - g[:, None] * w
        store_tile(dx, offs_n, offs_v, sizes, to_x, mask)
    if TO_Y:
        scale = tl.broadcast_to((g * (1 - smoothing))[:, None], z.shape)
        if class_ptr is not None:
            scale *= load_class_weights(class_ptr, offs_v, V, z.dtype)
        nll = log_sum_exp[:, None] - z * math.LN_2
        to_y = scale * tl.where((scale == 0) & (nll == float("inf")), 0.0, nll)
        store_tile(dy, offs_n, offs_v, sizes, to_y, mask)


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
        Upstream gradient, that of the losses: of the leading dimensions' shape, or 0-d. Read on the device.
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
        dx = strides.empty_as(x, dx_dtype)
    if dy_dtype is not None:
        dy = strides.empty_as(y, dy_dtype)
    tiling = RowTiling(x.shape[-1], {"x": x, "y": y, "dx": dx, "dy": dy}, {"dloss": dloss}, whole_rows=False)
    launch.run(
        _soft_cross_entropy_backward_kernel,
        tiling.grid,
        tiling.config,
        **tiling.args("x", "y", "dloss", "dx", "dy"),
        class_ptr=class_weight,
        stats_ptr=statistics,
        dloss_factor_ptr=dloss_factor,
        V=x.shape[-1],
        log2e=math.LOG2_E.value,
        smoothing=label_smoothing,
        TO_X=dx is not None,
        TO_Y=dy is not None,
        SMOOTH=label_smoothing != 0,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(x.dtype, y.dtype)),
    )
    return dx, dy
