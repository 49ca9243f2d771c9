"""The ops that are measured: `OPS`. Adding one is adding a subclass of `Op`.

It says how inputs are made, what is true of them in float64, the least that must be moved, and how each provider is
called. Everything else (modes, timing, counting, checking, tables) is the same for all.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as torch_functional
import triton

import lucid.nn.functional as lucid_functional
import lucid.torch
from perf.errors import UnsupportedError
from triton_kernels.devtools import cost
from triton_kernels.devtools.cost import Cost

Tensors = dict[str, torch.Tensor]
#: A result in float64, and the magnitude of what was added up to get it, to which errors are relative.
Expected = tuple[torch.Tensor, torch.Tensor]
Function = Callable[..., Any]

BETA = 0.5

#: The longest rows, in columns, that are read once by JS and total variation, and by softmax, which has one operand on
#: chip forward and two backward.
WHOLE_ROW, ON_CHIP = 8192, {"forward": 32768, "backward": 16384}


@dataclass(frozen=True, slots=True)
class Point:
    """An op on inputs of n rows and v columns."""

    op: str
    variant: str
    n: int
    v: int
    dtype: torch.dtype
    reduction: Any  # a word that the op takes


class Op(Protocol):
    """An entry of the registry; its defaults are those of losses of rows of logits.

    `inputs` makes so many rows of each input; floating ones are converted to the point's dtype afterwards. `truth`
    takes such rows and dloss, in float64, and gives the result ("output") and the gradient, by its input's name; of a
    reduced result, these rows' share. `costs` are the least forward and backward, from tensors of the meta device.
    `call` gives the function of the inputs in a namespace of functions like lucid.nn.functional; it and those of other
    providers raise an `UnsupportedError` where there is none. `rereads` are bytes that ours may read a second time,
    `statistics` those that it may write and read about rows and their chunks of at least 2,048 columns.
    """

    variants: tuple[str, ...] = ("",)
    reductions: tuple[str, ...] = ("none", "mean", "sum", "batchmean")
    #: The input that gets a gradient.
    differentiable: str = "x"
    #: The most launches that ours may make, forward and backward.
    launches: tuple[int, int] = (4, 1)
    #: Providers that write to the inputs, which are made anew before each step.
    overwriting: tuple[str, ...] = ()
    #: Variants that are fused in lucid only if no one else can write to the inputs' memory.
    needs_private_memory: tuple[str, ...] = ()

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> Tensors: ...
    def truth(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> dict[str, Expected]: ...
    def costs(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> tuple[Cost, Cost]: ...
    def call(self, point: Point, namespace: Any) -> Function: ...

    def shape(self, point: Point) -> tuple[int, ...]:
        return (point.n,) if point.reduction == "none" else ()

    def torch_reference(self, point: Point) -> Function:
        return self.call(point, torch_functional)

    def liger(self, point: Point) -> Function:
        raise UnsupportedError(f"Liger has no {point.op}")

    def rereads(self, point: Point, mode: str) -> int:
        return 0

    def statistics(self, point: Point, mode: str) -> int:
        return point.n * 4 * 16 * (triton.cdiv(point.v, 2048) + (mode != "backward"))

    def function(self, provider: str, point: Point) -> Function:
        """A provider's function of the inputs."""
        if provider == "ours":
            return self.call(point, lucid_functional)
        if provider == "lucid.torch":
            return self.call(point, lucid.torch)
        if provider == "torch":
            return self.torch_reference(point)
        if provider == "compile":
            # Dynamo counts recompilations by code object, over all points, and would fall back to eager mode.
            torch.compiler.reset()
            return torch.compile(self.torch_reference(point), dynamic=False, fullgraph=True)
        if importlib.util.find_spec("liger_kernel") is None:
            raise UnsupportedError('liger-kernel is not installed: pip install ".[perf]"')
        if point.dtype is torch.float64:
            raise UnsupportedError(f"Liger's {point.op} calculates in float32")
        return self.liger(point)


