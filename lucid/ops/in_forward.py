"""Gradients to logits that are computed with the loss: where, with which factor, and their use in backward."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def loss_factor(
    logits: torch.Tensor,
    weights: Callable[[], torch.Tensor] | None,
    mean: bool,
    normalizer: torch.Tensor | None,
    scale: float,
    dtype: torch.dtype,
    launchers: Any = tk,
) -> tuple[float, torch.Tensor | None]:
    """Return the factor of each row's loss in a reduced one, before losses are known: a number, and a tensor or None.

    Parameters
    ----------
    logits
        (..., V).
    weights
        Returns the weights of rows; None where all rows count once.
    mean
        The sum is divided by that of the weights, unless there is a normalizer.
    normalizer
        0-d divisor of the sum.
    scale
        A number that the sum is multiplied by.
    dtype
        Of the losses.
    launchers
        The namespace of `token_mean`.
    """
    rows = math.prod(logits.shape[:-1])
    if weights is None and normalizer is None:
        return scale / max(rows, 1) if mean else scale, None
    if not (mean or normalizer is not None) or not rows:
        return scale, None
    given = None if weights is None else weights()
    summed = logits.new_empty(0, dtype=dtype) if given is None else given
    return 1.0, launchers.token_mean(summed, weights=given, denominator=normalizer, scale=scale)[1]


def save_gradients(
    ctx: Any,
    logits: tuple[Tensor, ...],
    gradients: tuple[torch.Tensor | None, ...],
    weights: torch.Tensor | None,
    vocab_size: int | None,
    name: str,
    of_rows: tuple[bool, ...] = (True, True),
) -> None:
    """Save gradients to logits, or others, for an upstream gradient of 1, and no logits.

    Parameters
    ----------
    weights
        Of rows; those of weight 0 have a gradient of 0 for any upstream gradient. None: all rows count.
    vocab_size
        Gradients of further columns are 0.
    name
        Of the function, for an error.
    of_rows
        For each gradient, whether it has rows that the weights are of.
    """
    ctx.constants = [_without_memory(tensor) for tensor in logits if tensor.requires_grad], vocab_size, name, of_rows
    ctx.save_for_backward(*(None if x is None else Tensor._wrap(x) for x in (weights, *gradients)))


def scaled_gradients(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    """Return the saved gradients times the upstream gradient; in place, if the graph is not kept."""
    logits, vocab_size, name, of_rows = ctx.constants
    weights, *gradients = ctx.saved_tensors
    of = logits[0] if is_grad_enabled() else None
    in_place = not ctx.keeps_graph
    return tuple(
        None if g is None else _ScaledGradient.apply(g, dloss, of, weights, vocab_size, in_place, name, rows)
        for g, rows in zip(gradients, of_rows, strict=False)
    )


def upstream_of_sums(kernels: Any, dloss: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Return the upstream gradient, 0-d, for what is summed over rows: 1 where none counts, as 0·∞ would be NaN."""
    if counts is None:
        return dloss
    some = kernels.token_mean(counts, weights=counts)[1]  # 0 where none counts
    one = torch.ones(1, dtype=dloss.dtype, device=dloss.device)
    return kernels.scale_gradient(one, dloss, weights=some.view(1)).view(())


def _without_memory(tensor: Tensor) -> Tensor:
    """Return a tensor without elements that is where `tensor` is in the graph; a leaf is itself.

    The values of `tensor` may be overwritten by now: only its dtype and device are used.
    """
    if tensor._node is None:
        return tensor
    placeholder = Tensor._wrap(tensor._like.new_empty(0))
    placeholder._node, placeholder._output_nr = tensor._node, tensor._output_nr
    return placeholder


class _ScaledGradient(Function):
    """A gradient that was computed with the loss, times the upstream gradient; `of` is what it is a gradient to."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        dloss: Tensor,
        of: Tensor | None,
        weights: Tensor | None,
        vocab_size: int | None,
        in_place: bool,
        name: str,
        of_rows: bool,
    ) -> Tensor:
        ctx.name = name
        upstream, counts = dloss._buffer, None if weights is None else weights._buffer
        if not of_rows:
            upstream, counts = upstream_of_sums(tk, upstream, counts), None
        scaled = tk.scale_gradient(
            gradient._buffer,
            upstream,
            weights=counts,
            vocab_size=vocab_size,
            in_place=in_place,
        )
        return Tensor._wrap(scaled)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"{ctx.name} has no second derivatives: its gradients cannot be differentiated")
