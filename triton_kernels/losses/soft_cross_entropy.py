"""Cross-entropy of logits x with class probabilities y, class weights c and label smoothing ε, of each row; gradients.

    loss = Σ w_v·(−log q_v),   w = c·((1 − ε)·y + ε/V),   q = softmax(x)
    dx   = W·q − w,   W = Σ w_v
    dy   = (1 − ε)·c·(−log q)

In base 2, with row_max = max x, z = log₂e·(x − row_max) and sum_exp = Σ 2^z of a row,
−log q = log sum_exp − z·log 2, so that loss = W·log sum_exp − log 2·Σ w·z. Where x = −inf a column with w = 0 adds
exactly 0, and dy is 0 if (1 − ε)·c is. Probabilities need not add up to 1.

One launch reads logits and probabilities once, and writes losses and, if wanted, dx, as that of `losses.cross_entropy`
does. dy is computed in a launch of its own: it may be infinite where the upstream gradient is 0, and is 0 then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit import chunk_flags, math
from ..jit.cross_entropy_chunks import CHUNK_STATISTICS, merged_parts, merged_stats, store_chunk_stats
from ..jit.tiles import (
    chunk_tile,
    load_class_weights,
    load_in_bounds,
    load_row,
    load_stat,
    program_tile,
    store_in_bounds,
    store_stat,
    tile_columns,
)
from ..runtime import launch, strides, tile_configs
from ..runtime.replay import replayable
from ..runtime.row_tiling import RowTiling, row_jit

#: Row statistics that forward saves: row_max, sum_exp, W.
STATISTICS = 3
_MAX, _SUM, _W = (tl.constexpr(stat) for stat in range(STATISTICS))


@row_jit
def _soft_cross_entropy_kernel(
    x,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    y,  # (N, V)
    dx,  # (N, V), or None
    class_ptr,  # (V,), contiguous, or None
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (CHUNK_STATISTICS, N, chunks), or None: rows have one chunk
    flags_ptr,  # (blocks of rows, chunks), zeros; or None
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    tiles,  # per chunk, or None: 1
    polls,  # of the flags of a row
    log2e: tl.float64,
    smoothing: tl.float64,
    gradient_scale: tl.float64,
    TO_X: tl.constexpr,  # with dx: Triton 3.6 cannot compare a tuple with None
    SMOOTH: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    scalars = (tl.full((), log2e, ACC_DTYPE), tl.full((), smoothing, ACC_DTYPE))
    WHOLE_ROW: tl.constexpr = partials_ptr is None
    partials = (partials_ptr, offs_n, tl.cast(rows, tl.int64) * chunks, chunks)
    stores_loss = chunk == 0
    if WHOLE_ROW:
        held, stats = _chunk_stats(x, y, class_ptr, offs_n, mask_n, sizes, chunk, tiles, V, scalars, SMOOTH, BLOCK_V)
        e, w, tile_max = held
    else:
        flags = flags_ptr + (tl.program_id(0) - chunk).to(tl.int64)
        e, tile_max = tl.zeros((BLOCK_N, BLOCK_V), ACC_DTYPE), tl.zeros((BLOCK_N,), ACC_DTYPE)
        w = e
        todo, polls_left = chunk, polls
        while todo >= 0:
            loaded, found = _chunk_stats(
                x, y, class_ptr, offs_n, mask_n, sizes, todo, tiles, V, scalars, SMOOTH, BLOCK_V
            )
            e, w, tile_max = loaded
            store_chunk_stats(partials, todo, mask_n, found, LABELS=False, WEIGHTS=True)
            if TO_X:
                chunk_flags.publish(flags + todo)
                todo, polls_left = chunk_flags.next_chunk(flags, todo, chunk, chunks, polls_left, BLOCK_C)
            else:
                stores_loss = chunk_flags.arrive(flags) == chunks - 1
                todo = -1
        stats = merged_stats(
            partials, mask_n & (stores_loss | TO_X), scalars[0], LABELS=False, WEIGHTS=True, BLOCK_C=BLOCK_C
        )
    row_max, sum_exp, weighted_sum, weight_sum, _ = stats
    if stores_loss:
        tl.store(losses_ptr + offs_n, weight_sum * math.log(sum_exp) - weighted_sum * math.LN_2, mask=mask_n)
        store_stat(stats_ptr, _MAX, rows, offs_n, row_max, mask_n)
        store_stat(stats_ptr, _SUM, rows, offs_n, sum_exp, mask_n)
        store_stat(stats_ptr, _W, rows, offs_n, weight_sum, mask_n)
    if TO_X:
        g = tl.full((BLOCK_N,), gradient_scale, ACC_DTYPE)
        for i in range(0, 1 if tiles is None else tiles):
            tile = chunk_tile(chunk, tiles, i)
            if tiles is not None:
                x_tile = load_in_bounds(x, offs_n, mask_n, sizes, tile, V, float("-inf"), ACC_DTYPE, BLOCK_V)
                e, tile_max = math.exp2(math.shifted(x_tile, scalars[0], row_max)), row_max
                w = _tile_weights(y, class_ptr, offs_n, mask_n, sizes, tile, V, scalars[1], SMOOTH, BLOCK_V)
            to_row = math.exp2((tile_max - math.neg_inf_to_zero(row_max)) * scalars[0])
            to_x = _to_logits(e, to_row, w, sum_exp, weight_sum, g)
            store_in_bounds(dx, offs_n, mask_n, sizes, tile, to_x, V, BLOCK_V)


@triton.jit
def _chunk_stats(
    x,
    y,
    class_ptr,
    offs_n,
    mask_n,
    sizes,
    chunk,
    tiles,
    V,
    scalars,
    SMOOTH: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Load a chunk; return 2^z, w and row_max of its first tile, and row_max, sum_exp, Σ w·z and Σ w of each row."""
    tile = chunk_tile(chunk, tiles, 0)
    held, stats = _tile_stats(x, y, class_ptr, offs_n, mask_n, sizes, tile, V, scalars, SMOOTH, BLOCK_V)
    row_max, sum_exp, weighted_sum, weight_sum = stats
    if tiles is not None:
        for i in range(1, tiles):
            tile = chunk_tile(chunk, tiles, i)
            before = (row_max, sum_exp, weighted_sum, weight_sum)
            _, other = _tile_stats(x, y, class_ptr, offs_n, mask_n, sizes, tile, V, scalars, SMOOTH, BLOCK_V)
            row_max, sum_exp, weighted_sum, weight_sum = merged_parts(before, other, scalars[0], True)
    return held, (row_max, sum_exp, weighted_sum, weight_sum, sum_exp)  # without labels


