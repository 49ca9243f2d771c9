"""Powers, of floating numbers and of integers."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch

from lucid.autograd.function import Function
from lucid.dtype import int64
from lucid.ops.arithmetic import (
    binary,
    compare,
    log,
    mul,
    save_operands,
    saved_operands,
    shapes_of,
    sub,
    sum_to_shapes,
    where,
)
from lucid.ops.memory import to
from lucid.ops.promotion import Operand, unwrap_numpy_scalar
from lucid.tensor import Tensor


class _Pow(Function):
    """a^b, with the gradients b·a^(b − 1), 0 where b = 0, and a^b·log a, 0 where a = 0."""

    @staticmethod
    def forward(ctx: Any, a: Operand, b: Operand) -> Tensor:
        ctx.shapes = shapes_of(a, b)
        save_operands(ctx, a, b)
        return binary("pow", a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = saved_operands(ctx)
        need_a, need_b = ctx.needs_input_grad
        da = mul(grad, mul(pow(a, _exponent_minus_one(b)), b)) if need_a else None
        db = mul(grad, mul(pow(a, b), _log_or_zero(a))) if need_b else None
        return sum_to_shapes(ctx.shapes, da, db)


def _exponent_minus_one(exponent: Any) -> Any:
    """One less, but 0 for 0: its power is multiplied by 0, and must be finite then."""
    if isinstance(exponent, Tensor):
        return where(compare("eq", exponent, 0), 0, sub(exponent, 1))
    return exponent - 1 if exponent else 0


def _log_or_zero(base: Any) -> Any:
    """The logarithm, but 0 for 0: it is multiplied by a power that is 0 then."""
    if isinstance(base, Tensor):
        return log(where(compare("eq", base, 0), 1, base))
    return math.log(base) if base > 0 else 0.0 if base == 0 else math.nan


def pow(a: Operand, b: Operand) -> Tensor:
    """a to the power of b; of integers only with a non-negative Python integer b."""
    a, b = unwrap_numpy_scalar(a), unwrap_numpy_scalar(b)
    if _is_integer(a) and _is_integer(b):
        return _integer_pow(a, b)
    return _Pow.apply(a, b)


def _is_integer(operand: Any) -> bool:
    if isinstance(operand, Tensor):
        return not operand.dtype.is_floating_point
    return isinstance(operand, numbers.Integral)


def _integer_pow(base: Any, exponent: Any) -> Tensor:
    """By repeated squaring: exact, or wrapped as products of integers are."""
    if isinstance(exponent, Tensor) or exponent < 0 or not isinstance(base, Tensor):
        got = "a Tensor" if isinstance(exponent, Tensor) else exponent
        raise TypeError(
            f"pow of integers takes a Tensor and a non-negative Python integer as exponent, got {got}; "
            "convert a Tensor with .float() for others"
        )
    power = to(base, None, int64) if base._buffer.dtype is torch.bool else base
    result = Tensor._wrap(torch.ones_like(power._buffer))
    left = int(exponent)
    while left:
        if left & 1:
            result = mul(result, power)
        left >>= 1
        if left:
            power = mul(power, power)
    return result
