"""The math of each divergence, as jit helpers: loss terms, a row's loss, gradients. And the layout of row statistics.

Logits of a tile are given in base 2, as e = 2^z with z = log₂e/T·(x − max), relative to maxima of the two: those of
the tile, or of the row. `softmax_scales` has the factors of rows by which these are the softmax: q = e_s·inv_s of the
student and p = e_t·inv_t of the teacher. With r = log₂(q/p), each divergence has

    terms      φ(p, q), whose sum over a row is its divergence, and h_s = q·∂φ/∂q and h_t = p·∂φ/∂p
    gradients  to student and teacher logits, g·(h_s − q·k_s) and g·(h_t − p·k_t), with k_s and k_t the sums of h_s and
               h_t over the row, and g the upstream gradient of the divergence times 1/T and the row's weight

No term of KL and JS is negative, and none is the difference of larger numbers, so small divergences keep their digits.
That takes r of each element, and so the sum_exp of both rows. A KL that is not small costs less:

    one_pass   a tile, whose sum over a chunk, cross, is taken relative to the maxima of the chunk
    rescale    cross relative to the maxima of the row
    estimate   the row's KL from cross, accurate if above `SMALL`; also k_s of the reverse and k_t of the forward KL

Arguments and results that a kernel does not use cost nothing in compiled code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...jit import math
from ...jit.math import LN_2, exp2
from ...jit.tiles import load_stat, store_stat
from ...runtime import tile_configs

#: Statistics of rows, (STATISTICS, N), which forward saves: the row's weight; row_max = max x of student and teacher,
#: with their sum_exp; the student's sum_exp at temperature 1; k_s and k_t.
STATISTICS = 8
WEIGHT, MAX_S, SUM_S, MAX_T, SUM_T, SUM_S_T1, K_S, K_T = (tl.constexpr(stat) for stat in range(STATISTICS))

#: KL below this is calculated from `terms`: the error of `estimate`, absolute, is at most 5e-7 in float32.
SMALL = tl.constexpr(1 / 512)


class Divergence(NamedTuple):
    """The jit helpers of a divergence; `one_pass`, `rescale` and `estimate` are None if it is no KL.

    `registers`: the most per thread that the one-launch kernel may take, without spilling in float32.
    """

    terms: Any
    gradients: Any
    one_pass: Any = None
    rescale: Any = None
    estimate: Any = None
    registers: int = 168


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
def store_stats(ptr, size, at, stats, mask, SEPARATE_SUM_T1: tl.constexpr):
    """Store maxima and sum_exps of some rows, or of chunks of rows; `size` is the length of each statistic."""
    max_s, sum_s, max_t, sum_t, sum_s_T1 = stats
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
def forward_kl_one_pass(difference, e_s, e_t):
    """2^z_t·(s − t), 0 where p = 0, of logits relative to their maxima, of which s − t is the `difference`."""
    return e_t * tl.where(e_t > 0, difference, 0.0)


@triton.jit
def forward_kl_rescale(cross, sum_s, sum_t, shift_s, shift_t, log2e_over_T):
    """Rescale cross of a chunk, whose maxima are those of the row plus shift_s and shift_t (≤ 0)."""
    factor = exp2(shift_t * log2e_over_T)
    return tl.where(sum_t * factor > 0, factor * (cross + sum_t * (shift_s - shift_t)), 0.0)


@triton.jit
def forward_kl_estimate(cross, sum_s, sum_t, log2e_over_T):
    """KL(p‖q) = log(sum_s/sum_t) − cross/(T·sum_t)."""
    return _estimate(-cross, sum_t, sum_s, log2e_over_T)


@triton.jit
def reverse_kl_one_pass(difference, e_s, e_t):
    """2^z_s·(s − t), 0 where q = 0."""
    return forward_kl_one_pass(difference, e_t, e_s)


@triton.jit
def reverse_kl_rescale(cross, sum_s, sum_t, shift_s, shift_t, log2e_over_T):
    """As forward KL, by 2^z_s."""
    factor = exp2(shift_s * log2e_over_T)
    return tl.where(sum_s * factor > 0, factor * (cross + sum_s * (shift_s - shift_t)), 0.0)


@triton.jit
def reverse_kl_estimate(cross, sum_s, sum_t, log2e_over_T):
    """KL(q‖p) = cross/(T·sum_s) − log(sum_s/sum_t)."""
    return _estimate(cross, sum_s, sum_t, log2e_over_T)


@triton.jit
def _estimate(cross, sum_p, sum_q, log2e_over_T):
    # sum_q is NaN for a NaN of q, which cross does not have where p = 0, and 0 for a row without a distribution.
    log2_ratio = tl.log2(math.div(sum_p, sum_q)) + _nan_if_degenerate(sum_q)
    return LN_2 * (cross * log2e_over_T / sum_p - log2_ratio)  # inf where q = 0 and p > 0


@triton.jit
def softmax_scales(max_s, max_t, row_stats, log2e_over_T):
    """Return inv_s and inv_t of rows in which e is relative to some maxima, and the constant of `log2_ratio`."""
    row_max_s, sum_s, row_max_t, sum_t, _ = row_stats
    shift_s, shift_t = max_s - math.neg_inf_to_zero(row_max_s), max_t - math.neg_inf_to_zero(row_max_t)
    inv_s = exp2(shift_s * log2e_over_T) * math.div(1.0, sum_s)
    inv_t = exp2(shift_t * log2e_over_T) * math.div(1.0, sum_t)
    # Exactly 0 for equal rows: a difference of products, of which a compiler may round one only, would not be.
    return inv_s, inv_t, (shift_s - shift_t) * log2e_over_T - tl.log2(math.div(sum_s, sum_t))


@triton.jit
def log2_ratio(difference, constant, log2e_over_T):
    """Return r = log₂(q/p), where it is not ∞ − ∞; `difference` is that of the logits, each relative to its maximum."""
    return difference * log2e_over_T + constant[:, None]


@triton.jit
def _is_near(r):
    """Whether to take a series in r, of relative error 2e-4 in float32, 1e-10 in float64."""
    return tl.abs(r) < (0.18 if r.dtype == tl.float32 else 0.0014)


@triton.jit
def _difference(e_s, e_t, inv_s, inv_t, g):
    """g·(q − p), which is exactly 0 where these are equal."""
    # An fma rounds e_s·a − e_t·b once, so a and b are exactly 1 where they are equal.
    larger = tl.maximum(inv_s, inv_t)
    a, b = math.div(inv_s, larger), math.div(inv_t, larger)
    a, b = tl.where(larger == 0, 0.0, a), tl.where(larger == 0, 0.0, b)
    return (e_s * a[:, None] - e_t * b[:, None]) * (larger * g)[:, None]


@triton.jit
def forward_kl_terms(e_s, e_t, r, inv_s, inv_t, beta):
    """p·(exp δ − 1 − δ) with δ = log(q/p), all ≥ 0, of which the sum of p·(exp δ − 1) = q − p over a row is 0."""
    q, p = e_s * inv_s[:, None], e_t * inv_t[:, None]
    d = tl.where(p > 0, r, 1.0)  # any number if p = 0
    far = q - p - p * (d * LN_2)
    near = p * (d * d) * (LN_2 * LN_2 / 2 + d * (LN_2 * LN_2 * LN_2 / 6 + d * (LN_2 * LN_2 * LN_2 * LN_2 / 24)))
    terms = tl.where(_is_near(d), near, far)
    return terms, terms, terms  # its h are not used


@triton.jit
def forward_kl_gradients(e_s, e_t, r, inv_s, inv_t, k_s, k_t, beta, g):
    """To s: q − p. To t: p·(log p − log q − KL)."""
    # Where p = 0 the slope is 0; k − k makes it NaN if KL is infinite or NaN.
    slope = tl.where(e_t > 0, -LN_2 * r - k_t[:, None], (k_t - k_t)[:, None])
    return _difference(e_s, e_t, inv_s, inv_t, g), e_t * (g * inv_t)[:, None] * slope


@triton.jit
def reverse_kl_terms(e_s, e_t, r, inv_s, inv_t, beta):
    """As forward KL, with the roles exchanged."""
    return forward_kl_terms(e_t, e_s, -r, inv_t, inv_s, beta)


@triton.jit
def reverse_kl_gradients(e_s, e_t, r, inv_s, inv_t, k_s, k_t, beta, g):
    """As forward KL, with the roles exchanged."""
    dt, ds = forward_kl_gradients(e_t, e_s, -r, inv_t, inv_s, k_t, k_s, beta, g)
    return ds, dt


@triton.jit
def _nan_if_degenerate(sum_exp):
    """NaN where a row has no distribution: sum_exp is 0, inf or NaN; else 0."""
    return (sum_exp - sum_exp) + 0 / sum_exp


@triton.jit
def js_terms(e_s, e_t, r, inv_s, inv_t, beta):
    """h_s = (1 − beta)·q·log(q/m), h_t = beta·p·log(p/m), with m = beta·p + (1 − beta)·q; and their sum, ≥ 0."""
    a = 1 - beta
    # 2^−2000 is 0, in float64, too. Where q = p = 0 there is no r, and any will do: `minimum` drops a NaN.
    size, q_is_larger = tl.minimum(tl.abs(r), 2000.0), r > 0
    # log₂ of m over the larger of q and p, which it is never much less than
    part_q, part_p = tl.maximum(a, 1e-30), tl.maximum(beta, 1e-30)
    m = tl.where(q_is_larger, part_q, part_p) + tl.where(q_is_larger, part_p, part_q) * exp2(-size)
    of_larger = -math.fast_log2(m, FTZ=True)
    of_smaller = of_larger - size
    part_s, part_t = e_s * (inv_s * (a * LN_2))[:, None], e_t * (inv_t * (beta * LN_2))[:, None]
    h_s = part_s * tl.where(q_is_larger, of_larger, of_smaller)
    h_t = part_t * tl.where(q_is_larger, of_smaller, of_larger)
    # With δ = log(q/p) it is p·(a·δ·exp δ − M·log M), M = m/p = 1 + a·(exp δ − 1); a series to δ⁴, over beta·log 2.
    c2 = a * (LN_2 / 2)
    c3 = a * (2 - a) * (LN_2 * LN_2 / 6)
    c4 = a * (3 - 4 * a + 2 * a * a) * (LN_2 * LN_2 * LN_2 / 24)
    near = part_t * (r * r) * (c2 + r * (c3 + r * c4))
    return tl.where(_is_near(r), near, h_s + h_t), h_s, h_t


@triton.jit
def js_gradients(e_s, e_t, r, inv_s, inv_t, k_s, k_t, beta, g):
    """(1 − beta)·q·(log(q/m) − KL(q‖m)), and so to the teacher."""
    _, h_s, h_t = js_terms(e_s, e_t, r, inv_s, inv_t, beta)
    return gradient_of(h_s, e_s, inv_s, k_s, g), gradient_of(h_t, e_t, inv_t, k_t, g)


@triton.jit
def gradient_of(h, e, inv, k, g):
    """g·(h − q·k) with q = e·inv."""
    return g[:, None] * (h - e * (inv * k)[:, None])


@triton.jit
def _apply_sign(x, sign):
    return tl.where(sign > 0, x, tl.where(sign < 0, -x, 0.0))


@triton.jit
def total_variation_terms(e_s, e_t, r, inv_s, inv_t, beta):
    """½·|q − p|, h_s = ½·q·sign(q − p) and h_t = −½·p·sign(q − p)."""
    diff = _difference(e_s, e_t, inv_s, inv_t, 0.5)
    h_s, h_t = e_s * (0.5 * inv_s)[:, None], e_t * (-0.5 * inv_t)[:, None]
    return tl.abs(diff), _apply_sign(h_s, diff), _apply_sign(h_t, diff)


@triton.jit
def total_variation_gradients(e_s, e_t, r, inv_s, inv_t, k_s, k_t, beta, g):
    """½·q·(sign(q − p) − Σ q·sign(q − p)), and so to the teacher."""
    _, h_s, h_t = total_variation_terms(e_s, e_t, r, inv_s, inv_t, beta)
    return gradient_of(h_s, e_s, inv_s, k_s, g), gradient_of(h_t, e_t, inv_t, k_t, g)


@triton.jit
def row_sums(total, of_student, sum_s, sum_t):
    """Return a row's divergence, k_s and k_t from the sums of φ and h_s, since φ = h_s + h_t."""
    # NaN where a row has no distribution: `_apply_sign` and `minimum` drop a NaN.
    nan = _nan_if_degenerate(sum_s) + _nan_if_degenerate(sum_t)
    return total + nan, of_student + nan, total - of_student + nan


