"""The entry of divergences from logits: inputs, truth, costs and providers of ``distillation`` in the registry.

The variant ``two_line`` is forward KL as the documentation of KLDivLoss writes it, ``kl_div(log_softmax(student),
softmax(teacher))``; the others are `distillation_loss`. One loss per row; without weights, mean is batchmean.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as torch_functional

import lucid.nn.functional as lucid_functional
import lucid.torch
from perf.errors import NotOfferedError, require_liger
from triton_kernels.devtools import cost
from triton_kernels.devtools.cost import Cost

if TYPE_CHECKING:
    from perf.cases import Expected, Point, Tensors

VARIANTS = ("forward_kl", "two_line", "reverse_kl", "js", "total_variation")
REDUCTIONS = ("none", "mean", "sum", "batchmean")
BETA = 0.5

#: The longest rows, in columns, that are looked at as a whole; JS and total variation look at longer ones twice.
WHOLE_ROW = 8192


def inputs(point: Point, rows: int, generator: torch.Generator) -> Tensors:
    """Logits of a student that has learnt something of its teacher."""
    teacher, noise = (torch.randn(rows, point.v, generator=generator, device=generator.device) for _ in range(2))
    return {"student": 2 * teacher + noise, "teacher": 3 * teacher}


def output(point: Point) -> tuple[int, ...]:
    """The shape of the loss."""
    return (point.n,) if point.reduction == "none" else ()


def _scale(point: Point) -> float:
    if point.reduction == "mean" and point.variant == "two_line":
        return 1 / (point.n * point.v)
    return 1 / point.n if point.reduction in ("mean", "batchmean") else 1.0


def truth(point: Point, tensors: Tensors, dloss: torch.Tensor) -> dict[str, Expected]:
    """Per row: the divergence, and its gradient q·(g − Σ q·g) to the student, where g is that to q."""
    s, t = tensors["student"], tensors["teacher"]
    log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    size = 1 + log_q.abs() + log_p.abs() + s.abs() + t.abs()
    if point.variant in ("forward_kl", "two_line"):
        terms, ds = p * (log_p - log_q), q - p
    elif point.variant == "total_variation":
        terms = (p - q).abs() / 2
        slope = (q - p).sign() / 2
        ds = q * (slope - (q * slope).sum(-1, keepdim=True))
    else:
        if point.variant == "js":
            log_m = torch.logaddexp(log_p + math.log(BETA), log_q + math.log(1 - BETA))
            terms = BETA * p * (log_p - log_m) + (1 - BETA) * q * (log_q - log_m)
            slope = (1 - BETA) * (log_q - log_m)
        else:
            terms, slope = q * (log_q - log_p), log_q - log_p
        ds = q * (slope - (q * slope).sum(-1, keepdim=True))
    factor = _scale(point)
    loss, magnitude = terms.sum(-1) * factor, ((p + q) * size).sum(-1) * factor
    outer = (dloss[:, None] if dloss.dim() else dloss) * factor
    # What a softmax loses in q and p, and in the sum over q.
    ds_magnitude = ((p + q) * size + q * (q * size).sum(-1, keepdim=True)) * outer.abs()
    if point.reduction != "none":
        loss, magnitude = loss.sum(), magnitude.sum()
    return {"output": (loss, magnitude), "student": (ds * outer, ds_magnitude)}


def forward_cost(point: Point, tensors: Tensors) -> Cost:
    """The least of the forward pass."""
    return cost.divergence_forward(tensors["student"], tensors["teacher"], reduce=point.reduction != "none")


def backward_cost(point: Point, tensors: Tensors, dloss: torch.Tensor) -> Cost:
    """The least of the backward pass."""
    return cost.divergence_backward(tensors["student"], tensors["teacher"], dloss)


def rereads(point: Point, mode: str) -> int:
    """What a second look at long rows reads."""
    twice = point.variant in ("js", "total_variation") and point.v > WHOLE_ROW and mode != "backward"
    return 2 * point.n * point.v * point.dtype.itemsize if twice else 0


def statistics(point: Point, mode: str) -> int:
    """Bytes of the numbers kept of rows and of their chunks of at least 2,048 columns."""
    chunks = -(-point.v // 2048)
    return point.n * 4 * (16 + 16 * chunks if mode != "backward" else 16 * chunks)


def ours(point: Point) -> Callable[..., Any]:
    """lucid's."""
    reduction = point.reduction
    if point.variant == "two_line":
        _needs_reduction(point)
        return lambda s, t: lucid_functional.kl_div(
            lucid_functional.log_softmax(s, -1), lucid_functional.softmax(t, -1), reduction=reduction
        )
    options = _options(point)
    return lambda s, t: lucid_functional.distillation_loss(s, t, **options)


def lucid_torch(point: Point) -> Callable[..., Any]:
    """The same for torch's tensors."""
    if point.variant == "two_line":
        raise NotOfferedError("the two-line form runs fused in lucid; lucid.torch has distillation_loss for it")
    return functools.partial(lucid.torch.distillation_loss, **_options(point))


def _options(point: Point) -> dict[str, Any]:
    beta = {"beta": BETA} if point.variant == "js" else {}
    return {"divergence": point.variant, "reduction": point.reduction, **beta}


def _needs_reduction(point: Point) -> None:
    if point.reduction == "none":
        raise NotOfferedError("the two-line form without a reduction is one number per element, not per row")


def torchs(point: Point) -> Callable[..., Any]:
    """What is usually written with torch."""
    if point.variant == "two_line":
        _needs_reduction(point)
    factor, reduce = _scale(point), point.reduction != "none"

    def kl(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        return torch_functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)

    def loss(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if point.variant in ("forward_kl", "two_line") and reduce:
            total = torch_functional.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="sum")
            return total * factor
        log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
        if point.variant == "forward_kl":
            rows = kl(log_q, log_p)
        elif point.variant == "reverse_kl":
            rows = kl(log_p, log_q)
        elif point.variant == "js":
            log_m = torch.logaddexp(log_p + math.log(BETA), log_q + math.log(1 - BETA))
            rows = BETA * kl(log_m, log_p) + (1 - BETA) * kl(log_m, log_q)
        else:
            rows = (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
        return rows.sum() * factor if reduce else rows

    return loss


def liger(point: Point) -> Callable[..., Any]:
    """Liger's JSD, whose ends are the two KL divergences."""
    require_liger()
    from liger_kernel.ops.jsd import LigerJSDFunction

    betas = {"forward_kl": 0.0, "two_line": 0.0, "reverse_kl": 1.0, "js": BETA}
    if point.variant not in betas:
        raise NotOfferedError(f"Liger has no {point.variant}")
    if point.reduction not in ("mean", "batchmean") or (point.reduction, point.variant) == ("mean", "two_line"):
        raise NotOfferedError("Liger's JSD divides by the number of rows")
    if point.dtype is torch.float64:
        raise NotOfferedError("Liger's JSD calculates in float32")
    beta = betas[point.variant]
    return lambda s, t: LigerJSDFunction.apply(s.log_softmax(-1), t.log_softmax(-1), None, beta)
