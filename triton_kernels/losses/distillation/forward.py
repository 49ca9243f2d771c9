"""Divergences of rows of student logits s and teacher logits t, forward; `backward` has the gradients.

p = softmax(t/T) and q = softmax(s/T) are calculated in base 2. With x a row of either:

    row_max = log₂e/T·max x,   z = log₂e/T·x − row_max,   sum_exp = Σ 2^z        so that q = 2^z/sum_exp
    KL(p‖q) = log 2·a/sum_t − log(sum_t/sum_s)   with a = Σ 2^z_t·(z_t − z_s)

which is one pass over the logits, as online softmax is. The terms of JS and total variation need the row's sum_exp, so
a row of several chunks takes a second pass. Hard labels add logsumexp(s) − s[label], at temperature 1. The launches:

    rows of one chunk            _divergence_kernel
    KL, several chunks           _divergence_kernel, _divergence_merge_kernel
    others, several chunks       these two, _divergence_second_pass_kernel, _divergence_finalize_kernel

A program of the first handles one chunk of some rows; those that merge chunks add them up in a fixed order. `terms` has
the math of each divergence, and the statistics of rows that are saved for backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...jit import math
from ...jit.tiles import (
    chunk_block,
    load_column,
    load_row,
    load_stat,
    load_tile,
    merged_max,
    program_tile,
    store_stat,
    tile_columns,
    tile_is_full,
    tile_mask,
    token_weights,
    valid_labels,
)
from ...runtime import device_errors, launch
from ...runtime.replay import replayable
from ...runtime.row_tiling import RowTiling, row_jit
from .terms import (
    AUX_SUM,
    CHUNK_STATISTICS,
    DIVERGENCES,
    K_S,
    K_T,
    LOSS_SUM,
    MAX_S,
    MAX_T,
    STATISTICS,
    SUM_S,
    SUM_S_T1,
    SUM_T,
    WEIGHT,
    cast_scalars,
    load_stats,
    store_stats,
)


@row_jit
def _divergence_kernel(
    s,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    t,  # (N, V)
    weight_ptr,  # (N,), or None
    labels_ptr,  # (N,), or None
    report_ptr,  # of runtime.device_errors
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (CHUNK_STATISTICS, N, chunks): written instead where rows have several chunks; else None
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    weight_strides,
    labels_strides,
    ignore_index,
    log2e_over_T: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    divergence_scale: tl.float64,
    ce_scale: tl.float64,
    TERMS_FN: tl.constexpr,
    FINALIZE_FN: tl.constexpr,
    TWO_PASS: tl.constexpr,  # the terms of rows of several chunks are left to a second pass
    HARD: tl.constexpr,  # with hard labels
    SEPARATE_SUM_T1: tl.constexpr,  # hard labels and T ≠ 1: sum_s_T1 is a statistic beside sum_s
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Statistics of a chunk of rows or, where it is the whole row, losses and the statistics that backward needs."""
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    weight, labels = (weight_ptr, weight_strides), (labels_ptr, labels_strides)
    w = token_weights(weight, labels, report_ptr, offs_n, sizes, mask_n, ignore_index, V, ACC_DTYPE)
    active = mask_n & (w != 0)
    WHOLE_ROW: tl.constexpr = partials_ptr is None
    if tl.max(active.to(tl.int32), axis=0) == 0:  # no logits to read
        if WHOLE_ROW:
            tl.store(losses_ptr + offs_n, tl.zeros_like(w), mask=mask_n)
            store_stat(stats_ptr, WEIGHT, rows, offs_n, w, mask_n)
        return
    scalars = cast_scalars(log2e_over_T, temperature, beta, divergence_scale, ce_scale, ACC_DTYPE)
    WITH_TERMS: tl.constexpr = WHOLE_ROW or not TWO_PASS
    offs_v = tile_columns(chunk, V, BLOCK_V)
    if tile_is_full(active, chunk, V, BLOCK_V):
        stats = _tile_stats(s, t, offs_n, offs_v, sizes, None, scalars, TERMS_FN, WITH_TERMS, SEPARATE_SUM_T1)
    else:
        mask = tile_mask(active, offs_v, V)
        stats = _tile_stats(s, t, offs_n, offs_v, sizes, mask, scalars, TERMS_FN, WITH_TERMS, SEPARATE_SUM_T1)
    if WHOLE_ROW:
        out = (losses_ptr, stats_ptr)
        _finalize_rows(out, s, labels, offs_n, sizes, mask_n, w, rows, V, stats, scalars, FINALIZE_FN, HARD)
    else:
        max_s, sum_s, max_t, sum_t, sum_s_T1, loss_sum, _ = stats
        at, size = offs_n * chunks + chunk, tl.cast(rows, tl.int64) * chunks
        store_stats(partials_ptr, size, at, max_s, sum_s, max_t, sum_t, sum_s_T1, active, SEPARATE_SUM_T1)
        if WITH_TERMS:
            store_stat(partials_ptr, LOSS_SUM, size, at, loss_sum, active)


