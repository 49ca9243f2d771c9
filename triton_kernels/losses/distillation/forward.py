"""Divergences of rows of student logits s and teacher logits t, forward; `divergence_backward` has the gradients.

With p = softmax(t/T), q = softmax(s/T), in base 2 with the factor c = log₂e/T, of each row of either

    m = c·max x,   z = c·x − m,   d = Σ 2^z        so that q = 2^z/d and log₂ q = z − log₂ d
    KL(p‖q) = log 2·a/d_t − log(d_t/d_s)   with a = Σ 2^z_t·(z_t − z_s)

which takes one look at each logit: a program finds m, d and a of one chunk of a row, another kernel merges the chunks
in order. JS and total variation need d before they can add anything up, and look again where a row has several chunks.
Hard labels add log Σ exp s − s[label], at temperature 1. What is kept of a row for backward are `STATISTICS` numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...jit import math
from ...jit.tiles import get, place, put, token_weights
from ...runtime import device_errors, launch, tile_configs
from ...runtime.replay import replayable
from ...runtime.row_tiling import Rows, row_jit
from . import terms as of
from .rows import finish, look, look_again, put_statistics, scalars_of
from .terms import D_1, D_S, D_T, M_S, M_T, STATISTICS, W

#: Name in the API: terms; how a chunk's are moved, None where the terms need d; finish.
_FORWARD = {
    "forward_kl": (of.forward_kl_terms, of.forward_kl_moved, of.forward_kl_finish),
    "reverse_kl": (of.reverse_kl_terms, of.reverse_kl_moved, of.reverse_kl_finish),
    "js": (of.js_terms, None, of.js_finish),
    "total_variation": (of.total_variation_terms, None, of.total_variation_finish),
}


@row_jit
def _divergence_kernel(
    s_ptr,  # (rows, V), strided
    t_ptr,
    weight_ptr,  # (rows,), strided, or None
    labels_ptr,  # (rows,), strided, or None
    report_ptr,
    losses_ptr,  # (rows,)
    stats_ptr,  # (STATISTICS, rows)
    partials_ptr,  # (6, rows, chunks), written instead where rows have several chunks; else None
    sizes,
    s_row_strides,
    t_row_strides,
    weight_strides,
    labels_strides,
    rows,
    V,
    chunks,
    stride_sv,
    stride_tv,
    ignore_index,
    factor: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    soft: tl.float64,
    hard: tl.float64,
    TERMS: tl.constexpr,
    AFTER: tl.constexpr,  # whether the terms need d
    FINISH: tl.constexpr,
    HARD: tl.constexpr,
    APART: tl.constexpr,  # whether hard labels need a d of their own
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    WHOLE: tl.constexpr = partials_ptr is None
    offs_n, mask_n, chunk = place(rows, chunks, BLOCK_N, WIDE)
    offs_v = chunk * BLOCK_V + tl.arange(0, BLOCK_V)
    s, t = (s_ptr, s_row_strides, stride_sv, UNIT), (t_ptr, t_row_strides, stride_tv, UNIT)
    weight, labels = (weight_ptr, weight_strides), (labels_ptr, labels_strides)
    scalars = scalars_of(factor, temperature, beta, soft, hard, COMPUTE)
    w = token_weights(weight, labels, report_ptr, offs_n, sizes, mask_n, ignore_index, V, COMPUTE)
    kept = mask_n & (w != 0)
    if (chunk + 1) * BLOCK_V <= V and tl.min(kept.to(tl.int32), axis=0) > 0:
        of_row = look(s, t, offs_n, offs_v, sizes, None, scalars, TERMS, AFTER, WHOLE, APART)
    elif tl.max(kept.to(tl.int32), axis=0) > 0:
        mask = kept[:, None] & (offs_v < V)[None, :]
        of_row = look(s, t, offs_n, offs_v, sizes, mask, scalars, TERMS, AFTER, WHOLE, APART)
    else:
        of_row = (w, w, w, w, w, w, w)
    if WHOLE:
        out = (losses_ptr, stats_ptr)
        finish(out, s, labels, offs_n, sizes, mask_n, w, rows, V, of_row, scalars, FINISH, HARD)
    else:
        at, size = offs_n * chunks + chunk, tl.cast(rows, offs_n.dtype) * chunks
        for number in tl.static_range(4):
            put(partials_ptr, number, size, at, of_row[number], kept)
        if not AFTER:
            put(partials_ptr, 4, size, at, of_row[4], kept)
        if APART:
            put(partials_ptr, 5, size, at, of_row[6], kept)


@row_jit
def _merge_kernel(
    s_ptr,  # (rows, V), strided: only a label's column is read
    weight_ptr,
    labels_ptr,
    report_ptr,
    losses_ptr,  # (rows,); None: write statistics only
    stats_ptr,  # (STATISTICS, rows)
    partials_ptr,  # (6, rows, chunks)
    sizes,
    s_row_strides,
    weight_strides,
    labels_strides,
    rows,
    V,
    chunks,
    stride_sv,
    ignore_index,
    factor: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    soft: tl.float64,
    hard: tl.float64,
    MOVED: tl.constexpr,  # None: there are no sums of terms
    FINISH: tl.constexpr,
    HARD: tl.constexpr,
    APART: tl.constexpr,
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge the chunks of rows."""
    offs_n, mask_n, _ = place(rows, 1, BLOCK_N, WIDE)
    weight, labels = (weight_ptr, weight_strides), (labels_ptr, labels_strides)
    scalars = scalars_of(factor, temperature, beta, soft, hard, COMPUTE)
    temperature = scalars[1]
    w = token_weights(weight, labels, report_ptr, offs_n, sizes, mask_n, ignore_index, V, COMPUTE)
    kept = mask_n & (w != 0)
    size = tl.cast(rows, offs_n.dtype) * chunks
    m_s = tl.full((BLOCK_N, BLOCK_C), float("-inf"), COMPUTE)
    m_t = m_s
    for start in range(0, chunks, BLOCK_C):
        at, mask = _chunks(offs_n, kept, start, chunks, BLOCK_C)
        m_s = tl.maximum(m_s, get(partials_ptr, 0, size, at, mask, float("-inf")))
        m_t = tl.maximum(m_t, get(partials_ptr, 2, size, at, mask, float("-inf")))
    m_s, m_t = tl.max(m_s, axis=1), tl.max(m_t, axis=1)
    d_s = tl.zeros((BLOCK_N, BLOCK_C), COMPUTE)
    d_t, first, d_1 = d_s, d_s, d_s
    for start in range(0, chunks, BLOCK_C):
        at, mask = _chunks(offs_n, kept, start, chunks, BLOCK_C)
        by_s = get(partials_ptr, 0, size, at, mask, float("-inf")) - math.finite(m_s)[:, None]
        by_t = get(partials_ptr, 2, size, at, mask, float("-inf")) - math.finite(m_t)[:, None]
        chunk_d_s = get(partials_ptr, 1, size, at, mask, 0.0)
        chunk_d_t = get(partials_ptr, 3, size, at, mask, 0.0)
        d_s += chunk_d_s * math.exp2(by_s)
        d_t += chunk_d_t * math.exp2(by_t)
        if MOVED is not None:
            first += MOVED(get(partials_ptr, 4, size, at, mask, 0.0), chunk_d_s, chunk_d_t, by_s, by_t)
        if APART:
            d_1 += get(partials_ptr, 5, size, at, mask, 0.0) * math.exp2(by_s * temperature)
    d_s, d_t = tl.sum(d_s, axis=1), tl.sum(d_t, axis=1)
    d_1 = tl.sum(d_1, axis=1) if APART else d_s
    if losses_ptr is None:
        put_statistics(stats_ptr, rows, offs_n, mask_n, kept, w, m_s, d_s, m_t, d_t, d_1)
    else:
        first = tl.sum(first, axis=1)
        of_row = (m_s, d_s, m_t, d_t, first, first, d_1)
        s, out = (s_ptr, s_row_strides, stride_sv, UNIT), (losses_ptr, stats_ptr)
        finish(out, s, labels, offs_n, sizes, mask_n, w, rows, V, of_row, scalars, FINISH, HARD)


