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
    operands = tuple(unwrap_numpy_scalar(operand) for operand in operands)
    tensors = [operand for operand in operands if isinstance(operand, Tensor)]
    values = [operand for operand in operands if not isinstance(operand, Tensor)]
    for value in values:
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{name} takes lucid.Tensors and numbers, got {type_name(value)}")
    if not tensors:
        raise TypeError(f"{name} takes at least one lucid.Tensor, got {' and '.join(map(type_name, values))}")
    if len({tensor._buffer.device for tensor in tensors}) > 1:
        places = " and ".join(str(tensor.device) for tensor in tensors)
        raise RuntimeError(f"operands of {name} must be on one device, got {places}")
    try:
        tk.strides.broadcast(*(tensor.shape for tensor in tensors))
    except RuntimeError:
        shapes = " and ".join(str(tensor.shape) for tensor in tensors)
        raise RuntimeError(f"operands of {name} must have shapes that broadcast, got {shapes}") from None
    promoted = tensors[0]._buffer.dtype
    for tensor in tensors[1:]:
        promoted = torch.promote_types(promoted, tensor._buffer.dtype)
    for value in values:
        kind = torch.float32
        if isinstance(value, numbers.Integral):
            kind = torch.bool if isinstance(value, bool) else torch.int64
        promoted = max(promoted, kind, key=rank)
    if not promoted.is_floating_point:
        for value in values:
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} takes integers of 64 bits, got {value}")
    return [operand._buffer if isinstance(operand, Tensor) else operand for operand in operands], promoted


def unwrap_numpy_scalar(operand: Any) -> Any:
    """Return a NumPy scalar as a Python scalar, which is weak in promotion; other values unchanged."""
    return operand.item() if isinstance(operand, np.generic) else operand


def rank(kind: torch.dtype) -> int:
    """Return the rank of a dtype's kind: bool, integer, float."""
    return 2 if kind.is_floating_point else 0 if kind is torch.bool else 1


def floating_dtype(promoted: torch.dtype) -> torch.dtype:
    """Return float32 for integers and bools, other dtypes unchanged."""
    return promoted if promoted.is_floating_point else torch.float32
