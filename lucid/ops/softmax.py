"""Softmax and log-softmax."""

from __future__ import annotations

from typing import Any

import torch

import triton_kernels as tk
from lucid._lazy import Deferred, can_defer, is_fusion_enabled, realize
from lucid.autograd.function import Function
from lucid.autograd.grad_mode import is_grad_enabled
from lucid.ops.arithmetic import exp, mul, neg, sub
from lucid.ops.reduction import sum
from lucid.ops.scaled import Scaled
from lucid.tensor import Tensor


class SoftmaxOf(Deferred):
    """The softmax, or log-softmax, of x over its last dimension.

    Its sources are logits and x, which is the same, or the logits times `factor`, deferred.
    """

    def __init__(self, logits: torch.Tensor, log: bool, scaled: Scaled | None = None) -> None:
        self.log, self.factor = log, 1.0 if scaled is None else scaled.factor
        super().__init__(logits, logits, logits if scaled is None else scaled)

    def compute(self) -> torch.Tensor:
        return tk.softmax_forward(realize(self.sources()[-1]), -1, log=self.log)


class SoftmaxGradient(Deferred):
    """A gradient to a softmax, where that to what it was made from can be had without it.

    Attributes
    ----------
    softmax : SoftmaxOf
        What it is a gradient to.
    """

    softmax: SoftmaxOf

    def to_input(self) -> torch.Tensor | Deferred:
        """The gradient to what the softmax was made from; while this one is pending."""
        raise NotImplementedError


class Softmax(Function):
    """Softmax along a dimension, or log-softmax."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, log: bool) -> Tensor:
        fusible = dim == x.ndim - 1
        scaled = x._memory if isinstance(x._memory, Scaled) else None
        logits = scaled.sources() if fusible and is_fusion_enabled() and scaled is not None else ()
        if logits:
            y = Tensor._wrap(SoftmaxOf(realize(*logits), log, scaled))
        elif fusible and can_defer(x._buffer):
            tk.backend.check_device(x._buffer.device)
            y = Tensor._wrap(SoftmaxOf(x._buffer, log))
        else:
            y = Tensor._wrap(tk.softmax_forward(x._buffer, dim, log=log))
        ctx.dim, ctx.log = dim, log
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        gradient = None if is_grad_enabled() else dy._memory
        if isinstance(gradient, SoftmaxGradient) and gradient.pending and gradient.softmax is y._memory:
            return Tensor._wrap(gradient.to_input()), None, None
        return SoftmaxBackward.apply(y, dy, ctx.dim, ctx.log), None, None


class SoftmaxBackward(Function):
    """Softmax: dx = y·(dy − Σ dy·y). Log-softmax: dx = dy − exp(y)·Σ dy."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, dy: Tensor, dim: int, log: bool) -> Tensor:
        ctx.dim, ctx.log = dim, log
        ctx.save_for_backward(y, dy)
        return Tensor._wrap(tk.softmax_backward(y._buffer, dy._buffer, dim, log=log))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, dy = ctx.saved_tensors
        dim = ctx.dim if y.ndim else None
        if ctx.log:
            p, total = exp(y), sum(dy, dim, keepdim=True)
            return neg(mul(mul(g, p), total)), sub(g, sum(mul(g, p), dim, keepdim=True)), None, None
        gy = sum(mul(g, y), dim, keepdim=True)
        to_y = sub(mul(g, sub(dy, sum(mul(dy, y), dim, keepdim=True))), mul(dy, gy))
        return to_y, mul(y, sub(g, gy)), None, None


def softmax(x: Tensor, dim: int, *, log: bool = False) -> Tensor:
    """Softmax or log-softmax of a floating tensor along `dim`."""
    return Softmax.apply(x, dim, log)
