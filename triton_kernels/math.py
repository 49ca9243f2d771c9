"""Jit helpers without loads or stores. Arguments are already in the dtype of the arithmetic."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def kl_term(log_q, target, LOG_TARGET: tl.constexpr):
    """Pointwise KL: p·(log p − log q), with the target p, or log p where LOG_TARGET.

    Where p = 0 the term is 0, whatever log q, but for a NaN.
    """
    if LOG_TARGET:
        p = tl.exp(target)
        term = p * (target - log_q)
    else:
        p = target
        term = p * (tl.log(p) - log_q)
    return tl.where(p == 0, _zero_or_nan(log_q), term)


@triton.jit
def kl_grad_x(target, dloss, LOG_TARGET: tl.constexpr):
    """Gradient of `kl_term` to log q: −p, times dloss."""
    if LOG_TARGET:
        p = tl.exp(target)
    else:
        p = target
    return -p * dloss


@triton.jit
def kl_grad_target(log_q, target, dloss, LOG_TARGET: tl.constexpr):
    """Gradient of `kl_term` to the target, times dloss.

    log p − log q + 1 to p; p·(log p − log q + 1) to log p; 0 where p = 0, but for a NaN in log q.
    """
    if LOG_TARGET:
        p = tl.exp(target)
        grad = p * (target - log_q + 1)
    else:
        p = target
        grad = tl.log(p) - log_q + 1
    return tl.where(p == 0, _zero_or_nan(log_q), grad * dloss)


@triton.jit
def _zero_or_nan(value):
    return tl.where(value == value, 0.0, value)


@triton.jit
def merge_softmax(m, d, m_other, d_other):
    """Merge row statistics, the maximum m and d = Σ exp(x − m), of two parts of a row. A part of −inf adds nothing."""
    m_new = tl.maximum(m, m_other)
    d_new = d * _rescale(m, m_new) + d_other * _rescale(m_other, m_new)
    return m_new, d_new


@triton.jit
def _rescale(m, m_new):
    return tl.where(m == m_new, 1.0, tl.exp(m - m_new))


@triton.jit
def tile_softmax_statistics(x):
    """m and d of each row of a tile (BLOCK_N, BLOCK_V). A row of −inf has d = 0; one with a NaN has d = NaN."""
    m = tl.max(x, axis=1)
    d = tl.sum(tl.exp(x - tl.where(m == float("-inf"), 0.0, m)[:, None]), axis=1)
    return m, d


@triton.jit
def expm1(x):
    """exp(x) − 1 without cancellation (W. Kahan: (u − 1)·x / log u with u = exp(x))."""
    u = tl.exp(x)
    near = (u - 1) * (x / tl.log(u))
    return tl.where(u == 1, x, tl.where(tl.abs(x) < 1, near, u - 1))


@triton.jit
def tanh(x):
    """tanh x = (1 − exp(−2|x|)) / (1 + exp(−2|x|)), with the sign of x."""
    e = expm1(-2 * tl.abs(x))
    t = -e / (e + 2)
    return tl.where(x < 0, -t, t)
