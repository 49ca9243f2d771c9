"""The math of each divergence, as jit helpers: loss terms, a row's loss, gradients. And the layout of row statistics.

Logits of a tile are given in base 2 relative to the maximum of their row, or of a chunk of it: z = log₂e/T·(x − max x),
and e = 2^z. With the row's sum_exp = Σ e, the softmax is q = e_s/sum_s of the student and p = e_t/sum_t of the teacher.
Each divergence has

    terms      two tiles, whose sums over a row, loss_sum and aux_sum, make its loss
    rescale    a chunk's loss_sum, relative to the maxima of the row instead of those of the chunk
    finalize   the row's loss from these sums, and k_s and k_t, which the gradients need
    gradients  with respect to student and teacher logits, from k_s, k_t and g, the upstream gradient of the divergence
               times 1/T and the row's weight

The terms of KL need no sum_exp, and no second tile, so one pass over the logits is enough. Those of JS and total
variation need the sum_exp of the whole row; chunks of theirs cannot be rescaled. Arguments and results that a kernel
does not use cost nothing in compiled code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...jit import math
from ...jit.math import LN_2, exp2
from ...jit.tiles import load_stat, store_stat

#: Statistics of rows, (STATISTICS, N), which forward saves: the row's weight; row_max = log₂e/T·max x and sum_exp of
#: student and teacher; the student's sum_exp at temperature 1; k_s and k_t.
STATISTICS = 8
WEIGHT, MAX_S, SUM_S, MAX_T, SUM_T, SUM_S_T1, K_S, K_T = (tl.constexpr(stat) for stat in range(STATISTICS))

#: Statistics of chunks of rows, (CHUNK_STATISTICS, N, chunks): loss_sum, where rows have the weight; MAX_S to SUM_T;
#: SUM_S_T1, if hard labels need it beside SUM_S. A second pass, by which time it is merged, writes aux_sum there.
CHUNK_STATISTICS = 6
LOSS_SUM, AUX_SUM = WEIGHT, SUM_S_T1


class Divergence(NamedTuple):
    """The jit helpers of a divergence; `rescale` is None where rows of several chunks take a second pass."""

    terms: Any
    rescale: Any
    finalize: Any
    gradients: Any


@triton.jit
def cast_scalars(log2e_over_T, temperature, beta, divergence_scale, ce_scale, DTYPE: tl.constexpr):
    """Round the scalars of a launch, which arrive in float64."""
    return (
        tl.full((), log2e_over_T, DTYPE),
        tl.full((), temperature, DTYPE),
        tl.full((), beta, DTYPE),
        tl.full((), divergence_scale, DTYPE),
        tl.full((), ce_scale, DTYPE),
    )


@triton.jit
def store_stats(ptr, size, at, max_s, sum_s, max_t, sum_t, sum_s_T1, mask, SEPARATE_SUM_T1: tl.constexpr):
    """Store maxima and sum_exps of some rows, or of chunks of rows; `size` is the length of each statistic."""
    store_stat(ptr, MAX_S, size, at, max_s, mask)
    store_stat(ptr, SUM_S, size, at, sum_s, mask)
    store_stat(ptr, MAX_T, size, at, max_t, mask)
    store_stat(ptr, SUM_T, size, at, sum_t, mask)
    if SEPARATE_SUM_T1:
        store_stat(ptr, SUM_S_T1, size, at, sum_s_T1, mask)


@triton.jit
def load_stats(ptr, rows, offs_n, active, SEPARATE_SUM_T1: tl.constexpr):
    """Load what `store_stats` stored of rows; in inactive rows maxima are 0 and sums 1."""
    max_s = load_stat(ptr, MAX_S, rows, offs_n, active, 0.0)
    sum_s = load_stat(ptr, SUM_S, rows, offs_n, active, 1.0)
    max_t = load_stat(ptr, MAX_T, rows, offs_n, active, 0.0)
    sum_t = load_stat(ptr, SUM_T, rows, offs_n, active, 1.0)
    sum_s_T1 = load_stat(ptr, SUM_S_T1, rows, offs_n, active, 1.0) if SEPARATE_SUM_T1 else sum_s
    return max_s, sum_s, max_t, sum_t, sum_s_T1


@triton.jit
def forward_kl_terms(z_s, z_t, e_s, e_t, sum_s, sum_t, beta):
    """2^z_t·(z_t − z_s), 0 where p = 0. With a its sum over the row, KL(p‖q) = log 2·a/sum_t − log(sum_t/sum_s)."""
    a_terms = e_t * tl.where(e_t > 0, z_t - z_s, 0.0)
    return a_terms, a_terms  # the second is not used


@triton.jit
def forward_kl_rescale(a, sum_s, sum_t, shift_s, shift_t):
    """Rescale a chunk's a, its maxima being those of the row plus shift_s and shift_t (≤ 0)."""
    factor = exp2(shift_t)
    return tl.where(sum_t * factor > 0, factor * (a + sum_t * (shift_t - shift_s)), 0.0)


