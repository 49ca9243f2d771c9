"""Operators of losses of rows of logits: what those of distillation and of cross-entropies share.

A forward operator takes (logits, ...) and returns the loss, the statistics of rows that backward needs, and the factor
of each row's loss in the result, which is empty without a reduction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import triton_kernels as tk
from lucid.torch import cpu
from lucid.torch.loss_and_gradients import LossAndGradients, LossWithGradients, wanted_by_eager_autograd
from lucid.torch.operators import launchers, operator, save, saved


def define(
    name: str,
    arguments: str,
    kernel: Callable[..., Any],
    *,
    tensors: int,
    fake: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[[Any, Tensor], tuple[Tensor | None, ...]],
    error: str,
    loss_and_gradients: Callable[..., LossAndGradients],
    pair: bool = True,
) -> Callable[..., Tensor]:
    """Define ``lucid::NAME``, and for graphs on the CPU ``lucid::NAME_and_gradient``; return the loss.

    Where eager autograd needs a gradient, it is computed with the loss, and so it is in a compiled graph on the CPU.

    Parameters
    ----------
    arguments
        The schema's arguments, of which the first `tensors` are tensors, or None.
    kernel, fake, setup
        Those of `lucid.torch.operators.operator`.
    loss_and_gradients
        Returns the loss with its gradients, from the same arguments.
    backward
        Takes the upstream gradient of the loss and returns gradients to the first arguments.
    error
        Message where the gradient of a compiled graph is to be differentiated.
    pair
        The second tensor may need a gradient, too.
    """
    count = arguments.count(",") + 1

    def padded(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        grads = () if dloss is None else backward(ctx, dloss)
        return *grads, *(None,) * (count - len(grads))

    results = "(Tensor, Tensor, Tensor)"
    forward = operator(f"{name}({arguments}) -> {results}", kernel, fake=fake, setup=setup, backward=padded)
    of_graphs = _operator_of_graphs(
        f"{name}_and_gradient({arguments}) -> {results}",
        count,
        loss_and_gradients,
        lambda *given: fake(*given)[0],
        error,
    )

    def loss(logits: Tensor, *others: Any) -> Tensor:
        given = others[: tensors - 1]
        second, *rest = given if pair else (None, *given)
        if wanted_by_eager_autograd(logits, second, *rest):
            return LossWithGradients.apply(logits, second, loss_and_gradients(logits, *others))
        if _wanted_by_a_graph(logits, *given) and launchers(logits) is cpu:
            return of_graphs(logits, *others)[0]
        return forward(logits, *others)[0]

    return loss


def _wanted_by_a_graph(logits: Tensor, *others: Tensor | None) -> bool:
    """Return whether a graph that is being compiled needs the gradient to the logits alone.

    False for shorter dtypes than float32, whose gradient would be rounded before it is multiplied, and rounded again.
    """
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and logits.dtype in (torch.float32, torch.float64)
        and torch.is_grad_enabled()
        and logits.requires_grad
        and not any(other is not None and other.requires_grad for other in others)
    )


def _operator_of_graphs(
    schema: str,
    count: int,
    loss_and_gradients: Callable[..., LossAndGradients],
    loss_fake: Callable[..., Tensor],
    error: str,
) -> Callable[..., Any]:
    """Define an operator that returns a loss, its gradient to the logits, and the mask of rows that count.

    It is for graphs of the compiler, which have no second derivatives: the gradient is a constant in backward.
    """

    def kernel(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        gradient = tk.strides.empty_as(logits)
        loss, weights = loss_and_gradients(logits, *others).run(gradient, None)
        mask = logits.new_ones(logits.shape[:-1], dtype=torch.bool)
        return loss, gradient, mask if weights is None else (weights != 0).view(mask.shape)

    def fake(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        mask = logits.new_empty(logits.shape[:-1], dtype=torch.bool)
        return loss_fake(logits, *others), fake_like(logits), mask

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        save(ctx, *output[1:])

    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(error)
        if dloss is None:
            return (None,) * count
        gradient, mask = saved(ctx)
        # The gradient of rows that do not count stays 0 where dloss is infinite or NaN.
        g = torch.where(mask, dloss.to(gradient.dtype), 1.0)
        return gradient * g.unsqueeze(-1), *(None,) * (count - 1)

    return operator(schema, kernel, fake=fake, setup=setup, backward=backward, devices=("CPU",))


def reduce_rows(
    losses: Tensor, weights: Tensor | None, normalizer: Tensor | None, reduce: bool, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the loss of rows, and the factor of each row's loss in it: empty, for 1, without a reduction."""
    if not reduce:
        return losses.to(dtype), losses.new_empty(0)
    loss, factor = launchers(losses).token_mean(
        losses, weights=weights, denominator=normalizer, scale=scale, dtype=dtype
    )
    return loss, factor if factor.dtype == losses.dtype else factor.to(losses.dtype)


def save_rows(ctx: Any, output: tuple[Tensor, Tensor, Tensor], reduce: bool, *tensors: Tensor | None) -> None:
    """Save tensors, the statistics of rows, and the factor, or None without a reduction."""
    _, statistics, factor = output
    ctx.needs_grad = ctx.needs_input_grad[:2]
    ctx.mark_non_differentiable(statistics, factor)
    ctx.set_materialize_grads(False)  # no zeros as their gradients
    save(ctx, *tensors, statistics, factor if reduce else None)


def fake_results(logits: Tensor, compute: torch.dtype, statistics: int, reduce: bool, dtype: torch.dtype) -> Any:
    """Return a loss, statistics and factor without values."""
    lead = logits.shape[:-1]
    loss = torch.empty(() if reduce else lead, dtype=dtype, device=logits.device)
    rows = torch.empty((statistics, math.prod(lead)), dtype=compute, device=logits.device)
    return loss, rows, torch.empty(() if reduce else (0,), dtype=compute, device=logits.device)


def fake_like(logits: Tensor) -> Tensor:
    """Return a gradient without values, with the dtype and the order of strides of logits."""
    return tk.strides.fake_output(logits.shape, (logits,), logits.dtype)


def fake_pair(first: Tensor, second: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """Return gradients to two tensors without values; the last two options say which are needed."""
    to_first, to_second = options[-2:]
    return (
        fake_like(first) if to_first else first.new_empty(0),
        fake_like(second) if to_second else first.new_empty(0),
    )
