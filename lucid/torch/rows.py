"""What operators of losses of rows of logits share: the reduction, results without values, gradients made at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import triton_kernels as tk
from lucid.torch.cpu.divergence import empty_as
from lucid.torch.cpu.step import Parts
from lucid.torch.operators import launchers, operator
from lucid.torch.saving import save, saved


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
    return tk.strides.fake_output(logits.shape, (logits,), dtype)


def with_gradient(
    schema: str, parts: Callable[..., Parts], loss_fake: Callable[..., Tensor], error: str
) -> Callable[..., Any]:
    """Define an operator of CPU tensors (logits, ...): a loss, its gradient to the logits, and which rows count.

    It is for graphs of the compiler, which have no second derivatives: the gradient is a constant in backward.

    Parameters
    ----------
    schema
        ``NAME(arguments)``.
    parts
        Gives what the loss of the arguments consists of.
    loss_fake
        Gives the loss without values.
    error
        What is said where backward is to be differentiated.
    """
    count = schema.count(",") + 1

    def kernel(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        of = parts(logits, *arguments)
        gradient = empty_as(logits, logits.dtype)
        loss = of.loss_and_gradient(gradient)
        counts = logits.new_ones(logits.shape[:-1], dtype=torch.bool)
        return loss, gradient, counts if of.counts is None else of.counts().view(counts.shape)

    def fake(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        counts = logits.new_empty(logits.shape[:-1], dtype=torch.bool)
        return loss_fake(logits, *arguments), fake_like(logits, logits.dtype), counts

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        save(ctx, *output[1:])

    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(error)
        if dloss is None:
            return (None,) * count
        gradient, counts = saved(ctx)
        # The gradient is 0 in rows that do not count, and so it stays where dloss is infinite or NaN.
        g = torch.where(counts, dloss.to(gradient.dtype), 1.0)
        return gradient * g.unsqueeze(-1), *(None,) * (count - 1)

    return operator(
        f"{schema} -> (Tensor, Tensor, Tensor)", kernel, fake=fake, setup=setup, backward=backward, devices=("CPU",)
    )
