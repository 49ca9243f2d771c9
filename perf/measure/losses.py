"""The losses that are measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

import lucid.torch
from perf.measure.op import Costs, Function, Op, Point, UnsupportedError, in_backward, normal
from triton_kernels.devtools import cost
from triton_kernels.devtools.cost import Cost

BETA = 0.5

#: What generalized JSDs of other libraries call a divergence.
BETAS = {"forward_kl": 0.0, "two_line": 0.0, "reverse_kl": 1.0, "js": BETA}


def _in_forward(forward: Cost, with_gradient: Cost, x: Tensor, dloss: Tensor) -> Costs:
    """Costs where it may be computed with the loss, for an upstream gradient of 1, which that of a reduced loss is."""
    backward = cost.scale_gradient(x, dloss, one=not dloss.dim())
    return {"forward": forward, "backward": backward, "full": with_gradient + backward}


class KLDiv(Op):
    """Pointwise KL divergence from log-probabilities; the target holds probabilities or their logarithms."""

    variants = ("prob", "log")
    launches: ClassVar = {"forward": 2, "backward": 1, "full": 3}

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        x, target = (normal(point, rows, generator).log_softmax(-1) for _ in range(2))
        return x, target if point.variant == "log" else target.exp()

    def costs(self, point: Point, x: Tensor, y: Any, dloss: Tensor) -> Costs:
        backward = cost.kl_div_backward(x, y, dloss, log_target=point.variant == "log")
        return in_backward(cost.kl_div_forward(x, y, reduce=point.reduction != "none"), backward)

    def call(self, point: Point, namespace: Any) -> Function:
        return partial(namespace.kl_div, reduction=point.reduction, log_target=point.variant == "log")

    def liger(self, point: Point) -> Function:
        from liger_kernel.ops.kl_div import LigerKLDivLossFunction

        if point.variant == "log" and point.dtype.itemsize == 2:
            raise UnsupportedError("Liger's kl_div does not compile for log targets in 16 bits")
        return lambda x, target: LigerKLDivLossFunction.apply(x, target, point.reduction, point.variant == "log")

    def elements(self, point: Point) -> int:
        return point.n * point.v

    def statistics(self, point: Point, mode: str) -> int:
        return 0


class Distillation(Op):
    """Divergences from rows of logits: ``distillation_loss``; without weights, mean is batchmean.

    The variant ``two_line`` is forward KL as the documentation of KLDivLoss writes it, ``kl_div(log_softmax(student),
    softmax(teacher))``, which lucid runs fused.
    """

    variants: tuple[str, ...] = ("forward_kl", "two_line", "reverse_kl", "js", "total_variation")
    private: tuple[str, ...] = ("two_line",)

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Logits of a student that has learnt something of its teacher."""
        teacher, noise = (normal(point, rows, generator) for _ in range(2))
        return 2 * teacher + noise, 3 * teacher

    def costs(self, point: Point, x: Tensor, y: Any, dloss: Tensor) -> Costs:
        loss = partial(cost.divergence_forward, x, y, reduce=point.reduction != "none")
        if self.in_forward(point):
            return _in_forward(loss(), loss(gradient=True), x, dloss)
        return in_backward(loss(), cost.divergence_backward(x, y, dloss))

    def in_forward(self, point: Point) -> bool:
        """A float16 gradient needs the scale of the upstream gradient."""
        return point.dtype is not torch.float16

    def call(self, point: Point, namespace: Any) -> Function:
        if point.variant != "two_line":
            beta = {"beta": BETA} if point.variant == "js" else {}
            return partial(namespace.distillation_loss, divergence=point.variant, reduction=point.reduction, **beta)
        if namespace is lucid.torch:
            raise UnsupportedError("the two-line form runs fused in lucid; lucid.torch has distillation_loss for it")
        if point.reduction == "none":
            raise UnsupportedError("the two-line form without a reduction is one number per element, not per row")
        kl_div, log_softmax, softmax = namespace.kl_div, namespace.log_softmax, namespace.softmax
        return lambda s, t: kl_div(log_softmax(s, -1), softmax(t, -1), reduction=point.reduction)

    def torch(self, point: Point) -> Function:
        if point.variant == "two_line":
            return self.call(point, torch_functional)

        def kl(log_q: Tensor, log_p: Tensor) -> Tensor:
            return torch_functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)

        def rows(s: Tensor, t: Tensor) -> Tensor:
            log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
            if point.variant == "js":
                log_m = torch.logaddexp(log_p + math.log(BETA), log_q + math.log(1 - BETA))
                return BETA * kl(log_m, log_p) + (1 - BETA) * kl(log_m, log_q)
            if point.variant == "total_variation":
                return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
            return kl(log_p, log_q) if point.variant == "reverse_kl" else kl(log_q, log_p)

        if point.reduction == "none":
            return rows
        scale = 1 if point.reduction == "sum" else 1 / point.n
        if point.variant == "forward_kl":
            sum_ = partial(torch_functional.kl_div, reduction="sum")
            return lambda s, t: sum_(s.log_softmax(-1), t.softmax(-1)) * scale
        return lambda s, t: rows(s, t).sum() * scale

    def liger(self, point: Point) -> Function:
        """Liger's JSD, whose ends are the two KL divergences."""
        from liger_kernel.ops.jsd import LigerJSDFunction

        if point.variant not in BETAS:
            raise UnsupportedError(f"Liger has no {point.variant}")
        if point.reduction not in ("mean", "batchmean") or (point.reduction, point.variant) == ("mean", "two_line"):
            raise UnsupportedError("Liger's JSD divides by the number of rows")
        beta = BETAS[point.variant]
        return lambda s, t: LigerJSDFunction.apply(s.log_softmax(-1), t.log_softmax(-1), None, beta)

    def elements(self, point: Point) -> int:
        return point.n * (point.v if point.variant == "two_line" else 1)