class KLDiv(Op):
    """Pointwise KL divergence from log-probabilities; the target holds probabilities or their logarithms."""

    variants = ("prob", "log")
    launches = (2, 1)

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> Tensors:
        x, target = (_normal(point, rows, generator).log_softmax(-1) for _ in range(2))
        return {"x": x, "target": target if point.variant == "log" else target.exp()}

    def shape(self, point: Point) -> tuple[int, ...]:
        return (point.n, point.v) if point.reduction == "none" else ()

    def truth(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> dict[str, Expected]:
        x, y = tensors["x"], tensors["target"]
        log_target = point.variant == "log"
        p, log_p = (y.exp(), y) if log_target else (y, torch.where(y > 0, y, 1).log())
        scale = _scale(point)
        loss, magnitude = p * (log_p - x) * scale, p * (log_p.abs() + x.abs()) * scale
        dx = -p * dloss * scale
        dx_magnitude = dx.abs()
        if log_target:
            magnitude, dx_magnitude = magnitude + loss.abs() * y.abs(), dx_magnitude * (1 + y.abs())
        return {"output": _reduced(point, loss, magnitude), "x": (dx, dx_magnitude)}

    def costs(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> tuple[Cost, Cost]:
        operands = tensors["x"], tensors["target"]
        backward = cost.kl_div_backward(*operands, dloss, log_target=point.variant == "log")
        return cost.kl_div_forward(*operands, reduce=point.reduction != "none"), backward

    def call(self, point: Point, namespace: Any) -> Function:
        return functools.partial(namespace.kl_div, reduction=point.reduction, log_target=point.variant == "log")

    def liger(self, point: Point) -> Function:
        from liger_kernel.ops.kl_div import LigerKLDivLossFunction

        reduction, log_target = point.reduction, point.variant == "log"
        if log_target and point.dtype.itemsize == 2:
            raise UnsupportedError("Liger's kl_div does not compile for log targets in 16 bits")
        return lambda x, target: LigerKLDivLossFunction.apply(x, target, reduction, log_target)

    def statistics(self, point: Point, mode: str) -> int:
        return 0


class Softmax(Op):
    """Softmax and log-softmax of rows, by the point's op."""

    reductions = ()
    launches = (2, 2)

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> Tensors:
        return {"x": _normal(point, rows, generator)}

    def shape(self, point: Point) -> tuple[int, ...]:
        return (point.n, point.v)

    def truth(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> dict[str, Expected]:
        x = tensors["x"]
        log_y = x.log_softmax(-1)
        y, size = log_y.exp(), 1 + log_y.abs()  # an absolute error of the exponential's argument is a relative one of y
        if point.op == "log_softmax":
            dx = dloss - y * dloss.sum(-1, keepdim=True)
            dx_magnitude = dloss.abs() + y * size * dloss.abs().sum(-1, keepdim=True)
            return {"output": (log_y, log_y.abs() + x.abs()), "x": (dx, dx_magnitude)}
        magnitude, product = y * (size + x.abs()), dloss * y
        dx = product - y * product.sum(-1, keepdim=True)
        dx_magnitude = magnitude * (dloss.abs() + product.abs().sum(-1, keepdim=True))
        return {"output": (y, magnitude), "x": (dx, dx_magnitude)}

    def costs(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> tuple[Cost, Cost]:
        return cost.softmax_forward(tensors["x"]), cost.softmax_backward(tensors["x"], dloss)

    def call(self, point: Point, namespace: Any) -> Function:
        if namespace is lucid.torch:
            raise UnsupportedError(f"lucid.torch leaves {point.op} to torch")
        return functools.partial(getattr(namespace, point.op), dim=-1)

    def liger(self, point: Point) -> Function:
        from liger_kernel.ops.softmax import LigerSoftmaxFunction

        if point.op == "log_softmax":
            return super().liger(point)
        if point.v > 65536:
            raise UnsupportedError("Liger's softmax takes at most 65536 columns")
        function: Function = LigerSoftmaxFunction.apply
        return function

    def rereads(self, point: Point, mode: str) -> int:
        """A longer row is read for its statistics and for its results; of log-softmax's gradient, only dy twice."""
        operands = {"forward": 1, "backward": 1 if point.op == "log_softmax" else 2}
        scale = 4 if point.dtype.itemsize == 8 else 1
        long = [part for part in ON_CHIP if mode in (part, "full") and scale * point.v > ON_CHIP[part]]
        return sum(operands[part] for part in long) * point.n * point.v * point.dtype.itemsize

    def statistics(self, point: Point, mode: str) -> int:
        return 0


class Distillation(Op):
    """Divergences from rows of logits: ``distillation_loss``; without weights, mean is batchmean.

    The variant ``two_line`` is forward KL as the documentation of KLDivLoss writes it, ``kl_div(log_softmax(student),
    softmax(teacher))``.
    """

    variants = ("forward_kl", "two_line", "reverse_kl", "js", "total_variation")
    differentiable = "student"
    launches = (6, 1)
    needs_private_memory = ("two_line",)

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> Tensors:
        """Logits of a student that has learnt something of its teacher."""
        teacher, noise = (_normal(point, rows, generator) for _ in range(2))
        return {"student": 2 * teacher + noise, "teacher": 3 * teacher}

    def truth(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> dict[str, Expected]:
        """Per row: the divergence, and its gradient q·(g − Σ q·g) to the student, where g is that to q."""
        s, t = tensors["student"], tensors["teacher"]
        log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
        q, p = log_q.exp(), log_p.exp()
        size = 1 + log_q.abs() + log_p.abs() + s.abs() + t.abs()
        if point.variant == "total_variation":
            terms, slope = (p - q).abs() / 2, (q - p).sign() / 2
        elif point.variant == "js":
            log_m = _log_mean(log_q, log_p)
            terms = BETA * p * (log_p - log_m) + (1 - BETA) * q * (log_q - log_m)
            slope = (1 - BETA) * (log_q - log_m)
        elif point.variant == "reverse_kl":
            terms, slope = q * (log_q - log_p), log_q - log_p
        else:
            terms, slope = p * (log_p - log_q), None
        ds = q - p if slope is None else q * (slope - (q * slope).sum(-1, keepdim=True))
        scale = _scale(point)
        outer = _column(dloss) * scale
        # What a softmax loses in q and p, and in the sum over q.
        ds_magnitude = ((p + q) * size + q * (q * size).sum(-1, keepdim=True)) * outer.abs()
        loss = _reduced(point, terms.sum(-1) * scale, ((p + q) * size).sum(-1) * scale)
        return {"output": loss, "student": (ds * outer, ds_magnitude)}

    def costs(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> tuple[Cost, Cost]:
        operands = tensors["student"], tensors["teacher"]
        forward = cost.divergence_forward(*operands, reduce=point.reduction != "none")
        return forward, cost.divergence_backward(*operands, dloss)

    def call(self, point: Point, namespace: Any) -> Function:
        reduction = point.reduction
        if point.variant != "two_line":
            options = {"divergence": point.variant, "reduction": reduction}
            options |= {"beta": BETA} if point.variant == "js" else {}
            return functools.partial(namespace.distillation_loss, **options)
        if namespace is lucid.torch:
            raise UnsupportedError("the two-line form runs fused in lucid; lucid.torch has distillation_loss for it")
        _check_two_line(point)
        F = namespace
        return lambda s, t: F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction=reduction)

    def torch_reference(self, point: Point) -> Function:
        _check_two_line(point)
        scale, reduce = _scale(point), point.reduction != "none"

        def kl(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
            return torch_functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)

        def loss(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            if point.variant in ("forward_kl", "two_line") and reduce:
                return torch_functional.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="sum") * scale
            log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
            if point.variant == "js":
                log_m = _log_mean(log_q, log_p)
                rows = BETA * kl(log_m, log_p) + (1 - BETA) * kl(log_m, log_q)
            elif point.variant == "total_variation":
                rows = (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
            else:
                rows = kl(log_p, log_q) if point.variant == "reverse_kl" else kl(log_q, log_p)
            return rows.sum() * scale if reduce else rows

        return loss

    def liger(self, point: Point) -> Function:
        """Liger's JSD, whose ends are the two KL divergences."""
        from liger_kernel.ops.jsd import LigerJSDFunction

        betas = {"forward_kl": 0.0, "two_line": 0.0, "reverse_kl": 1.0, "js": BETA}
        if point.variant not in betas:
            raise UnsupportedError(f"Liger has no {point.variant}")
        if point.reduction not in ("mean", "batchmean") or (point.reduction, point.variant) == ("mean", "two_line"):
            raise UnsupportedError("Liger's JSD divides by the number of rows")
        beta = betas[point.variant]
        return lambda s, t: LigerJSDFunction.apply(s.log_softmax(-1), t.log_softmax(-1), None, beta)

    def rereads(self, point: Point, mode: str) -> int:
        twice = point.variant in ("js", "total_variation") and point.v > WHOLE_ROW and mode != "backward"
        return 2 * point.n * point.v * point.dtype.itemsize if twice else 0


class CrossEntropy(Op):
    """Cross-entropy of rows of logits with labels or, in the variant ``prob``, with class probabilities.

    Every row has a label and no class has a weight, so mean and batchmean are the same.
    """

    variants = ("", "prob")
    overwriting = ("liger",)

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> Tensors:
        x = 3 * _normal(point, rows, generator)
        if point.variant == "prob":
            return {"x": x, "target": _normal(point, rows, generator).softmax(-1)}
        return {"x": x, "target": torch.randint(0, point.v, (rows,), generator=generator, device=generator.device)}

    def truth(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> dict[str, Expected]:
        """Per row: −Σ p·log q, and its gradient q·Σ p − p to the logits."""
        x, p = tensors["x"], tensors["target"]
        if not point.variant:
            p = torch.zeros_like(x).scatter_(-1, p[:, None], 1.0)
        log_q = x.log_softmax(-1)
        size, q = 1 + log_q.abs() + x.abs(), log_q.exp() * p.sum(-1, keepdim=True)
        scale = _scale(point)
        outer = _column(dloss) * scale
        loss = _reduced(point, -(p * log_q).sum(-1) * scale, (p * size).sum(-1) * scale)
        return {"output": loss, "x": ((q - p) * outer, (q * size + p) * outer.abs())}

    def costs(self, point: Point, tensors: Tensors, dloss: torch.Tensor) -> tuple[Cost, Cost]:
        operands, reduce = (tensors["x"], tensors["target"]), point.reduction != "none"
        if point.variant:  # moves what a divergence moves
            return cost.divergence_forward(*operands, reduce=reduce), cost.divergence_backward(*operands, dloss)
        return cost.cross_entropy_forward(*operands, reduce=reduce), cost.cross_entropy_backward(*operands, dloss)

    def call(self, point: Point, namespace: Any) -> Function:
        reduction = "mean" if point.reduction == "batchmean" else point.reduction
        return functools.partial(namespace.cross_entropy, reduction=reduction)

    def liger(self, point: Point) -> Function:
        """Liger's cross-entropy, which writes the gradient over the logits in the forward pass."""
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

        if point.variant:
            raise UnsupportedError("Liger's cross_entropy takes labels, not class probabilities")
        if point.reduction == "none":
            raise UnsupportedError("Liger's cross_entropy without a reduction has no gradient of its own for each row")
        reduction = "mean" if point.reduction == "batchmean" else point.reduction
        return lambda x, target: LigerCrossEntropyFunction.apply(x, target, None, -100, 0.0, 0.0, reduction)[0]


def _normal(point: Point, rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, point.v, generator=generator, device=generator.device)


def _scale(point: Point) -> float:
    per_element = point.reduction == "mean" and (point.op == "kl_div" or point.variant == "two_line")
    size = {"mean": point.n * point.v if per_element else point.n, "batchmean": point.n}.get(point.reduction, 1)
    return 1 / size


def _check_two_line(point: Point) -> None:
    if point.variant == "two_line" and point.reduction == "none":
        raise UnsupportedError("the two-line form without a reduction is one number per element, not per row")


def _column(dloss: torch.Tensor) -> torch.Tensor:
    return dloss[:, None] if dloss.dim() else dloss


def _reduced(point: Point, loss: torch.Tensor, magnitude: torch.Tensor) -> Expected:
    return (loss, magnitude) if point.reduction == "none" else (loss.sum(), magnitude.sum())


def _log_mean(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    return torch.logaddexp(log_p + math.log(BETA), log_q + math.log(1 - BETA))


_SOFTMAX = Softmax()
OPS: dict[str, Op] = {
    "kl_div": KLDiv(),
    "softmax": _SOFTMAX,
    "log_softmax": _SOFTMAX,
    "distillation": Distillation(),
    "cross_entropy": CrossEntropy(),
}
