"""Gradients to logits that are computed with the loss."""

from __future__ import annotations

import weakref
from typing import Any

import torch

import triton_kernels as tk
from lucid._flags import is_gradient_in_forward
from lucid.autograd.function import Function
from lucid.autograd.grad_mode import is_grad_enabled
from lucid.tensor import Tensor


def in_forward(*wanted: torch.Tensor | None) -> bool:
    """Return whether to compute the gradients to some buffers with the loss; None where no gradient is needed."""
    given = [buffer for buffer in wanted if buffer is not None]
    # Small gradients of float16 need the scale of the upstream gradient.
    return is_gradient_in_forward() and bool(given) and not any(buffer.dtype == torch.float16 for buffer in given)


def empty_gradient(logits: torch.Tensor, needed: bool) -> torch.Tensor | None:
    """Return memory for the gradient to logits, dense, with their order of dimensions; None if it is not needed."""
    return (
        tk.strides.coalesce(logits.shape, logits).empty(logits.shape, logits.dtype, logits.device) if needed else None
    )


class Gradients:
    """Gradients that were computed with a loss, for an upstream gradient of 1; they are saved, and no logits."""

    def __init__(self, ctx: Any, logits: tuple[Tensor, ...], vocab_size: int | None, name: str) -> None:
        self.logits = [weakref.ref(tensor) for tensor in logits]
        self.vocab_size, self.name = vocab_size, name
        self.ctx = weakref.ref(ctx)

    def save(self, weights: torch.Tensor | None, *gradients: torch.Tensor | None) -> None:
        """Save gradients, and the weights of rows unless all count."""
        self._ctx().save_for_backward(*(None if x is None else Tensor._wrap(x) for x in (weights, *gradients)))

    def times(self, dloss: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients times the upstream gradient; in place, if they are not needed again."""
        ctx = self._ctx()
        weights, *gradients = ctx.saved_tensors
        anchor = None
        if is_grad_enabled():
            alive = [tensor for tensor in (ref() for ref in self.logits) if tensor is not None and tensor.requires_grad]
            anchor = alive[0] if alive else None
        in_place = not ctx.keeps_graph
        return tuple(
            None if g is None else ScaledGradient.apply(g, dloss, anchor, weights, self.vocab_size, in_place, self.name)
            for g in gradients
        )

    def _ctx(self) -> Any:
        return self.ctx()


class ScaledGradient(Function):
    """A gradient that was computed with the loss, times the upstream gradient; `anchor` is what it is a gradient to."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        dloss: Tensor,
        anchor: Tensor | None,
        weights: Tensor | None,
        vocab_size: int | None,
        in_place: bool,
        name: str,
    ) -> Tensor:
        ctx.name = name
        scaled = tk.scale_gradient(
            gradient._buffer,
            dloss._buffer,
            weights=None if weights is None else weights._buffer,
            vocab_size=vocab_size,
            in_place=in_place,
        )
        return Tensor._wrap(scaled)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"{ctx.name} has no second derivatives: its gradients cannot be differentiated")