@triton.jit
def _tile_stats(x, y, class_ptr, offs_n, mask_n, sizes, tile, V, scalars, SMOOTH: tl.constexpr, BLOCK_V: tl.constexpr):
    """Load a tile; return 2^z, w and row_max, and row_max, sum_exp, Σ w·z and Σ w of each row."""
    log2e, smoothing = scalars
    x_tile = load_in_bounds(x, offs_n, mask_n, sizes, tile, V, float("-inf"), log2e.dtype, BLOCK_V)
    w = _tile_weights(y, class_ptr, offs_n, mask_n, sizes, tile, V, smoothing, SMOOTH, BLOCK_V)
    row_max, z, e = math.tile_exp2(x_tile, log2e)
    wz = w * z
    # NaN is 0·∞, or of a row whose sum_exp or Σ w is NaN, too. To compare w would unpack halves where y is float16.
    weighted_sum = tl.sum(tl.where(wz == wz, wz, 0.0), axis=1)
    return (e, w, row_max), (row_max, tl.sum(e, axis=1), weighted_sum, tl.sum(w, axis=1))


@triton.jit
def _tile_weights(y, class_ptr, offs_n, mask_n, sizes, tile, V, smoothing, SMOOTH: tl.constexpr, BLOCK_V: tl.constexpr):
    """w of a tile; 0 out of bounds."""
    w = load_in_bounds(y, offs_n, mask_n, sizes, tile, V, 0.0, smoothing.dtype, BLOCK_V)
    if SMOOTH:
        w = (1 - smoothing) * w + smoothing / V
    if SMOOTH or class_ptr is not None:
        w *= load_class_weights(class_ptr, tile_columns(tile, V, BLOCK_V), V, w.dtype)
    return w


