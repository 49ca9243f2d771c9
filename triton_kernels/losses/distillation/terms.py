"""The divergences themselves, as jit helpers without loads or stores: terms, sums of a row, gradients.

Logits of a tile are given in base 2 relative to m of their row, z = c·x − m; of a row there is d = Σ 2^z. So
q = 2^z_s/d_s, p = 2^z_t/d_t. Each divergence has

    terms      two tiles to add up over a row (KL: one, which does not need d)
    moved      KL: the sum of a chunk as its part of the row's, whose m are others
    finish     the row's loss from these sums, and k_s and k_t, which the gradients need
    gradients  to student and teacher logits, from k_s, k_t and what comes from above, g (with 1/T in it)

What is not used of a result costs nothing in compiled code.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...jit import math
from ...jit.math import LN_2, exp2

#: What is kept of a row: its weight; m and d of student and teacher; two sums; d of the student at temperature 1.
STATISTICS = 8
W, M_S, D_S, M_T, D_T, K_S, K_T, D_1 = (tl.constexpr(number) for number in range(STATISTICS))


@triton.jit
def forward_kl_terms(z_s, z_t, e_s, e_t):
    """2^z_t·(z_t − z_s), 0 where p = 0: Σ is a of KL(p‖q) = log 2·a/d_t − log(d_t/d_s)."""
    return e_t * tl.where(e_t > 0, z_t - z_s, 0.0)


@triton.jit
def forward_kl_moved(a, d_s, d_t, by_s, by_t):
    """a of a chunk whose m are larger than those of the row by that much, as its part of the row's a."""
    factor = exp2(by_t)
    return tl.where(d_t * factor > 0, factor * (a + d_t * (by_t - by_s)), 0.0)


@triton.jit
def forward_kl_finish(a, _, d_s, d_t, beta):
    """k is the mean of z_t − z_s. In float64, because a small divergence is a difference of larger numbers."""
    wide_d_t = d_t.to(tl.float64)
    # Without a q there is no divergence.
    k = tl.where(d_s > 0, a.to(tl.float64) / wide_d_t, float("nan"))
    # k = inf: there is q = 0 where p > 0.
    loss = tl.where(k == float("inf"), k, k * LN_2 - tl.log(wide_d_t / d_s.to(tl.float64))).to(a.dtype)
    k = k.to(a.dtype)
    return loss, k, k


@triton.jit
def forward_kl_gradients(z_s, z_t, d_s, d_t, k_s, k_t, beta, g):
    """To s: q − p. To t: p·(log p − log q − KL), whose logarithms of d cancel."""
    e_s, e_t = exp2(z_s), exp2(z_t)
    # One rounding where the student's is as large as the teacher's: 0 if they are equal.
    ds = (e_s * math.div(d_t, d_s)[:, None] - e_t) * (g / d_t)[:, None]
    # Where p = 0 that is 0, in a row whose KL is a number.
    slope = tl.where(e_t > 0, z_t - z_s - k_t[:, None], (k_t - k_t)[:, None])
    dt = e_t * (g / d_t * LN_2)[:, None] * slope
    return ds, dt


@triton.jit
def reverse_kl_terms(z_s, z_t, e_s, e_t):
    """As forward KL, with the roles exchanged."""
    return forward_kl_terms(z_t, z_s, e_t, e_s)


@triton.jit
def reverse_kl_moved(a, d_s, d_t, by_s, by_t):
    """As forward KL, with the roles exchanged."""
    return forward_kl_moved(a, d_t, d_s, by_t, by_s)


@triton.jit
def reverse_kl_finish(a, _, d_s, d_t, beta):
    """As forward KL, with the roles exchanged."""
    return forward_kl_finish(a, _, d_t, d_s, beta)


@triton.jit
def reverse_kl_gradients(z_s, z_t, d_s, d_t, k_s, k_t, beta, g):
    """As forward KL, with the roles exchanged."""
    dt, ds = forward_kl_gradients(z_t, z_s, d_t, d_s, k_t, k_s, beta, g)
    return ds, dt


@triton.jit
def _undefined(d):
    """NaN where a row has no distribution: d is 0, inf or NaN; else 0."""
    return (d - d) + 0 / d


