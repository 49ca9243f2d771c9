"""Reduction of losses of tokens with torch's operators, in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lucid.torch.cpu.rows import number
from triton_kernels.runtime import device_errors


class Factor(NamedTuple):
    """The factor of each token's loss in the result, and whether any token counts."""

    value: float
    counts: bool


def token_mean(
    losses: Tensor,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | None = None,
    factor: Tensor | None = None,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `triton_kernels.token_mean` with torch's operators.

    A denominator that is not positive is a ValueError. The factor is float64.
    """
    result = factor_of(weights, denominator, scale if factor is None else scale * factor.item())
    return reduced(losses, result, dtype or losses.dtype), number(result.value, torch.float64)


def factor_of(weights: Tensor | None, denominator: Tensor | None, scale: float) -> Factor:
    """Return the factor: 0 where weights are given and no token counts."""
    if weights is not None and not weights.any():
        return Factor(0.0, False)
    if denominator is not None:
        if not denominator > 0:
            raise device_errors.error(device_errors.NORMALIZER.value, 0, 1)
        scale /= denominator.item()
    elif weights is not None:
        weight_sum = weights.sum(dtype=torch.float64).item()
        scale = scale / weight_sum if weight_sum else math.inf
    return Factor(scale, True)


def reduced(losses: Tensor, factor: Factor, dtype: torch.dtype) -> Tensor:
    """Return Σ losses times a factor; 0 where no token counts."""
    if not factor.counts:
        return losses.new_zeros((), dtype=dtype)
    return (losses.sum(dtype=torch.float64) * factor.value).to(dtype)
