"""Tensors that a backward pass needs, also those made in inference mode, which PyTorch does not save."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keep tensors for the backward pass of a `torch.autograd.Function`.

    One made in inference mode has no version counter that could tell of a change, and is kept as it is.
    """
    ctx.of_inference = tuple(t if t is not None and t.is_inference() else None for t in tensors)
    ctx.save_for_backward(*(None if kept is t else t for t, kept in zip(tensors, ctx.of_inference, strict=True)))


def saved(ctx: Any) -> tuple[Any, ...]:
    """What `save` kept."""
    given = zip(ctx.saved_tensors, ctx.of_inference, strict=True)
    return tuple(t if kept is None else kept for t, kept in given)
