"""Weights of rows before a loss, and the upstream gradient after it, with torch's operators."""

from __future__ import annotations

import torch
from torch import Tensor

import triton_kernels as tk
from lucid.torch.cpu import cross_entropy, divergence


def token_weights(
    logits: Tensor,
    *,
    weight: Tensor | None = None,
    labels: Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute `triton_kernels.token_weights` with torch's operators. A label that is no column is an IndexError."""
    columns = logits.shape[-1] if vocab_size is None else vocab_size
    if labels is not None and weight is None and class_weight is not None:
        return cross_entropy.label_weights(labels, columns, class_weight, ignore_index, dtype)
    like = logits.new_empty((), dtype=dtype)
    return divergence.token_weights(logits, like, weight, labels, ignore_index, columns).to(dtype)


def scale_gradient(
    gradient: Tensor,
    dloss: Tensor,
    *,
    weights: Tensor | None = None,
    vocab_size: int | None = None,
    in_place: bool = False,
) -> Tensor:
    """Compute `triton_kernels.scale_gradient` with torch's operators."""
    out = gradient if in_place else gradient.clone()
    if in_place and not dloss.dim() and dloss.item() == 1:
        return out
    g = dloss.to(tk.launch.compute_dtype(gradient.dtype)).expand(gradient.shape[:-1])
    if weights is not None:
        g = torch.where(weights.view(g.shape) == 0, 1.0, g)
    out[..., :vocab_size].mul_(g.unsqueeze(-1))
    return out
