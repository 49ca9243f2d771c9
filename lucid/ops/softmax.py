"""Softmax and log-softmax."""

from __future__ import annotations

from typing import Any

import triton_kernels as tk
from lucid.autograd.function import Function
from lucid.ops.arithmetic import exp, mul, neg, sub
from lucid.ops.reduction import sum
from lucid.tensor import Tensor


class Softmax(Function):
    """Softmax along a dimension, or log-softmax."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, log: bool) -> Tensor:
        y = Tensor._wrap(tk.softmax_forward(x._buffer, dim, log=log))
        ctx.dim, ctx.log = dim, log
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
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
