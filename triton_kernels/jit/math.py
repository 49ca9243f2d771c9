"""Jit functions without loads or stores. Arguments are in the accumulator dtype.

In float32, logarithms and exponentials are those of the special-function unit, in base 2: one instruction instead of
twenty. Its logarithm has an error of 2⁻²², relative, but absolute between ½ and 2; `log_correction` corrects it where
that matters. In float64 they are Triton's own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from ..runtime import backend

_COMPILED = tl.constexpr(not backend.INTERPRETED)
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)
#: Low part of log₂e: log₂e minus its float32 rounding.
_LOG2_E_LO = tl.constexpr(1.92596299e-8)

#: `log_correction` is 0 outside this interval: there the logarithm is large enough for an absolute error of 2⁻²².
NEAR_1_FROM = tl.constexpr(0.625)
NEAR_1_TO = tl.constexpr(1.5625)
#: Minimax polynomial on w = (p − 1)²/p ≤ 0.225, relative error 2⁻²⁸: 2·asinh(√w/2)/√w = 1 + w·(C1 + w·(C2 + w·C3)).
_C1 = tl.constexpr(-0.0416664392)
_C2 = tl.constexpr(0.00468129776)
_C3 = tl.constexpr(-0.000649049854)


def base2_scalars(inv_temperature: float) -> tuple[float, float]:
    """Return log₂e/T, the factor on the logits of a softmax in base 2; and T."""
    return LOG2_E.value * inv_temperature, 1 / inv_temperature


@triton.jit
def exp(x, FTZ: tl.constexpr = False):
    """Return exp(x). FTZ: subnormal results may be flushed to 0, which saves three instructions."""
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
    """Return 2^x. Subnormal results may be flushed to 0."""
    if x.dtype == tl.float32 and _COMPILED and is_cuda():
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def fast_log2(x, FTZ: tl.constexpr = False):
    """Return log₂ x; −inf only at 0. In float32 lg2.approx: error 2⁻²², absolute in (½, 2), relative elsewhere.

    FTZ: subnormal x may be taken for 0, which saves three instructions.
    """
    if FTZ and x.dtype == tl.float32 and _COMPILED and is_cuda():
        y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    elif x.dtype == tl.float32 and _COMPILED and is_cuda():
        y = tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.log2(x)
    return y


@triton.jit
def rsqrt_approx(x):
    """Return 1/√x of a normal float32: rsqrt.approx, relative error 2⁻²²·⁹."""
    if _COMPILED and is_cuda():
        y = tl.inline_asm_elementwise(
            "rsqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.rsqrt(x)
    return y


@triton.jit
def log_correction(p):
    """Return log p − fast_log2(p)·log 2 for a float32 p near 1, else 0; with it the logarithm is good to a few ulp."""
    return tl.where((p > NEAR_1_FROM) & (p < NEAR_1_TO), _log_near_1(p) - fast_log2(p) * LN_2, 0.0)


@triton.jit
def _log_near_1(p):
    """Return log p = 2·asinh(s/2) with s = √p − 1/√p = (p − 1)/√p, where p − 1 is exact."""
    s = (p - 1) * rsqrt_approx(p)
    w = s * s
    return s + s * (w * (_C1 + w * (_C2 + w * _C3)))


@triton.jit
def kl_term(log_q, target, LOG_TARGET: tl.constexpr):
    """Return p·(log p − log q); the target is p, or log p with LOG_TARGET.

    The term is 0 if p = 0, unless log q is NaN. For a float32 p near 1, add p·log_correction(p).
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
    """Return the gradient of `kl_term` with respect to log q: −p·dloss."""
    if LOG_TARGET:
        p = exp(target)
    else:
        p = target
    return -p * dloss


