"""Cross-entropy of logits x with labels y, class weights c and label smoothing ε, of each row; and its gradient.

    loss = (1 − ε)·c_y·(−log q_y) + ε/V·Σ c_v·(−log q_v),   q = softmax(x)
    dx   = (1 − ε)·c_y·(q − [v = y]) + ε/V·(C·q − c_v),     C = Σ c_v

In base 2, with row_max = log₂e·max x, z = log₂e·x − row_max and sum_exp = Σ 2^z of a row,
−log q = log sum_exp − z·log 2. A program computes the statistics of one chunk of a row, as online softmax does, and a
second kernel merges the chunks in order. Rows of `ignore_index` are not read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit import math
from ..jit.tiles import (
    load_class_weights,
    load_column,
    load_row,
    load_stat,
    load_tile,
    merge_chunks,
    program_tile,
    store_gradient,
    store_stat,
    tile_columns,
    tile_is_full,
    tile_mask,
    valid_labels,
)
from ..runtime import device_errors, launch, strides
from ..runtime.replay import replayable
from ..runtime.row_tiling import RowTiling, row_jit

#: Row statistics that forward saves: the weight of the label's class, row_max, sum_exp, C.
STATISTICS = 4
_WEIGHT, _MAX, _SUM, _C = (tl.constexpr(stat) for stat in range(STATISTICS))


@row_jit
def _cross_entropy_kernel(
    x,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    labels_ptr,  # (N,)
    class_ptr,  # (V,), contiguous, or None
    report_ptr,  # of runtime.device_errors
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (4, N, chunks): written instead where rows have several chunks; else None
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    labels_strides,
    ignore_index,
    log2e: tl.float64,
    smoothing: tl.float64,
    SMOOTH: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Row statistics of a chunk, which are partial results or, where it is the whole row, its loss."""
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    labels = _load_labels((labels_ptr, labels_strides), report_ptr, offs_n, sizes, mask_n, ignore_index, V)
    active = labels[1]
    if tl.max(active.to(tl.int32), axis=0) == 0:  # no logits to read
        if partials_ptr is None:
            zero = tl.zeros((BLOCK_N,), ACC_DTYPE)
            tl.store(losses_ptr + offs_n, zero, mask=mask_n)
            store_stat(stats_ptr, _WEIGHT, rows, offs_n, zero, mask_n)
        return
    scalars = (tl.full((), log2e, ACC_DTYPE), tl.full((), smoothing, ACC_DTYPE))
    offs_v = tile_columns(chunk, V, BLOCK_V)
    if tile_is_full(active, chunk, V, BLOCK_V):
        stats = _tile_stats(x, class_ptr, offs_n, offs_v, None, sizes, V, scalars[0], SMOOTH)
    else:
        stats = _tile_stats(x, class_ptr, offs_n, offs_v, tile_mask(active, offs_v, V), sizes, V, scalars[0], SMOOTH)
    if partials_ptr is None:
        out = (losses_ptr, stats_ptr)
        _finalize_rows(out, x, class_ptr, offs_n, sizes, mask_n, labels, rows, V, stats, scalars, SMOOTH)
    else:
        at, size = offs_n * chunks + chunk, tl.cast(rows, tl.int64) * chunks
        for stat in tl.static_range(4 if SMOOTH else 2):
            store_stat(partials_ptr, stat, size, at, stats[stat], active)


@triton.jit
def _load_labels(labels, report_ptr, offs_n, sizes, mask_n, ignore_index, V):
    """Load labels: return them, which rows are active, and which of these have a valid label; record the others."""
    label = load_row(labels, offs_n, sizes, mask_n, 0, tl.int64)
    active = mask_n & (label != ignore_index)
    valid = active & (label >= 0) & (label < V)
    device_errors.record(report_ptr, device_errors.LABELS, label, V, active & (valid == 0))
    return label, active, valid


@triton.jit
def _tile_stats(x, class_ptr, offs_n, offs_v, mask, sizes, V, log2e, SMOOTH: tl.constexpr):
    """row_max and sum_exp of each row of a tile; Σ c·z and Σ c. mask None: the tile is full."""
    row_max, z, e = math.tile_exp2(load_tile(x, offs_n, offs_v, sizes, mask, float("-inf"), log2e.dtype), log2e)
    sum_exp = tl.sum(e, axis=1)
    weighted_sum, weight_sum = sum_exp, sum_exp
    if SMOOTH:
        c = load_class_weights(class_ptr, offs_v, V, log2e.dtype)
        weight_sum = tl.sum(tl.broadcast_to(c, z.shape), axis=1)
        weighted_sum = tl.sum(c * tl.where(c != 0, z, 0.0), axis=1)
    return row_max, sum_exp, weighted_sum, weight_sum


