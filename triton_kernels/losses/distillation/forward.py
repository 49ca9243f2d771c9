"""Divergences of rows of student logits s and teacher logits t, forward; `backward` has the gradients.

With p = softmax(t/T), q = softmax(s/T), in base 2 with the factor log₂e/T, of each row of either

    row_max = log₂e/T·max x,   z = log₂e/T·x − row_max,   sum_exp = Σ 2^z        so that q = 2^z/sum_exp
    KL(p‖q) = log 2·a/sum_t − log(sum_t/sum_s)   with a = Σ 2^z_t·(z_t − z_s)

which is one pass over the logits, as online softmax is: a program computes the row statistics of one chunk of a row,
and a second kernel merges the chunks in a fixed order. The terms of JS and total variation need the row's sum_exp, so a
row of several chunks takes a second pass. So KL is one launch, or two (statistics, merge); the others are one, or four
(statistics, merge, second pass, finalize). Hard labels add logsumexp(s) − s[label], at temperature 1. `STATISTICS`
numbers per row are saved for backward.
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
)
from ...runtime import device_errors, launch
from ...runtime.replay import replayable
from ...runtime.row_tiling import RowTiling, row_jit
from . import terms
from .terms import K_S, K_T, MAX_S, MAX_T, STATISTICS, SUM_S, SUM_S_T1, SUM_T, WEIGHT

#: Name in the API: terms; how a chunk's sum is rescaled, None where the terms need a second pass; finalize.
_FORWARD = {
    "forward_kl": (terms.forward_kl_terms, terms.forward_kl_rescale, terms.forward_kl_finalize),
    "reverse_kl": (terms.reverse_kl_terms, terms.reverse_kl_rescale, terms.reverse_kl_finalize),
    "js": (terms.js_terms, None, terms.js_finalize),
    "total_variation": (terms.total_variation_terms, None, terms.total_variation_finalize),
}


@row_jit
def _divergence_kernel(
    s,  # (N, V): (pointer, row strides, column stride, unit)
    t,  # (N, V)
    weight_ptr,  # (N,), or None
    labels_ptr,  # (N,), or None
    report_ptr,
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (6, N, chunks): written instead where rows have several chunks; else None
    weight_strides,
    labels_strides,
    sizes,
    rows,
    V,
    chunks,
    ignore_index,
    log2e_over_T: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    kl_scale: tl.float64,
    ce_scale: tl.float64,
    TERMS: tl.constexpr,
    TWO_PASS: tl.constexpr,  # the terms need sum_exp
    FINALIZE_FN: tl.constexpr,
    HARD: tl.constexpr,  # with hard labels
    SEPARATE_CE_LSE: tl.constexpr,  # hard labels need a sum_exp of their own, at temperature 1
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Row statistics of a chunk: partial results or, where it is the whole row, its loss and statistics."""
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
    scalars = _cast_scalars(log2e_over_T, temperature, beta, kl_scale, ce_scale, ACC_DTYPE)
    offs_v = tile_columns(chunk, V, BLOCK_V)
    if tile_is_full(active, chunk, V, BLOCK_V):
        stats = _tile_stats(s, t, offs_n, offs_v, None, sizes, scalars, TERMS, TWO_PASS, WHOLE_ROW, SEPARATE_CE_LSE)
    else:
        mask = tile_mask(active, offs_v, V)
        stats = _tile_stats(s, t, offs_n, offs_v, mask, sizes, scalars, TERMS, TWO_PASS, WHOLE_ROW, SEPARATE_CE_LSE)
    if WHOLE_ROW:
        out = (losses_ptr, stats_ptr)
        _finalize_rows(out, s, labels, offs_n, sizes, mask_n, w, rows, V, stats, scalars, FINALIZE_FN, HARD)
    else:
        at, size = offs_n * chunks + chunk, tl.cast(rows, tl.int64) * chunks
        for stat in tl.static_range(4):
            store_stat(partials_ptr, stat, size, at, stats[stat], active)
        if not TWO_PASS:
            store_stat(partials_ptr, 4, size, at, stats[4], active)
        if SEPARATE_CE_LSE:
            store_stat(partials_ptr, 5, size, at, stats[6], active)


@triton.jit
def _cast_scalars(log2e_over_T, temperature, beta, kl_scale, ce_scale, DTYPE: tl.constexpr):
    return (
        tl.full((), log2e_over_T, DTYPE),
        tl.full((), temperature, DTYPE),
        tl.full((), beta, DTYPE),
        tl.full((), kl_scale, DTYPE),
        tl.full((), ce_scale, DTYPE),
    )