@triton.jit
def forward_kl_finalize(a, _, sum_s, sum_t, beta):
    """k_s = k_t = a/sum_t, the mean of z_t − z_s under p.

    In float64, because a small divergence is a difference of larger numbers.
    """
    wide_sum_t = sum_t.to(tl.float64)
    # sum_s is NaN for a student's NaN, which a does not have where p = 0, and 0 for a row without a distribution.
    k = tl.where(sum_s > 0, a.to(tl.float64) / wide_sum_t, float("nan"))
    loss = (k * LN_2 - tl.log(wide_sum_t / sum_s.to(tl.float64))).to(a.dtype)  # inf where q = 0 and p > 0
    k = k.to(a.dtype)
    return loss, k, k


@triton.jit
def forward_kl_gradients(z_s, z_t, sum_s, sum_t, k_s, k_t, beta, g):
    """To s: q − p. To t: p·(log p − log q − KL), whose logarithms of sum_exp cancel."""
    e_s, e_t = exp2(z_s), exp2(z_t)
    # sum_t/sum_s is exactly 1 for equal rows, and an fma rounds the difference once: ds is then exactly 0.
    ds = (e_s * math.div(sum_t, sum_s)[:, None] - e_t) * (g / sum_t)[:, None]
    # Where p = 0 the slope is 0; k − k makes it NaN if KL is infinite or NaN.
    slope = tl.where(e_t > 0, z_t - z_s - k_t[:, None], (k_t - k_t)[:, None])
    dt = e_t * (g / sum_t * LN_2)[:, None] * slope
    return ds, dt


@triton.jit
def reverse_kl_terms(z_s, z_t, e_s, e_t, sum_s, sum_t, beta):
    """As forward KL, with the roles exchanged."""
    return forward_kl_terms(z_t, z_s, e_t, e_s, sum_t, sum_s, beta)


@triton.jit
def reverse_kl_rescale(a, sum_s, sum_t, shift_s, shift_t):
    """As forward KL, with the roles exchanged."""
    return forward_kl_rescale(a, sum_t, sum_s, shift_t, shift_s)


@triton.jit
def reverse_kl_finalize(a, _, sum_s, sum_t, beta):
    """As forward KL, with the roles exchanged."""
    return forward_kl_finalize(a, _, sum_t, sum_s, beta)


@triton.jit
def reverse_kl_gradients(z_s, z_t, sum_s, sum_t, k_s, k_t, beta, g):
    """As forward KL, with the roles exchanged."""
    dt, ds = forward_kl_gradients(z_t, z_s, sum_t, sum_s, k_t, k_s, beta, g)
    return ds, dt


@triton.jit
def _nan_if_degenerate(sum_exp):
    """NaN where a row has no distribution: sum_exp is 0, inf or NaN; else 0."""
    return (sum_exp - sum_exp) + 0 / sum_exp


@triton.jit
def _mixture(z_s, z_t, sum_s, sum_t, beta):
    """With m = beta·p + (1 − beta)·q: q, p, log₂(q/m) and log₂(p/m), these two finite also where q or p is 0."""
    log2_q, log2_p = z_s - tl.log2(sum_s)[:, None], z_t - tl.log2(sum_t)[:, None]
    # Beyond ±2000 its power of 2 is 0 or inf, in float64, too. Where both are 0 there is no ratio, and any will do;
    # `maximum` and `minimum` do not keep a NaN.
    r = tl.minimum(tl.maximum(log2_q - log2_p, -2000.0), 2000.0)
    # m over the larger of the two, which it is never much less than
    of_larger = tl.where(r > 0, 1 - beta, beta)
    rest = math.fast_log2(of_larger + (1 - of_larger) * exp2(-tl.abs(r)))
    log2_qm, log2_pm = tl.minimum(r, 0.0) - rest, tl.minimum(-r, 0.0) - rest
    if r.dtype == tl.float32:
        # The absolute error of the logarithm is small, its relative error is not where p is near q: terms of first
        # order cancel in the sum over a row. So for |r| < 1/16 a series to r⁴: the cumulants of a Bernoulli variable of
        # mean beta.
        variance = beta * (1 - beta)
        c2, c3 = variance * (-LN_2 / 2), variance * (1 - 2 * beta) * (LN_2 * LN_2 / 6)
        c4 = variance * (1 - 6 * variance) * (-LN_2 * LN_2 * LN_2 / 24)
        series = r * (beta + r * (c2 + r * (c3 + r * c4)))
        near = tl.abs(r) < 0.0625
        log2_qm, log2_pm = tl.where(near, series, log2_qm), tl.where(near, series - r, log2_pm)
    return exp2(log2_q), exp2(log2_p), log2_qm, log2_pm


