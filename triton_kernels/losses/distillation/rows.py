"""What kernels of divergences share: a look at a tile of logits, and the end of a row: its loss and statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from ...jit import math
from ...jit.tiles import load_row, load_tile, put, row_offsets
from .terms import D_1, D_S, D_T, K_S, K_T, M_S, M_T, W


@triton.jit
def scalars_of(factor, temperature, beta, soft, hard, DTYPE: tl.constexpr):
    """The factor on logits, T, beta, and the parts of divergence and hard labels in the loss."""
    return (
        tl.full((), factor, DTYPE),
        tl.full((), temperature, DTYPE),
        tl.full((), beta, DTYPE),
        tl.full((), soft, DTYPE),
        tl.full((), hard, DTYPE),
    )


@triton.jit
def look(
    s_operand,
    t_operand,
    offs_n,
    offs_v,
    sizes,
    mask,  # None: every element of the tile counts
    scalars,
    TERMS: tl.constexpr,
    AFTER: tl.constexpr,
    WHOLE: tl.constexpr,
    APART: tl.constexpr,
):
    """Of each row of a tile m, d, m, d, two sums of terms as far as they can be had already, and d at temperature 1."""
    factor, temperature, beta = scalars[0], scalars[1], scalars[2]
    s = load_tile(s_operand, offs_n, offs_v, sizes, mask, float("-inf"), factor.dtype)
    t = load_tile(t_operand, offs_n, offs_v, sizes, mask, float("-inf"), factor.dtype)
    m_s, z_s, e_s = math.tile_exp2(s, factor)
    m_t, z_t, e_t = math.tile_exp2(t, factor)
    d_s, d_t = tl.sum(e_s, axis=1), tl.sum(e_t, axis=1)
    d_1 = d_s
    if APART:
        d_1 = tl.sum(math.exp2(z_s * temperature), axis=1)
    first, second = d_s, d_s
    if not AFTER:
        first = tl.sum(TERMS(z_s, z_t, e_s, e_t), axis=1)
    elif WHOLE:
        first, second = TERMS(z_s, z_t, d_s, d_t, beta)
        first, second = tl.sum(first, axis=1), tl.sum(second, axis=1)
    return m_s, d_s, m_t, d_t, first, second, d_1


@triton.jit
def finish(
    out,  # (losses_ptr, stats_ptr)
    s_operand,
    labels_operand,
    offs_n,
    sizes,
    mask_n,
    w,
    rows,
    V,
    of_row,
    scalars,
    FINISH: tl.constexpr,
    HARD: tl.constexpr,
):
    """Store the losses of rows, and what backward needs."""
    factor, temperature, beta, soft, hard = scalars
    m_s, d_s, m_t, d_t, first, second, d_1 = of_row
    kept = mask_n & (w != 0)
    loss, k_s, k_t = FINISH(first, second, d_s, d_t, beta)
    loss *= soft
    if HARD:
        label = load_row(labels_operand, offs_n, sizes, kept, 0, tl.int64)
        there = kept & (label >= 0) & (label < V)
        at = s_operand[0] + row_offsets(offs_n, sizes, s_operand[1], s_operand[3]) + label * s_operand[2]
        z = tl.fma(tl.load(at, mask=there, other=0).to(factor.dtype), factor, -math.finite(m_s)) * temperature
        loss += (math.log(d_1) - z * math.LN_2) * hard
    tl.store(out[0] + offs_n, tl.where(kept, w * loss, 0.0), mask=mask_n)
    put_statistics(out[1], rows, offs_n, mask_n, kept, w, m_s, d_s, m_t, d_t, d_1)
    put(out[1], K_S, rows, offs_n, k_s, kept)
    put(out[1], K_T, rows, offs_n, k_t, kept)


@triton.jit
def put_statistics(stats_ptr, rows, offs_n, mask_n, kept, w, m_s, d_s, m_t, d_t, d_1):
    """Store what is known of rows before their sums of terms."""
    put(stats_ptr, W, rows, offs_n, w, mask_n)
    put(stats_ptr, M_S, rows, offs_n, m_s, kept)
    put(stats_ptr, D_S, rows, offs_n, d_s, kept)
    put(stats_ptr, M_T, rows, offs_n, m_t, kept)
    put(stats_ptr, D_T, rows, offs_n, d_t, kept)
    put(stats_ptr, D_1, rows, offs_n, d_1, kept)


@triton.jit
def look_again(s_operand, t_operand, offs_n, offs_v, sizes, mask, of_row, TERMS: tl.constexpr):
    """The sums of terms of a tile, with m and d of its rows."""
    m_s, d_s, m_t, d_t, factor, beta = of_row
    s = load_tile(s_operand, offs_n, offs_v, sizes, mask, float("-inf"), factor.dtype)
    t = load_tile(t_operand, offs_n, offs_v, sizes, mask, float("-inf"), factor.dtype)
    first, second = TERMS(math.rebase(s, factor, m_s), math.rebase(t, factor, m_t), d_s, d_t, beta)
    return tl.sum(first, axis=1), tl.sum(second, axis=1)
