"""Tensors put together, taken apart into views, and masked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch

from lucid._arguments import accepts_axis, type_name
from lucid.autograd.function import Function
from lucid.dtype import dtype
from lucid.ops.arithmetic import add, le, where
from lucid.ops.indexing import getitem
from lucid.ops.memory import as_int, as_sizes, to, unsqueeze, wrap_dim
from lucid.ops.promotion import Operand
from lucid.tensor import Tensor

__all__ = ["cat", "chunk", "masked_fill", "split", "stack", "tril", "triu", "unbind"]


class _Cat(Function):
    @staticmethod
    def forward(ctx: Any, dim: int, *tensors: Tensor) -> Tensor:
        ctx.dim, ctx.sizes = dim, [tensor.shape[dim] for tensor in tensors]
        return Tensor._wrap(torch.cat([tensor._buffer for tensor in tensors], dim))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *split(grad, ctx.sizes, ctx.dim)


@accepts_axis
def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Return tensors of equal shapes, but along `dim`, one after the other along it; of the promoted dtype.

    Raises
    ------
    TypeError, ValueError
        If `tensors` is no sequence of Tensors, or empty.
    RuntimeError
        If their shapes or devices differ.

    Examples
    --------
    >>> import lucid
    >>> lucid.cat([lucid.tensor([1.0]), lucid.tensor([2.0, 3.0])])
    tensor([1., 2., 3.])
    """
    given = _tensors("cat", tensors)
    at = wrap_dim(given[0], dim)
    for tensor in given:
        others = [list(t.shape) for t in (given[0], tensor)]
        for shape in others:
            del shape[at : at + 1]
        if not tensor.ndim or tensor.ndim != given[0].ndim or others[0] != others[1]:
            shapes = " and ".join(str(t.shape) for t in (given[0], tensor))
            raise RuntimeError(f"tensors of cat must have equal shapes but along dim {dim}, got {shapes}")
    return _Cat.apply(at, *given)


@accepts_axis
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Return tensors of one shape along a new dimension; of the promoted dtype.

    Raises
    ------
    TypeError, ValueError
        If `tensors` is no sequence of Tensors, or empty.
    RuntimeError
        If their shapes or devices differ.

    Examples
    --------
    >>> import lucid
    >>> lucid.stack([lucid.tensor([1.0, 2.0]), lucid.tensor([3.0, 4.0])], 1).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    given = _tensors("stack", tensors)
    for tensor in given:
        if tensor.shape != given[0].shape:
            raise RuntimeError(f"tensors of stack must have one shape, got {given[0].shape} and {tensor.shape}")
    at = wrap_dim(given[0], dim, extra=1)
    return _Cat.apply(at, *(unsqueeze(tensor, at) for tensor in given))


def _tensors(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in the promoted dtype."""
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(f"tensors of {name} must be a sequence of lucid.Tensors, got {type_name(tensors)}")
    if not tensors:
        raise ValueError(f"tensors of {name} must be at least one, got none")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors of {name} must be lucid.Tensors, got {type_name(tensor)}")
        if tensor.device != tensors[0].device:
            raise RuntimeError(f"tensors of {name} must be on one device, got {tensors[0].device} and {tensor.device}")
    promoted = dtype.of(reduce(torch.promote_types, (tensor._like.dtype for tensor in tensors)))
    return [to(tensor, None, promoted) for tensor in tensors]


@accepts_axis
def split(x: Tensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Return views of parts of x along a dimension: of one size but the last, or of sizes that add up to x's.

    Raises
    ------
    TypeError, RuntimeError
        If a size is no integer, or negative; if they do not add up.

    Examples
    --------
    >>> import lucid
    >>> [part.tolist() for part in lucid.split(lucid.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    at = wrap_dim(x, dim)
    if not x.ndim:
        raise RuntimeError("x must have at least one dimension, got shape ()")
    size = x.shape[at]
    if isinstance(split_size, Sequence):
        sizes = as_sizes("split_size", [tuple(split_size)])
    else:
        each = as_int("split_size must be an integer or a sequence of them", split_size)
        if each <= 0:
            raise RuntimeError(f"split_size must be positive, got {split_size}")
        sizes = tuple(min(each, size - start) for start in range(0, max(size, 1), each))
    if sum(sizes) != size or min(sizes, default=0) < 0:
        raise RuntimeError(f"split_size must add up to {size}, the size of dim {dim}, got {split_size}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    before = (slice(None),) * at
    return tuple(getitem(x, (*before, slice(s, s + n))) for s, n in zip(starts, sizes, strict=True))


@accepts_axis
def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Return views of at most `chunks` parts of x along a dimension, of one size but the last.

    Examples
    --------
    >>> import lucid
    >>> [part.tolist() for part in lucid.chunk(lucid.arange(5), 2)]
    [[0, 1, 2], [3, 4]]
    """
    count = as_int("chunks must be an integer", chunks)
    if count <= 0:
        raise RuntimeError(f"chunks must be positive, got {chunks}")
    return split(x, max(1, -(-x.shape[wrap_dim(x, dim)] // count)), dim)


@accepts_axis
def unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Return views of x at each index of a dimension."""
    at = wrap_dim(x, dim)
    if not x.ndim:
        raise RuntimeError("unbind takes a tensor of at least one dimension, got shape ()")
    return tuple(getitem(x, (*(slice(None),) * at, i)) for i in range(x.shape[at]))


def masked_fill(x: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """Return x with a number, or a 0-d Tensor, where a mask of bool_ holds, which broadcasts with x.

    Examples
    --------
    >>> import lucid
    >>> lucid.masked_fill(lucid.tensor([1.0, 2.0]), lucid.tensor([True, False]), -1)
    tensor([-1., 2.])
    """
    if isinstance(value, Tensor) and value.ndim:
        raise RuntimeError(f"value must be a number or a 0-d tensor, got shape {value.shape}")
    if not isinstance(value, Tensor) and not x.dtype.is_floating_point:
        Tensor(value, x.dtype, "cpu")  # raises if x's dtype does not have the number
    return to(where(mask, value, x), None, x.dtype)


def tril(x: Tensor, diagonal: int = 0) -> Tensor:
    """Return x (…, M, N) with zeros above a diagonal: the main one, or so many to the right of it.

    Examples
    --------
    >>> import lucid
    >>> lucid.tril(lucid.ones(2, 2)).tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    return where(lower_triangle(x, diagonal), x, 0)


def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    """Return x (…, M, N) with zeros below a diagonal: the main one, or so many to the right of it.

    Examples
    --------
    >>> import lucid
    >>> lucid.triu(lucid.ones(2, 2)).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    return where(lower_triangle(x, as_int("diagonal must be an integer", diagonal) - 1), 0, x)


def lower_triangle(x: Tensor, diagonal: int = 0) -> Tensor:
    """Return whether elements of a matrix of x (…, M, N) are on or below a diagonal, (M, N)."""
    above = as_int("diagonal must be an integer", diagonal)
    if not isinstance(x, Tensor) or x.ndim < 2:
        got = x.shape if isinstance(x, Tensor) else type_name(x)
        raise RuntimeError(f"x must be a lucid.Tensor of at least two dimensions, got {got}")
    row, column = (Tensor._wrap(torch.arange(size, device=x._like.device)) for size in x.shape[-2:])
    return le(column, add(unsqueeze(row, 1), above))
