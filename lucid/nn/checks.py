"""Checks of lucid's tensors as arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lucid._arguments import TensorValidator, check_real
from lucid.tensor import Tensor

LUCID = TensorValidator(
    Tensor,
    "a lucid.Tensor",
    lambda tensor: tensor._like,
    Tensor._wrap,
    {torch.Tensor: "lucid.from_torch({})", np.ndarray: "lucid.tensor({})"},
)
check_tensor, check_floating, check_device = LUCID.check, LUCID.check_floating, LUCID.check_device


def check_probability(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is a number from 0 to 1."""
    return check_real(name, value, "a number from 0 to 1", lambda number: 0 <= number <= 1)


def broadcast_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that two shapes broadcast to; None if they do not."""
    shape = []
    for i in range(1, max(len(a), len(b)) + 1):
        m, n = (a[-i] if i <= len(a) else 1), (b[-i] if i <= len(b) else 1)
        if m != n and 1 not in (m, n):
            return None
        shape.append(n if m == 1 else m)
    return tuple(reversed(shape))