class LinearDistillation(Distillation):
    """Divergences from hidden states and weights, ``linear_distillation_loss``; the student's get gradients.

    Inputs are the hidden states of student and teacher, (n, d), and their weights, (v, d), in this order.
    """

    variants = ("forward_kl",)
    private = ()
    from_hidden = True
    differentiated = (0, 2)
    # The loss computes its gradients, so that backward has little to do. forward has the products of logits, full all.
    sweep: ClassVar = {
        "shapes": "linear",
        "dtypes": "bf16",
        "modes": "forward,full",
        "providers": "lucid.torch,torch,compile,liger,trl,products",
    }

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Hidden states of a student that has learnt something of its teacher."""
        teacher, noise = (normal(point, rows, generator) for _ in range(2))
        return teacher + 0.3 * noise, teacher

    def parameters(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Weights that give logits of the size of those of `Distillation`."""
        teacher, noise = (normal(point, rows, generator) / math.sqrt(point.d) for _ in range(2))
        return 2 * teacher + noise, 3 * teacher

    def costs(self, point: Point, x: Tensor, y: Any, dloss: Tensor) -> Costs:
        size, products = point.dtype.itemsize, 2 * point.n * point.v * point.d
        layer = (point.n + point.v) * point.d * size
        forward = Cost(2 * layer, dloss.numel() * size, 2 * products)
        with_gradients = Cost(2 * layer, forward.written + layer, 4 * products)
        if self.in_forward(point):
            return _in_forward(forward, with_gradients, x, dloss)
        return in_backward(forward, Cost(2 * layer + dloss.numel() * size, layer, 4 * products))

    def in_forward(self, point: Point) -> bool:
        """A loss of each row computes its gradients in backward."""
        return super().in_forward(point) and point.reduction != "none"

    def call(self, point: Point, namespace: Any) -> Function:
        loss = partial(namespace.linear_distillation_loss, divergence=point.variant, reduction=point.reduction)
        return lambda s, t, s_weight, t_weight: loss(s, s_weight, t, t_weight)

    def torch(self, point: Point) -> Function:
        """That of logits, which two products give."""
        of_logits = super().torch(point)
        return lambda s, t, s_weight, t_weight: of_logits(s @ s_weight.t(), t @ t_weight.t())

    def liger(self, point: Point) -> Function:
        from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

        if point.reduction not in ("mean", "batchmean"):
            raise UnsupportedError("Liger's JSD divides by the number of rows")
        loss, beta = LigerFusedLinearJSDFunction.apply, BETAS[point.variant]
        return lambda s, t, s_weight, t_weight: loss(s, s_weight, t, t_weight, None, beta)

    def trl(self, point: Point) -> Function:
        """The function that TRL's trainer of distillation calls."""
        try:
            from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
        except ImportError as reason:
            raise UnsupportedError("trl is not installed, or has no chunked divergence") from reason

        if point.dtype is torch.float64:
            raise UnsupportedError("TRL's chunked divergence calculates in float32")
        loss, beta = ChunkedDivergenceFunction.apply, BETAS[point.variant]
        reduce: dict[str, Function] = {"none": torch.clone, "sum": torch.sum}
        reduced = reduce.get(point.reduction, torch.mean)
        return lambda s, t, s_weight, t_weight: reduced(loss(s, s_weight, None, t, t_weight, None, beta)[0])

    def products(self, point: Point) -> Function:
        """Logits of student and teacher; backward, the student's logits take the place of their gradient."""
        shape = (point.n,) if point.reduction == "none" else ()
        return lambda *inputs: _Products.apply(*inputs, shape)