@triton.jit
def _finalize_rows(out, x, class_ptr, offs_n, sizes, mask_n, labels, rows, V, stats, scalars, SMOOTH: tl.constexpr):
    """Store the losses of rows, and what backward needs."""
    log2e, smoothing = scalars
    label, active, valid = labels
    row_max, sum_exp, weighted_sum, weight_sum = stats
    x_label = load_column(x, offs_n, label, sizes, valid, float("nan"), log2e.dtype)
    if class_ptr is None:
        w = active.to(log2e.dtype)
    else:
        w = tl.load(class_ptr + label, mask=valid, other=0).to(log2e.dtype)
    log_sum = math.log(sum_exp)
    loss = w * (log_sum - tl.fma(x_label, log2e, -math.neg_inf_to_zero(row_max)) * math.LN_2)
    if SMOOTH:
        loss = (1 - smoothing) * loss + smoothing / V * (weight_sum * log_sum - weighted_sum * math.LN_2)
    tl.store(out[0] + offs_n, tl.where(active, loss, 0.0), mask=mask_n)
    store_stat(out[1], _WEIGHT, rows, offs_n, tl.where(active, w, 0.0), mask_n)
    store_stat(out[1], _MAX, rows, offs_n, row_max, active)
    store_stat(out[1], _SUM, rows, offs_n, sum_exp, active)
    store_stat(out[1], _C, rows, offs_n, weight_sum, active)


