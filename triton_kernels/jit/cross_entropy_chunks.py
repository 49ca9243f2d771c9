"""Statistics of the chunks of rows of cross-entropies, and how those of a row are merged, in order.

Of a chunk, or a row: row_max = max x; sum_exp = Σ 2^z with z = log₂e·(x − row_max); with weights w of the columns Σ w·z
and Σ w; and with labels the label's logit. `partials` is (partials_ptr, offs_n, numbers per statistic, chunks).
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import math
from .tiles import chunk_block, load_stat, store_stat

#: Statistics of chunks, (CHUNK_STATISTICS, N, chunks): the label's logit if it is in the chunk, else 0; row_max,
#: sum_exp, Σ w and Σ w·z.
CHUNK_STATISTICS = 5
_X_LABEL, _MAX, _SUM, _WEIGHTS, _WEIGHTED = (tl.constexpr(stat) for stat in range(CHUNK_STATISTICS))


@triton.jit
def merged_parts(a, b, log2e, WEIGHTS: tl.constexpr):
    """Return row_max, sum_exp, Σ w·z and Σ w of two parts of rows."""
    a_max, a_sum, a_weighted, a_weights = a
    b_max, b_sum, b_weighted, b_weights = b
    row_max = tl.maximum(a_max, b_max)
    from_max = math.neg_inf_to_zero(row_max)
    a_shift, b_shift = (a_max - from_max) * log2e, (b_max - from_max) * log2e
    sum_exp = a_sum * math.exp2(a_shift) + b_sum * math.exp2(b_shift)
    if WEIGHTS:
        a_weighted = _reweighted(a_weighted, a_weights, a_shift) + _reweighted(b_weighted, b_weights, b_shift)
        a_weights += b_weights
    return row_max, sum_exp, a_weighted, a_weights


@triton.jit
def _reweighted(weighted_sum, weight_sum, shift):
    """Return Σ w·z for a maximum that is larger by −shift."""
    return weighted_sum + tl.where(weight_sum != 0, weight_sum * shift, 0.0)


@triton.jit
def store_chunk_stats(partials, chunk, active, stats, LABELS: tl.constexpr, WEIGHTS: tl.constexpr):
    """Store row_max, sum_exp, Σ w·z, Σ w and the label's logit of a chunk."""
    partials_ptr, offs_n, size, chunks = partials
    row_max, sum_exp, weighted_sum, weight_sum, x_label = stats
    at = offs_n * chunks + chunk
    store_stat(partials_ptr, _MAX, size, at, row_max, active)
    store_stat(partials_ptr, _SUM, size, at, sum_exp, active)
    if LABELS:
        store_stat(partials_ptr, _X_LABEL, size, at, x_label, active)
    if WEIGHTS:
        store_stat(partials_ptr, _WEIGHTED, size, at, weighted_sum, active)
        store_stat(partials_ptr, _WEIGHTS, size, at, weight_sum, active)


@triton.jit
def merged_stats(partials, active, log2e, LABELS: tl.constexpr, WEIGHTS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the statistics of rows, from those of their chunks, in order."""
    partials_ptr, offs_n, size, chunks = partials
    at, mask = chunk_block(offs_n, active, 0, chunks, BLOCK_C)
    maxima = load_stat(partials_ptr, _MAX, size, at, mask, float("-inf"), VOLATILE=True)
    sums = load_stat(partials_ptr, _SUM, size, at, mask, 0.0, VOLATILE=True)
    row_max = math.row_max(maxima)
    shift = math.shifted(maxima, log2e, row_max)
    sum_exp = math.row_sum(sums * math.exp2(shift))
    weighted_sum, weight_sum, x_label = sum_exp, sum_exp, sum_exp  # where not wanted
    if LABELS:
        x_label = math.row_sum(load_stat(partials_ptr, _X_LABEL, size, at, mask, 0.0, VOLATILE=True))
    if WEIGHTS:
        weights = load_stat(partials_ptr, _WEIGHTS, size, at, mask, 0.0, VOLATILE=True)
        weighted = load_stat(partials_ptr, _WEIGHTED, size, at, mask, 0.0, VOLATILE=True)
        weight_sum, weighted_sum = math.row_sum(weights), math.row_sum(_reweighted(weighted, weights, shift))
    return row_max, sum_exp, weighted_sum, weight_sum, x_label
