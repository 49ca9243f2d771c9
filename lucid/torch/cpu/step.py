"""Losses whose gradient is made in the forward pass, for autograd on the CPU.

The forward pass has each row's exponentials in a cache, so the gradient costs little there, and backward hands it on.
Eager autograd calculates it anew for a second backward pass, which must not see what became of the first one's result,
and where a rounded gradient times what comes from above would be rounded twice. A compiled graph has it as a result of
an operator, where it is not rounded twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from lucid.torch.cpu.divergence import empty_as
from lucid.torch.saving import save, saved

#: Of tensors that stand for several, in `torch.autograd.grad` with is_grads_batched.
_BATCHED = torch._C._dispatch_key_parse("Batched")


class Parts(NamedTuple):
    """What a loss in one step consists of.

    Attributes
    ----------
    needed
        Tensors that the gradient is calculated anew from.
    loss_and_gradient
        Writes the gradient, for an upstream gradient of 1, to the given tensor, and returns the loss.
    again
        Calculates the gradient anew from an upstream gradient and `needed`.
    counts
        Gives which rows count, as bool; None where all do.
    """

    needed: tuple[Tensor | None, ...]
    loss_and_gradient: Callable[[Tensor], Tensor]
    again: Callable[..., Tensor]
    counts: Callable[[], Tensor] | None = None


def _wanted(logits: Tensor, others: tuple[Tensor | None, ...]) -> bool:
    """Whether a gradient to logits, and to nothing else, is wanted."""
    return (
        logits.requires_grad
        and torch.is_grad_enabled()
        and not any(other is not None and other.requires_grad for other in others)
    )


def applies_compiled(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether a gradient to logits, and to nothing else, is wanted by a graph that is being compiled.

    Not so for shorter dtypes than float32, whose gradient would be rounded before it is multiplied, and rounded again.
    """
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and logits.dtype in (torch.float32, torch.float64)
        and _wanted(logits, others)
    )


def applies(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether a gradient to logits, and to nothing else, is wanted by eager autograd alone.

    Not so under saved-tensor hooks, such as those of `torch.utils.checkpoint`, which would not see the gradient.
    """
    return (
        _wanted(logits, others)
        and logits.dtype != torch.float16  # whose gradients need the scale that comes from above
        and _eager(logits, *others)
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def _eager(*tensors: Tensor | None) -> bool:
    """Whether tensors are of no subclass, and no compiler, functorch transform or dispatch mode is active."""
    return (
        all(tensor is None or type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )


class Step(Function):
    """A loss, and in `forward` its gradient to logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, parts: Parts) -> Tensor:
        """The loss."""
        ctx.gradient, ctx.again, ctx.dtype = empty_as(logits, logits.dtype), parts.again, logits.dtype
        save(ctx, *parts.needed)
        return parts.loss_and_gradient(ctx.gradient)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient made before, times dloss."""
        gradient, ctx.gradient = ctx.gradient, None
        needed = saved(ctx)  # raises where they were changed meanwhile, or freed
        batched = torch._C._dispatch_keys(dloss).has(_BATCHED)
        if torch.is_grad_enabled() or batched or not _eager(dloss) or not _exact(ctx.dtype, dloss):
            return ctx.again(dloss, *needed), None
        if gradient is None:
            gradient = ctx.again(torch.ones_like(dloss), *needed)
        if dloss.dim():
            gradient.mul_(dloss.unsqueeze(-1))
        elif dloss.item() != 1:
            gradient.mul_(dloss)
        return gradient, None


def _exact(dtype: torch.dtype, dloss: Tensor) -> bool:
    """Whether a gradient of a dtype times dloss is rounded as if it had not been before."""
    if dloss.dim():
        return dtype in (torch.float32, torch.float64) and bool(dloss.isfinite().all())
    value = dloss.item()
    return math.isfinite(value) if dtype in (torch.float32, torch.float64) else math.frexp(abs(value))[0] == 0.5
