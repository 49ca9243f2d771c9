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
