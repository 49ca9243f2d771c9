"""Matrix products."""

from __future__ import annotations

import math
from typing import Any

import triton_kernels as tk
from lucid._arguments import type_name
from lucid._flags import get_float32_matmul_precision
from lucid.autograd.function import Function
from lucid.ops.autocast import autocast_operands
from lucid.ops.memory import reshape, transpose
from lucid.ops.reduction import sum, sum_to
from lucid.tensor import Tensor


class Linear(Function):
    """a (…, M, K) times b (…, K, N), plus a bias (N,); leading dimensions broadcast."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        need_a, need_b, _ = ctx.needs_input_grad
        ctx.shapes = a.shape, b.shape
        ctx.save_for_backward(a if need_b else None, b if need_a else None)
        ctx.transposed = not b.is_contiguous()
        buffers = a._buffer, b._buffer, None if bias is None else bias._buffer
        return Tensor._wrap(tk.matmul(*buffers, tf32=get_float32_matmul_precision() == "high"))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        need_a, need_b, need_bias = ctx.needs_input_grad
        a_shape, b_shape = ctx.shapes
        da = db = dbias = None
        if need_a:
            da = sum_to(Linear.apply(grad, transpose(b, -2, -1), None), a_shape)
        if need_b and len(b_shape) == 2:
            # The sum over the batch is a part of the product.
            rows, grads = _as_matrix(a), _as_matrix(grad)
            if ctx.transposed:  # as the weight of a layer: its gradient is to lie in memory as it does
                db = transpose(Linear.apply(transpose(grads, 0, 1), rows, None), 0, 1)
            else:
                db = Linear.apply(transpose(rows, 0, 1), grads, None)
        elif need_b:
            db = sum_to(Linear.apply(transpose(a, -2, -1), grad, None), b_shape)
        if need_bias:
            dbias = sum(grad, tuple(range(grad.ndim - 1)))
        return da, db, dbias


def _as_matrix(x: Tensor) -> Tensor:
    """(…, K) as (M, K)."""
    return reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _check(name: str, **tensors: Any) -> None:
    """Raise unless all arguments are Tensors of one floating dtype, on one device."""
    for argument, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{argument} of {name} must be a lucid.Tensor, got {type_name(tensor)}")
        if not tensor._like.dtype.is_floating_point:
            raise TypeError(f"{argument} of {name} must have a floating dtype, got {tensor.dtype}")
    for attribute in ("dtype", "device"):
        if len({getattr(tensor._like, attribute) for tensor in tensors.values()}) > 1:
            arguments = " and ".join(tensors)
            got = " and ".join(str(getattr(tensor, attribute)) for tensor in tensors.values())
            raise RuntimeError(f"{arguments} of {name} must have one {attribute}, got {got}")


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix products a @ b of the last two dimensions, over leading dimensions that broadcast.

    Sums are accumulated in float32, or float64 for float64, and rounded once. Products of float32 are exact unless
    `set_float32_matmul_precision` allows tf32.

    Parameters
    ----------
    a : Tensor
        (…, M, K), or a vector (K,), which is a row.
    b : Tensor
        (…, K, N), or a vector (K,), which is a column. Of a's floating dtype; any strides, of which no copy is made.

    Returns
    -------
    Tensor
        (…, M, N), without the dimension of a vector.

    Raises
    ------
    TypeError
        If one is no Tensor, or not floating.
    RuntimeError
        If dtypes, devices or shapes do not fit.

    Examples
    --------
    >>> import lucid
    >>> a, b = lucid.ones(5, 1, 2, 3), lucid.ones(4, 3, 2)
    >>> lucid.matmul(a, b).shape
    (5, 4, 2, 2)
    """
    a, b = autocast_operands(a, b)
    _check("matmul", a=a, b=b)
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise RuntimeError(
            f"matmul takes shapes (..., M, K) and (..., K, N), or (K,) for either, got {a.shape} and {b.shape}"
        )
    rows = a if a.ndim > 1 else reshape(a, (1, *a.shape))
    columns = b if b.ndim > 1 else reshape(b, (*b.shape, 1))
    try:
        lead = tk.strides.broadcast(rows.shape[:-2], columns.shape[:-2])
    except RuntimeError:
        raise RuntimeError(
            f"matmul takes leading dimensions that broadcast, got shapes {a.shape} and {b.shape}"
        ) from None
    product = Linear.apply(rows, columns, None)
    if a.ndim > 1 and b.ndim > 1:
        return product
    return reshape(product, (*lead, *rows.shape[-2:-1][: a.ndim - 1], *columns.shape[-1:][: b.ndim - 1]))


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Matrix products of a batch, a (B, M, K) @ b (B, K, N); `matmul` without broadcasting.

    Raises
    ------
    RuntimeError
        If one is not 3-D, or the batches differ, and as `matmul`.

    Examples
    --------
    >>> import lucid
    >>> lucid.bmm(lucid.ones(2, 1, 3), lucid.ones(2, 3, 1)).tolist()
    [[[3.0]], [[3.0]]]
    """
    a, b = autocast_operands(a, b)
    _check("bmm", a=a, b=b)
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise RuntimeError(f"bmm takes shapes (B, M, K) and (B, K, N), got {a.shape} and {b.shape}")
    return Linear.apply(a, b, None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times the transposed weight (out, in), plus the bias (out,)."""
    x, weight, bias = autocast_operands(x, weight, bias)
    _check("linear", x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    if not x.ndim or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"linear takes x (..., in) and weight (out, in), got {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(f"bias of linear must have shape {weight.shape[:1]}, got {bias.shape}")
    rows = x if x.ndim > 1 else reshape(x, (1, *x.shape))
    product = Linear.apply(rows, transpose(weight, 0, 1), bias)
    return product if x.ndim > 1 else reshape(product, weight.shape[:1])
