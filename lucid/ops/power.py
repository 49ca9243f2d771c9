"""Powers, of floating numbers and of integers."""

from __future__ import annotations

import numbers
from typing import Any

import torch

from lucid.dtype import int64
from lucid.ops.arithmetic import float_power, mul, square
from lucid.ops.memory import to
from lucid.ops.promotion import Operand, unwrap_numpy_scalar
from lucid.tensor import Tensor


def pow(a: Operand, b: Operand) -> Tensor:
    """a to the power of b; of integers only with a non-negative Python integer b."""
    a, b = unwrap_numpy_scalar(a), unwrap_numpy_scalar(b)
    if _is_integer(a) and _is_integer(b):
        return _integer_pow(a, b)
    return square(a) if isinstance(a, Tensor) and isinstance(b, numbers.Real) and b == 2 else float_power(a, b)


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
