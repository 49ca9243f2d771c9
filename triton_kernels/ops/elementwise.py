"""Pointwise operations on one to three operands, broadcast and strided: one kernel, a jit function per operation.

Operands are upcast to the compute dtype when loaded; the result is rounded once, when stored. One operand may be a
Python number; it is passed as float64 (int64 for integer arithmetic), without rounding. Functions with the suffix _grad
take what their function saves for backward, and the gradient of its result.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..jit import math
from ..jit.tiles import load
from ..runtime import launch, replay, strides, tile_configs

_INV_SQRT_2 = tl.constexpr(0.7071067811865476)
_INV_SQRT_2_PI = tl.constexpr(0.3989422804014327)
#: Of the tanh form of gelu: √(8/π), and the coefficient of x³.
_GELU_SLOPE = tl.constexpr(1.5957691216057308)
_GELU_CUBIC = tl.constexpr(0.044715)

#: Jit functions by name, without their underscore.
_OPS: dict[str, Any] = {}


def _op(function: Any) -> Any:
    """Enter a jit function as an operation on as many operands as it has parameters."""
    _OPS[function.fn.__name__.removeprefix("_")] = function
    return function


@_op
@triton.jit
def _add(a, b):
    return a + b


@_op
@triton.jit
def _sub(a, b):
    return a - b


@_op
@triton.jit
def _mul(a, b):
    return a * b


@_op
@triton.jit
def _div(a, b):
    return math.div(a, b)


@_op
@triton.jit
def _pow(a, b):
    # In float64, because the rounding error of log a is multiplied by b.
    base, exponent = a.to(tl.float64), b.to(tl.float64)
    magnitude = tl.exp(exponent * tl.log(tl.abs(base)))
    whole = exponent == tl.floor(exponent)
    odd = whole & (exponent * 0.5 != tl.floor(exponent * 0.5))
    negative = base.to(tl.int64, bitcast=True) < 0  # -0, too
    y = tl.where(negative & odd, magnitude * -1.0, magnitude)
    y = tl.where((base < 0) & (base > float("-inf")) & ~whole, float("nan"), y)
    is_one = (exponent == 0) | (base == 1) | ((base == -1) & (tl.abs(exponent) == float("inf")))
    return tl.where(is_one, 1.0, y)


@_op
@triton.jit
def _maximum(a, b):
    return tl.where((a > b) | (a != a), a, b)


@_op
@triton.jit
def _minimum(a, b):
    return tl.where((a < b) | (a != a), a, b)


@_op
@triton.jit
def _maximum_grad(a, b, grad):
    return tl.where(a < b, 0, tl.where(a == b, grad * 0.5, grad))


@_op
@triton.jit
def _minimum_grad(a, b, grad):
    return tl.where(a > b, 0, tl.where(a == b, grad * 0.5, grad))


@_op
@triton.jit
def _bitwise_and(a, b):
    return a & b


@_op
@triton.jit
def _bitwise_or(a, b):
    return a | b


@_op
@triton.jit
def _bitwise_xor(a, b):
    return a ^ b


@_op
@triton.jit
def _neg(a):
    # Triton's -a is 0 - a, which is not -0 of 0.
    return a * -1.0 if a.dtype.is_floating() else -a


@_op
@triton.jit
def _abs(a):
    return tl.abs(a)


@_op
@triton.jit
def _sign(a):
    return (a > 0).to(a.dtype) - (a < 0).to(a.dtype)


@_op
@triton.jit
def _square(a):
    return a * a


@_op
@triton.jit
def _exp(a):
    return math.accurate_exp(a)


@_op
@triton.jit
def _log(a):
    return tl.log(a)


@_op
@triton.jit
def _sqrt(a):
    return math.sqrt(a)


@_op
@triton.jit
def _rsqrt(a):
    return math.div(1.0, math.sqrt(a))


@_op
@triton.jit
def _rsqrt_grad(y, grad):
    return -0.5 * grad * y * y * y


@_op
@triton.jit
def _tanh(a):
    return math.tanh(a)


@_op
@triton.jit
def _tanh_grad(y, grad):
    return grad * (1 - y * y)


@_op
@triton.jit
def _sigmoid(a):
    return math.div(1.0, 1 + math.accurate_exp(-a))


@_op
@triton.jit
def _sigmoid_grad(y, grad):
    return grad * y * (1 - y)


@_op
@triton.jit
def _relu(a):
    return tl.where(a <= 0, 0, a)


@_op
@triton.jit
def _relu_grad(y, grad):
    return tl.where(y <= 0, 0, grad)


@_op
@triton.jit
def _silu(a):
    return math.div(a, 1 + math.accurate_exp(-a))


@_op
@triton.jit
def _silu_grad(a, grad):
    sigmoid = _sigmoid(a)
    return grad * sigmoid * (1 + a * (1 - sigmoid))


@_op
@triton.jit
def _gelu(a):
    return a * _normal_cdf(a)


@_op
@triton.jit
def _gelu_grad(a, grad):
    return grad * (_normal_cdf(a) + a * math.accurate_exp(a * a * -0.5) * _INV_SQRT_2_PI)


@triton.jit
def _normal_cdf(a):
    return 0.5 * (1 + tl.erf(a * _INV_SQRT_2))


@_op
@triton.jit
def _gelu_tanh(a):
    return a * _sigmoid(_gelu_argument(a))


@_op
@triton.jit
def _gelu_tanh_grad(a, grad):
    sigmoid = _sigmoid(_gelu_argument(a))
    slope = (1 + a * a * (3 * _GELU_CUBIC)) * _GELU_SLOPE
    return grad * sigmoid * (1 + a * (1 - sigmoid) * slope)


@triton.jit
def _gelu_argument(a):
    # (1 + tanh u) / 2 = sigmoid(2u), which keeps its digits where it is small.
    return (a + a * a * a * _GELU_CUBIC) * _GELU_SLOPE


@_op
@triton.jit
def _eq(a, b):
    return a == b


@_op
@triton.jit
def _ne(a, b):
    return a != b


@_op
@triton.jit
def _lt(a, b):
    return a < b


@_op
@triton.jit
def _le(a, b):
    return a <= b


@_op
@triton.jit
def _gt(a, b):
    return a > b


@_op
@triton.jit
def _ge(a, b):
    return a >= b


@_op
@triton.jit
def _where(condition, a, b):
    return tl.where(condition != 0, a, b)


#: Names of operations by their number of operands.
BY_OPERANDS = {
    count: tuple(name for name, function in _OPS.items() if len(function.arg_names) == count) for count in (1, 2, 3)
}


@triton.jit(do_not_specialize=["n", "scalar_i64"])
def _pointwise_kernel(
    a,  # (n,), or (None, None) for the scalar
    b,  # the same; None for 1 operand
    c,  # the same; None for 1 or 2 operands
    out_ptr,  # (n,)
    inner_sizes,
    n,
    scalar_f64: tl.float64,
    scalar_i64: tl.int64,
    OP: tl.constexpr,
    OPERANDS: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    scalar = tl.full((), scalar_f64 if ACC_DTYPE.is_floating() else scalar_i64, ACC_DTYPE)
    first = tl.program_id(0).to(INDEX_DTYPE) * BLOCK
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if (first + BLOCK > n) == MASKED:
            offs = first + tl.arange(0, BLOCK)
            mask = offs < n if MASKED else None
            x = _load_or_scalar(a, offs, mask, inner_sizes, scalar)
            if OPERANDS == 1:
                out = OP(x)
            else:
                y = _load_or_scalar(b, offs, mask, inner_sizes, scalar)
                if OPERANDS == 2:
                    out = OP(x, y)
                else:
                    out = OP(x, y, _load_or_scalar(c, offs, mask, inner_sizes, scalar))
            tl.store(out_ptr + offs, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_or_scalar(operand, offs, mask, inner_sizes, scalar):
    if operand[0] is None:
        value = tl.full(offs.shape, scalar, scalar.dtype)
    else:
        value = load(operand, offs, mask, inner_sizes, None, scalar.dtype)
    return value


@replay.replayable
def pointwise(
    op: str,
    *operands: torch.Tensor | float,
    dtype: torch.dtype,
    compute: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply the pointwise operation `op`.

    Parameters
    ----------
    op
        A name of `BY_OPERANDS`.
    operands
        Tensors that broadcast together, any strides; at most one may be a Python number.
    dtype
        Dtype of the result.
    compute
        Dtype of the arithmetic; by default `dtype`, at least float32 if that is floating.
    out
        Where the result is written: contiguous, as all operands are then, and of `dtype`. It may be an operand.

    Examples
    --------
    >>> pointwise("mul", torch.tensor([1.0, 2.0]).to(DEVICE), 0.5, dtype=torch.float32).tolist()
    [0.5, 1.0]
    """
    function = _OPS[op]
    count = len(function.arg_names)
    if len(operands) != count:
        raise TypeError(f"{op} takes {count} operands, got {len(operands)}")
    tensors = [operand for operand in operands if isinstance(operand, torch.Tensor)]
    scalar = next((operand for operand in operands if not isinstance(operand, torch.Tensor)), 0)
    shape = strides.broadcast(*(tensor.shape for tensor in tensors))
    coalesced = strides.coalesce(shape, *tensors)
    if compute is None:
        compute = launch.compute_dtype(dtype) if dtype.is_floating_point else dtype
    pairs = zip(tensors, coalesced.strides, strict=True)
    # Triton 3.6 cannot compare an operand (tensor, None) with None.
    given = [next(pairs) if isinstance(operand, torch.Tensor) else (None, None) for operand in operands]
    a, b, c = given + [None] * (3 - count)
    if out is None:
        out = coalesced.empty(shape, dtype, tensors[0].device)
    elif not all(t.is_contiguous() and t.shape == shape for t in (*tensors, out)) or out.dtype != dtype:
        raise ValueError(f"out and operands must be contiguous, of shape {tuple(shape)}, and out of {dtype}")
    config = tile_configs.pointwise(max(t.dtype.itemsize for t in (*tensors, out)), coalesced.numel, coalesced.dims)
    launch.run(
        _pointwise_kernel,
        (tile_configs.cdiv(coalesced.numel, config["BLOCK"]),),
        config,
        a=a,
        b=b,
        c=c,
        out_ptr=out,
        scalar_f64=float(scalar) if compute.is_floating_point else 0.0,
        scalar_i64=0 if compute.is_floating_point else int(scalar),
        OP=function,
        OPERANDS=count,
        ACC_DTYPE=launch.tl_dtype(compute),
        **launch.element_args(coalesced, config["BLOCK"]),
    )
    return out
