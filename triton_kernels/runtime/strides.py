"""Coalesced iteration over strided, broadcast tensors, as in PyTorch's TensorIterator.

Dimensions are sorted by stride and merged where the strides of all operands allow it, so that contiguous tensors, and
equally permuted ones, become one dimension of stride 1. Kernels index the elements of the merged shape linearly and
compute an offset per operand with `jit.tiles.offsets`, which does not need the outermost size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Strides = tuple[int, ...] | None


class Coalesced(NamedTuple):
    """Iteration over operands with merged dimensions: all sizes but the outermost, and a stride tuple per operand.

    The strides of an operand of a single element are None: it is loaded once, as a scalar.
    """

    inner_sizes: tuple[int, ...]
    strides: tuple[Strides, ...]
    numel: int
    extent: int  # largest offset of an operand, plus 1
    order: tuple[int, ...]  # dimensions of the unmerged shape, outermost in memory first

    @property
    def dims(self) -> int:
        """Number of dimensions after merging."""
        return len(self.inner_sizes) + 1

    def max_offset(self, padding: int) -> int:
        """Return the largest offset or index, if the last program's tile may extend `padding` elements past the end."""
        return max(self.numel + padding, self.extent)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return an uninitialized tensor of the unmerged `shape`, contiguous in iteration order."""
        return _dense(shape, self.order, dtype, device)


def _dense(shape: Sequence[int], order: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    dense = torch.empty([shape[dim] for dim in order], dtype=dtype, device=device)
    if order == tuple(range(len(order))):
        return dense
    return dense.permute(sorted(range(len(order)), key=order.__getitem__))


def empty_as(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return an uninitialized dense tensor of a tensor's shape, with its order of dimensions in memory.

    >>> empty_as(torch.zeros(3, 8).t()[:2]).stride()
    (1, 2)
    """
    return coalesce(tensor.shape, tensor).empty(tensor.shape, dtype or tensor.dtype, tensor.device)


def broadcast(first: Sequence[int], *others: Sequence[int]) -> tuple[int, ...]:
    """Return the broadcast shape; equal shapes, the usual case, skip `torch.broadcast_shapes`, which is slow.

    >>> broadcast((3, 1), (2,))
    (3, 2)
    """
    if all(other == first for other in others):
        return tuple(first)
    return tuple(torch.broadcast_shapes(first, *others))


def coalesce(shape: Sequence[int], *operands: torch.Tensor) -> Coalesced:
    """Merge the dimensions of `shape` for operands that broadcast to it.

    >>> coalesce((4, 6), torch.empty(4, 6), torch.empty(4, 6))[:3]
    ((), ((1,), (1,)), 24)
    >>> coalesce((4, 6), torch.empty(4, 8)[:, :6], torch.empty(1, 1))[:3]
    ((6,), ((8, 1), None), 24)
    """
    numel = math.prod(shape)
    if numel > 1:
        strides = tuple(map(_flat_strides, operands, [shape] * len(operands)))
        if () not in strides:
            return Coalesced((), strides, numel, numel, tuple(range(len(shape))))
    views = [operand if operand.shape == shape else operand.expand(shape) for operand in operands]
    return _merge(shape, [view.stride() for view in views], numel, _memory_order(shape, [v.stride() for v in views]))


