"""Sums and means, and the expansion that is a sum's gradient, as the sum is its."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton_kernels as tk
from lucid._arguments import accepts_axis, check_bool, type_name
from lucid.autograd.function import Function
from lucid.dtype import dtype as DType
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
    makes_view = True

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


@accepts_axis
def sum(
    x: Tensor,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    *,
    dtype: DType | str | None = None,
) -> Tensor:
    """The sum over `dim`, by default over all; of integers in int64. 0 over nothing.

    Parameters
    ----------
    x : Tensor
        Of any dtype, shape and strides. Half precision is summed in float32 and rounded once.
    dim : int or tuple of int, optional
        Dimensions to sum over, also as ``axis``; None, the default, is all.
    keepdim : bool
        Keep them with size 1, also as ``keepdims``.
    dtype : dtype or str, optional
        Dtype that x is converted to first. Default: its own.

    Raises
    ------
    TypeError
        If x is no Tensor, `dim` no integers or `keepdim` no bool.
    IndexError, RuntimeError
        If there is no such dimension, or it is named twice.

    Examples
    --------
    >>> import lucid
    >>> lucid.sum(lucid.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=1)
    tensor([3., 7.])
    """
    dims = dims_of("sum", x, dim)
    x = x if dtype is None else x.to(dtype=dtype)
    return squeeze_dims(scaled_sum(x, dims, 1.0), dims, keepdim)


@accepts_axis
def mean(
    x: Tensor,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    *,
    dtype: DType | str | None = None,
) -> Tensor:
    """The mean over `dim`, by default over all; of integers in float32. NaN over nothing.

    Parameters, errors and precision are those of `sum`.

    Examples
    --------
    >>> import lucid
    >>> lucid.mean(lucid.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=0, keepdim=True)
    tensor([[2., 3.]])
    """
    dims = dims_of("mean", x, dim)
    x = x if dtype is None else x.to(dtype=dtype)
    return squeeze_dims(scaled_sum(as_floating(x), dims, reciprocal(count(x, dims))), dims, keepdim)


def scaled_sum(x: Tensor, dims: tuple[int, ...], scale: float) -> Tensor:
    """scale · Σ over dims, which are kept with size 1."""
    return _Sum.apply(x, dims, scale)


def dims_of(name: str, x: Any, dim: Any) -> tuple[int, ...]:
    """Return the non-negative dimensions that `dim` of a reduction names, all for None; raise unless x has them."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a lucid.Tensor, got {type_name(x)}")
    if dim is None:
        return tuple(range(x.ndim))
    dims = tuple(wrap_dim(x, d) for d in (dim if isinstance(dim, tuple | list) else (dim,)))
    if len(set(dims)) != len(dims):
        raise RuntimeError(f"dim must name each dimension once, got {dim}")
    return dims if x.ndim else ()


def squeeze_dims(y: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Drop reduced dimensions, which a reduction keeps with size 1, unless `keepdim`."""
    keepdim = check_bool("keepdim", keepdim)
    return y if keepdim else reshape(y, [size for d, size in enumerate(y.shape) if d not in dims])


def count(x: Tensor, dims: tuple[int, ...]) -> int:
    """Return the number of elements that are reduced to one."""
    return math.prod(x.shape[d] for d in dims)


def reciprocal(number: float) -> float:
    """Return 1/number, inf if it is not positive: 0·inf is the NaN of 0 / 0."""
    return 1 / number if number > 0 else math.inf


def as_floating(x: Tensor) -> Tensor:
    """Return x, in float32 if it has integers."""
    return x if x.dtype.is_floating_point else to(x, None, float32)
