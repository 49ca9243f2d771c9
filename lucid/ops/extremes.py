"""Maxima, minima, their indices, and whether any or all elements are not 0."""

from __future__ import annotations

from typing import Any

import torch

import triton_kernels as tk
from lucid._arguments import accepts_axis
from lucid.autograd.function import Function
from lucid.ops.arithmetic import div, eq, mul, ne
from lucid.ops.reduction import count, dims_of, scaled_sum, squeeze_dims
from lucid.tensor import Tensor

Dims = int | tuple[int, ...] | None


class Extreme(Function):
    """The maximum or minimum over dims, which are kept with size 1; its gradient is divided among equal elements."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], smallest: bool) -> Tensor:
        y = Tensor._wrap(tk.extreme(x._buffer, dims, smallest=smallest, keepdim=True))
        ctx.dims = dims
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        equal = eq(x, y)
        return div(mul(grad, equal), scaled_sum(equal, ctx.dims, 1.0)), None, None


def _dims_of_some(name: str, x: Any, dim: Any) -> tuple[int, ...]:
    """Return dimensions that are not empty."""
    dims = dims_of(name, x, dim)
    if not count(x, dims):
        raise RuntimeError(f"{name} takes at least one element to reduce, got shape {x.shape} and dim {dim}")
    return dims


def extreme(name: str, x: Tensor, dim: Any, keepdim: bool, *, smallest: bool) -> Tensor:
    """The maximum or minimum for the function `name`."""
    dims = _dims_of_some(name, x, dim)
    return squeeze_dims(Extreme.apply(x, dims, smallest), dims, keepdim)


@accepts_axis
def max(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The maximum over `dim`, by default over all; NaN if one is NaN. `argmax` has indices.

    Parameters
    ----------
    x : Tensor
        Of any dtype, shape and strides.
    dim : int or tuple of int, optional
        Dimensions to reduce, also as ``axis``; None, the default, is all.
    keepdim : bool
        Keep them with size 1, also as ``keepdims``.

    Returns
    -------
    Tensor
        Of x's dtype. Its gradient is divided evenly among elements that equal it.

    Raises
    ------
    TypeError
        If x is no Tensor, `dim` no integers or `keepdim` no bool.
    IndexError, RuntimeError
        If there is no such dimension, it is named twice, or there is nothing to reduce.

    Examples
    --------
    >>> import lucid
    >>> lucid.max(lucid.tensor([[1, 5], [4, 2]]), dim=1)
    tensor([5, 4], dtype=lucid.int64)
    """
    return extreme("max", x, dim, keepdim, smallest=False)


@accepts_axis
def min(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The minimum over `dim`, by default over all; NaN if one is NaN. As `max` in all else.

    Examples
    --------
    >>> import lucid
    >>> lucid.min(lucid.tensor([[1, 5], [4, 2]]))
    tensor(1, dtype=lucid.int64)
    """
    return extreme("min", x, dim, keepdim, smallest=True)


amax, amin = max, min


@accepts_axis
def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the first maximum along `dim`, or among all elements in their order; the first NaN is a maximum.

    Parameters
    ----------
    x : Tensor
        Of any dtype, shape and strides.
    dim : int, optional
        A dimension, also as ``axis``; None, the default, is all of them, flattened.
    keepdim : bool
        Keep it, or all, with size 1, also as ``keepdims``.

    Returns
    -------
    Tensor
        Of int64.

    Raises
    ------
    TypeError
        If x is no Tensor, `dim` no integer or `keepdim` no bool.
    IndexError, RuntimeError
        If there is no such dimension, or there is nothing to reduce.

    Examples
    --------
    >>> import lucid
    >>> lucid.argmax(lucid.tensor([[1, 5], [6, 2]])).item()
    2
    """
    return _index("argmax", x, dim, keepdim, smallest=False)


@accepts_axis
def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the first minimum along `dim`, or among all elements; the first NaN is a minimum. As `argmax`.

    Examples
    --------
    >>> import lucid
    >>> lucid.argmin(lucid.tensor([[1, 5], [6, 2]]), dim=0)
    tensor([0, 1], dtype=lucid.int64)
    """
    return _index("argmin", x, dim, keepdim, smallest=True)


def _index(name: str, x: Tensor, dim: Any, keepdim: bool, *, smallest: bool) -> Tensor:
    if isinstance(dim, tuple | list):
        raise TypeError(f"dim of {name} must be an integer or None, got {dim}")
    dims = _dims_of_some(name, x, dim)
    index = tk.extreme_index(x._buffer, dims, smallest=smallest, keepdim=True)
    return squeeze_dims(Tensor._wrap(index), dims, keepdim)


@accepts_axis
def any(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether any element along `dim`, by default of all, is not 0; False for none. Of bool_.

    Examples
    --------
    >>> import lucid
    >>> lucid.any(lucid.tensor([[0, 5], [0, 0]]), dim=1)
    tensor([ True, False], dtype=lucid.bool_)
    """
    return _truth("any", x, dim, keepdim, smallest=False)


@accepts_axis
def all(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether all elements along `dim`, by default of all, are not 0; True for none. Of bool_.

    Examples
    --------
    >>> import lucid
    >>> lucid.all(lucid.tensor([[1, 5], [0, 1]]), dim=0)
    tensor([False, True], dtype=lucid.bool_)
    """
    return _truth("all", x, dim, keepdim, smallest=True)


def _truth(name: str, x: Tensor, dim: Any, keepdim: bool, *, smallest: bool) -> Tensor:
    dims = dims_of(name, x, dim)
    truth = x._buffer if x._buffer.dtype is torch.bool else ne(x, 0)._buffer
    if count(x, dims):
        result = tk.extreme(truth, dims, smallest=smallest, keepdim=True)
    else:
        shape = [1 if d in dims else size for d, size in enumerate(x.shape)]
        result = torch.full(shape, smallest, dtype=torch.bool, device=truth.device)
    return squeeze_dims(Tensor._wrap(result), dims, keepdim)
