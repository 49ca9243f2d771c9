"""Jit helpers without loads or stores. Arguments are already in the dtype of the arithmetic.

In float32, logarithms and exponentials are the special-function unit's, base 2: one instruction where a routine takes
twenty. That logarithm has an error of 2⁻²² relatively, but only absolutely between ½ and 2; `log_rest` corrects it
there. In float64 they are Triton's own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from ..runtime import backend

_COMPILED = tl.constexpr(not backend.INTERPRETED)
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)
#: log₂e minus its float32 rounding.
_LOG2_E_REST = tl.constexpr(1.92596299e-8)

#: `log_rest` is 0 below and above: there the logarithm is large enough for an absolute error of 2⁻²².
NEAR_1_FROM = tl.constexpr(0.625)
NEAR_1_TO = tl.constexpr(1.5625)
#: Minimax on w = (p − 1)²/p ≤ 0.225, relative error 2⁻²⁸: 2·asinh(√w/2)/√w = 1 + w·(C1 + w·(C2 + w·C3)).
_C1 = tl.constexpr(-0.0416664392)
_C2 = tl.constexpr(0.00468129776)
_C3 = tl.constexpr(-0.000649049854)


def base2_scalars(inv_temperature: float) -> tuple[float, float]:
    """log₂e/T, the factor on logits of a softmax in base 2; and T."""
    return LOG2_E.value * inv_temperature, 1 / inv_temperature


@triton.jit
def exp(x, FTZ: tl.constexpr = False):
    """e to the x. FTZ: a subnormal result may be flushed to 0, which saves three instructions."""
    if x.dtype == tl.float64:
        y = tl.exp(x)
    elif FTZ and _COMPILED and is_cuda():
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * LOG2_E], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.exp2(x * LOG2_E)
    return y


@triton.jit
def exp2(x):
    """2 to the x. A subnormal result may be flushed to 0."""
    if x.dtype == tl.float32 and _COMPILED and is_cuda():
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def fast_log2(x):
    """log₂ x; −inf only at 0. In float32 lg2.approx, within 2⁻²² absolutely in (½, 2) and relatively elsewhere."""
    if x.dtype == tl.float32 and _COMPILED and is_cuda():
        y = tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.log2(x)
    return y


@triton.jit
def rsqrt_approx(x):
    """1/√x of a normal float32: PTX's rsqrt.approx, within 2⁻²²·⁹ relatively."""
    if _COMPILED and is_cuda():
        y = tl.inline_asm_elementwise(
            "rsqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.rsqrt(x)
    return y


@triton.jit
def log_rest(p):
    """log p − fast_log2 p·log 2 of a float32 near 1, 0 elsewhere: with it the logarithm is good to a few roundings."""
    return tl.where((p > NEAR_1_FROM) & (p < NEAR_1_TO), _log_near_1(p) - fast_log2(p) * LN_2, 0.0)


@triton.jit
def _log_near_1(p):
    """log p = 2·asinh(s/2) with s = √p − 1/√p = (p − 1)/√p, where p − 1 is exact."""
    s = (p - 1) * rsqrt_approx(p)
    w = s * s
    return s + s * (w * (_C1 + w * (_C2 + w * _C3)))


@triton.jit
def kl_term(log_q, target, LOG_TARGET: tl.constexpr):
    """Pointwise KL: p·(log p − log q), with the target p, or log p where LOG_TARGET.

    Where p = 0 the term is 0, whatever log q, but for a NaN. For a float32 p near 1, add p·log_rest(p).
    """
    if LOG_TARGET:
        p = exp(target)
        slope = target - log_q
        zero = p == 0
    else:
        p = target
        log2_p = fast_log2(p)
        slope = log2_p * LN_2 - log_q
        zero = _is_log_0(log2_p)
    return p * tl.where(zero & (log_q == log_q), 0.0, slope)


@triton.jit
def kl_grad_x(target, dloss, LOG_TARGET: tl.constexpr):
    """Gradient of `kl_term` to log q: −p, times dloss."""
    if LOG_TARGET:
        p = exp(target)
    else:
        p = target
    return -p * dloss


@triton.jit
def kl_grad_target(log_q, target, dloss, LOG_TARGET: tl.constexpr):
    """Gradient of `kl_term` to the target, times dloss.

    log p − log q + 1 to p; p·(log p − log q + 1) to log p; 0 where p = 0, but for a NaN in log q. A rough logarithm
    will do: beside the 1 its absolute error is small.
    """
    if LOG_TARGET:
        p = exp(target)
        grad = p * (target - log_q + 1) * dloss
        zero = p == 0
    else:
        log2_p = fast_log2(target)
        grad = (log2_p * LN_2 - log_q + 1) * dloss
        zero = _is_log_0(log2_p)
    return tl.where(zero & (log_q == log_q), 0.0, grad)


@triton.jit
def _is_log_0(log2_p):
    # A comparison of p itself would be made on packed pairs of halves, whose results then have to be taken apart.
    return log2_p == float("-inf")


@triton.jit
def merge_softmax(row_max, sum_exp, other_max, other_sum):
    """Merge maximum and Σ exp(x − max) of two parts of a row, as online softmax does. A part of −inf adds nothing."""
    new_max = tl.maximum(row_max, other_max)
    return new_max, sum_exp * _rescale(row_max, new_max) + other_sum * _rescale(other_max, new_max)


@triton.jit
def _rescale(old_max, new_max):
    return tl.where(old_max == new_max, 1.0, exp(old_max - new_max))


@triton.jit
def tile_exp2(x, factor):
    """Return row_max = factor·max x of each row of a tile, rounded; z = factor·x − row_max, rounded once; and 2^z.

    z and 2^z carry the rounding error of row_max, so that it cancels in differences of z and in quotients by Σ 2^z.
    """
    row_max = tl.max(x, axis=1) * factor
    z = shifted(x, factor, row_max)
    return row_max, z, exp2(z)


@triton.jit
def shifted(x, factor, row_max):
    """factor·x − row_max of a tile, rounded once; in an empty row, whose maximum is −inf, factor·x."""
    return tl.fma(x, factor, -neg_inf_to_zero(row_max)[:, None])


@triton.jit
def neg_inf_to_zero(x):
    """Replace −inf by 0."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def div(x, y):
    """x/y, rounded correctly, so that x/x is 1: in float32 code the operator / is div.full, with errors of up to 2 ulp.

    x may be a constant.
    """
    if y.dtype == tl.float64:
        z = x / y
    else:
        z = tl.div_rn(x, y)
    return z


@triton.jit
def log(x):
    """The natural logarithm, good to the last bit; slow, so for per-row scalars only."""
    return tl.log(x.to(tl.float64)).to(x.dtype)


@triton.jit
def tile_softmax(x, FTZ: tl.constexpr = True):
    """Maximum and sum_exp = Σ exp(x − max) of each row of a tile (BLOCK_N, BLOCK_V), and the exp(x − max).

    A row of −inf has sum_exp = 0; one with a NaN has NaN. FTZ as in `exp`: sum_exp ≥ 1, so flushed terms are below its
    ulp.
    """
    row_max = tl.max(x, axis=1)
    e = exp(x - neg_inf_to_zero(row_max)[:, None], FTZ)
    return row_max, tl.sum(e, axis=1), e


@triton.jit
def careful_exp(x):
    """e to the x within 2⁻²² relatively: the rounding error of x·log₂e, which grows with x, is corrected."""
    if x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        z = x * LOG2_E
        rest = tl.fma(x, LOG2_E, -z) + x * _LOG2_E_REST
        y = tl.exp2(z)
        y = tl.where((y == 0) | (y == float("inf")), y, tl.fma(y, rest * LN_2, y))
    return y


@triton.jit
def sqrt(x):
    """√x, rounded correctly: in float32 code `tl.sqrt` is sqrt.approx.ftz, which takes subnormal numbers for 0."""
    if x.dtype == tl.float64:
        y = tl.sqrt(x)
    else:
        y = tl.sqrt_rn(x)
    return y


@triton.jit
def expm1(x):
    """exp(x) − 1 without cancellation (W. Kahan: (u − 1)·x / log u with u = exp(x))."""
    u = careful_exp(x)
    near = (u - 1) * div(x, tl.log(u))
    return tl.where(u == 1, x, tl.where(tl.abs(x) < 1, near, u - 1))


@triton.jit
def tanh(x):
    """tanh x = (1 − exp(−2|x|)) / (1 + exp(−2|x|)), with the sign of x."""
    e = expm1(-2 * tl.abs(x))
    t = div(-e, e + 2)
    return tl.where(x < 0, -t, t)