@triton.jit
def _mixture(z_s, z_t, d_s, d_t, beta):
    """With m = beta·p + (1 − beta)·q: q, p, log₂(q/m) and log₂(p/m), these two finite also where q or p is 0."""
    log2_q, log2_p = z_s - tl.log2(d_s)[:, None], z_t - tl.log2(d_t)[:, None]
    # Where both are 0 there is no ratio, and any will do; `maximum` and `minimum` do not keep a NaN.
    r = tl.minimum(tl.maximum(log2_q - log2_p, -2000.0), 2000.0)
    # m over the larger of the two, which it is never much less than
    of_larger = tl.where(r > 0, 1 - beta, beta)
    rest = math.rough_log2(of_larger + (1 - of_larger) * exp2(-tl.abs(r)))
    log2_qm, log2_pm = tl.minimum(r, 0.0) - rest, tl.minimum(-r, 0.0) - rest
    if r.dtype == tl.float32:
        # Special functions are good absolutely, which is too little for p near q: terms of first order cancel in the
        # sum over a row. So there a series: the cumulants of a Bernoulli variable of mean beta.
        k = beta * (1 - beta)
        c2, c3 = k * (-LN_2 / 2), k * (1 - 2 * beta) * (LN_2 * LN_2 / 6)
        c4 = k * (1 - 6 * k) * (-LN_2 * LN_2 * LN_2 / 24)
        series = r * (beta + r * (c2 + r * (c3 + r * c4)))
        near = tl.abs(r) < 0.0625
        log2_qm, log2_pm = tl.where(near, series, log2_qm), tl.where(near, series - r, log2_pm)
    return exp2(log2_q), exp2(log2_p), log2_qm, log2_pm


@triton.jit
def js_terms(z_s, z_t, d_s, d_t, beta):
    """beta·p·log₂(p/m) + (1 − beta)·q·log₂(q/m), and q·log₂(q/m)."""
    q, p, log2_qm, log2_pm = _mixture(z_s, z_t, d_s, d_t, beta)
    of_student = q * log2_qm
    return beta * (p * log2_pm) + (1 - beta) * of_student, of_student


@triton.jit
def js_finish(total, of_student, d_s, d_t, beta):
    """k are KL(q‖m) and KL(p‖m), base 2."""
    nan = _undefined(d_s) + _undefined(d_t)
    total, of_student = total + nan, of_student + nan
    return total * LN_2, of_student, (total - (1 - beta) * of_student) / beta


@triton.jit
def js_gradients(z_s, z_t, d_s, d_t, k_s, k_t, beta, g):
    """(1 − beta)·q·(log(q/m) − KL(q‖m)), and so to the teacher."""
    q, p, log2_qm, log2_pm = _mixture(z_s, z_t, d_s, d_t, beta)
    g *= LN_2
    ds = q * (log2_qm - k_s[:, None]) * (g * (1 - beta))[:, None]
    dt = p * (log2_pm - k_t[:, None]) * (g * beta)[:, None]
    return ds, dt


@triton.jit
def total_variation_terms(z_s, z_t, d_s, d_t, beta):
    """|q − p|, and q·sign(q − p)."""
    q, _, more = _difference(z_s, z_t, d_s, d_t)
    return tl.abs(more), _signed(q, more)


@triton.jit
def _difference(z_s, z_t, d_s, d_t):
    """q, p and q - p, which is 0 where these are equal, also where products and sums are contracted."""
    e_s, e_t = exp2(z_s), exp2(z_t)
    of_t = 1 / d_t
    return e_s * (1 / d_s)[:, None], e_t * of_t[:, None], (e_s * math.div(d_t, d_s)[:, None] - e_t) * of_t[:, None]


@triton.jit
def _signed(x, sign):
    return tl.where(sign > 0, x, tl.where(sign < 0, -x, 0.0))


@triton.jit
def total_variation_finish(total, of_student, d_s, d_t, beta):
    """k are Σ q·sign(q − p) and Σ p·sign(q − p)."""
    of_student += _undefined(d_s) + _undefined(d_t)
    return 0.5 * total, of_student, of_student - total


@triton.jit
def total_variation_gradients(z_s, z_t, d_s, d_t, k_s, k_t, beta, g):
    """½·q·(sign(q − p) − Σ q·sign(q − p)), and so to the teacher."""
    q, p, more = _difference(z_s, z_t, d_s, d_t)
    half = (0.5 * g)[:, None]
    return half * (_signed(q, more) - q * k_s[:, None]), half * (p * k_t[:, None] - _signed(p, more))