@triton.jit
def add_label_gradient(to_s, x_s, e_s, inv_s, row_stats, offs_v, label, g, scalars, SEPARATE_SUM_T1: tl.constexpr):
    """Add g·(q₁ − [v = label]), the gradient of the cross-entropy at temperature 1, with q₁ = softmax(s)."""
    log2e_over_T, temperature = scalars[0], scalars[1]
    if SEPARATE_SUM_T1:
        e_s = exp2(math.shifted(x_s, log2e_over_T, row_stats[0]) * temperature)
        inv_s = math.div(1.0, row_stats[4])
    return to_s + e_s * (g * inv_s)[:, None] - tl.where(offs_v[None, :] == label[:, None], g[:, None], 0.0)


#: By name in the API.
DIVERGENCES = {
    "forward_kl": Divergence(
        forward_kl_terms,
        forward_kl_gradients,
        forward_kl_one_pass,
        forward_kl_rescale,
        forward_kl_estimate,
        registers=128,
    ),
    "reverse_kl": Divergence(
        reverse_kl_terms,
        reverse_kl_gradients,
        reverse_kl_one_pass,
        reverse_kl_rescale,
        reverse_kl_estimate,
    ),
    "js": Divergence(js_terms, js_gradients, registers=tile_configs.MOST_REGISTERS),
    "total_variation": Divergence(total_variation_terms, total_variation_gradients),
}
