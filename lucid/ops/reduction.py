"""Sums and means, and the expansion that is a sum's gradient, as the sum is its."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton_kernels as tk
from lucid._arguments import check_bool
from lucid.autograd.function import Function
from lucid.dtype import float32
from lucid.ops.memory import as_sizes, reshape, to, wrap_dim
from lucid.tensor import Tensor


class _Sum(Function):
    """scale · Σ over dims, which are kept with size 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], scale: float) -> Tensor:
        ctx.shape, ctx.scale = x.shape, scale
        return Tensor._wrap(tk.sum(x._buffer, dims, keepdim=True, scale=scale))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # A sum over no dimension only scales.
        scaled = grad if ctx.scale == 1 else _Sum.apply(grad, (), ctx.scale)
        return _Expand.apply(scaled, ctx.shape), None, None


class _Expand(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.shape = x.shape
        return Tensor._wrap(x._buffer.expand(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return sum_to(grad, ctx.shape), None


def expand(x: Tensor, shape: Sequence[Any]) -> Tensor:
    """Dimensions of size 1 repeated; −1 keeps a size."""
    sizes = as_sizes("shape", shape)
    try:
        wanted = tuple(x._buffer.expand(sizes).shape)
    except RuntimeError:
        raise RuntimeError(f"shape must be one that {x.shape} broadcasts to, got {sizes}") from None
    return _Expand.apply(x, wanted)


def sum_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum over the dimensions along which `shape` was broadcast to x's; the gradient of an expansion."""
    if x.shape == shape:
        return x
    extra = x.ndim - len(shape)
    dims = tuple(d for d in range(x.ndim) if d < extra or (shape[d - extra] == 1 and x.shape[d] != 1))
    return reshape(_Sum.apply(x, dims, 1.0), shape)


def sum(x: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
    """The sum over `dim`, by default over all; of integers in int64."""
    return _reduce(x, _dims(x, dim), keepdim, 1.0)


def mean(x: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
    """The mean over `dim`, by default over all; of integers in float32. NaN over nothing."""
    dims = _dims(x, dim)
    count = math.prod(x.shape[d] for d in dims)
    floating = x if x.dtype.is_floating_point else to(x, None, float32)
    # A sum over nothing is 0, and 0·inf is the NaN of 0 / 0.
    return _reduce(floating, dims, keepdim, 1 / count if count else math.inf)


def _dims(x: Tensor, dim: Any) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(x.ndim))
    dims = tuple(wrap_dim(x, d) for d in (dim if isinstance(dim, tuple | list) else (dim,)))
    if len(set(dims)) != len(dims):
        raise RuntimeError(f"dim must name each dimension once, got {dim}")
    return dims if x.ndim else ()


def _reduce(x: Tensor, dims: tuple[int, ...], keepdim: bool, scale: float) -> Tensor:
    keepdim = check_bool("keepdim", keepdim)
    total = _Sum.apply(x, dims, scale)
    return total if keepdim else reshape(total, [size for d, size in enumerate(x.shape) if d not in dims])