class _Products(torch.autograd.Function):
    """The products of a loss from hidden states; its result is 0."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, s_weight: Tensor, t_weight: Tensor, shape: tuple[int, ...]) -> Tensor:
        logits = torch.mm(s, s_weight.t())
        torch.mm(t, t_weight.t())
        ctx.save_for_backward(s, s_weight, logits)
        return s.new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        s, s_weight, logits = ctx.saved_tensors
        return torch.mm(logits, s_weight), None, torch.mm(logits.t(), s), None, None


class CrossEntropy(Op):
    """Cross-entropy of rows of logits with labels or, in the variant ``prob``, with class probabilities.

    Every row has a label and no class has a weight, so mean and batchmean are the same.
    """

    variants = ("", "prob")
    private = ("liger",)  # writes the gradient over the logits

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        x = 3 * normal(point, rows, generator)
        if point.variant == "prob":
            return x, normal(point, rows, generator).softmax(-1)
        return x, torch.randint(0, point.v, (rows,), generator=generator, device=generator.device)

    def costs(self, point: Point, x: Tensor, y: Any, dloss: Tensor) -> Costs:
        reduce = point.reduction != "none"
        forward: Callable[..., cost.Cost] = cost.cross_entropy_forward
        backward: Callable[..., cost.Cost] = cost.cross_entropy_backward
        if point.variant:  # moves what a divergence moves
            forward, backward = cost.divergence_forward, cost.divergence_backward
        loss = partial(forward, x, y, reduce=reduce)
        if self.in_forward(point):
            return _in_forward(loss(), loss(gradient=True), x, dloss)
        return in_backward(loss(), backward(x, y, dloss))

    def in_forward(self, point: Point) -> bool:
        """Of float16, the gradient is computed in backward."""
        return point.dtype is not torch.float16

    def call(self, point: Point, namespace: Any) -> Function:
        return partial(namespace.cross_entropy, reduction=point.reduction.removeprefix("batch"))

    def liger(self, point: Point) -> Function:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

        if point.variant:
            raise UnsupportedError("Liger's cross_entropy takes labels, not class probabilities")
        if point.reduction == "none":
            raise UnsupportedError("Liger's cross_entropy without a reduction has no gradient of its own for each row")
        options = (None, -100, 0.0, 0.0, point.reduction.removeprefix("batch"))
        return lambda x, target: LigerCrossEntropyFunction.apply(x, target, *options)[0]