@triton.jit
def _chunks(offs_n, kept, start, chunks, BLOCK_C: tl.constexpr):
    """Where a block of chunks of rows is among partials, and which of it there is."""
    offs_c = start + tl.arange(0, BLOCK_C)
    return (offs_n * chunks)[:, None] + offs_c[None, :], kept[:, None] & (offs_c < chunks)[None, :]


@row_jit
def _terms_kernel(
    s_ptr,  # (rows, V), strided
    t_ptr,
    stats_ptr,  # (STATISTICS, rows)
    partials_ptr,  # (2, rows, chunks)
    sizes,
    s_row_strides,
    t_row_strides,
    rows,
    V,
    chunks,
    stride_sv,
    stride_tv,
    factor: tl.float64,
    beta: tl.float64,
    TERMS: tl.constexpr,
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The second look at a chunk: its sums of terms that need d of the row."""
    offs_n, mask_n, chunk = place(rows, chunks, BLOCK_N, WIDE)
    offs_v = chunk * BLOCK_V + tl.arange(0, BLOCK_V)
    s, t = (s_ptr, s_row_strides, stride_sv, UNIT), (t_ptr, t_row_strides, stride_tv, UNIT)
    kept = mask_n & (get(stats_ptr, W, rows, offs_n, mask_n, 0.0) != 0)
    m_s, d_s = get(stats_ptr, M_S, rows, offs_n, kept, 0.0), get(stats_ptr, D_S, rows, offs_n, kept, 1.0)
    m_t, d_t = get(stats_ptr, M_T, rows, offs_n, kept, 0.0), get(stats_ptr, D_T, rows, offs_n, kept, 1.0)
    of_row = (m_s, d_s, m_t, d_t, tl.full((), factor, COMPUTE), tl.full((), beta, COMPUTE))
    if (chunk + 1) * BLOCK_V <= V and tl.min(kept.to(tl.int32), axis=0) > 0:
        first, second = look_again(s, t, offs_n, offs_v, sizes, None, of_row, TERMS)
    elif tl.max(kept.to(tl.int32), axis=0) > 0:
        mask = kept[:, None] & (offs_v < V)[None, :]
        first, second = look_again(s, t, offs_n, offs_v, sizes, mask, of_row, TERMS)
    else:
        first, second = m_s, m_s
    at, size = offs_n * chunks + chunk, tl.cast(rows, offs_n.dtype) * chunks
    put(partials_ptr, 0, size, at, first, kept)
    put(partials_ptr, 1, size, at, second, kept)


@row_jit
def _finish_kernel(
    s_ptr,
    labels_ptr,
    losses_ptr,  # (rows,)
    stats_ptr,  # (STATISTICS, rows)
    partials_ptr,  # (2, rows, chunks)
    sizes,
    s_row_strides,
    labels_strides,
    rows,
    V,
    chunks,
    stride_sv,
    factor: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    soft: tl.float64,
    hard: tl.float64,
    FINISH: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add up the second look's chunks."""
    offs_n, mask_n, _ = place(rows, 1, BLOCK_N, WIDE)
    scalars = scalars_of(factor, temperature, beta, soft, hard, COMPUTE)
    w = get(stats_ptr, W, rows, offs_n, mask_n, 0.0)
    kept = mask_n & (w != 0)
    size = tl.cast(rows, offs_n.dtype) * chunks
    first = tl.zeros((BLOCK_N, BLOCK_C), COMPUTE)
    second = first
    for start in range(0, chunks, BLOCK_C):
        at, mask = _chunks(offs_n, kept, start, chunks, BLOCK_C)
        first += get(partials_ptr, 0, size, at, mask, 0.0)
        second += get(partials_ptr, 1, size, at, mask, 0.0)
    m_s, d_s = get(stats_ptr, M_S, rows, offs_n, kept, 0.0), get(stats_ptr, D_S, rows, offs_n, kept, 1.0)
    m_t, d_t = get(stats_ptr, M_T, rows, offs_n, kept, 0.0), get(stats_ptr, D_T, rows, offs_n, kept, 1.0)
    d_1 = get(stats_ptr, D_1, rows, offs_n, kept, 1.0)
    of_row = (m_s, d_s, m_t, d_t, tl.sum(first, axis=1), tl.sum(second, axis=1), d_1)
    s, labels, out = (s_ptr, s_row_strides, stride_sv, UNIT), (labels_ptr, labels_strides), (losses_ptr, stats_ptr)
    finish(out, s, labels, offs_n, sizes, mask_n, w, rows, V, of_row, scalars, FINISH, HARD)


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
    hard = hard_label_weight != 0
    plan = Rows(V, (student, teacher), (weight, labels))
    compute = launch.compute_dtype(student.dtype, teacher.dtype)
    terms, moved, of_sums = _FORWARD[divergence]
    losses = torch.empty(student.shape[:-1], dtype=compute, device=student.device)
    stats = torch.empty((STATISTICS, plan.rows), dtype=compute, device=student.device)
    partials = None
    if plan.chunks > 1:
        partials = torch.empty((6, plan.rows, plan.chunks), dtype=compute, device=student.device)
    scalars = dict(zip(("factor", "temperature"), math.factors(inv_temperature), strict=True))
    scalars |= {"beta": beta, "soft": (1 - hard_label_weight) * scale, "hard": hard_label_weight}
    apart = hard and inv_temperature != 1
    common = {
        "stats_ptr": stats,
        "partials_ptr": partials,
        "COMPUTE": launch.tl_dtype(compute),
        "UNIT": plan.unit,
        "WIDE": plan.wide,
    }
    common |= {"sizes": plan.sizes, "rows": plan.rows, "V": V, "chunks": plan.chunks}
    s = {"s_ptr": student, "s_row_strides": plan.strides[0], "stride_sv": student.stride(-1)}
    t = {"t_ptr": teacher, "t_row_strides": plan.strides[1], "stride_tv": teacher.stride(-1)}
    tokens = {"weight_ptr": weight, "weight_strides": plan.row_strides[0], "ignore_index": ignore_index}
    tokens |= {"report_ptr": device_errors.buffer(student.device)}
    label = {"labels_ptr": labels, "labels_strides": plan.row_strides[1]}
    launch.run(
        _divergence_kernel,
        plan.grid,
        plan.config,
        **{**common, **s, **t, **tokens, **label, **scalars},
        losses_ptr=losses,
        TERMS=terms,
        AFTER=moved is None,
        FINISH=of_sums,
        HARD=hard,
        APART=apart,
    )
    if partials is None:
        return losses, stats
    merge = tile_configs.merge(compute.itemsize, plan.rows, plan.chunks)
    grid = (tile_configs.cdiv(plan.rows, merge["BLOCK_N"]),)
    launch.run(
        _merge_kernel,
        grid,
        merge,
        **{**common, **s, **tokens, **label, **scalars},
        losses_ptr=None if moved is None else losses,
        MOVED=moved,
        FINISH=of_sums,
        HARD=hard,
        APART=apart,
    )
    if moved is None:
        looked = {"factor": scalars["factor"], "beta": beta}
        launch.run(_terms_kernel, plan.grid, plan.config, **{**common, **s, **t, **looked}, TERMS=terms)
        done = {**common, **s, **label, **scalars}
        launch.run(_finish_kernel, grid, merge, **done, losses_ptr=losses, FINISH=of_sums, HARD=hard)
    return losses, stats
