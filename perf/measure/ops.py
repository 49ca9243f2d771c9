"""The ops that are measured: `OPS`, and those that are no loss. Adding one is adding a subclass of `Op`.

It says how inputs are made, the expression in torch that is its truth and its rival, the least that must be moved, and
how each provider is called. Everything else (modes, timing, counting, checking, tables) is the same for all.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import torch
import triton
from torch import Tensor

import lucid.torch
from perf.measure.losses import CrossEntropy, Distillation, KLDiv, LinearDistillation
from perf.measure.op import Costs, Function, Op, Point, UnsupportedError, in_backward, normal
from triton_kernels.devtools import cost
from triton_kernels.devtools.cost import Cost


class _NoLoss(Op):
    """An op of the facade alone, that has a result of many elements."""

    reductions = ()

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (normal(point, rows, generator),)

    def call(self, point: Point, namespace: Any) -> Function:
        if namespace is lucid.torch:
            raise UnsupportedError(f"lucid.torch leaves {point.op} to torch")
        return self.of(point, namespace)

    def of(self, point: Point, namespace: Any) -> Function:
        """The function of the inputs in lucid.nn.functional or torch.nn.functional."""
        raise NotImplementedError


class Softmax(_NoLoss):
    """Softmax and log-softmax of rows, by the point's op."""

    launches: ClassVar = {"forward": 2, "backward": 2, "full": 4}

    def costs(self, point: Point, x: Tensor, y: Any, dloss: Tensor) -> Costs:
        return in_backward(cost.softmax_forward(x), cost.softmax_backward(x, dloss))

    def of(self, point: Point, namespace: Any) -> Function:
        return partial(getattr(namespace, point.op), dim=-1)

    def liger(self, point: Point) -> Function:
        from liger_kernel.ops.softmax import LigerSoftmaxFunction

        if point.op == "log_softmax":
            return super().liger(point)
        if point.v > 65536:
            raise UnsupportedError("Liger's softmax takes at most 65536 columns")
        function: Function = LigerSoftmaxFunction.apply
        return function

    def statistics(self, point: Point, mode: str) -> int:
        size, columns = (8, 2048) if point.dtype is torch.float64 else (4, 4096)
        chunks = triton.cdiv(point.v, columns)
        return 2 * point.n * size * 2 * chunks * (chunks + 1) if point.v > 2 * columns else 0


class Pointwise(_NoLoss):
    """An operation of each element: gelu of x, or the product of x and y; x gets a gradient."""

    variants = ("gelu", "mul")
    launches: ClassVar = {"forward": 1, "backward": 1, "full": 2}
    sweep: ClassVar = Op.sweep | {"modes": "forward,backward", "providers": "ours,torch,compile"}

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(normal(point, rows, generator) for _ in range(1 if point.variant == "gelu" else 2))

    def costs(self, point: Point, x: Tensor, y: Any, dloss: Tensor) -> Costs:
        size = cost.distinct_bytes(x)
        if point.variant == "mul":
            return in_backward(Cost(2 * size, size, x.numel()), Cost(2 * size, size, x.numel()))
        # x Φ(x), Φ(x) = (1 + erf(x / √2)) / 2; its derivative Φ(x) + x exp(−x² / 2) / √(2π), times dloss
        return in_backward(Cost(size, size, 5 * x.numel()), Cost(2 * size, size, 11 * x.numel()))

    def of(self, point: Point, namespace: Any) -> Function:
        function: Function = namespace.gelu if point.variant == "gelu" else lambda x, y: x * y
        return function

    def statistics(self, point: Point, mode: str) -> int:
        return 0


class Matmul(_NoLoss):
    """x · weightᵀ, x of shape (n, d) and weight of (v, d); both get gradients."""

    from_hidden = True
    differentiated = (0, 1)
    launches: ClassVar = {"forward": 1, "backward": 2, "full": 3}
    sweep: ClassVar = {
        "shapes": "matmul",
        "dtypes": "bf16,fp32",
        "modes": "forward,backward",
        "providers": "ours,torch",
    }

    def parameters(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (normal(point, rows, generator) / math.sqrt(point.d),)

    def costs(self, point: Point, x: Tensor, y: Any, dloss: Tensor) -> Costs:
        operands, result = cost.distinct_bytes(x) + cost.distinct_bytes(y), cost.distinct_bytes(dloss)
        products = 2 * point.n * point.v * point.d
        return in_backward(Cost(operands, result, products), Cost(operands + result, operands, 2 * products))

    def of(self, point: Point, namespace: Any) -> Function:
        function: Function = namespace.linear
        return function

    def products(self, point: Point) -> Function:
        raise UnsupportedError("matmul is a matrix product: compare it with torch")

    def statistics(self, point: Point, mode: str) -> int:
        return 0


OPS: dict[str, Op] = {
    "kl_div": KLDiv(),
    "softmax": Softmax(),
    "log_softmax": Softmax(),
    "distillation": Distillation(),
    "linear_distillation": LinearDistillation(),
    "cross_entropy": CrossEntropy(),
    "pointwise": Pointwise(),
    "matmul": Matmul(),
}
