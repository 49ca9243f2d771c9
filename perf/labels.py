"""The entry of ``cross_entropy`` in the registry: inputs, truth, costs and providers. One loss per row of logits.

Every row has a label and no class has a weight, so mean and batchmean are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as torch_functional

import lucid.nn.functional as lucid_functional
import lucid.torch
from lucid.typing import LabelReduction
from perf.errors import NotOfferedError, require_liger
from triton_kernels.devtools import cost
from triton_kernels.devtools.cost import Cost

if TYPE_CHECKING:
    from perf.cases import Expected, Point, Tensors

REDUCTIONS = ("none", "mean", "sum", "batchmean")


def inputs(point: Point, rows: int, generator: torch.Generator) -> Tensors:
    """Logits, and a label for each row."""
    device = generator.device
    return {
        "x": 3 * torch.randn(rows, point.v, generator=generator, device=device),
        "labels": torch.randint(0, point.v, (rows,), generator=generator, device=device),
    }


def output(point: Point) -> tuple[int, ...]:
    """The shape of the loss."""
    return (point.n,) if point.reduction == "none" else ()


def _reduction(point: Point) -> LabelReduction:
    return "mean" if point.reduction == "batchmean" else point.reduction


def truth(point: Point, tensors: Tensors, dloss: torch.Tensor) -> dict[str, Expected]:
    """Per row: −log q at the label, and its gradient q − [the label] to the logits."""
    x, labels = tensors["x"], tensors["labels"][:, None]
    log_q = x.log_softmax(-1)
    q, size = log_q.exp(), 1 + log_q.abs() + x.abs()
    factor = 1 / point.n if _reduction(point) == "mean" else 1.0
    loss, magnitude = -log_q.gather(-1, labels)[:, 0] * factor, size.gather(-1, labels)[:, 0] * factor
    outer = (dloss[:, None] if dloss.dim() else dloss) * factor
    at_label = torch.zeros_like(x).scatter_(-1, labels, 1.0)
    dx, dx_magnitude = (q - at_label) * outer, (q * size + at_label) * outer.abs()
    if point.reduction != "none":
        loss, magnitude = loss.sum(), magnitude.sum()
    return {"output": (loss, magnitude), "x": (dx, dx_magnitude)}


def forward_cost(point: Point, tensors: Tensors) -> Cost:
    """The least of the forward pass."""
    return cost.cross_entropy_forward(tensors["x"], tensors["labels"], reduce=point.reduction != "none")


def backward_cost(point: Point, tensors: Tensors, dloss: torch.Tensor) -> Cost:
    """The least of the backward pass."""
    return cost.cross_entropy_backward(tensors["x"], tensors["labels"], dloss)


def ours(point: Point) -> Callable[..., Any]:
    """The loss in lucid."""
    return functools.partial(lucid_functional.cross_entropy, reduction=_reduction(point))


def lucid_torch(point: Point) -> Callable[..., Any]:
    """The same for torch's tensors."""
    return functools.partial(lucid.torch.cross_entropy, reduction=_reduction(point))


def in_torch(point: Point) -> Callable[..., Any]:
    """The loss in torch."""
    return functools.partial(torch_functional.cross_entropy, reduction=_reduction(point))


def liger(point: Point) -> Callable[..., Any]:
    """Liger's cross-entropy, which writes the gradient over the logits in the forward pass."""
    require_liger()
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    if point.reduction == "none":
        raise NotOfferedError("Liger's cross_entropy without a reduction has no gradient of its own for each row")
    if point.dtype is torch.float64:
        raise NotOfferedError("Liger's cross_entropy calculates in float32")
    reduction = _reduction(point)
    return lambda x, labels: LigerCrossEntropyFunction.apply(x, labels, None, -100, 0.0, 0.0, reduction)[0]
