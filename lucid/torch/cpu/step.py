"""Losses of rows whose gradient is made in the forward pass, for eager autograd on the CPU.

The forward pass has each row's exponentials in a cache, so the gradient costs little there, and backward hands it on.
It is calculated anew for a second backward pass, which must not see what became of the first one's result, and where a
rounded gradient times what comes from above would be rounded twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from lucid.torch.cpu.divergence import empty_as
from lucid.torch.saving import save, saved


def applies(logits: Tensor, other: Tensor | None = None) -> bool:
    """Whether a gradient to logits, and to nothing else, is wanted by eager autograd alone."""
    return (
        logits.requires_grad
        and torch.is_grad_enabled()
        and not (other is not None and other.requires_grad)
        and logits.dtype != torch.float16  # whose gradients need the scale that comes from above
        and type(logits) in (Tensor, torch.nn.Parameter)
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )


class Step(Function):
    """A loss, and in `forward` its gradient to the first of tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        others: tuple[Tensor | None, ...],
        loss_and_gradient: Callable[[Tensor], Tensor],
        backward: Callable[..., Tensor],
    ) -> Tensor:
        """The loss; `backward(dloss, logits, *others)` is what calculates the gradient anew."""
        ctx.gradient, ctx.again, ctx.dtype = empty_as(logits, logits.dtype), backward, logits.dtype
        save(ctx, logits, *others)
        return loss_and_gradient(ctx.gradient)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient made before, times dloss."""
        gradient, ctx.gradient = ctx.gradient, None
        kept = saved(ctx)  # raises where they were changed meanwhile, or freed
        if torch.is_grad_enabled() or not _exact(ctx.dtype, dloss):
            return ctx.again(dloss, *kept), None, None, None
        if gradient is None:
            gradient = ctx.again(torch.ones_like(dloss), *kept)
        if dloss.dim() or dloss != 1:
            gradient.mul_(dloss.unsqueeze(-1) if dloss.dim() else dloss)
        return gradient, None, None, None


def _exact(dtype: torch.dtype, dloss: Tensor) -> bool:
    """Whether a gradient of a dtype times dloss is rounded as if it had not been before."""
    if dtype in (torch.float32, torch.float64):
        return bool(dloss.isfinite().all())
    return dloss.dim() == 0 and math.frexp(abs(dloss.item()))[0] == 0.5
