"""Indexing by integers, slices, None and Ellipsis, by tensors and arrays of integers, and by masks, in any mixture.

An index is taken apart: a view by what makes one (a slice with a negative step as one with its positive step), the
dimensions of the view that are flipped then, and the tensors that index the view. torch moves the elements. The
gradient adds up where an element was read more than once, in the order of the index, in a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

import triton_kernels as tk
from lucid._arguments import type_name
from lucid.autograd.function import Function
from lucid.ops.memory import as_int, wrap_dim
from lucid.tensor import Tensor

#: For torch: a slice of everything for dimensions that are not indexed.
_ALL = slice(None)


class Index(NamedTuple):
    """An index, taken apart.

    Attributes
    ----------
    view
        Integers, slices of positive steps and None: what makes a view.
    flipped
        Dimensions of the view whose slices had negative steps.
    tensors
        Per dimension of the view, up to the last that is indexed by a tensor: that tensor, or a slice of everything.
    """

    view: tuple[Any, ...]
    flipped: tuple[int, ...]
    tensors: tuple[Any, ...]


def parse(x: Tensor, index: Any) -> Index:
    """Take an index of x apart.

    Raises
    ------
    TypeError
        If a part is of another type, or a tensor of a floating dtype.
    IndexError
        If there are too many parts, an integer is out of range, or a mask does not fit.
    """
    parts = [_part(x, part) for part in (index if isinstance(index, tuple) else (index,))]
    taken = sum(_dims_of(part) for part in parts)
    if parts.count(Ellipsis) > 1 or taken > x.ndim:
        raise IndexError(
            f"index must have at most one Ellipsis and {x.ndim} dimensions for shape {x.shape}, got {index!r}"
        )
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [_ALL] * (x.ndim - taken)
    view: list[Any] = []
    flipped: list[int] = []
    tensors: list[Any] = []
    dim = 0
    for part in parts:
        if part is None:
            view.append(None)
            tensors.append(_ALL)
            continue
        size = x.shape[dim]
        dim += _dims_of(part)
        if isinstance(part, torch.Tensor):
            masked = x.shape[dim - _dims_of(part) : dim]
            if part.dtype is torch.bool and part.shape != masked:
                raise IndexError(
                    f"a mask in an index must have the shape of what it indexes, {masked}, got {tuple(part.shape)}"
                )
            view += [_ALL] * _dims_of(part)
            tensors.append(part)
        elif isinstance(part, slice):
            start, stop, step = part.indices(size)
            if step < 0:
                numbers = range(start, stop, step)
                part = slice(numbers[-1], numbers[0] + 1, -step) if numbers else slice(0, 0)
                flipped.append(sum(entry is None or isinstance(entry, slice) for entry in view))
            view.append(part)
            tensors.append(_ALL)
        else:
            if not -size <= part < size:
                raise IndexError(f"index must fit a tensor of shape {x.shape}, got {index!r}")
            view.append(part)
    while tensors and tensors[-1] is _ALL:
        tensors.pop()
    return Index(tuple(view), tuple(flipped), tuple(tensors))


def _dims_of(part: Any) -> int:
    return 0 if part is None or part is Ellipsis else part.dim() if _is_mask(part) else 1


def _is_mask(part: Any) -> bool:
    return isinstance(part, torch.Tensor) and part.dtype is torch.bool


def _part(x: Tensor, part: Any) -> Any:
    """Return a part of an index as torch has it: tensors on x's device, integers as int64."""
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    if isinstance(part, list | range | np.ndarray):
        part = Tensor(np.asarray(part, np.int64) if not np.size(part) else part, device=x.device)
    if not isinstance(part, Tensor):
        return as_int("index must be made of integers, slices, None, Ellipsis, and tensors of integers or bool_", part)
    if part._like.dtype.is_floating_point:
        raise TypeError(f"index must be of integers or bool_, got a tensor of {part.dtype}")
    if part._like.device != x._like.device and part.ndim:
        raise RuntimeError(f"index must be on the tensor's device {x.device}, got {part.device}")
    buffer = part._buffer
    if buffer.dtype is torch.bool and not part.ndim:
        raise IndexError("a mask in an index must have at least one dimension, got shape ()")
    return buffer if buffer.dtype is torch.bool else buffer.to(x._like.device, torch.int64)