@row_jit
def _cross_entropy_merge_kernel(
    x,  # (N, V): only the labels' columns are read
    labels_ptr,  # (N,)
    class_ptr,  # (V,), contiguous, or None
    report_ptr,  # of runtime.device_errors
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (4, N, chunks)
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    labels_strides,
    ignore_index,
    log2e: tl.float64,
    smoothing: tl.float64,
    SMOOTH: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge the chunks of rows, in order, into losses."""
    offs_n, mask_n, _ = program_tile(rows, 1, BLOCK_N)
    scalars = (tl.full((), log2e, ACC_DTYPE), tl.full((), smoothing, ACC_DTYPE))
    labels = _load_labels((labels_ptr, labels_strides), report_ptr, offs_n, sizes, mask_n, ignore_index, V)
    stats = merge_chunks(partials_ptr, offs_n, labels[1], rows, chunks, SMOOTH, ACC_DTYPE, BLOCK_C)
    out = (losses_ptr, stats_ptr)
    _finalize_rows(out, x, class_ptr, offs_n, sizes, mask_n, labels, rows, V, stats, scalars, SMOOTH)


@replayable
def cross_entropy_forward(
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each row of logits with its label.

    Parameters
    ----------
    x
        Logits (..., V), of a floating dtype and any strides.
    labels
        int32 or int64, of the leading dimensions' shape. `ignore_index` marks rows that are not read; another label
        that is no column is reported by the next `raise_pending_errors`, and its loss is NaN.
    class_weight
        (V,), dense, floating.
    label_smoothing
        ε in [0, 1].

    Returns
    -------
    tuple
        Losses, of the leading dimensions' shape, float32 (float64 for float64); and the rows' statistics,
        (STATISTICS, rows), whose first row are the weights of the labels' classes.

    Examples
    --------
    >>> x, labels = torch.tensor([[0.0, 0.0], [0.0, 0.0]]).to(DEVICE), torch.tensor([1, -100]).to(DEVICE)
    >>> losses, statistics = cross_entropy_forward(x, labels)
    >>> [round(loss, 4) for loss in losses.tolist()], statistics[0].tolist()
    ([0.6931, 0.0], [1.0, 0.0])
    """
    tiling = RowTiling(x.shape[-1], {"x": x}, {"labels": labels})
    dtype = launch.compute_dtype(x.dtype)
    losses = torch.empty(x.shape[:-1], dtype=dtype, device=x.device)
    stats = torch.empty((STATISTICS, tiling.rows), dtype=dtype, device=x.device)
    partials = None
    if tiling.chunks > 1:
        partials = torch.empty((4, tiling.rows, tiling.chunks), dtype=dtype, device=x.device)
    args = {
        **tiling.args("x", "labels"),
        "class_ptr": class_weight,
        "report_ptr": device_errors.buffer(x.device),
        "losses_ptr": losses,
        "stats_ptr": stats,
        "partials_ptr": partials,
        "V": x.shape[-1],
        "ignore_index": ignore_index,
        "log2e": math.LOG2_E.value,
        "smoothing": label_smoothing,
        "SMOOTH": label_smoothing != 0,
        "ACC_DTYPE": launch.tl_dtype(dtype),
    }
    launch.run(_cross_entropy_kernel, tiling.grid, tiling.config, **args)
    if partials is not None:
        launch.run(_cross_entropy_merge_kernel, *tiling.merging(dtype), **args)
    return losses, stats


@row_jit
def _cross_entropy_backward_kernel(
    x,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    labels_ptr,  # (N,)
    class_ptr,  # (V,), contiguous, or None
    stats_ptr,  # (STATISTICS, N)
    dloss_ptr,  # (N,), or a scalar
    dloss_factor_ptr,  # a scalar, or None
    dx,  # (N, V)
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    labels_strides,
    dloss_strides,
    ignore_index,
    log2e: tl.float64,
    smoothing: tl.float64,
    SMOOTH: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    label = load_row((labels_ptr, labels_strides), offs_n, sizes, mask_n, 0, tl.int64)
    active = mask_n & (label != ignore_index)
    g = load_row((dloss_ptr, dloss_strides), offs_n, sizes, active, 0, ACC_DTYPE)
    if dloss_factor_ptr is not None:
        g *= tl.load(dloss_factor_ptr).to(ACC_DTYPE)
    grad_target = g * load_stat(stats_ptr, _WEIGHT, rows, offs_n, active, 0.0)
    grad_uniform = g * 0
    if SMOOTH:
        smoothing = tl.full((), smoothing, ACC_DTYPE)
        grad_target *= 1 - smoothing
        grad_uniform = g * (smoothing / V)
    row_max = load_stat(stats_ptr, _MAX, rows, offs_n, active, 0.0)
    sum_exp = load_stat(stats_ptr, _SUM, rows, offs_n, active, 1.0)
    weight_sum = load_stat(stats_ptr, _C, rows, offs_n, active, 0.0)
    grad_softmax = math.div(grad_target + grad_uniform * weight_sum, sum_exp)
    of_rows = (row_max, grad_softmax, grad_target, grad_uniform, valid_labels(label, V))
    log2e = tl.full((), log2e, ACC_DTYPE)
    offs_v = tile_columns(chunk, V, BLOCK_V)
    if tile_is_full(active, chunk, V, BLOCK_V):
        _tile_gradient(x, dx, class_ptr, offs_n, offs_v, mask_n, None, sizes, V, of_rows, log2e, SMOOTH)
    else:
        mask = tile_mask(active, offs_v, V)
        _tile_gradient(x, dx, class_ptr, offs_n, offs_v, mask_n, mask, sizes, V, of_rows, log2e, SMOOTH)


@triton.jit
def _tile_gradient(
    x,
    dx,
    class_ptr,
    offs_n,
    offs_v,
    mask_n,
    mask,  # None: the tile is full; where false, the gradient is 0
    sizes,
    V,
    of_rows,
    log2e,
    SMOOTH: tl.constexpr,
):
    """Store the gradient of a tile."""
    row_max, grad_softmax, grad_target, grad_uniform, label = of_rows
    z = math.shifted(load_tile(x, offs_n, offs_v, sizes, mask, float("-inf"), log2e.dtype), log2e, row_max)
    is_label = offs_v[None, :] == label[:, None]
    gradient = math.exp2(z) * grad_softmax[:, None] - tl.where(is_label, grad_target[:, None], 0.0)
    if SMOOTH:
        gradient -= grad_uniform[:, None] * load_class_weights(class_ptr, offs_v, V, log2e.dtype)
    store_gradient(dx, offs_n, offs_v, sizes, gradient, mask, mask_n, V)


@replayable
def cross_entropy_backward(
    x: torch.Tensor,
    labels: torch.Tensor,
    statistics: torch.Tensor,
    dloss: torch.Tensor,
    *,
    class_weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    dloss_factor: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient of `cross_entropy_forward` to the logits, in one launch; arguments as there.

    Parameters
    ----------
    statistics
        From the forward pass.
    dloss
        Upstream gradient, that of the losses: of the leading dimensions' shape, or 0-d. Read on the device.
    dloss_factor
        A 0-d factor on dloss, read on the device.

    Returns
    -------
    torch.Tensor
        Of x's shape and dtype; laid out in memory as x is, without gaps.

    Examples
    --------
    >>> x, labels = torch.tensor([[0.0, 0.0]]).to(DEVICE), torch.tensor([1]).to(DEVICE)
    >>> _, statistics = cross_entropy_forward(x, labels)
    >>> cross_entropy_backward(x, labels, statistics, torch.tensor(1.0).to(DEVICE)).tolist()
    [[0.5, -0.5]]
    """
    dx = strides.coalesce(x.shape, x).empty(x.shape, x.dtype, x.device)
    tiling = RowTiling(x.shape[-1], {"x": x, "dx": dx}, {"labels": labels, "dloss": dloss}, whole_rows=False)
    launch.run(
        _cross_entropy_backward_kernel,
        tiling.grid,
        tiling.config,
        **tiling.args("x", "labels", "dloss", "dx"),
        class_ptr=class_weight,
        stats_ptr=statistics,
        dloss_factor_ptr=dloss_factor,
        V=x.shape[-1],
        ignore_index=ignore_index,
        log2e=math.LOG2_E.value,
        smoothing=label_smoothing,
        SMOOTH=label_smoothing != 0,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(x.dtype)),
    )
    return dx
