"""What operators of losses of rows of logits share: the reduction, and results without values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import triton_kernels as tk
from lucid.torch.operators import launchers


def row_loss(
    losses: Tensor, weights: Tensor | None, normalizer: Tensor | None, reduce: bool, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The loss of rows, and the factor of each row's in it: empty for one, where there is no reduction."""
    if not reduce:
        return losses.to(dtype), losses.new_empty(0)
    return launchers(losses).token_mean(losses, weights=weights, denominator=normalizer, scale=scale, dtype=dtype)


def fake_results(logits: Tensor, arithmetic: torch.dtype, statistics: int, reduce: bool, dtype: torch.dtype) -> Any:
    """A loss, statistics and factor without values."""
    lead = logits.shape[:-1]
    loss = torch.empty(() if reduce else lead, dtype=dtype, device=logits.device)
    rows = torch.empty((statistics, math.prod(lead)), dtype=arithmetic, device=logits.device)
    return loss, rows, torch.empty(() if reduce else (0,), dtype=arithmetic, device=logits.device)


def fake_like(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient without values, laid out as logits are."""
    return tk.layout.fake(logits.shape, (logits,), dtype)