@triton.jit
def kl_grad_target(log_q, target, dloss, LOG_TARGET: tl.constexpr):
    """Return the gradient of `kl_term` with respect to the target.

    dloss·(log p − log q + 1) to p, times p to log p; 0 if p = 0, unless log q is NaN. The absolute error of `fast_log2`
    is small beside the 1.
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
    # Comparing a half-precision p compiles to packed comparisons, whose results take instructions to unpack.
    return log2_p == float("-inf")


@triton.jit
def merge_softmax(row_max, sum_exp, other_max, other_sum):
    """Merge maximum and Σ exp(x − max) of two parts of a row, as in online softmax; parts may be all −inf."""
    new_max = tl.maximum(row_max, other_max)
    return new_max, sum_exp * _rescale(row_max, new_max) + other_sum * _rescale(other_max, new_max)


@triton.jit
def _rescale(old_max, new_max):
    return tl.where(old_max == new_max, 1.0, exp(old_max - new_max))


@triton.jit
def tile_exp2(x, factor):
    """Return row_max = max x of each row of a tile; z = factor·(x − row_max); and 2^z.

    The difference comes first: for a factor on large logits, z would have the rounding error of their products.
    """
    row_max = tl.max(x, axis=1)
    z = shifted(x, factor, row_max)
    return row_max, z, exp2(z)


@triton.jit
def shifted(x, factor, row_max):
    """Return factor·(x − row_max) of a tile; −inf in a row whose maximum is −inf."""
    return (x - neg_inf_to_zero(row_max)[:, None]) * factor


@triton.jit
def row_max(x):
    """Return the maximum of each row, of few rows; that of one row is a scalar to the compiler, of no thread layout."""
    if x.shape[0] == 1:
        y = tl.zeros((1,), x.dtype) + tl.max(tl.reshape(x, (x.shape[1],)), axis=0)
    else:
        y = tl.max(x, axis=1)
    return y


@triton.jit
def row_sum(x):
    """Return the sum of each row, of few rows; that of one row is a scalar to the compiler, of no thread layout."""
    if x.shape[0] == 1:
        y = tl.zeros((1,), x.dtype) + tl.sum(tl.reshape(x, (x.shape[1],)), axis=0)
    else:
        y = tl.sum(x, axis=1)
    return y


@triton.jit
def neg_inf_to_zero(x):
    """Replace −inf by 0."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def div(x, y):
    """Return x/y, correctly rounded, so x/x is 1; the operator / of float32 is div.full, with an error of 2 ulp.

    x may be a constant.
    """
    if y.dtype == tl.float64:
        z = x / y
    else:
        z = tl.div_rn(x, y)
    return z


@triton.jit
def log(x):
    """Return the natural logarithm, computed in float64; slow, for per-row scalars only."""
    return tl.log(x.to(tl.float64)).to(x.dtype)


@triton.jit
def tile_softmax(x, FTZ: tl.constexpr = True):
    """Return the maximum and sum_exp = Σ exp(x − max) of each row of a tile (BLOCK_N, BLOCK_V), and exp(x − max).

    A row of −inf has sum_exp = 0; a row with NaN has NaN. FTZ as in `exp`: sum_exp ≥ 1, so flushed terms are below its
    ulp.
    """
    row_max = tl.max(x, axis=1)
    e = exp(x - neg_inf_to_zero(row_max)[:, None], FTZ)
    return row_max, tl.sum(e, axis=1), e


@triton.jit
def accurate_exp(x):
    """Return exp(x), relative error 2⁻²²: the rounding error of x·log₂e, which grows with x, is corrected."""
    if x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        z = x * LOG2_E
        error = tl.fma(x, LOG2_E, -z) + x * _LOG2_E_LO
        y = tl.exp2(z)
        y = tl.where((y == 0) | (y == float("inf")), y, tl.fma(y, error * LN_2, y))
    return y


@triton.jit
def sqrt(x):
    """Return √x, correctly rounded; `tl.sqrt` of float32 is sqrt.approx.ftz, which flushes subnormal numbers."""
    if x.dtype == tl.float64:
        y = tl.sqrt(x)
    else:
        y = tl.sqrt_rn(x)
    return y


@triton.jit
def expm1(x):
    """Return exp(x) − 1 without cancellation (W. Kahan: (u − 1)·x / log u with u = exp(x))."""
    u = accurate_exp(x)
    near = (u - 1) * div(x, tl.log(u))
    return tl.where(u == 1, x, tl.where(tl.abs(x) < 1, near, u - 1))


@triton.jit
def tanh(x):
    """Return tanh x, of a relative error below 3e-7 in float32."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        e = expm1(-2 * a)
        t = div(-e, e + 2)
    else:
        # A minimax polynomial of tanh(a)/a − 1 in a², up to 0.625.
        p = a * a
        near = -5.3743500e-2 + p * (2.0650580e-2 + p * -5.7170400e-3)
        near = a + a * p * (-0.33333284 + p * (0.13331491 + p * near))
        t = tl.where(a < 0.625, near, 1 - 2 / (1 + exp2(a * (2 * LOG2_E))))
    return tl.where(x < 0, -t, t)


def logit_map(scale: float, softcap: float | None) -> tuple[float, float, int]:
    """Return factor and cap of `map_logits`, and which of them there are: 0, the first, or 2, both.

    Logits are softcap·tanh(scale·x/softcap), or scale·x if softcap is None.
    """
    if softcap is None:
        return scale, 1.0, int(scale != 1)
    return scale / softcap, softcap, 2


@triton.jit
def map_logits(x, factor, cap):
    """Return y = cap·tanh(factor·x), factor·x, or x: a scalar is None where it has no part. −inf stays −inf."""
    y = x
    if factor is not None:
        y = x * factor
    if cap is not None:
        y = tl.where(x == float("-inf"), x, cap * tanh(y))
    return y


@triton.jit
def to_unmapped(gradient, y, factor, cap):
    """Return the gradient to logits x from that to y = map_logits(x, factor, cap): times factor·(cap − y²/cap)."""
    if cap is not None:
        r = neg_inf_to_zero(y) / cap
        gradient *= factor * cap * (1 - r * r)
    elif factor is not None:
        gradient *= factor
    return gradient
