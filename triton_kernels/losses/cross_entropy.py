"""Cross-entropy of logits x with labels y, class weights c and label smoothing ε, of each row; and its gradient.

    loss = (1 − ε)·c_y·(−log q_y) + ε/V·Σ c_v·(−log q_v),   q = softmax(x)
    dx   = (1 − ε)·c_y·(q − [v = y]) + ε/V·(C·q − c_v),     C = Σ c_v

In base 2, with row_max = max x, z = log₂e·(x − row_max) and sum_exp = Σ 2^z of a row,
−log q = log sum_exp − z·log 2. One launch reads each logit once and writes losses and, if wanted, gradients. A program
holds one chunk of a row in registers. If the row has several, it stores the chunk's statistics; for gradients it waits
for those of the others (`jit.chunk_flags`) and merges all in order, else the last program does. A row of more than
`tile_configs.MAX_ROW_CHUNKS` tiles has chunks of several tiles, which are loaded again for gradients. Rows of
`ignore_index` are not read.
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
    load_column,
    load_in_bounds,
    load_row,
    load_stat,
    program_tile,
    store_gradient,
    store_stat,
    tile_columns,
    valid_labels,
)
from ..runtime import device_errors, launch, strides, tile_configs
from ..runtime.replay import replayable
from ..runtime.row_tiling import RowTiling, row_jit

#: Row statistics that forward saves: the weight of the label's class, row_max, sum_exp, C. The one numbered `COUNTS` is
#: 0 in rows that are not read.
STATISTICS = 4
COUNTS = 2
_WEIGHT, _MAX, _SUM, _C = (tl.constexpr(stat) for stat in range(STATISTICS))


@row_jit
def _cross_entropy_kernel(
    x,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    dx,  # (N, V), or None; may be x
    labels_ptr,  # (N,)
    class_ptr,  # (V,), contiguous, or None
    report_ptr,  # of runtime.device_errors
    factor_ptr,  # a scalar, or None: a factor on the gradient
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
    labels_strides,
    ignore_index,
    log2e: tl.float64,
    smoothing: tl.float64,
    gradient_scale: tl.float64,
    map_factor: tl.float64,  # of `math.map_logits`, with MAP
    map_cap: tl.float64,
    TO_X: tl.constexpr,  # with dx: Triton 3.6 cannot compare a tuple with None
    SMOOTH: tl.constexpr,
    MAP: tl.constexpr,  # of `math.logit_map`
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    label, active, valid = _load_labels(
        (labels_ptr, labels_strides), report_ptr, offs_n, sizes, mask_n, ignore_index, V
    )
    if tl.max(active.to(tl.int32), axis=0) == 0:  # no logits to read
        if chunk == 0:
            zero = tl.zeros((BLOCK_N,), ACC_DTYPE)
            tl.store(losses_ptr + offs_n, zero, mask=mask_n)
            store_stat(stats_ptr, _WEIGHT, rows, offs_n, zero, mask_n)
            store_stat(stats_ptr, _SUM, rows, offs_n, zero, mask_n)
        if TO_X:
            for i in range(0, 1 if tiles is None else tiles):
                tile, zeros = chunk_tile(chunk, tiles, i), tl.zeros((BLOCK_N, BLOCK_V), ACC_DTYPE)
                store_gradient(dx, offs_n, active, mask_n, sizes, tile, zeros, V, V, BLOCK_V)
        return
    column = valid_labels(label, V)
    scalars = (tl.full((), log2e, ACC_DTYPE), tl.full((), smoothing, ACC_DTYPE))
    of_map = (
        tl.full((), map_factor, ACC_DTYPE) if MAP >= 1 else None,
        tl.full((), map_cap, ACC_DTYPE) if MAP == 2 else None,
    )
    WHOLE_ROW: tl.constexpr = partials_ptr is None
    partials = (partials_ptr, offs_n, tl.cast(rows, tl.int64) * chunks, chunks)
    stores_loss = chunk == 0
    if WHOLE_ROW:
        x_tile, e, tile_max, stats = _chunk_stats(
            x, class_ptr, offs_n, active, sizes, chunk, tiles, V, column, scalars[0], of_map, SMOOTH, BLOCK_V
        )
    else:
        flags = flags_ptr + (tl.program_id(0) - chunk).to(tl.int64)
        e, tile_max = tl.zeros((BLOCK_N, BLOCK_V), ACC_DTYPE), tl.zeros((BLOCK_N,), ACC_DTYPE)
        x_tile = e
        todo, polls_left = chunk, polls
        while todo >= 0:
            x_tile, e, tile_max, found = _chunk_stats(
                x, class_ptr, offs_n, active, sizes, todo, tiles, V, column, scalars[0], of_map, SMOOTH, BLOCK_V
            )
            if TO_X:
                if chunk_flags.may_publish(flags, todo, chunk):
                    store_chunk_stats(partials, todo, active, found, LABELS=True, WEIGHTS=SMOOTH)
                    chunk_flags.publish(flags + todo)
                todo, polls_left = chunk_flags.next_chunk(flags, todo, chunk, chunks, polls_left, BLOCK_C)
            else:
                store_chunk_stats(partials, todo, active, found, LABELS=True, WEIGHTS=SMOOTH)
                stores_loss = chunk_flags.arrive(flags) == chunks - 1
                todo = -1
        stats = merged_stats(
            partials, active & (stores_loss | TO_X), scalars[0], LABELS=True, WEIGHTS=SMOOTH, BLOCK_C=BLOCK_C
        )
    row_max, sum_exp, weighted_sum, weight_sum, x_label = stats
    log2e, smoothing = scalars
    w = active.to(ACC_DTYPE)
    if class_ptr is not None:
        w = tl.load(class_ptr + label, mask=valid, other=0).to(ACC_DTYPE)
    if stores_loss:
        log_sum = math.log(sum_exp)
        z_label = (tl.where(valid, x_label, float("nan")) - math.neg_inf_to_zero(row_max)) * log2e
        loss = w * (log_sum - z_label * math.LN_2)
        if SMOOTH:
            loss = (1 - smoothing) * loss + smoothing / V * (weight_sum * log_sum - weighted_sum * math.LN_2)
        tl.store(losses_ptr + offs_n, tl.where(active, loss, 0.0), mask=mask_n)
        store_stat(stats_ptr, _WEIGHT, rows, offs_n, tl.where(active, w, 0.0), mask_n)
        store_stat(stats_ptr, _MAX, rows, offs_n, row_max, active)
        store_stat(stats_ptr, _SUM, rows, offs_n, tl.where(active, sum_exp, 0.0), mask_n)
        store_stat(stats_ptr, _C, rows, offs_n, weight_sum, active)
    if TO_X:
        g = tl.full((), gradient_scale, ACC_DTYPE)
        if factor_ptr is not None:
            g *= tl.load(factor_ptr).to(ACC_DTYPE)
        factor, of_rows = _gradient_of_rows(
            tl.where(active, g, 0.0), w, sum_exp, weight_sum, column, smoothing, V, SMOOTH
        )
        for i in range(0, 1 if tiles is None else tiles):
            tile = chunk_tile(chunk, tiles, i)
            if tiles is not None:
                x_tile = load_in_bounds(x, offs_n, active, sizes, tile, V, float("-inf"), ACC_DTYPE, BLOCK_V)
                x_tile = math.map_logits(x_tile, of_map[0], of_map[1])
                e, tile_max = math.exp2(math.shifted(x_tile, log2e, row_max)), row_max
            to_row = math.exp2((tile_max - math.neg_inf_to_zero(row_max)) * log2e)
            offs_v = tile_columns(tile, V, BLOCK_V)
            gradient = _tile_gradient(e, factor * to_row, class_ptr, offs_v, V, of_rows, SMOOTH)
            gradient = math.to_unmapped(gradient, x_tile, of_map[0], of_map[1])
            store_gradient(dx, offs_n, active, mask_n, sizes, tile, gradient, V, V, BLOCK_V)


@triton.jit
def _load_labels(labels, report_ptr, offs_n, sizes, mask_n, ignore_index, V):
    """Load labels: return them, which rows are active, and which of these have a valid label; record the others."""
    label = load_row(labels, offs_n, sizes, mask_n, 0, tl.int64)
    active = mask_n & (label != ignore_index)
    valid = active & (label >= 0) & (label < V)
    device_errors.record(report_ptr, device_errors.LABELS, label, V, active & (valid == 0))
    return label, active, valid


@triton.jit
def _chunk_stats(
    x,
    class_ptr,
    offs_n,
    active,
    sizes,
    chunk,
    tiles,
    V,
    column,
    log2e,
    of_map,
    SMOOTH: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Load a chunk; return x, 2^z and the maximum of its first tile, and what `store_chunk_stats` takes."""
    tile = chunk_tile(chunk, tiles, 0)
    x_tile = load_in_bounds(x, offs_n, active, sizes, tile, V, float("-inf"), log2e.dtype, BLOCK_V)
    x_tile = math.map_logits(x_tile, of_map[0], of_map[1])
    e, stats = _tile_stats(x_tile, class_ptr, tile, V, log2e, SMOOTH, BLOCK_V)
    row_max, sum_exp, weighted_sum, weight_sum = stats
    tile_max = row_max
    if tiles is not None:
        for i in range(1, tiles):
            tile = chunk_tile(chunk, tiles, i)
            other_tile = load_in_bounds(x, offs_n, active, sizes, tile, V, float("-inf"), log2e.dtype, BLOCK_V)
            other_tile = math.map_logits(other_tile, of_map[0], of_map[1])
            _, other = _tile_stats(other_tile, class_ptr, tile, V, log2e, SMOOTH, BLOCK_V)
            before = (row_max, sum_exp, weighted_sum, weight_sum)
            row_max, sum_exp, weighted_sum, weight_sum = merged_parts(before, other, log2e, SMOOTH)
    found = active & (column >= 0) & (column // BLOCK_V // (1 if tiles is None else tiles) == chunk)
    x_label = math.map_logits(load_column(x, offs_n, column, sizes, found, 0, log2e.dtype), of_map[0], of_map[1])
    return x_tile, e, tile_max, (row_max, sum_exp, weighted_sum, weight_sum, x_label)


@triton.jit
def _tile_stats(x_tile, class_ptr, tile, V, log2e, SMOOTH: tl.constexpr, BLOCK_V: tl.constexpr):
    """Return 2^z of a tile, and maximum, sum_exp, Σ c·z and Σ c of each row."""
    row_max, z, e = math.tile_exp2(x_tile, log2e)
    sum_exp = tl.sum(e, axis=1)
    weighted_sum, weight_sum = sum_exp, sum_exp  # not used unless SMOOTH
    if SMOOTH:
        c = load_class_weights(class_ptr, tile_columns(tile, V, BLOCK_V), V, log2e.dtype)
        weight_sum = tl.sum(tl.broadcast_to(c, z.shape), axis=1)
        weighted_sum = tl.sum(c * tl.where(c != 0, z, 0.0), axis=1)
    return e, (row_max, sum_exp, weighted_sum, weight_sum)


@triton.jit
def _gradient_of_rows(g, w, sum_exp, weight_sum, column, smoothing, V, SMOOTH: tl.constexpr):
    """Return the factor of 2^z in a row's gradient, and the rest of it, for an upstream gradient g of its loss."""
    grad_target, grad_uniform = g * w, g * 0
    if SMOOTH:
        grad_target *= 1 - smoothing
        grad_uniform = g * (smoothing / V)
    return math.div(grad_target + grad_uniform * weight_sum, sum_exp), (grad_target, grad_uniform, column)


@replayable
def cross_entropy_forward(
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    gradient_scale: float = 1.0,
    gradient_factor: torch.Tensor | None = None,
    dx: torch.Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    polls: int | None = None,
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
    gradient_scale, gradient_factor
        Factors on the gradient: a number, and a 0-d tensor that is read on the device.
    dx
        Where the gradient is written, for an upstream gradient of 1 to each loss: of x's shape, or None; may be x.
    logit_scale, softcap
        Logits are softcap·tanh(logit_scale·x/softcap), or logit_scale·x where softcap is None; both are positive. −inf
        stays −inf.
    polls
        How often a program polls for the statistics of other chunks before it computes them itself.

    Returns
    -------
    tuple
        Losses, of the leading dimensions' shape, float32 (float64 for float64); and the rows' statistics,
        (STATISTICS, rows), whose first row are the weights of the labels' classes; row `COUNTS` is 0 for rows that are
        not read.

    Examples
    --------
    >>> x, labels = torch.tensor([[0.0, 0.0], [0.0, 0.0]]).to(DEVICE), torch.tensor([1, -100]).to(DEVICE)
    >>> losses, statistics = cross_entropy_forward(x, labels)
    >>> [round(loss, 4) for loss in losses.tolist()], statistics[0].tolist()
    ([0.6931, 0.0], [1.0, 0.0])
    """
    map_factor, map_cap, logit_map = math.logit_map(logit_scale, softcap)
    # Class weights and softcaps take more, and would be spilled.
    plain = label_smoothing == 0 and class_weight is None and logit_map < 2
    registers = 128 if plain else tile_configs.MOST_REGISTERS
    tiling = RowTiling(x.shape[-1], {"x": x, "dx": dx}, {"labels": labels}, meeting=registers)
    dtype = launch.compute_dtype(x.dtype)
    losses = torch.empty(x.shape[:-1], dtype=dtype, device=x.device)
    stats = torch.empty((STATISTICS, tiling.rows), dtype=dtype, device=x.device)
    partials, flags = None, None
    if tiling.chunks > 1:
        partials = torch.empty((CHUNK_STATISTICS, tiling.rows, tiling.chunks), dtype=dtype, device=x.device)
        flags = launch.zeros(tiling.grid, dtype=torch.int32, device=x.device)
    launch.run(
        _cross_entropy_kernel,
        tiling.grid,
        tiling.config,
        **tiling.args("x", "dx", "labels"),
        class_ptr=class_weight,
        report_ptr=device_errors.buffer(x.device),
        factor_ptr=gradient_factor,
        losses_ptr=losses,
        stats_ptr=stats,
        partials_ptr=partials,
        flags_ptr=flags,
        V=x.shape[-1],
        tiles=tiling.tiles,
        polls=tile_configs.polls() if polls is None else polls,
        ignore_index=ignore_index,
        log2e=math.LOG2_E.value,
        smoothing=label_smoothing,
        gradient_scale=gradient_scale,
        map_factor=map_factor,
        map_cap=map_cap,
        TO_X=dx is not None,
        SMOOTH=label_smoothing != 0,
        MAP=logit_map,
        ACC_DTYPE=launch.tl_dtype(dtype),
    )
    return losses, stats


@row_jit
def _cross_entropy_backward_kernel(
    x,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    labels_ptr,  # (N,)
    class_ptr,  # (V,), contiguous, or None
    stats_ptr,  # (STATISTICS, N)
    dloss_ptr,  # (N,), or a scalar
    dloss_factor_ptr,  # a scalar, or None
    dx,  # (N, V); may be x
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    labels_strides,
    dloss_strides,
    ignore_index,
    log2e: tl.float64,
    smoothing: tl.float64,
    map_factor: tl.float64,  # of `math.map_logits`, with MAP
    map_cap: tl.float64,
    SMOOTH: tl.constexpr,
    MAP: tl.constexpr,  # of `math.logit_map`
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
    w = load_stat(stats_ptr, _WEIGHT, rows, offs_n, active, 0.0)
    row_max = load_stat(stats_ptr, _MAX, rows, offs_n, active, 0.0)
    sum_exp = load_stat(stats_ptr, _SUM, rows, offs_n, active, 1.0)
    weight_sum = load_stat(stats_ptr, _C, rows, offs_n, active, 0.0)
    column, smoothing = valid_labels(label, V), tl.full((), smoothing, ACC_DTYPE)
    factor, of_rows = _gradient_of_rows(g, w, sum_exp, weight_sum, column, smoothing, V, SMOOTH)
    log2e = tl.full((), log2e, ACC_DTYPE)
    of_map = (
        tl.full((), map_factor, ACC_DTYPE) if MAP >= 1 else None,
        tl.full((), map_cap, ACC_DTYPE) if MAP == 2 else None,
    )
    x_tile = load_in_bounds(x, offs_n, active, sizes, chunk, V, float("-inf"), ACC_DTYPE, BLOCK_V)
    x_tile = math.map_logits(x_tile, of_map[0], of_map[1])
    offs_v = tile_columns(chunk, V, BLOCK_V)
    e = math.exp2(math.shifted(x_tile, log2e, row_max))
    gradient = _tile_gradient(e, factor, class_ptr, offs_v, V, of_rows, SMOOTH)
    gradient = math.to_unmapped(gradient, x_tile, of_map[0], of_map[1])
    store_gradient(dx, offs_n, active, mask_n, sizes, chunk, gradient, V, V, BLOCK_V)


@triton.jit
def _tile_gradient(e, factor, class_ptr, offs_v, V, of_rows, SMOOTH: tl.constexpr):
    """Return the gradient of a tile; e is 2^z, or relative to another maximum, which the factor makes up for."""
    grad_target, grad_uniform, label = of_rows
    is_label = offs_v[None, :] == label[:, None]
    gradient = e * factor[:, None] - tl.where(is_label, grad_target[:, None], 0.0)
    if SMOOTH:
        gradient -= grad_uniform[:, None] * load_class_weights(class_ptr, offs_v, V, e.dtype)
    return gradient


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
    logit_scale: float = 1.0,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
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
    out
        Where the gradient is written: a tensor of x's shape, which may be x itself.

    Returns
    -------
    torch.Tensor
        `out`, or of x's shape and dtype, laid out in memory as x is, without gaps.

    Examples
    --------
    >>> x, labels = torch.tensor([[0.0, 0.0]]).to(DEVICE), torch.tensor([1]).to(DEVICE)
    >>> _, statistics = cross_entropy_forward(x, labels)
    >>> cross_entropy_backward(x, labels, statistics, torch.tensor(1.0).to(DEVICE)).tolist()
    [[0.5, -0.5]]
    """
    dx = strides.empty_as(x) if out is None else out
    map_factor, map_cap, logit_map = math.logit_map(logit_scale, softcap)
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
        map_factor=map_factor,
        map_cap=map_cap,
        SMOOTH=label_smoothing != 0,
        MAP=logit_map,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(x.dtype)),
    )
    return dx
