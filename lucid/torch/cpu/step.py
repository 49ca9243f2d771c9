"""Losses whose gradient is computed in the forward pass, for autograd on the CPU.

The forward pass has each row's exponentials in a cache, so the gradient costs little there, and backward returns it.
Eager autograd recomputes it for a second backward pass, since the first one's result may have been changed, and where a
rounded gradient times the upstream gradient would be rounded twice. A compiled graph has it as a result of an operator,
where it is not rounded twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

import triton_kernels as tk
from lucid._flags import is_gradient_in_forward
from lucid.torch.operators import save, saved

#: Dispatch key of batched tensors, in `torch.autograd.grad` with is_grads_batched.
_BATCHED = torch._C._dispatch_key_parse("Batched")


class Parts(NamedTuple):
    """A loss and its gradient as functions.

    Attributes
    ----------
    needed
        Tensors that `recompute` needs.
    loss_and_gradient
        Writes the gradient, for an upstream gradient of 1, to the given tensor, and returns the loss.
    recompute
        Returns the gradient for an upstream gradient and `needed`.
    row_mask
        Returns which rows count, as bool; None where all do.
    """

    needed: tuple[Tensor | None, ...]
    loss_and_gradient: Callable[[Tensor], Tensor]
    recompute: Callable[..., Tensor]
    row_mask: Callable[[], Tensor] | None = None


def _needs_grad_alone(logits: Tensor, others: tuple[Tensor | None, ...]) -> bool:
    """Return whether the logits need a gradient, and no other tensor does."""
    return (
        logits.requires_grad
        and torch.is_grad_enabled()
        and not any(other is not None and other.requires_grad for other in others)
    )


def applies_compiled(logits: Tensor, *others: Tensor | None) -> bool:
    """Return whether a graph that is being compiled needs the gradient to the logits alone.

    False for shorter dtypes than float32, whose gradient would be rounded before it is multiplied, and rounded again.
    """
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and logits.dtype in (torch.float32, torch.float64)
        and _needs_grad_alone(logits, others)
    )


def applies(logits: Tensor, *others: Tensor | None) -> bool:
    """Return whether eager autograd, and nothing else, needs the gradient to the logits alone."""
    return (
        is_gradient_in_forward()
        and _needs_grad_alone(logits, others)
        and logits.dtype != torch.float16  # its gradients need the scale of the upstream gradient
        and is_eager(logits, *others)
    )


def is_eager(*tensors: Tensor | None) -> bool:
    """Return whether nothing but eager autograd sees what is called with these tensors.

    False under saved-tensor hooks, such as those of `torch.utils.checkpoint`, which would not see the gradient.
    """
    return (
        _plain(*tensors)
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor is batched, as in `torch.autograd.grad` with is_grads_batched."""
    return bool(torch._C._dispatch_keys(tensor).has(_BATCHED))


def dispatch_modes() -> int:
    """Return the number of active dispatch modes, such as those of fake tensors or of profilers."""
    return torch._C._len_torch_dispatch_stack()


def _plain(*tensors: Tensor | None) -> bool:
    """Return whether tensors are of no subclass and no compiler, functorch transform or dispatch mode is active."""
    return (
        all(tensor is None or type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not dispatch_modes()
    )


class Step(Function):
    """Node of a loss whose gradient to the logits is computed in `forward`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, parts: Parts) -> Tensor:
        """Return the loss."""
        ctx.gradient, ctx.recompute, ctx.dtype = tk.strides.empty_as(logits), parts.recompute, logits.dtype
        save(ctx, *parts.needed)
        return parts.loss_and_gradient(ctx.gradient)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of `forward` times dloss."""
        gradient, ctx.gradient = ctx.gradient, None
        needed = saved(ctx)  # raises where they were changed in place, or freed
        if torch.is_grad_enabled() or is_batched(dloss) or not _plain(dloss) or not _exact(ctx.dtype, dloss):
            return ctx.recompute(dloss, *needed), None
        if gradient is None:
            gradient = ctx.recompute(torch.ones_like(dloss), *needed)
        if dloss.dim():
            gradient.mul_(dloss.unsqueeze(-1))
        elif dloss.item() != 1:
            gradient.mul_(dloss)
        return gradient, None


def _exact(dtype: torch.dtype, dloss: Tensor) -> bool:
    """Return whether a rounded gradient of a dtype times dloss is rounded as the unrounded one would be."""
    if dloss.dim():
        return dtype in (torch.float32, torch.float64) and bool(dloss.isfinite().all())
    value = dloss.item()
    return math.isfinite(value) if dtype in (torch.float32, torch.float64) else math.frexp(abs(value))[0] == 0.5
