"""Losses of rows of logits whose gradient is computed with the loss, for eager autograd.

The graph keeps the gradient for an upstream gradient of 1, and no logits. Backward multiplies it with the upstream
gradient: in place and for nothing where that is 1, in a new tensor if the graph is kept for another backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

import triton_kernels as tk
from lucid._clobbered import mark_overwritten
from lucid.ops.in_forward import in_forward
from lucid.torch import eager
from lucid.torch.operators import launchers

#: Returns the loss, and the weights of rows, or None where all rows count. Writes the gradients, for an upstream
#: gradient of 1, to tensors of the shapes of the first and of the second argument of the loss; None: not wanted.
Run = Callable[[Tensor | None, Tensor | None], tuple[Tensor, Tensor | None]]


class LossAndGradients(NamedTuple):
    """A loss with its gradients.

    Attributes
    ----------
    run
        Computes them. It has the logits, so the graph does not keep it.
    error
        Message where a gradient is to be differentiated.
    vocab_size
        Gradients of further columns are 0.
    in_place
        Write the gradient to the first argument over it.
    """

    run: Run
    error: str
    vocab_size: int | None = None
    in_place: bool = False


def wanted_by_eager_autograd(first: Tensor, second: Tensor | None, *others: Tensor | None) -> bool:
    """Return whether eager autograd, and nothing else, needs a gradient to the first or the second tensor alone."""
    return (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and in_forward(*(x if x is not None and x.requires_grad else None for x in (first, second)))
        and first.device.type in ("cpu", "cuda")
        and not any(other is not None and other.requires_grad for other in others)
        and eager.is_eager(first, second, *others)
    )


class LossWithGradients(Function):
    """Node of a loss whose gradients are computed in `forward`."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor | None, of: LossAndGradients) -> Tensor:
        to_first, to_second = ctx.needs_input_grad[:2]
        d_first = d_second = None
        if to_first:
            d_first = first if of.in_place else tk.strides.empty_as(first)
        if to_second and second is not None:
            d_second = tk.strides.empty_as(second)
        # Of the logits, without their memory; before these change, since some views are not differentiable then.
        with torch.enable_grad():
            ctx.of = next(x[:0].clone() for x in (first, second) if x is not None and x.requires_grad)
        loss, weights = of.run(d_first, d_second)
        kernels = launchers(first)
        ctx.scale, ctx.error = partial(scaled, kernels.scale_gradient, vocab_size=of.vocab_size), of.error
        if d_first is first:
            if kernels is tk:  # torch's own operators count what they write
                torch.autograd.graph.increment_version(first)
            mark_overwritten(first)
            d_first = first.detach()  # of the same version: a change before backward is an error there
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(d_first, d_second, weights)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None) -> tuple[Tensor | None, ...]:
        d_first, d_second, weights = ctx.saved_tensors
        if dloss is None:
            return None, None, None
        if torch.is_grad_enabled():
            grads = (
                None if d is None else NotDifferentiable.apply(d, dloss, weights, ctx.of, ctx.scale, ctx.error)
                for d in (d_first, d_second)
            )
            return *grads, None
        in_place = not torch._C._autograd._get_current_graph_task_keep_graph()
        grads = (None if d is None else ctx.scale(d, dloss, weights, in_place=in_place) for d in (d_first, d_second))
        return *grads, None


class NotDifferentiable(Function):
    """A gradient that can be computed under create_graph=True, for other terms of a loss."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        dloss: Tensor,
        weights: Tensor | None,
        _: Tensor,
        scale: Callable[..., Tensor],
        error: str,
    ) -> Tensor:
        ctx.error = error
        return scale(gradient, dloss, weights, in_place=False)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(ctx.error)


def scaled(
    scale_gradient: Callable[..., Tensor],
    gradient: Tensor,
    dloss: Tensor,
    weights: Tensor | None,
    *,
    vocab_size: int | None,
    in_place: bool,
) -> Tensor:
    """Return a gradient times the upstream gradient; rows of weight 0, and unused columns, keep theirs, which is 0."""
    if eager.is_eager(dloss) and not eager.is_batched(dloss):
        return scale_gradient(gradient, dloss, weights=weights, vocab_size=vocab_size, in_place=in_place)
    g = dloss.to(tk.launch.compute_dtype(gradient.dtype))
    if weights is not None:
        g = torch.where(weights.view(gradient.shape[:-1]) == 0, 1.0, g)
    scaled = (gradient * g.unsqueeze(-1)).to(gradient.dtype)
    if vocab_size is not None and vocab_size < gradient.shape[-1]:
        scaled = torch.where(torch.arange(gradient.shape[-1], device=gradient.device) < vocab_size, scaled, gradient)
    return scaled