@triton.jit
def _to_logits(e, to_row, w, sum_exp, weight_sum, g):
    """g·(W·q − w) of a tile, where q = e·to_row/sum_exp."""
    return e * (to_row * math.div(g * weight_sum, sum_exp))[:, None] - g[:, None] * w


@triton.jit
def _to_probabilities(x_tile, class_ptr, row_max, sum_exp, g, tile, V, scalars, BLOCK_V: tl.constexpr):
    """g·(1 − ε)·c·(−log q) of a tile; 0 where (1 − ε)·c is and x = −inf."""
    log2e, smoothing = scalars
    z = math.shifted(x_tile, log2e, row_max)
    scale = tl.broadcast_to((g * (1 - smoothing))[:, None], z.shape)
    if class_ptr is not None:
        scale *= load_class_weights(class_ptr, tile_columns(tile, V, BLOCK_V), V, z.dtype)
    nll = math.log(sum_exp)[:, None] - z * math.LN_2
    return scale * tl.where((scale == 0) & (nll == float("inf")), 0.0, nll)


@replayable
def soft_cross_entropy_forward(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    class_weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    gradient_scale: float = 1.0,
    dx: torch.Tensor | None = None,
    polls: int | None = None,
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
    gradient_scale
        A factor on dx.
    dx
        Where the gradient to x is written, for an upstream gradient of 1 to each loss: of x's shape, or None.
    polls
        How often a program polls for the statistics of other chunks before it computes them itself.

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
    tiling = RowTiling(x.shape[-1], {"x": x, "y": y, "dx": dx}, meeting=tile_configs.MOST_REGISTERS)
    dtype = launch.compute_dtype(x.dtype, y.dtype)
    losses = torch.empty(x.shape[:-1], dtype=dtype, device=x.device)
    stats = torch.empty((STATISTICS, tiling.rows), dtype=dtype, device=x.device)
    partials, flags = None, None
    if tiling.chunks > 1:
        partials = torch.empty((CHUNK_STATISTICS, tiling.rows, tiling.chunks), dtype=dtype, device=x.device)
        flags = launch.zeros(tiling.grid, dtype=torch.int32, device=x.device)
    launch.run(
        _soft_cross_entropy_kernel,
        tiling.grid,
        tiling.config,
        **tiling.args("x", "y", "dx"),
        class_ptr=class_weight,
        losses_ptr=losses,
        stats_ptr=stats,
        partials_ptr=partials,
        flags_ptr=flags,
        V=x.shape[-1],
        tiles=tiling.tiles,
        polls=tile_configs.polls() if polls is None else polls,
        log2e=math.LOG2_E.value,
        smoothing=label_smoothing,
        gradient_scale=gradient_scale,
        TO_X=dx is not None,
        SMOOTH=label_smoothing != 0,
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
    x_tile = load_in_bounds(x, offs_n, mask_n, sizes, chunk, V, float("-inf"), ACC_DTYPE, BLOCK_V)
    if TO_X:
        w = _tile_weights(y, class_ptr, offs_n, mask_n, sizes, chunk, V, scalars[1], SMOOTH, BLOCK_V)
        e = math.exp2(math.shifted(x_tile, scalars[0], row_max))
        to_x = _to_logits(e, tl.full((BLOCK_N,), 1.0, ACC_DTYPE), w, sum_exp, weight_sum, g)
        store_in_bounds(dx, offs_n, mask_n, sizes, chunk, to_x, V, BLOCK_V)
    if TO_Y:
        to_y = _to_probabilities(x_tile, class_ptr, row_max, sum_exp, g, chunk, V, scalars, BLOCK_V)
        store_in_bounds(dy, offs_n, mask_n, sizes, chunk, to_y, V, BLOCK_V)


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
