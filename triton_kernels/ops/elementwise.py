"""Pointwise operations on one to three operands, broadcast and strided: one kernel, a jit function per operation.

Operands are upcast to the compute dtype when loaded; the result is rounded once, when stored. One operand may be a
Python number; it is passed as float64 (int64 for integer arithmetic), without rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..jit import math
from ..jit.tiles import load
from ..runtime import launch, strides, tile_configs


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _sub(a, b):
    return a - b


@triton.jit
def _mul(a, b):
    return a * b


@triton.jit
def _div(a, b):
    return math.div(a, b)


@triton.jit
def _pow(a, b):
    # In float64, because the rounding error of log a is multiplied by b.
    base, exponent = a.to(tl.float64), b.to(tl.float64)
    magnitude = tl.exp(exponent * tl.log(tl.abs(base)))
    half = exponent * 0.5
    signed = tl.where((base < 0) & (half != tl.floor(half)), -magnitude, magnitude)
    real = tl.where((base < 0) & (exponent != tl.floor(exponent)), float("nan"), signed)
    return tl.where((exponent == 0) | (base == 1), 1.0, real)


@triton.jit
def _neg(a):
    return -a


@triton.jit
def _exp(a):
    return math.accurate_exp(a)


@triton.jit
def _log(a):
    return tl.log(a)


@triton.jit
def _sqrt(a):
    return math.sqrt(a)


@triton.jit
def _abs(a):
    return tl.abs(a)


@triton.jit
def _sign(a):
    return (a > 0).to(a.dtype) - (a < 0).to(a.dtype)


@triton.jit
def _tanh(a):
    return math.tanh(a)


@triton.jit
def _tanh_grad(y, grad):
    return grad * (1 - y * y)


@triton.jit
def _relu(a):
    return tl.where(a <= 0, 0, a)


@triton.jit
def _relu_grad(y, grad):
    return tl.where(y > 0, grad, 0)


@triton.jit
def _eq(a, b):
    return a == b


@triton.jit
def _ne(a, b):
    return a != b


@triton.jit
def _lt(a, b):
    return a < b


@triton.jit
def _le(a, b):
    return a <= b


@triton.jit
def _gt(a, b):
    return a > b


@triton.jit
def _ge(a, b):
    return a >= b


@triton.jit
def _where(condition, a, b):
    return tl.where(condition != 0, a, b)


_OPS: dict[str, tuple[Any, int]] = {
    **{name: (op, 1) for name, op in (("neg", _neg), ("exp", _exp), ("log", _log), ("sqrt", _sqrt), ("abs", _abs))},
    **{name: (op, 1) for name, op in (("sign", _sign), ("tanh", _tanh), ("relu", _relu))},
    **{name: (op, 2) for name, op in (("add", _add), ("sub", _sub), ("mul", _mul), ("div", _div), ("pow", _pow))},
    **{name: (op, 2) for name, op in (("tanh_grad", _tanh_grad), ("relu_grad", _relu_grad))},
    **{name: (op, 2) for name, op in (("eq", _eq), ("ne", _ne), ("lt", _lt), ("le", _le), ("gt", _gt), ("ge", _ge))},
    "where": (_where, 3),
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


def pointwise(
    op: str, *operands: torch.Tensor | float, dtype: torch.dtype, compute: torch.dtype | None = None
) -> torch.Tensor:
    """Apply the pointwise operation `op`.

    Parameters
    ----------
    op
        add, sub, mul, div, pow, eq, ne, lt, le, gt, ge, tanh_grad(y, g), relu_grad(y, g), where(c, a, b); neg, exp,
        log, sqrt, abs, sign, tanh, relu.
    operands
        Tensors that broadcast together, any strides; at most one may be a Python number.
    dtype
        Dtype of the result.
    compute
        Dtype of the arithmetic; by default `dtype`, at least float32 if that is floating.

    Examples
    --------
    >>> pointwise("mul", torch.tensor([1.0, 2.0]).to(DEVICE), 0.5, dtype=torch.float32).tolist()
    [0.5, 1.0]
    """
    function, count = _OPS[op]
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
    out = coalesced.empty(shape, dtype, tensors[0].device)
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