@triton.jit
def _tile_stats(
    s,
    t,
    offs_n,
    offs_v,
    sizes,
    mask,  # None: the tile is full
    scalars,
    TERMS_FN: tl.constexpr,
    WITH_TERMS: tl.constexpr,
    SEPARATE_SUM_T1: tl.constexpr,
):
    """Return max_s, sum_s, max_t, sum_t, sum_s_T1, loss_sum and aux_sum of each row of a tile."""
    log2e_over_T, temperature, beta, _, _ = scalars
    x_s = load_tile(s, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    x_t = load_tile(t, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    max_s, z_s, e_s = math.tile_exp2(x_s, log2e_over_T)
    max_t, z_t, e_t = math.tile_exp2(x_t, log2e_over_T)
    sum_s, sum_t = tl.sum(e_s, axis=1), tl.sum(e_t, axis=1)
    sum_s_T1, loss_sum, aux_sum = sum_s, sum_s, sum_s  # placeholders
    if SEPARATE_SUM_T1:
        sum_s_T1 = tl.sum(math.exp2(z_s * temperature), axis=1)
    if WITH_TERMS:
        loss_terms, aux_terms = TERMS_FN(z_s, z_t, e_s, e_t, sum_s, sum_t, beta)
        loss_sum, aux_sum = tl.sum(loss_terms, axis=1), tl.sum(aux_terms, axis=1)
    return max_s, sum_s, max_t, sum_t, sum_s_T1, loss_sum, aux_sum


@triton.jit
def _finalize_rows(
    out,  # (losses_ptr, stats_ptr)
    s,
    labels,
    offs_n,
    sizes,
    mask_n,
    w,
    rows,
    V,
    stats,
    scalars,
    FINALIZE_FN: tl.constexpr,
    HARD: tl.constexpr,
):
    """Store the losses of rows, and all their statistics."""
    log2e_over_T, temperature, beta, divergence_scale, ce_scale = scalars
    max_s, sum_s, max_t, sum_t, sum_s_T1, loss_sum, aux_sum = stats
    active = mask_n & (w != 0)
    loss, k_s, k_t = FINALIZE_FN(loss_sum, aux_sum, sum_s, sum_t, beta)
    loss *= divergence_scale
    if HARD:
        label = valid_labels(load_row(labels, offs_n, sizes, active, -1, tl.int64), V)
        x = load_column(s, offs_n, label, sizes, label >= 0, 0, beta.dtype)
        z = tl.fma(x, log2e_over_T, -math.neg_inf_to_zero(max_s)) * temperature  # at T = 1
        loss += (math.log(sum_s_T1) - z * math.LN_2) * ce_scale
    losses_ptr, stats_ptr = out
    tl.store(losses_ptr + offs_n, tl.where(active, w * loss, 0.0), mask=mask_n)
    store_stat(stats_ptr, WEIGHT, rows, offs_n, w, mask_n)
    store_stats(stats_ptr, rows, offs_n, max_s, sum_s, max_t, sum_t, sum_s_T1, active, SEPARATE_SUM_T1=True)
    store_stat(stats_ptr, K_S, rows, offs_n, k_s, active)
    store_stat(stats_ptr, K_T, rows, offs_n, k_t, active)


@row_jit
def _divergence_merge_kernel(
    s,  # (N, V): only the labels' columns are read
    weight_ptr,  # (N,), or None
    labels_ptr,  # (N,), or None
    report_ptr,  # of runtime.device_errors
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (CHUNK_STATISTICS, N, chunks)
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    weight_strides,
    labels_strides,
    ignore_index,
    log2e_over_T: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    divergence_scale: tl.float64,
    ce_scale: tl.float64,
    RESCALE_FN: tl.constexpr,
    FINALIZE_FN: tl.constexpr,
    TWO_PASS: tl.constexpr,
    HARD: tl.constexpr,
    SEPARATE_SUM_T1: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge the statistics of the chunks of rows, in order. Store them for the second pass, or the losses.

    Weights are loaded again: chunks do not store them.
    """
    offs_n, mask_n, _ = program_tile(rows, 1, BLOCK_N)
    weight, labels = (weight_ptr, weight_strides), (labels_ptr, labels_strides)
    scalars = cast_scalars(log2e_over_T, temperature, beta, divergence_scale, ce_scale, ACC_DTYPE)
    w = token_weights(weight, labels, report_ptr, offs_n, sizes, mask_n, ignore_index, V, ACC_DTYPE)
    active = mask_n & (w != 0)
    max_s = merged_max(partials_ptr, MAX_S, rows, offs_n, active, chunks, BLOCK_C)
    max_t = merged_max(partials_ptr, MAX_T, rows, offs_n, active, chunks, BLOCK_C)
    size = tl.cast(rows, tl.int64) * chunks
    _, temperature, _, _, _ = scalars
    sums_s = tl.zeros((BLOCK_N, BLOCK_C), ACC_DTYPE)
    sums_t, sums_s_T1, loss_sums = sums_s, sums_s, sums_s
    for start in range(0, chunks, BLOCK_C):
        at, mask = chunk_block(offs_n, active, start, chunks, BLOCK_C)
        shift_s = load_stat(partials_ptr, MAX_S, size, at, mask, float("-inf")) - math.neg_inf_to_zero(max_s)[:, None]
        shift_t = load_stat(partials_ptr, MAX_T, size, at, mask, float("-inf")) - math.neg_inf_to_zero(max_t)[:, None]
        chunk_sum_s = load_stat(partials_ptr, SUM_S, size, at, mask, 0.0)
        chunk_sum_t = load_stat(partials_ptr, SUM_T, size, at, mask, 0.0)
        sums_s += math.rescaled(chunk_sum_s, shift_s)
        sums_t += math.rescaled(chunk_sum_t, shift_t)
        if not TWO_PASS:
            chunk_loss_sum = load_stat(partials_ptr, LOSS_SUM, size, at, mask, 0.0)
            loss_sums += RESCALE_FN(chunk_loss_sum, chunk_sum_s, chunk_sum_t, shift_s, shift_t)
        if SEPARATE_SUM_T1:
            chunk_sum_s_T1 = load_stat(partials_ptr, SUM_S_T1, size, at, mask, 0.0)
            sums_s_T1 += math.rescaled(chunk_sum_s_T1, shift_s * temperature)
    sum_s, sum_t = tl.sum(sums_s, axis=1), tl.sum(sums_t, axis=1)
    sum_s_T1 = tl.sum(sums_s_T1, axis=1) if SEPARATE_SUM_T1 else sum_s
    if TWO_PASS:
        store_stat(stats_ptr, WEIGHT, rows, offs_n, w, mask_n)
        store_stats(stats_ptr, rows, offs_n, max_s, sum_s, max_t, sum_t, sum_s_T1, active, SEPARATE_SUM_T1=True)
    else:
        loss_sum = tl.sum(loss_sums, axis=1)
        stats = (max_s, sum_s, max_t, sum_t, sum_s_T1, loss_sum, loss_sum)  # KL has no aux_sum
        out = (losses_ptr, stats_ptr)
        _finalize_rows(out, s, labels, offs_n, sizes, mask_n, w, rows, V, stats, scalars, FINALIZE_FN, HARD)


@row_jit
def _divergence_second_pass_kernel(
    s,  # (N, V)
    t,  # (N, V)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (CHUNK_STATISTICS, N, chunks)
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    log2e_over_T: tl.float64,
    beta: tl.float64,
    TERMS_FN: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Sums of the terms of a chunk of rows, which need sum_exp of the whole row."""
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    active = mask_n & (load_stat(stats_ptr, WEIGHT, rows, offs_n, mask_n, 0.0) != 0)
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    row_stats = load_stats(stats_ptr, rows, offs_n, active, SEPARATE_SUM_T1=False)
    scalars = (tl.full((), log2e_over_T, ACC_DTYPE), tl.full((), beta, ACC_DTYPE))
    offs_v = tile_columns(chunk, V, BLOCK_V)
    if tile_is_full(active, chunk, V, BLOCK_V):
        loss_sum, aux_sum = _second_pass_sums(s, t, offs_n, offs_v, sizes, None, row_stats, scalars, TERMS_FN)
    else:
        mask = tile_mask(active, offs_v, V)
        loss_sum, aux_sum = _second_pass_sums(s, t, offs_n, offs_v, sizes, mask, row_stats, scalars, TERMS_FN)
    at, size = offs_n * chunks + chunk, tl.cast(rows, tl.int64) * chunks
    store_stat(partials_ptr, LOSS_SUM, size, at, loss_sum, active)
    store_stat(partials_ptr, AUX_SUM, size, at, aux_sum, active)


@triton.jit
def _second_pass_sums(s, t, offs_n, offs_v, sizes, mask, row_stats, scalars, TERMS_FN: tl.constexpr):
    """Return loss_sum and aux_sum of each row of a tile. mask None: the tile is full."""
    max_s, sum_s, max_t, sum_t, _ = row_stats
    log2e_over_T, beta = scalars
    x_s = load_tile(s, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    x_t = load_tile(t, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    z_s, z_t = math.shifted(x_s, log2e_over_T, max_s), math.shifted(x_t, log2e_over_T, max_t)
    loss_terms, aux_terms = TERMS_FN(z_s, z_t, math.exp2(z_s), math.exp2(z_t), sum_s, sum_t, beta)
    return tl.sum(loss_terms, axis=1), tl.sum(aux_terms, axis=1)


@row_jit
def _divergence_finalize_kernel(
    s,  # (N, V): only the labels' columns are read
    labels_ptr,  # (N,), or None
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (CHUNK_STATISTICS, N, chunks)
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    chunks,
    labels_strides,
    log2e_over_T: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    divergence_scale: tl.float64,
    ce_scale: tl.float64,
    FINALIZE_FN: tl.constexpr,
    HARD: tl.constexpr,
    SEPARATE_SUM_T1: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add up the sums of the second pass over the chunks of rows, in order, and store the losses."""
    offs_n, mask_n, _ = program_tile(rows, 1, BLOCK_N)
    scalars = cast_scalars(log2e_over_T, temperature, beta, divergence_scale, ce_scale, ACC_DTYPE)
    w = load_stat(stats_ptr, WEIGHT, rows, offs_n, mask_n, 0.0)
    active = mask_n & (w != 0)
    size = tl.cast(rows, tl.int64) * chunks
    loss_sums = tl.zeros((BLOCK_N, BLOCK_C), ACC_DTYPE)
    aux_sums = loss_sums
    for start in range(0, chunks, BLOCK_C):
        at, mask = chunk_block(offs_n, active, start, chunks, BLOCK_C)
        loss_sums += load_stat(partials_ptr, LOSS_SUM, size, at, mask, 0.0)
        aux_sums += load_stat(partials_ptr, AUX_SUM, size, at, mask, 0.0)
    max_s, sum_s, max_t, sum_t, sum_s_T1 = load_stats(stats_ptr, rows, offs_n, active, SEPARATE_SUM_T1)
    stats = (max_s, sum_s, max_t, sum_t, sum_s_T1, tl.sum(loss_sums, axis=1), tl.sum(aux_sums, axis=1))
    labels, out = (labels_ptr, labels_strides), (losses_ptr, stats_ptr)
    _finalize_rows(out, s, labels, offs_n, sizes, mask_n, w, rows, V, stats, scalars, FINALIZE_FN, HARD)


@replayable
def divergence_forward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    inv_temperature: float = 1.0,
    scale: float = 1.0,
    weight: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    ignore_index: int = -100,
    hard_label_weight: float = 0.0,
    vocab_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """weight·((1 − α)·scale·divergence + α·cross-entropy) of each row of logits, with α = `hard_label_weight`.

    Parameters
    ----------
    student, teacher
        Logits (..., V), of floating dtypes and any strides; the same leading dimensions.
    divergence
        'forward_kl', 'reverse_kl', 'js' (with `beta`, the teacher's part of the mixture) or 'total_variation'.
    inv_temperature
        Positive; logits are multiplied by it.
    scale
        A factor on the divergence, such as T².
    weight
        Of the leading dimensions' shape, bool or floating. Logits of a row of weight 0 are not read.
    labels
        int32 or int64, of the same shape; `ignore_index` marks rows that are not read either.
    hard_label_weight
        α, the weight of the student's cross-entropy with the labels, at temperature 1.
    vocab_size
        Only the first `vocab_size` columns count; by default all, and both have equally many.

    Returns
    -------
    tuple
        Losses, of the leading dimensions' shape, float32 (float64 where either is); and the rows' statistics,
        (STATISTICS, rows), for `divergence_backward`, of which the first are the weights, 0 where a row is not read.

    Examples
    --------
    >>> s, t = torch.tensor([[0.0, 0.0]]).to(DEVICE), torch.tensor([[0.0, 1.0]]).to(DEVICE)
    >>> losses, statistics = divergence_forward(s, t)
    >>> round(losses.item(), 4)
    0.1109
    """
    V = student.shape[-1] if vocab_size is None else vocab_size
    tiling = RowTiling(V, {"s": student, "t": teacher}, {"weight": weight, "labels": labels})
    dtype = launch.compute_dtype(student.dtype, teacher.dtype)
    losses = torch.empty(student.shape[:-1], dtype=dtype, device=student.device)
    stats = torch.empty((STATISTICS, tiling.rows), dtype=dtype, device=student.device)
    partials = None
    if tiling.chunks > 1:
        partials = torch.empty((CHUNK_STATISTICS, tiling.rows, tiling.chunks), dtype=dtype, device=student.device)
    fns = DIVERGENCES[divergence]
    log2e_over_T, temperature = math.base2_scalars(inv_temperature)
    hard = hard_label_weight != 0
    common = {  # of all kernels
        "stats_ptr": stats,
        "partials_ptr": partials,
        "V": V,
        "log2e_over_T": log2e_over_T,
        "beta": beta,
        "ACC_DTYPE": launch.tl_dtype(dtype),
    }
    finalizing = {  # of kernels that store losses: all but the second pass
        **common,
        "losses_ptr": losses,
        "temperature": temperature,
        "divergence_scale": (1 - hard_label_weight) * scale,
        "ce_scale": hard_label_weight,
        "FINALIZE_FN": fns.finalize,
        "HARD": hard,
        "SEPARATE_SUM_T1": hard and inv_temperature != 1,
    }
    weighing = {  # of kernels that load weights: the first and the merge
        **finalizing,
        "report_ptr": device_errors.buffer(student.device),
        "ignore_index": ignore_index,
        "TWO_PASS": fns.rescale is None,
    }
    args = tiling.args("s", "t", "weight", "labels")
    launch.run(_divergence_kernel, tiling.grid, tiling.config, **args, **weighing, TERMS_FN=fns.terms)
    if partials is None:
        return losses, stats
    grid, config = tiling.merging(dtype)
    args = tiling.args("s", "weight", "labels")
    launch.run(_divergence_merge_kernel, grid, config, **args, **weighing, RESCALE_FN=fns.rescale)
    if fns.rescale is None:
        args = tiling.args("s", "t")
        launch.run(_divergence_second_pass_kernel, tiling.grid, tiling.config, **args, **common, TERMS_FN=fns.terms)
        launch.run(_divergence_finalize_kernel, grid, config, **tiling.args("s", "labels"), **finalizing)
    return losses, stats