class _View(Function):
    """A view by integers, slices and None."""

    makes_view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: tuple[Any, ...]) -> Tensor:
        ctx.shape, ctx.index = x.shape, index
        return Tensor._wrap(x._buffer[index])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _PutView.apply(grad, ctx.shape, ctx.index), None


class _PutView(Function):
    """Zeros of a shape with a tensor in a view of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], index: tuple[Any, ...]) -> Tensor:
        ctx.index = index
        whole = torch.zeros(shape, dtype=x._like.dtype, device=x._like.device)
        whole[index].copy_(x._buffer)
        return Tensor._wrap(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _View.apply(grad, ctx.index), None, None


class _Flip(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        ctx.dims = dims
        return Tensor._wrap(x._buffer.flip(dims))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Flip.apply(grad, ctx.dims), None


class Take(Function):
    """A copy of what tensors index."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: tuple[Any, ...]) -> Tensor:
        ctx.shape, ctx.index = x.shape, index
        return Tensor._wrap(_taken(x._buffer, index))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _AddAt.apply(grad, ctx.shape, ctx.index), None


class _AddAt(Function):
    """Zeros of a shape, to which a tensor is added at an index."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], index: tuple[Any, ...]) -> Tensor:
        ctx.index = index
        if all(part is _ALL or part.dtype is torch.bool for part in index):  # each element once
            whole = torch.zeros(shape, dtype=x._like.dtype, device=x._like.device)
            whole[index] = x._buffer
            return Tensor._wrap(whole)
        return Tensor._wrap(_added_at(x._buffer, shape, index))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return Take.apply(grad, ctx.index), None, None


class PutAt(Function):
    """x with a value written to its memory at an index."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, index: tuple[Any, ...]) -> Tensor:
        ctx.index = index
        x._buffer_for_write()[index] = value._buffer
        return Tensor._wrap(x._buffer)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_x, need_value, _ = ctx.needs_input_grad
        return (
            _ZeroAt.apply(grad, ctx.index) if need_x else None,
            Take.apply(grad, ctx.index) if need_value else None,
            None,
        )