@triton.jit
def _tile_stats(
    s,
    t,
    offs_n,
    offs_v,
    mask,  # None: the tile is full
    sizes,
    scalars,
    TERMS: tl.constexpr,
    TWO_PASS: tl.constexpr,
    WHOLE_ROW: tl.constexpr,
    SEPARATE_CE_LSE: tl.constexpr,
):
    """Of each row of a tile: maximum and sum_exp of student and teacher, sums of loss terms, sum_exp at temperature 1.

    The sums of terms need to be of a whole row where the terms need its sum_exp.
    """
    log2e_over_T, temperature, beta, _, _ = scalars
    x_s = load_tile(s, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    x_t = load_tile(t, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    max_s, z_s, e_s = math.tile_exp2(x_s, log2e_over_T)
    max_t, z_t, e_t = math.tile_exp2(x_t, log2e_over_T)
    sum_s, sum_t = tl.sum(e_s, axis=1), tl.sum(e_t, axis=1)
    sum_s_T1 = sum_s
    if SEPARATE_CE_LSE:
        sum_s_T1 = tl.sum(math.exp2(z_s * temperature), axis=1)
    loss_sum, aux_sum = sum_s, sum_s  # placeholders, not stored
    if not TWO_PASS:
        loss_sum = tl.sum(TERMS(z_s, z_t, e_s, e_t), axis=1)
    elif WHOLE_ROW:
        loss_terms, aux_terms = TERMS(z_s, z_t, sum_s, sum_t, beta)
        loss_sum, aux_sum = tl.sum(loss_terms, axis=1), tl.sum(aux_terms, axis=1)
    return max_s, sum_s, max_t, sum_t, loss_sum, aux_sum, sum_s_T1


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
    """Store the losses of rows, and what backward needs."""
    log2e_over_T, temperature, beta, kl_scale, ce_scale = scalars
    max_s, sum_s, _, sum_t, loss_sum, aux_sum, sum_s_T1 = stats
    active = mask_n & (w != 0)
    loss, k_s, k_t = FINALIZE_FN(loss_sum, aux_sum, sum_s, sum_t, beta)
    loss *= kl_scale
    if HARD:
        label = load_row(labels, offs_n, sizes, active, 0, tl.int64)
        in_range = active & (label >= 0) & (label < V)
        x = load_column(s, offs_n, label, sizes, in_range, 0, beta.dtype)
        z = tl.fma(x, log2e_over_T, -math.neg_inf_to_zero(max_s)) * temperature
        loss += (math.log(sum_s_T1) - z * math.LN_2) * ce_scale
    tl.store(out[0] + offs_n, tl.where(active, w * loss, 0.0), mask=mask_n)
    _store_stats(out[1], rows, offs_n, mask_n, active, w, stats)
    store_stat(out[1], K_S, rows, offs_n, k_s, active)
    store_stat(out[1], K_T, rows, offs_n, k_t, active)


@triton.jit
def _store_stats(stats_ptr, rows, offs_n, mask_n, active, w, stats):
    """Store the statistics of rows, all but K_S and K_T."""
    store_stat(stats_ptr, WEIGHT, rows, offs_n, w, mask_n)
    store_stat(stats_ptr, MAX_S, rows, offs_n, stats[0], active)
    store_stat(stats_ptr, SUM_S, rows, offs_n, stats[1], active)
    store_stat(stats_ptr, MAX_T, rows, offs_n, stats[2], active)
    store_stat(stats_ptr, SUM_T, rows, offs_n, stats[3], active)
    store_stat(stats_ptr, SUM_S_T1, rows, offs_n, stats[6], active)


@row_jit
def _divergence_merge_kernel(
    s,  # (N, V): only the labels' columns are read
    weight_ptr,  # (N,), or None
    labels_ptr,  # (N,), or None
    report_ptr,
    losses_ptr,  # (N,), or None before a second pass
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (6, N, chunks)
    weight_strides,
    labels_strides,
    sizes,
    rows,
    V,
    chunks,
    ignore_index,
    log2e_over_T: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    kl_scale: tl.float64,
    ce_scale: tl.float64,
    RESCALE_FN: tl.constexpr,  # None before a second pass
    FINALIZE_FN: tl.constexpr,
    HARD: tl.constexpr,
    SEPARATE_CE_LSE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge the chunks of rows, in order, into losses or, before a second pass, into statistics alone."""
    offs_n, mask_n, _ = program_tile(rows, 1, BLOCK_N)
    weight, labels = (weight_ptr, weight_strides), (labels_ptr, labels_strides)
    scalars = _cast_scalars(log2e_over_T, temperature, beta, kl_scale, ce_scale, ACC_DTYPE)
    w = token_weights(weight, labels, report_ptr, offs_n, sizes, mask_n, ignore_index, V, ACC_DTYPE)
    active = mask_n & (w != 0)
    max_s = merged_max(partials_ptr, 0, rows, offs_n, active, chunks, BLOCK_C)
    max_t = merged_max(partials_ptr, 2, rows, offs_n, active, chunks, BLOCK_C)
    size = tl.cast(rows, tl.int64) * chunks
    sum_s = tl.zeros((BLOCK_N, BLOCK_C), ACC_DTYPE)
    sum_t, loss_sum, sum_s_T1 = sum_s, sum_s, sum_s
    for start in range(0, chunks, BLOCK_C):
        at, mask = chunk_block(offs_n, active, start, chunks, BLOCK_C)
        shift_s = load_stat(partials_ptr, 0, size, at, mask, float("-inf")) - math.neg_inf_to_zero(max_s)[:, None]
        shift_t = load_stat(partials_ptr, 2, size, at, mask, float("-inf")) - math.neg_inf_to_zero(max_t)[:, None]
        chunk_sum_s = load_stat(partials_ptr, 1, size, at, mask, 0.0)
        chunk_sum_t = load_stat(partials_ptr, 3, size, at, mask, 0.0)
        sum_s += chunk_sum_s * math.exp2(shift_s)
        sum_t += chunk_sum_t * math.exp2(shift_t)
        if RESCALE_FN is not None:
            chunk_loss_sum = load_stat(partials_ptr, 4, size, at, mask, 0.0)
            loss_sum += RESCALE_FN(chunk_loss_sum, chunk_sum_s, chunk_sum_t, shift_s, shift_t)
        if SEPARATE_CE_LSE:
            sum_s_T1 += load_stat(partials_ptr, 5, size, at, mask, 0.0) * math.exp2(shift_s * scalars[1])
    row_sum_s, row_loss_sum = tl.sum(sum_s, axis=1), tl.sum(loss_sum, axis=1)
    row_sum_s_T1 = tl.sum(sum_s_T1, axis=1) if SEPARATE_CE_LSE else row_sum_s
    stats = (max_s, row_sum_s, max_t, tl.sum(sum_t, axis=1), row_loss_sum, row_loss_sum, row_sum_s_T1)
    if losses_ptr is None:
        _store_stats(stats_ptr, rows, offs_n, mask_n, active, w, stats)
    else:
        out = (losses_ptr, stats_ptr)
        _finalize_rows(out, s, labels, offs_n, sizes, mask_n, w, rows, V, stats, scalars, FINALIZE_FN, HARD)


@triton.jit
def load_stats(stats_ptr, rows, offs_n, active):
    """Load maximum and sum_exp of student and teacher; 0 and 1 where not active."""
    max_s = load_stat(stats_ptr, MAX_S, rows, offs_n, active, 0.0)
    sum_s = load_stat(stats_ptr, SUM_S, rows, offs_n, active, 1.0)
    max_t = load_stat(stats_ptr, MAX_T, rows, offs_n, active, 0.0)
    sum_t = load_stat(stats_ptr, SUM_T, rows, offs_n, active, 1.0)
    return max_s, sum_s, max_t, sum_t


@row_jit
def _divergence_second_pass_kernel(
    s,  # (N, V)
    t,  # (N, V)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (6, N, chunks): writes the first two, which are merged already
    sizes,
    rows,
    V,
    chunks,
    log2e_over_T: tl.float64,
    beta: tl.float64,
    TERMS: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Second pass over a chunk: its sums of terms that need sum_exp of the row."""
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    active = mask_n & (load_stat(stats_ptr, WEIGHT, rows, offs_n, mask_n, 0.0) != 0)
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    stats = load_stats(stats_ptr, rows, offs_n, active)
    scalars = (tl.full((), log2e_over_T, ACC_DTYPE), tl.full((), beta, ACC_DTYPE))
    offs_v = tile_columns(chunk, V, BLOCK_V)
    if tile_is_full(active, chunk, V, BLOCK_V):
        loss_sum, aux_sum = _tile_terms(s, t, offs_n, offs_v, None, sizes, stats, scalars, TERMS)
    else:
        mask = tile_mask(active, offs_v, V)
        loss_sum, aux_sum = _tile_terms(s, t, offs_n, offs_v, mask, sizes, stats, scalars, TERMS)
    at, size = offs_n * chunks + chunk, tl.cast(rows, tl.int64) * chunks
    store_stat(partials_ptr, 0, size, at, loss_sum, active)
    store_stat(partials_ptr, 1, size, at, aux_sum, active)


@triton.jit
def _tile_terms(s, t, offs_n, offs_v, mask, sizes, stats, scalars, TERMS: tl.constexpr):
    """Sums of the terms of a tile, given maximum and sum_exp of its rows."""
    max_s, sum_s, max_t, sum_t = stats
    log2e_over_T, beta = scalars
    x_s = load_tile(s, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    x_t = load_tile(t, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    z_s, z_t = math.shifted(x_s, log2e_over_T, max_s), math.shifted(x_t, log2e_over_T, max_t)
    loss_terms, aux_terms = TERMS(z_s, z_t, sum_s, sum_t, beta)
    return tl.sum(loss_terms, axis=1), tl.sum(aux_terms, axis=1)


@row_jit
def _divergence_finalize_kernel(
    s,  # (N, V): only the labels' columns are read
    labels_ptr,  # (N,), or None
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (2, N, chunks)
    labels_strides,
    sizes,
    rows,
    V,
    chunks,
    log2e_over_T: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    kl_scale: tl.float64,
    ce_scale: tl.float64,
    FINALIZE_FN: tl.constexpr,
    HARD: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add up the chunks of the second pass, in order."""
    offs_n, mask_n, _ = program_tile(rows, 1, BLOCK_N)
    scalars = _cast_scalars(log2e_over_T, temperature, beta, kl_scale, ce_scale, ACC_DTYPE)
    w = load_stat(stats_ptr, WEIGHT, rows, offs_n, mask_n, 0.0)
    active = mask_n & (w != 0)
    size = tl.cast(rows, tl.int64) * chunks
    loss_sum = tl.zeros((BLOCK_N, BLOCK_C), ACC_DTYPE)
    aux_sum = loss_sum
    for start in range(0, chunks, BLOCK_C):
        at, mask = chunk_block(offs_n, active, start, chunks, BLOCK_C)
        loss_sum += load_stat(partials_ptr, 0, size, at, mask, 0.0)
        aux_sum += load_stat(partials_ptr, 1, size, at, mask, 0.0)
    max_s, sum_s, max_t, sum_t = load_stats(stats_ptr, rows, offs_n, active)
    sum_s_T1 = load_stat(stats_ptr, SUM_S_T1, rows, offs_n, active, 1.0)
    stats = (max_s, sum_s, max_t, sum_t, tl.sum(loss_sum, axis=1), tl.sum(aux_sum, axis=1), sum_s_T1)
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
        A factor on the divergence.
    weight
        Of the leading dimensions' shape, bool or floating. Logits of a row of weight 0 are not read.
    labels
        int32 or int64, of the same shape; `ignore_index` marks rows that are not read either.
    hard_label_weight
        The part of the cross-entropy of the student, at temperature 1, with the labels.
    vocab_size
        How many columns count; by default all, which are then as many in both.

    Returns
    -------
    tuple
        Losses, of the leading dimensions' shape, float32 (float64 where either is); and the rows' statistics,
        (STATISTICS, rows), for `divergence_backward`. Their first row is what each token counts.

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
        partials = torch.empty((6, tiling.rows, tiling.chunks), dtype=dtype, device=student.device)
    terms_fn, rescale, finalize = _FORWARD[divergence]
    hard = hard_label_weight != 0
    log2e_over_T, temperature = math.base2_scalars(inv_temperature)
    common = {"stats_ptr": stats, "partials_ptr": partials, "V": V, "ACC_DTYPE": launch.tl_dtype(dtype)}
    scalars = {"log2e_over_T": log2e_over_T, "beta": beta}
    finalizing = {
        "temperature": temperature,
        "kl_scale": (1 - hard_label_weight) * scale,
        "ce_scale": hard_label_weight,
        "FINALIZE_FN": finalize,
        "HARD": hard,
    }
    first_pass = {
        "report_ptr": device_errors.buffer(student.device),
        "ignore_index": ignore_index,
        "SEPARATE_CE_LSE": hard and inv_temperature != 1,
    }
    launch.run(
        _divergence_kernel,
        tiling.grid,
        tiling.config,
        **tiling.args("s", "t", "weight", "labels"),
        **common,
        **scalars,
        **finalizing,
        **first_pass,
        losses_ptr=losses,
        TERMS=terms_fn,
        TWO_PASS=rescale is None,
    )
    if partials is None:
        return losses, stats
    grid, config = tiling.merging(dtype)
    launch.run(
        _divergence_merge_kernel,
        grid,
        config,
        **tiling.args("s", "weight", "labels"),
        **common,
        **scalars,
        **finalizing,
        **first_pass,
        losses_ptr=None if rescale is None else losses,
        RESCALE_FN=rescale,
    )
    if rescale is None:
        second_pass = {**tiling.args("s", "t"), **common, **scalars}
        launch.run(_divergence_second_pass_kernel, tiling.grid, tiling.config, **second_pass, TERMS=terms_fn)
        added = {**tiling.args("s", "labels"), **common, **scalars, **finalizing}
        launch.run(_divergence_finalize_kernel, grid, config, **added, losses_ptr=losses)
    return losses, stats
