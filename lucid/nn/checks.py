"""Checks of lucid's tensors as arguments."""

from __future__ import annotations

import numpy as np
import torch

from lucid._arguments import TensorValidator
from lucid.tensor import Tensor

LUCID = TensorValidator(
    Tensor,
    "a lucid.Tensor",
    lambda tensor: tensor._like,
    Tensor._wrap,
    {torch.Tensor: "lucid.from_torch({})", np.ndarray: "lucid.tensor({})"},
)
check_tensor, check_floating, check_device = LUCID.check, LUCID.check_floating, LUCID.check_device
