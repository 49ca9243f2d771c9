"""Statistics of the chunks of rows, their sums of loss terms, and how those of a row are merged, in order.

A chunk has one tile, held in registers, or `tiles` tiles, which are loaded one after another. `partials` is
(partials_ptr, offs_n, numbers per statistic, chunks). `scalars` are those of `cast_scalars`, and factor and cap of
`math.map_logits` for s and for t. Of a tile is held (x_s, x_t, e_s, e_t, difference, max_s, max_t):
`terms` has e; the difference is that of the logits relative to the tile's maxima, max_s and max_t. No product is in a
sum here, where a compiler could round once or twice, so two places of the code calculate the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...jit import math
from ...jit.tiles import chunk_block, chunk_tile, load_column, load_in_bounds, load_stat, store_stat
from .terms import K_S, K_T, MAX_S, MAX_T, SUM_S, SUM_S_T1, SUM_T, WEIGHT, log2_ratio, softmax_scales, store_stats

#: Statistics of chunks, (STATISTICS, N, chunks): MAX_S to SUM_S_T1 as of rows; loss_sum; aux_sum, or cross for KL; the
#: label's logit if it is in the chunk, else 0.
LOSS_SUM, AUX_SUM, X_LABEL = WEIGHT, K_S, K_T


@triton.jit
def load_tiles(s, t, offs_n, active, sizes, tile, V, scalars, BLOCK_V: tl.constexpr):
    """Load a tile of s and of t, scaled and softcapped."""
    x_s = load_in_bounds(s, offs_n, active, sizes, tile, V, float("-inf"), scalars[0].dtype, BLOCK_V)
    x_t = load_in_bounds(t, offs_n, active, sizes, tile, V, float("-inf"), scalars[0].dtype, BLOCK_V)
    return math.map_logits(x_s, scalars[5], scalars[6]), math.map_logits(x_t, scalars[7], scalars[8])


@triton.jit
def held(x_s, x_t, scalars):
    """Return what is held of a tile."""
    max_s, _, e_s = math.tile_exp2(x_s, scalars[0])
    max_t, _, e_t = math.tile_exp2(x_t, scalars[0])
    return x_s, x_t, e_s, e_t, difference(x_s, x_t, max_s, max_t), max_s, max_t


@triton.jit
def difference(x_s, x_t, max_s, max_t):
    """Return the difference of logits, each relative to a maximum."""
    return (x_s - math.neg_inf_to_zero(max_s)[:, None]) - (x_t - math.neg_inf_to_zero(max_t)[:, None])


@triton.jit
def chunk_stats(
    s,
    t,
    offs_n,
    active,
    sizes,
    chunk,
    tiles,
    V,
    label,
    scalars,
    ONE_PASS_FN: tl.constexpr,
    RESCALE_FN: tl.constexpr,
    HARD: tl.constexpr,
    SEPARATE_SUM_T1: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Load a chunk; return what is held of its first tile, and max_s, sum_s, max_t, sum_t, sum_s_T1, cross, x_label."""
    x_s, x_t = load_tiles(s, t, offs_n, active, sizes, chunk_tile(chunk, tiles, 0), V, scalars, BLOCK_V)
    first, stats = tile_stats(x_s, x_t, scalars, ONE_PASS_FN, SEPARATE_SUM_T1)
    max_s, sum_s, max_t, sum_t, sum_s_T1, cross = stats
    if tiles is not None:
        for i in range(1, tiles):
            y_s, y_t = load_tiles(s, t, offs_n, active, sizes, chunk_tile(chunk, tiles, i), V, scalars, BLOCK_V)
            before = (max_s, sum_s, max_t, sum_t, sum_s_T1, cross)
            _, stats = tile_stats(y_s, y_t, scalars, ONE_PASS_FN, SEPARATE_SUM_T1)
            max_s, sum_s, max_t, sum_t, sum_s_T1, cross = merge(before, stats, scalars, RESCALE_FN)
    x_label = sum_s  # not used unless HARD
    if HARD:
        found = (label >= 0) & (label // BLOCK_V // (1 if tiles is None else tiles) == chunk)
        x_label = load_column(s, offs_n, label, sizes, found, 0, sum_s.dtype)
        x_label = math.map_logits(x_label, scalars[5], scalars[6])
    return first, (max_s, sum_s, max_t, sum_t, sum_s_T1, cross, x_label)


@triton.jit
def tile_stats(x_s, x_t, scalars, ONE_PASS_FN: tl.constexpr, SEPARATE_SUM_T1: tl.constexpr):
    """Return what is held of a tile, and its statistics."""
    log2e_over_T, temperature = scalars[0], scalars[1]
    max_s, z_s, e_s = math.tile_exp2(x_s, log2e_over_T)
    max_t, _, e_t = math.tile_exp2(x_t, log2e_over_T)
    diff = difference(x_s, x_t, max_s, max_t)
    sum_s = tl.sum(e_s, axis=1)
    sum_s_T1, cross = sum_s, sum_s  # placeholders
    if SEPARATE_SUM_T1:
        sum_s_T1 = tl.sum(math.exp2(z_s * temperature), axis=1)
    if ONE_PASS_FN is not None:
        cross = tl.sum(ONE_PASS_FN(diff, e_s, e_t), axis=1)
    tile = (x_s, x_t, e_s, e_t, diff, max_s, max_t)
    return tile, (max_s, sum_s, max_t, tl.sum(e_t, axis=1), sum_s_T1, cross)


@triton.jit
def merge(a, b, scalars, RESCALE_FN: tl.constexpr):
    """Return the statistics of two parts of rows."""
    log2e_over_T, temperature = scalars[0], scalars[1]
    a_max_s, a_sum_s, a_max_t, a_sum_t, a_sum_s_T1, a_cross = a
    b_max_s, b_sum_s, b_max_t, b_sum_t, b_sum_s_T1, b_cross = b
    max_s, max_t = tl.maximum(a_max_s, b_max_s), tl.maximum(a_max_t, b_max_t)
    from_s, from_t = math.neg_inf_to_zero(max_s), math.neg_inf_to_zero(max_t)
    a_s, b_s, a_t, b_t = a_max_s - from_s, b_max_s - from_s, a_max_t - from_t, b_max_t - from_t
    f, f_T1 = log2e_over_T, log2e_over_T * temperature
    sum_s = a_sum_s * math.exp2(a_s * f) + b_sum_s * math.exp2(b_s * f)
    sum_t = a_sum_t * math.exp2(a_t * f) + b_sum_t * math.exp2(b_t * f)
    sum_s_T1 = a_sum_s_T1 * math.exp2(a_s * f_T1) + b_sum_s_T1 * math.exp2(b_s * f_T1)
    cross = a_cross  # not used unless RESCALE_FN
    if RESCALE_FN is not None:
        cross = RESCALE_FN(a_cross, a_sum_s, a_sum_t, a_s, a_t, f) + RESCALE_FN(b_cross, b_sum_s, b_sum_t, b_s, b_t, f)
    return max_s, sum_s, max_t, sum_t, sum_s_T1, cross


@triton.jit
def store_chunk_stats(
    partials, chunk, active, stats, IS_KL: tl.constexpr, HARD: tl.constexpr, SEPARATE_SUM_T1: tl.constexpr
):
    """Store what `chunk_stats` returned of a chunk."""
    partials_ptr, offs_n, size, chunks = partials
    max_s, sum_s, max_t, sum_t, sum_s_T1, cross, x_label = stats
    at = offs_n * chunks + chunk
    store_stats(partials_ptr, size, at, (max_s, sum_s, max_t, sum_t, sum_s_T1), active, SEPARATE_SUM_T1)
    if IS_KL:
        store_stat(partials_ptr, AUX_SUM, size, at, cross, active)
    if HARD:
        store_stat(partials_ptr, X_LABEL, size, at, x_label, active)


@triton.jit
def merged_stats(
    partials,
    active,
    scalars,
    RESCALE_FN: tl.constexpr,
    HARD: tl.constexpr,
    SEPARATE_SUM_T1: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Return the statistics of rows, from those of their chunks, in order."""
    partials_ptr, offs_n, size, chunks = partials
    log2e_over_T, temperature = scalars[0], scalars[1]
    at, mask = chunk_block(offs_n, active, 0, chunks, BLOCK_C)
    maxima_s = load_stat(partials_ptr, MAX_S, size, at, mask, float("-inf"), VOLATILE=True)
    maxima_t = load_stat(partials_ptr, MAX_T, size, at, mask, float("-inf"), VOLATILE=True)
    sums_s = load_stat(partials_ptr, SUM_S, size, at, mask, 0.0, VOLATILE=True)
    sums_t = load_stat(partials_ptr, SUM_T, size, at, mask, 0.0, VOLATILE=True)
    max_s, max_t = math.row_max(maxima_s), math.row_max(maxima_t)
    shift_s = maxima_s - math.neg_inf_to_zero(max_s)[:, None]
    shift_t = maxima_t - math.neg_inf_to_zero(max_t)[:, None]
    sum_s = math.row_sum(sums_s * math.exp2(shift_s * log2e_over_T))
    sum_t = math.row_sum(sums_t * math.exp2(shift_t * log2e_over_T))
    sum_s_T1, cross, x_label = sum_s, sum_s, sum_s  # placeholders
    if SEPARATE_SUM_T1:
        sums_s_T1 = load_stat(partials_ptr, SUM_S_T1, size, at, mask, 0.0, VOLATILE=True)
        sum_s_T1 = math.row_sum(sums_s_T1 * math.exp2(shift_s * log2e_over_T * temperature))
    if RESCALE_FN is not None:
        crosses = load_stat(partials_ptr, AUX_SUM, size, at, mask, 0.0, VOLATILE=True)
        cross = math.row_sum(RESCALE_FN(crosses, sums_s, sums_t, shift_s, shift_t, log2e_over_T))
    if HARD:
        x_label = math.row_sum(load_stat(partials_ptr, X_LABEL, size, at, mask, 0.0, VOLATILE=True))
    return max_s, sum_s, max_t, sum_t, sum_s_T1, cross, x_label


@triton.jit
def tile_sums(tile, row_stats, scalars, TERMS_FN: tl.constexpr):
    """Return the sums of φ and of h_s of each row of a tile of which that is held; h_s and h_t."""
    _, _, e_s, e_t, diff, max_s, max_t = tile
    inv_s, inv_t, constant = softmax_scales(max_s, max_t, row_stats, scalars[0])
    phi, h_s, h_t = TERMS_FN(e_s, e_t, log2_ratio(diff, constant, scalars[0]), inv_s, inv_t, scalars[2])
    return tl.sum(phi, axis=1), tl.sum(h_s, axis=1), h_s, h_t


@triton.jit
def relative_to_row(x_s, x_t, row_stats, scalars):
    """Return what is held of a tile, but relative to the maxima of its row."""
    max_s, _, max_t, _, _ = row_stats
    e_s = math.exp2(math.shifted(x_s, scalars[0], max_s))
    e_t = math.exp2(math.shifted(x_t, scalars[0], max_t))
    return x_s, x_t, e_s, e_t, difference(x_s, x_t, max_s, max_t), max_s, max_t


@triton.jit
def sums_of_tiles(
    s,
    t,
    offs_n,
    active,
    sizes,
    first,
    count,
    V,
    row_stats,
    scalars,
    TERMS_FN: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Return the sums of φ and of h_s of each row of `count` tiles from `first` on."""
    loss_sum, aux_sum = tl.zeros_like(row_stats[1]), tl.zeros_like(row_stats[1])
    for tile in range(first, first + count):
        x_s, x_t = load_tiles(s, t, offs_n, active, sizes, tile, V, scalars, BLOCK_V)
        sums = tile_sums(relative_to_row(x_s, x_t, row_stats, scalars), row_stats, scalars, TERMS_FN)
        loss_sum += sums[0]
        aux_sum += sums[1]
    return loss_sum, aux_sum


@triton.jit
def store_sums(partials, chunk, active, loss_sum, aux_sum, IS_KL: tl.constexpr):
    """Store the sums of a chunk; KL has no aux_sum."""
    partials_ptr, offs_n, size, chunks = partials
    store_stat(partials_ptr, LOSS_SUM, size, offs_n * chunks + chunk, loss_sum, active)
    if not IS_KL:
        store_stat(partials_ptr, AUX_SUM, size, offs_n * chunks + chunk, aux_sum, active)


@triton.jit
def merged_sums(partials, active, IS_KL: tl.constexpr, BLOCK_C: tl.constexpr):
    """Add up loss_sum and aux_sum of the chunks of rows, in order."""
    partials_ptr, offs_n, size, chunks = partials
    at, mask = chunk_block(offs_n, active, 0, chunks, BLOCK_C)
    loss_sum = math.row_sum(load_stat(partials_ptr, LOSS_SUM, size, at, mask, 0.0, VOLATILE=True))
    aux_sum = loss_sum
    if not IS_KL:
        aux_sum = math.row_sum(load_stat(partials_ptr, AUX_SUM, size, at, mask, 0.0, VOLATILE=True))
    return loss_sum, aux_sum