def fake_output(shape: Sequence[int], operands: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Return ``coalesce(shape, *operands).empty`` of fake tensors, whose sizes may be symbolic.

    A data-dependent (unbacked) size cannot be compared. The strides are then those for sizes of at least 2, which are
    right for all sizes, since the stride of a dimension of size 1 has no effect.
    """
    device = operands[0].device
    if not any(map(_has_unbacked_size, operands)):
        return coalesce(shape, *operands).empty(shape, dtype, device)
    strides = [operand.expand(shape).stride() for operand in operands]
    return _dense(shape, _memory_order(shape, strides, _is_1_symbolic, _is_smaller_symbolic), dtype, device)


def _has_unbacked_size(operand: torch.Tensor) -> bool:
    if not any(isinstance(value, torch.SymInt) for value in (*operand.shape, *operand.stride())):
        return False
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols  # already imported if sizes are symbolic

    return bool(free_unbacked_symbols(operand))


def _is_1_symbolic(size: int) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(size == 1)


def _is_smaller_symbolic(outer: int, inner: int) -> bool | None:
    from torch.fx.experimental.symbolic_shapes import statically_known_true as known

    if known(outer == 0) or known(inner == 0) or known(outer == inner):
        return None
    # A multiple of a stride is the larger one, for sizes of at least 2.
    for yes, no in ((outer < inner, outer > inner), (inner % outer == 0, outer % inner == 0)):
        if known(yes) or known(no):
            return known(yes)
    return None


def _flat_strides(operand: torch.Tensor, shape: Sequence[int]) -> Strides:
    """Return the strides of an operand that is contiguous, or a single element; () for others."""
    if operand.shape == shape:
        return (1,) if operand.is_contiguous() else ()
    return None if operand.numel() == 1 else ()


def coalesce_dims(dims: Sequence[int], *operands: torch.Tensor) -> Coalesced:
    """Merge only the dimensions `dims` of operands of equal shape, such as the rows of a row operation."""
    sizes = [operands[0].shape[dim] for dim in dims]
    strides = [tuple(operand.stride(dim) for dim in dims) for operand in operands]
    return _merge(sizes, strides, math.prod(sizes), _memory_order(sizes, strides))


def walk_in_order(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> Coalesced:
    """Merge the dimensions of `shape` for operands of these strides, and number its elements in its own order."""
    return _merge(shape, strides, math.prod(shape), tuple(range(len(shape))))


class CoalescedRows(NamedTuple):
    """Iteration over rows, encoded so that their number and strides do not specialize a kernel; see `row_offsets`.

    Triton specializes on integer arguments that are 1 or divisible by 16. Divisibility of row strides decides the width
    of a thread's accesses, and so the order in which `tl.sum` adds. So sizes and strides are encoded as 2·value − 1,
    which is never divisible by 16, and 1 only if the value is. Alignment of rows comes from `unit`, a compile-time
    factor of their strides that `row_unit` derives from all tensors.
    """

    rows: int
    extent: int  # largest offset of a row's first element, plus 1
    sizes: tuple[int, ...]  # encoded sizes of all dimensions but the outermost
    strides: tuple[tuple[int, ...], ...]  # per operand, in units, encoded


def coalesce_rows(
    shape: Sequence[int], strides: Sequence[Sequence[int]], units: Sequence[int], *, in_order: bool = True
) -> CoalescedRows:
    """Merge the dimensions `shape` of rows for operands of these strides, which are multiples of `units`.

    A single row keeps the stride of its innermost dimension, so that it runs the same specialization as many rows.

    >>> coalesce_rows((5,), [(300,)], [1]).strides, coalesce_rows((1,), [(300,)], [1]).strides
    (((599,),), ((599,),))
    >>> coalesce_rows((2, 3), [(64, 16)], [16])
    CoalescedRows(rows=6, extent=97, sizes=(5,), strides=((7, 1),))
    """
    order = tuple(range(len(shape))) if in_order else _memory_order(shape, strides)
    coalesced = _merge(shape, strides, math.prod(shape), order)
    by_operand: list[tuple[int, ...]] = [s or (0,) * coalesced.dims for s in coalesced.strides]
    if all(size == 1 for size in shape):
        by_operand = [(s[-1] if s else 0,) for s in strides]
    encoded = tuple(tuple(2 * (stride // unit) - 1 for stride in s) for s, unit in zip(by_operand, units, strict=True))
    sizes = tuple(2 * size - 1 for size in coalesced.inner_sizes)
    return CoalescedRows(coalesced.numel, coalesced.extent, sizes, encoded)


def row_unit(tensors: Sequence[torch.Tensor], dim: int = -1) -> int:
    """Return 16 if it divides all strides between rows along `dim` of the tensors, else 1.

    Strides of dimensions of size 1 count, so that the result does not depend on the number of rows.

    >>> row_unit([torch.empty(5, 32), torch.empty(5, 64)[:, :32]]), row_unit([torch.empty(1, 33)])
    (16, 1)
    """
    for tensor in tensors:
        strides = list(tensor.stride())
        del strides[dim]
        for stride in strides or [tensor.shape[dim]]:
            if stride % 16:
                return 1
    return 16


def _merge(shape: Sequence[int], strides: Sequence[Sequence[int]], numel: int, order: tuple[int, ...]) -> Coalesced:
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for dim in order:
        size = shape[dim]
        if size == 1:
            continue
        if sizes and all(m[-1] == s[dim] * size for m, s in zip(merged, strides, strict=True)):
            sizes[-1] *= size
            for m, s in zip(merged, strides, strict=True):
                m[-1] = s[dim]
        else:
            sizes.append(size)
            for m, s in zip(merged, strides, strict=True):
                m.append(s[dim])
    extent = 1 + max((_max_offset(sizes, m) for m in merged), default=0)
    by_operand = tuple(tuple(m) if any(m) else None for m in merged)
    return Coalesced(tuple(sizes[1:]), by_operand, numel, extent, order)


def _max_offset(sizes: Sequence[int], strides: Sequence[int]) -> int:
    return sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def _is_1(size: int) -> bool:
    return size == 1


def _is_smaller(outer: int, inner: int) -> bool | None:
    return outer < inner if outer and inner and outer != inner else None


def _memory_order(
    shape: Sequence[int],
    strides: Sequence[Sequence[int]],
    is_1: Callable[[int], bool] = _is_1,
    smaller: Callable[[int, int], bool | None] = _is_smaller,
) -> tuple[int, ...]:
    """Sort dimensions by descending stride, of the first operand whose two strides differ and are not 0."""

    def should_swap(outer: int, inner: int) -> bool:
        for s in strides:
            swap = smaller(s[outer], s[inner])
            if swap is not None:
                return swap
        return False

    order = [dim for dim, size in enumerate(shape) if not is_1(size)]
    # An insertion sort: with strides of 0 the comparison is not transitive, and the given order must be kept then.
    for i in range(1, len(order)):
        for j in range(i, 0, -1):
            if not should_swap(order[j - 1], order[j]):
                break
            order[j - 1], order[j] = order[j], order[j - 1]
    return (*(dim for dim, size in enumerate(shape) if is_1(size)), *order)