@triton.jit
def js_terms(z_s, z_t, e_s, e_t, sum_s, sum_t, beta):
    """beta·p·log₂(p/m) + (1 − beta)·q·log₂(q/m), whose parts of first order cancel; and q·log₂(q/m)."""
    q, p, log2_qm, log2_pm = _mixture(z_s, z_t, sum_s, sum_t, beta)
    of_student = q * log2_qm
    return beta * (p * log2_pm) + (1 - beta) * of_student, of_student


@triton.jit
def js_finalize(total, of_student, sum_s, sum_t, beta):
    """k_s = KL(q‖m) and k_t = KL(p‖m), in bits."""
    nan = _nan_if_degenerate(sum_s) + _nan_if_degenerate(sum_t)
    total, of_student = total + nan, of_student + nan
    return total * LN_2, of_student, (total - (1 - beta) * of_student) / beta


@triton.jit
def js_gradients(z_s, z_t, sum_s, sum_t, k_s, k_t, beta, g):
    """(1 − beta)·q·(log(q/m) − KL(q‖m)), and so to the teacher."""
    q, p, log2_qm, log2_pm = _mixture(z_s, z_t, sum_s, sum_t, beta)
    g *= LN_2
    ds = q * (log2_qm - k_s[:, None]) * (g * (1 - beta))[:, None]
    dt = p * (log2_pm - k_t[:, None]) * (g * beta)[:, None]
    return ds, dt


@triton.jit
def _difference(e_s, e_t, sum_s, sum_t):
    """q, p and q − p, which is 0 where these are equal, also where products and sums are contracted."""
    inv_sum_t = 1 / sum_t
    return (
        e_s * (1 / sum_s)[:, None],
        e_t * inv_sum_t[:, None],
        (e_s * math.div(sum_t, sum_s)[:, None] - e_t) * inv_sum_t[:, None],
    )


@triton.jit
def _apply_sign(x, sign):
    return tl.where(sign > 0, x, tl.where(sign < 0, -x, 0.0))


@triton.jit
def total_variation_terms(z_s, z_t, e_s, e_t, sum_s, sum_t, beta):
    """|q − p|, and q·sign(q − p)."""
    q, _, diff = _difference(e_s, e_t, sum_s, sum_t)
    return tl.abs(diff), _apply_sign(q, diff)


@triton.jit
def total_variation_finalize(total, of_student, sum_s, sum_t, beta):
    """k_s = Σ q·sign(q − p) and k_t = Σ p·sign(q − p)."""
    # `total` is NaN there already; `_apply_sign` drops a NaN.
    of_student += _nan_if_degenerate(sum_s) + _nan_if_degenerate(sum_t)
    return 0.5 * total, of_student, of_student - total


@triton.jit
def total_variation_gradients(z_s, z_t, sum_s, sum_t, k_s, k_t, beta, g):
    """½·q·(sign(q − p) − Σ q·sign(q − p)), and so to the teacher."""
    q, p, diff = _difference(exp2(z_s), exp2(z_t), sum_s, sum_t)
    half = (0.5 * g)[:, None]
    return half * (_apply_sign(q, diff) - q * k_s[:, None]), half * (p * k_t[:, None] - _apply_sign(p, diff))


#: By name in the API.
DIVERGENCES = {
    "forward_kl": Divergence(forward_kl_terms, forward_kl_rescale, forward_kl_finalize, forward_kl_gradients),
    "reverse_kl": Divergence(reverse_kl_terms, reverse_kl_rescale, reverse_kl_finalize, reverse_kl_gradients),
    "js": Divergence(js_terms, None, js_finalize, js_gradients),
    "total_variation": Divergence(total_variation_terms, None, total_variation_finalize, total_variation_gradients),
}
