"""The math of each divergence, as jit helpers: loss terms, a row's loss, gradients. And the layout of row statistics.

Logits of a tile are given in base 2 relative to the maximum of their row: z = log₂e/T·(x − max x), and e = 2^z. With
the row's sum_exp = Σ e, the softmax is q = e_s/sum_s of the student and p = e_t/sum_t of the teacher. Each divergence
has

    terms      φ(p, q), whose sum over a row is its divergence, and h_s = q·∂φ/∂q and h_t = p·∂φ/∂p
    gradients  to student and teacher logits, g·(h_s − q·k_s) and g·(h_t − p·k_t), with k_s and k_t the sums of h_s and
               h_t over the row, and g the upstream gradient of the divergence times 1/T and the row's weight

No term of KL and JS is negative, and none is the difference of larger numbers, so small divergences keep their digits.
That takes log q − log p of each element, and so the sum_exp of both rows. A KL that is not small costs less:

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

#: KL below this is calculated from `terms`: the error of `estimate` is at most of the order 1e-6, absolute.
SMALL = tl.constexpr(1 / 64)


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
def forward_kl_one_pass(z_s, z_t, e_s, e_t):
    """2^z_t·(z_t − z_s), 0 where p = 0."""
    return e_t * tl.where(e_t > 0, z_t - z_s, 0.0)


@triton.jit
def forward_kl_rescale(cross, sum_s, sum_t, shift_s, shift_t):
    """Rescale cross of a chunk, whose maxima are those of the row plus shift_s and shift_t (≤ 0)."""
    factor = exp2(shift_t)
    return tl.where(sum_t * factor > 0, factor * (cross + sum_t * (shift_t - shift_s)), 0.0)


@triton.jit
def forward_kl_estimate(cross, sum_s, sum_t):
    """KL(p‖q) = log 2·cross/sum_t − log(sum_t/sum_s)."""
    # sum_s is NaN for a student's NaN, which cross does not have where p = 0, and 0 for a row without a distribution.
    log2_ratio = tl.log2(math.div(sum_t, sum_s)) + _nan_if_degenerate(sum_s)
    return LN_2 * (cross / sum_t - log2_ratio)  # inf where q = 0 and p > 0


@triton.jit
def reverse_kl_one_pass(z_s, z_t, e_s, e_t):
    """As forward KL, with the roles exchanged."""
    return forward_kl_one_pass(z_t, z_s, e_t, e_s)


@triton.jit
def reverse_kl_rescale(cross, sum_s, sum_t, shift_s, shift_t):
    """As forward KL, with the roles exchanged."""
    return forward_kl_rescale(cross, sum_t, sum_s, shift_t, shift_s)


@triton.jit
def reverse_kl_estimate(cross, sum_s, sum_t):
    """As forward KL, with the roles exchanged."""
    return forward_kl_estimate(cross, sum_t, sum_s)


@triton.jit
def _log2_ratio(z_s, z_t, sum_s, sum_t):
    """log₂(q/p), where this is not ∞ − ∞."""
    # log₂(sum_s/sum_t) is exactly 0 for equal rows.
    return z_s - z_t - tl.log2(math.div(sum_s, sum_t))[:, None]


@triton.jit
def _is_near(log2_ratio):
    """Whether to take a series in log₂(q/p), of relative error 3e-5 in float32, 2e-11 in float64."""
    return tl.abs(log2_ratio) < (0.18 if log2_ratio.dtype == tl.float32 else 0.0014)


@triton.jit
def forward_kl_terms(z_s, z_t, e_s, e_t, sum_s, sum_t, beta):
    """p·(exp δ − 1 − δ) with δ = log(q/p), all ≥ 0, of which the sum of p·(exp δ − 1) = q − p over a row is 0."""
    d = tl.where(e_t > 0, _log2_ratio(z_s, z_t, sum_s, sum_t), 1.0)  # any number if p = 0
    far = e_s * math.div(sum_t, sum_s)[:, None] - e_t - e_t * (d * LN_2)
    near = e_t * (d * d) * (LN_2 * LN_2 / 2 + d * (LN_2 * LN_2 * LN_2 / 6 + d * (LN_2 * LN_2 * LN_2 * LN_2 / 24)))
    terms = tl.where(_is_near(d), near, far) * math.div(1.0, sum_t)[:, None]
    return terms, terms, terms  # its h are not used


@triton.jit
def forward_kl_gradients(z_s, z_t, sum_s, sum_t, k_s, k_t, beta, g):
    """To s: q − p. To t: p·(log p − log q − KL)."""
    e_s, e_t = exp2(z_s), exp2(z_t)
    # sum_t/sum_s is exactly 1 for equal rows, and an fma rounds the difference once: ds is then exactly 0.
    ds = (e_s * math.div(sum_t, sum_s)[:, None] - e_t) * (g / sum_t)[:, None]
    # Where p = 0 the slope is 0; k − k makes it NaN if KL is infinite or NaN.
    slope = -LN_2 * _log2_ratio(z_s, z_t, sum_s, sum_t) - k_t[:, None]
    dt = e_t * (g / sum_t)[:, None] * tl.where(e_t > 0, slope, (k_t - k_t)[:, None])
    return ds, dt


@triton.jit
def reverse_kl_terms(z_s, z_t, e_s, e_t, sum_s, sum_t, beta):
    """As forward KL, with the roles exchanged."""
    return forward_kl_terms(z_t, z_s, e_t, e_s, sum_t, sum_s, beta)


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
def _mixture(z_s, z_t, e_s, e_t, sum_s, sum_t, beta):
    """With m = beta·p + (1 − beta)·q: q, p, log₂(q/p), log₂(q/m) and log₂(p/m), all finite also where q or p is 0."""
    # Beyond ±2000 its power of 2 is 0 or inf, in float64, too. Where both are 0 there is no ratio, and any will do;
    # `maximum` and `minimum` do not keep a NaN.
    r = tl.minimum(tl.maximum(_log2_ratio(z_s, z_t, sum_s, sum_t), -2000.0), 2000.0)
    # m over the larger of the two, which it is never much less than
    of_larger = tl.where(r > 0, 1 - beta, beta)
    rest = math.fast_log2(of_larger + (1 - of_larger) * exp2(-tl.abs(r)))
    log2_qm, log2_pm = tl.minimum(r, 0.0) - rest, tl.minimum(-r, 0.0) - rest
    if r.dtype == tl.float32:
        # The absolute error of the logarithm is small, its relative error is not where p is near q. So for |r| < 1/16 a
        # series to r⁴: the cumulants of a Bernoulli variable of mean beta.
        variance = beta * (1 - beta)
        c2, c3 = variance * (-LN_2 / 2), variance * (1 - 2 * beta) * (LN_2 * LN_2 / 6)
        c4 = variance * (1 - 6 * variance) * (-LN_2 * LN_2 * LN_2 / 24)
        series = r * (beta + r * (c2 + r * (c3 + r * c4)))
        near = tl.abs(r) < 0.0625
        log2_qm, log2_pm = tl.where(near, series, log2_qm), tl.where(near, series - r, log2_pm)
    return e_s * math.div(1.0, sum_s)[:, None], e_t * math.div(1.0, sum_t)[:, None], r, log2_qm, log2_pm


@triton.jit
def js_terms(z_s, z_t, e_s, e_t, sum_s, sum_t, beta):
    """h_s = (1 − beta)·q·log(q/m), h_t = beta·p·log(p/m), and their sum, ≥ 0."""
    q, p, r, log2_qm, log2_pm = _mixture(z_s, z_t, e_s, e_t, sum_s, sum_t, beta)
    h_s, h_t = ((1 - beta) * LN_2) * (q * log2_qm), (beta * LN_2) * (p * log2_pm)
    # With δ = log(q/p) and a = 1 − beta it is p·(a·δ·exp δ − M·log M), M = m/p = 1 + a·(exp δ − 1); a series to δ⁵.
    a = 1 - beta
    c2 = a * beta * (LN_2 * LN_2 / 2)
    c3 = a * beta * (2 - a) * (LN_2 * LN_2 * LN_2 / 6)
    c4 = a * beta * (3 - 4 * a + 2 * a * a) * (LN_2 * LN_2 * LN_2 * LN_2 / 24)
    c5 = a * beta * (4 - 11 * a + 14 * a * a - 6 * a * a * a) * (LN_2 * LN_2 * LN_2 * LN_2 * LN_2 / 120)
    near = p * (r * r) * (c2 + r * (c3 + r * (c4 + r * c5)))
    return tl.where(_is_near(r), near, h_s + h_t), h_s, h_t


@triton.jit
def js_gradients(z_s, z_t, sum_s, sum_t, k_s, k_t, beta, g):
    """(1 − beta)·q·(log(q/m) − KL(q‖m)), and so to the teacher."""
    e_s, e_t = exp2(z_s), exp2(z_t)
    _, h_s, h_t = js_terms(z_s, z_t, e_s, e_t, sum_s, sum_t, beta)
    return gradient_of(h_s, e_s, sum_s, k_s, g), gradient_of(h_t, e_t, sum_t, k_t, g)


@triton.jit
def gradient_of(h, e, sum_exp, k, g):
    """g·(h − q·k) with q = e/sum_exp."""
    return g[:, None] * (h - e * (k / sum_exp)[:, None])


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
    """½·|q − p|, h_s = ½·q·sign(q − p) and h_t = −½·p·sign(q − p)."""
    q, p, diff = _difference(e_s, e_t, sum_s, sum_t)
    return 0.5 * tl.abs(diff), 0.5 * _apply_sign(q, diff), -0.5 * _apply_sign(p, diff)


@triton.jit
def total_variation_gradients(z_s, z_t, sum_s, sum_t, k_s, k_t, beta, g):
    """½·q·(sign(q − p) − Σ q·sign(q − p)), and so to the teacher."""
    e_s, e_t = exp2(z_s), exp2(z_t)
    _, h_s, h_t = total_variation_terms(z_s, z_t, e_s, e_t, sum_s, sum_t, beta)
    return gradient_of(h_s, e_s, sum_s, k_s, g), gradient_of(h_t, e_t, sum_t, k_t, g)


@triton.jit
def row_sums(total, of_student, sum_s, sum_t):
    """Return a row's divergence, k_s and k_t from the sums of φ and h_s, since φ = h_s + h_t."""
    # NaN where a row has no distribution: `_apply_sign` and `minimum` drop a NaN.
    nan = _nan_if_degenerate(sum_s) + _nan_if_degenerate(sum_t)
    return total + nan, of_student + nan, total - of_student + nan


@triton.jit
def add_label_gradient(to_s, z_s, offs_v, label, g, sum_s_T1, temperature, SEPARATE_SUM_T1: tl.constexpr):
    """Add g·(q₁ − [v = label]), the gradient of the cross-entropy at temperature 1."""
    e_T1 = exp2(z_s * temperature) if SEPARATE_SUM_T1 else exp2(z_s)
    return to_s + e_T1 * (g / sum_s_T1)[:, None] - tl.where(offs_v[None, :] == label[:, None], g[:, None], 0.0)


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
