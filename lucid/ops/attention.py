"""Scaled dot-product attention."""

from __future__ import annotations

from typing import Any

import triton_kernels as tk
from lucid._flags import get_float32_matmul_precision
from lucid.autograd import is_grad_enabled
from lucid.autograd.function import Function
from lucid.ops.arithmetic import add, eq, mul, sub, where
from lucid.ops.autocast import autocast_operands
from lucid.ops.extremes import amax
from lucid.ops.joining import lower_triangle
from lucid.ops.linear import matmul
from lucid.ops.memory import transpose
from lucid.ops.random import dropout
from lucid.ops.reduction import expand, sum
from lucid.ops.softmax import softmax
from lucid.tensor import Tensor
from triton_kernels.ops.attention import most_columns


class Attention(Function):
    """softmax(scale·q·kᵀ)·v of operands with equal leading dimensions, in one launch."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        ctx.scale, ctx.causal, ctx.tf32 = scale, causal, get_float32_matmul_precision() == "high"
        buffers = (t._buffer for t in (q, k, v))
        out, lse = tk.attention_forward(*buffers, scale=scale, causal=causal, tf32=ctx.tf32)
        result = Tensor._wrap(out)
        ctx.save_for_backward(q, k, v, result, Tensor._wrap(lse))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        if is_grad_enabled():
            return *_gradients(q, k, v, grad, ctx.scale, ctx.causal), None, None
        buffers = (t._buffer for t in (q, k, v, out, lse, grad))
        grads = tk.attention_backward(*buffers, scale=ctx.scale, causal=ctx.causal, tf32=ctx.tf32)
        return *map(Tensor._wrap, grads), None, None


def _gradients(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float, causal: bool) -> tuple[Tensor, ...]:
    """The gradients to q, k and v, of operations that can be differentiated again."""
    p = _probabilities(q, k, None, scale, causal)
    dp = matmul(grad, transpose(v, -2, -1))
    ds = mul(mul(p, sub(dp, sum(mul(dp, p), -1, keepdim=True))), scale)
    return matmul(ds, k), matmul(transpose(ds, -2, -1), q), matmul(transpose(p, -2, -1), grad)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """softmax(scale·q·kᵀ + mask) in memory; a row that sees no key is 0."""
    scores = mul(matmul(q, transpose(k, -2, -1)), scale)
    if causal:
        scores = where(lower_triangle(scores), scores, float("-inf"))
    if mask is None or not scores.numel():
        return softmax(scores, scores.ndim - 1)
    scores = add(scores, mask) if mask.dtype.is_floating_point else where(mask, scores, float("-inf"))
    unseen = eq(amax(scores.detach(), -1, keepdim=True), float("-inf"))
    return where(unseen, 0, softmax(where(unseen, 0, scores), scores.ndim - 1))


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float, causal: bool, scale: float
) -> Tensor:
    """softmax(scale·q·kᵀ + mask)·v; without a mask, dropout and very wide heads, scores are never in memory."""
    q, k, v = autocast_operands(q, k, v)
    lead = tk.strides.broadcast(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    if (
        mask is not None
        or dropout_p
        or not k.shape[-2]
        or max(q.shape[-1], v.shape[-1]) > most_columns(q._buffer.dtype)
    ):
        p = _probabilities(q, k, mask, scale, causal)
        return matmul(dropout(p, dropout_p) if dropout_p else p, v)
    return Attention.apply(*(expand(x, (*lead, *x.shape[-2:])) for x in (q, k, v)), scale, causal)
