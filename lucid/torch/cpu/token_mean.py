"""Reduction of losses of tokens with torch's operators, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from triton_kernels import reports


def token_mean(
    losses: Tensor,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | None = None,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """As `triton_kernels.token_mean`; a denominator that is not positive is a ValueError."""
    factor = factor_of(weights, denominator, scale)
    return reduced(losses, factor, dtype or losses.dtype), factor.to(losses.dtype)


def factor_of(weights: Tensor | None, denominator: Tensor | None, scale: float) -> Tensor:
    """The factor of each token's loss in the result, 0-d float64: 0 where weights are given and none counts."""
    factor = torch.tensor(scale, dtype=torch.float64, device="cpu")
    if weights is not None and not weights.any():
        return factor.zero_()
    if denominator is not None:
        if not denominator > 0:
            raise reports.error(reports.NORMALIZER.value, 0, 1)
        return factor / denominator
    return factor if weights is None else factor / weights.sum(dtype=torch.float64)


def reduced(losses: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ losses times a factor; 0 where the factor is, as no token counts then."""
    if factor == 0:
        return losses.new_zeros((), dtype=dtype)
    return (losses.sum(dtype=torch.float64) * factor).to(dtype)
