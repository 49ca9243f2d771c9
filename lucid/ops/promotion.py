"""Operands of pointwise operations: validation and dtype promotion.

Dtypes are promoted by kind (bool, integer, float), then by width; a Python number is weak: it changes the kind at most.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch

import triton_kernels as tk
from lucid._arguments import type_name
from lucid.tensor import Tensor

Operand = Tensor | float


def resolve_operands(name: str, *operands: Any) -> tuple[list[Any], torch.dtype]:
    """Return the operands' buffers and numbers, and their promoted dtype; raise unless they are compatible."""
    resolved: list[Any] = []
    buffers: list[torch.Tensor] = []
    values: list[Any] = []
    for operand in operands:
        if isinstance(operand, Tensor):
            resolved.append(operand._buffer)
            buffers.append(resolved[-1])
            continue
        value = unwrap_numpy_scalar(operand)
        if type(value) not in _NUMBERS and not isinstance(value, numbers.Real):
            raise TypeError(f"{name} takes lucid.Tensors and numbers, got {type_name(value)}")
        resolved.append(value)
        values.append(value)
    if not buffers:
        raise TypeError(f"{name} takes at least one lucid.Tensor, got {' and '.join(map(type_name, values))}")
    first = buffers[0]
    promoted = first.dtype
    for buffer in buffers[1:]:
        if buffer.device != first.device:
            places = " and ".join(str(b.device) for b in buffers)
            raise RuntimeError(f"operands of {name} must be on one device, got {places}")
        if buffer.shape != first.shape:
            _check_broadcast(name, buffers)
        if buffer.dtype != promoted:
            promoted = torch.promote_types(promoted, buffer.dtype)
    for value in values:
        kind = torch.float32
        if isinstance(value, numbers.Integral):
            kind = torch.bool if isinstance(value, bool) else torch.int64
        promoted = max(promoted, kind, key=rank)
    if values and not promoted.is_floating_point:
        for value in values:
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} takes integers of 64 bits, got {value}")
    return resolved, promoted


#: Types of Python numbers, looked up before the abstract class of real numbers, which is slow.
_NUMBERS = {int, float, bool}


def _check_broadcast(name: str, buffers: list[torch.Tensor]) -> None:
    shapes = [tuple(buffer.shape) for buffer in buffers]
    try:
        tk.strides.broadcast(*shapes)
    except RuntimeError:
        got = " and ".join(map(str, shapes))
        raise RuntimeError(f"operands of {name} must have shapes that broadcast, got {got}") from None


def unwrap_numpy_scalar(operand: Any) -> Any:
    """Return a NumPy scalar as a Python scalar, which is weak in promotion; other values unchanged."""
    return operand.item() if isinstance(operand, np.generic) else operand


def rank(kind: torch.dtype) -> int:
    """Return the rank of a dtype's kind: bool, integer, float."""
    return 2 if kind.is_floating_point else 0 if kind is torch.bool else 1


def floating_dtype(promoted: torch.dtype) -> torch.dtype:
    """Return float32 for integers and bools, other dtypes unchanged."""
    return promoted if promoted.is_floating_point else torch.float32
