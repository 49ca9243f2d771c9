"""Matrix products."""

from __future__ import annotations

import math
from typing import Any

import triton_kernels as tk
from lucid._arguments import type_name
from lucid.autograd.function import Function
from lucid.ops.memory import permute, reshape
from lucid.ops.reduction import sum
from lucid.tensor import Tensor


class Linear(Function):
    """a (M, K) times b (K, N), plus a bias (N,)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        need_a, need_b, _ = ctx.needs_input_grad
        ctx.save_for_backward(a if need_b else None, b if need_a else None)
        return Tensor._wrap(tk.matmul(a._buffer, b._buffer, None if bias is None else bias._buffer))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        need_a, need_b, need_bias = ctx.needs_input_grad
        da = Linear.apply(grad, permute(b, (1, 0)), None) if need_a else None
        db = Linear.apply(permute(a, (1, 0)), grad, None) if need_b else None
        return da, db, sum(grad, 0) if need_bias else None


def _check(name: str, **tensors: Any) -> None:
    """Raise unless all arguments are Tensors of one floating dtype, on one device."""
    for argument, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{argument} of {name} must be a lucid.Tensor, got {type_name(tensor)}")
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{argument} of {name} must have a floating dtype, got {tensor.dtype}")
    for attribute in ("dtype", "device"):
        values = [getattr(tensor, attribute) for tensor in tensors.values()]
        if any(value != values[0] for value in values):
            arguments, got = " and ".join(tensors), " and ".join(map(str, values))
            raise RuntimeError(f"{arguments} of {name} must have one {attribute}, got {got}")


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (..., M, K) @ b (K, N), or vectors in the place of either."""
    _check("matmul", a=a, b=b)
    if not a.ndim or b.ndim not in (1, 2) or a.shape[-1] != b.shape[0]:
        raise RuntimeError(
            f"matmul takes shapes (..., M, K) and (K, N), or (K,) for either, got {a.shape} and {b.shape}"
        )
    columns = b if b.ndim == 2 else reshape(b, (b.shape[0], 1))
    return reshape(Linear.apply(_as_matrix(a), columns, None), (*a.shape[:-1], *b.shape[1:]))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times the transposed weight (out, in), plus the bias (out,)."""
    _check("linear", x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    if not x.ndim or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"linear takes x (..., in) and weight (out, in), got {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(f"bias of linear must have shape {weight.shape[:1]}, got {bias.shape}")
    product = Linear.apply(_as_matrix(x), permute(weight, (1, 0)), bias)
    return reshape(product, (*x.shape[:-1], weight.shape[0]))


def _as_matrix(x: Tensor) -> Tensor:
    """(..., K) as (M, K)."""
    return reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
