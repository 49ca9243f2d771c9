"""Layer normalization and normalization by the root mean square."""

from __future__ import annotations

import math
from typing import Any

import triton_kernels as tk
from lucid.autograd import is_grad_enabled
from lucid.autograd.function import Function
from lucid.ops.arithmetic import add, mul, rsqrt, square, sub
from lucid.ops.memory import clone
from lucid.ops.reduction import mean, sum_to
from lucid.tensor import Tensor


class Normalization(Function):
    """(x − mean)·rstd·weight + bias over the last dimensions, in one launch; without a mean if not `centred`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float, centred: bool
    ) -> Tensor:
        shape = x.shape[x.ndim - dims :]
        ctx.dims, ctx.eps, ctx.centred, ctx.columns = dims, eps, centred, math.prod(shape)
        ctx.shapes = [None if p is None else p.shape for p in (weight, bias)]
        ctx.dtypes = [None if p is None else p._like.dtype for p in (weight, bias)]
        vectors = [None if p is None else p._buffer.reshape(-1).contiguous() for p in (weight, bias)]
        out, row_mean, rstd = tk.normalize_forward(x._buffer, *vectors, columns=ctx.columns, eps=eps, centred=centred)
        statistics = (None if t is None else Tensor._wrap(t) for t in (row_mean, rstd))
        ctx.save_for_backward(x, weight, *statistics)
        return Tensor._wrap(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, row_mean, rstd = ctx.saved_tensors
        need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
        if is_grad_enabled():
            return *_gradients(x, weight, grad, ctx, (need_x, need_weight, need_bias)), None, None, None
        vector = None if weight is None else weight._buffer.reshape(-1).contiguous()
        buffers = x._buffer, grad._buffer, vector, None if row_mean is None else row_mean._buffer, rstd._buffer
        dx, *partials = tk.normalize_backward(*buffers, columns=ctx.columns, to_weight=need_weight, to_bias=need_bias)
        sums = [
            None if p is None else Tensor._wrap(tk.sum(p, [0], dtype=dtype).view(shape))
            for p, dtype, shape in zip(partials, ctx.dtypes, ctx.shapes, strict=True)
        ]
        return Tensor._wrap(dx) if need_x else None, *sums, None, None, None


def _gradients(
    x: Tensor, weight: Tensor | None, grad: Tensor, ctx: Any, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients to x, weight and bias, of operations that can be differentiated again."""
    dims = tuple(range(x.ndim - ctx.dims, x.ndim))
    d = sub(x, mean(x, dims, keepdim=True)) if ctx.centred else x
    rstd = rsqrt(add(mean(square(d), dims, keepdim=True), ctx.eps))
    normal = mul(d, rstd)
    g = grad if weight is None else mul(grad, weight)
    dx = sub(g, mul(normal, mean(mul(g, normal), dims, keepdim=True)))
    if ctx.centred:
        dx = sub(dx, mean(g, dims, keepdim=True))
    weight_shape, bias_shape = ctx.shapes
    return (
        mul(dx, rstd) if needs[0] else None,
        sum_to(mul(grad, normal), weight_shape) if needs[1] else None,
        sum_to(grad, bias_shape) if needs[2] else None,
    )


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float, *, centred: bool) -> Tensor:
    """Normalize x over its last `dims` dimensions; weight and bias have their shape."""
    if not x.numel():  # gradients of weight and bias are sums of nothing
        y = clone(x) if weight is None else mul(x, weight)
        return (y if bias is None else add(y, bias)).to(x.dtype)
    return Normalization.apply(x, weight, bias, dims, eps, centred)