class _ZeroAt(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: tuple[Any, ...]) -> Tensor:
        ctx.index = index
        copy = x._buffer.clone()
        copy[index] = 0
        return Tensor._wrap(copy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _ZeroAt.apply(grad, ctx.index), None


def _taken(buffer: torch.Tensor, index: tuple[Any, ...]) -> torch.Tensor:
    try:
        return buffer[index]
    except IndexError as error:
        raise IndexError(f"index must fit a tensor of shape {tuple(buffer.shape)}: {error}") from None


def _added_at(grad: torch.Tensor, shape: tuple[int, ...], index: tuple[Any, ...]) -> torch.Tensor:
    """Return zeros of a shape, to which `grad` is added at an index."""
    by_dim: list[torch.Tensor | None] = []
    for part in index:
        # A mask among integers stands for the integers at which it holds.
        of_mask = part is not _ALL and part.dtype is torch.bool
        by_dim += [None] if part is _ALL else part.nonzero(as_tuple=True) if of_mask else [part]
    indexed = [dim for dim, part in enumerate(by_dim) if part is not None]
    kept = [dim for dim in range(len(shape)) if dim not in indexed]
    numbers = torch.broadcast_tensors(*(part for part in by_dim if part is not None))
    count = numbers[0].dim()
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    first = indexed[0] if together else 0  # where torch puts the dimensions of the index
    order = [*range(first, first + count), *range(first), *range(first + count, grad.dim())]
    rows = torch.Size(shape[dim] for dim in indexed)
    width = math.prod(shape[dim] for dim in kept)
    tokens = grad.permute(order).reshape(numbers[0].numel(), width)
    added = tk.scatter_add(_row_numbers(numbers, rows).reshape(1, -1), tokens[None], rows.numel())
    layout = [*indexed, *kept]
    return added.view([shape[dim] for dim in layout]).permute([layout.index(dim) for dim in range(len(shape))])


def _row_numbers(numbers: Sequence[torch.Tensor], sizes: Sequence[int]) -> torch.Tensor:
    """Return Σ number·stride for the strides of contiguous `sizes`; negative numbers count from the end."""
    total = None
    for number, size in zip(numbers, sizes, strict=True):
        below = tk.pointwise("lt", number, 0, dtype=torch.bool, compute=torch.int64)
        from_end = tk.pointwise("add", number, size, dtype=torch.int64)
        wrapped = tk.pointwise("where", below, from_end, number, dtype=torch.int64)
        if total is not None:
            scaled = tk.pointwise("mul", total, size, dtype=torch.int64)
            wrapped = tk.pointwise("add", scaled, wrapped, dtype=torch.int64)
        total = wrapped
    assert total is not None
    return total


def getitem(x: Tensor, index: Any) -> Tensor:
    """Return part of a tensor: a view by integers, slices, None and Ellipsis, else a copy."""
    view, flipped, tensors = parse(x, index)
    result = _View.apply(x, view)
    if flipped:
        result = _Flip.apply(result, flipped)
    return Take.apply(result, tensors) if tensors else result


def flip(x: Tensor, *dims: int | Sequence[int]) -> Tensor:
    """Return a copy with the order of elements reversed along some dimensions, given one by one or as a sequence.

    Examples
    --------
    >>> import lucid
    >>> lucid.flip(lucid.tensor([1.0, 2.0, 3.0]), 0)
    tensor([3., 2., 1.])
    """
    given: Any = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    wanted = tuple(wrap_dim(x, dim, "dims") for dim in given)
    if len(set(wanted)) != len(wanted):
        raise RuntimeError(f"dims must name each dimension once, got {given}")
    return _Flip.apply(x, wanted)


class _Gather(Function):
    """x[i, index[i, j]] along a dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, index: Tensor) -> Tensor:
        ctx.shape, ctx.dim = x.shape, dim
        ctx.save_for_backward(index)
        try:
            return Tensor._wrap(x._buffer.gather(dim, index._buffer.long()))
        except RuntimeError:
            raise IndexError(f"index must lie in 0 to {x.shape[dim] - 1}, the elements along dim {dim}") from None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _GatherBackward.apply(grad, ctx.shape, ctx.dim, ctx.saved_tensors[0]), None, None


class _GatherBackward(Function):
    """Zeros of a shape, to which a tensor is added at the index of a gather."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], dim: int, index: Tensor) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(index)
        lines, numbers = x._buffer.movedim(dim, -1), index._buffer.movedim(dim, -1)
        size = lines.shape[-1]
        if not x.numel():
            return Tensor._wrap(torch.zeros(shape, dtype=lines.dtype, device=lines.device))
        added = tk.scatter_add(numbers.reshape(-1, size), lines.reshape(-1, size, 1), shape[dim])
        added = added.view(*lines.shape[:-1], shape[dim]).movedim(-1, dim)
        if added.shape == shape:
            return Tensor._wrap(added)
        whole = torch.zeros(shape, dtype=added.dtype, device=added.device)
        whole[tuple(slice(n) for n in added.shape)].copy_(added)
        return Tensor._wrap(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Gather.apply(grad, ctx.dim, ctx.saved_tensors[0]), None, None, None


def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return the elements of x at `index` along a dimension, and at their own place along the others.

    Parameters
    ----------
    x : Tensor
    dim : int
    index : Tensor
        Integers of as many dimensions as x, of sizes at most x's along the others; none may be negative.

    Returns
    -------
    Tensor
        Of the index's shape.

    Raises
    ------
    TypeError, RuntimeError
        If the index is no such tensor.
    IndexError
        If an index is out of range, on the CPU; a GPU asserts it, as for torch.

    Examples
    --------
    >>> import lucid
    >>> lucid.gather(lucid.tensor([[1.0, 2.0], [3.0, 4.0]]), 1, lucid.tensor([[1], [0]])).tolist()
    [[2.0], [3.0]]
    """
    at = wrap_dim(x, dim)
    if not isinstance(index, Tensor) or index._like.dtype not in (torch.int32, torch.int64):
        got = index.dtype if isinstance(index, Tensor) else type_name(index)
        raise TypeError(f"index must be a lucid.Tensor of int32 or int64, got {got}")
    if not x.ndim:
        raise RuntimeError("x must have at least one dimension, got shape ()")
    fits = index.ndim == x.ndim and all(
        m <= n for d, (m, n) in enumerate(zip(index.shape, x.shape, strict=True)) if d != at
    )
    if not fits:
        raise RuntimeError(
            f"index must have {x.ndim} dimensions, of at most x's sizes but along dim {dim}, got {index.shape} for x "
            f"{x.shape}"
        )
    return _Gather.apply(x, at, index)
