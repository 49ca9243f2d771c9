"""How kernels walk over strided, broadcast tensors without copying them.

The dimensions of all operands are ordered by memory and merged wherever every operand allows it, so that contiguous
tensors, and equally permuted ones, become one dimension of stride 1. Kernels number the elements of the merged shape
and turn a number into an offset per operand with `offsets`; the outermost size is never needed for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

Strides = tuple[int, ...] | None


class Walk(NamedTuple):
    """A merged iteration over operands: sizes but the outermost, a stride tuple per operand, and its extent.

    The strides of an operand whose every element is the same one in memory are None: it is read once, as a scalar.
    """

    inner_sizes: tuple[int, ...]
    strides: tuple[Strides, ...]
    numel: int
    span: int  # elements between the first and the last that any operand touches
    order: tuple[int, ...]  # dimensions of the unmerged shape, outermost in memory first

    @property
    def dims(self) -> int:
        """Dimensions left after merging."""
        return len(self.inner_sizes) + 1

    def wide(self, overhang: int) -> bool:
        """Whether offsets need 64 bits, when the last program may number `overhang` elements past the end."""
        return max(self.numel + overhang, self.span) >= 2**31

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A fresh tensor of the unmerged `shape`, dense in the order of the walk."""
        dense = torch.empty([shape[dim] for dim in self.order], dtype=dtype, device=device)
        if self.order == tuple(range(len(self.order))):
            return dense
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return dense.permute(inverse)


def walk(shape: Sequence[int], *operands: torch.Tensor) -> Walk:
    """Merge the dimensions of `shape` for operands that broadcast to it.

    >>> walk((4, 6), torch.empty(4, 6), torch.empty(4, 6))[:3]
    ((), ((1,), (1,)), 24)
    >>> walk((4, 6), torch.empty(4, 8)[:, :6], torch.empty(1, 1))[:3]
    ((6,), ((8, 1), None), 24)
    """
    views = [operand if operand.shape == shape else operand.expand(shape) for operand in operands]
    dims = tuple(range(len(shape)))
    numel = math.prod(shape)
    if numel > 1 and all(view.is_contiguous() for view in views):
        return Walk((), ((1,),) * len(views), numel, numel, dims)
    return _merge(shape, [view.stride() for view in views], numel, _memory_order(shape, [v.stride() for v in views]))


def walk_dims(dims: Sequence[int], *operands: torch.Tensor) -> Walk:
    """Merge only the dimensions `dims` of operands of one shape: the rows, or the columns, of a row operation."""
    sizes = [operands[0].shape[dim] for dim in dims]
    strides = [tuple(operand.stride(dim) for dim in dims) for operand in operands]
    return _merge(sizes, strides, math.prod(sizes), _memory_order(sizes, strides))


def _merge(shape: Sequence[int], strides: Sequence[Sequence[int]], numel: int, order: tuple[int, ...]) -> Walk:
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
    span = 1 + max((_last(sizes, m) for m in merged), default=0)
    kept = tuple(tuple(m) if any(m) else None for m in merged)
    return Walk(tuple(sizes[1:]), kept, numel, span, order)


def _last(sizes: Sequence[int], strides: Sequence[int]) -> int:
    return sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def _memory_order(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Dimensions with the largest strides first; the first operand that tells two apart decides (0 tells nothing)."""

    def swap(outer: int, inner: int) -> bool:
        for s in strides:
            if s[outer] and s[inner] and s[outer] != s[inner]:
                return s[outer] < s[inner]
        return False

    order = [dim for dim, size in enumerate(shape) if size != 1]
    # An insertion sort, because the relation is not transitive where strides are 0 and must keep the given order then.
    for i in range(1, len(order)):
        for j in range(i, 0, -1):
            if not swap(order[j - 1], order[j]):
                break
            order[j - 1], order[j] = order[j], order[j - 1]
    return (*(dim for dim, size in enumerate(shape) if size == 1), *order)


@triton.jit
def offsets(index, inner_sizes, strides):
    """Element numbers of a walk to an operand's offsets."""
    result = tl.zeros_like(index)
    for i in tl.static_range(len(inner_sizes), 0, -1):
        result += (index % inner_sizes[i - 1]) * strides[i]
        index = index // inner_sizes[i - 1]
    return result + index * strides[0]


@triton.jit
def read(ptr, index, inner_sizes, strides, mask, full, DTYPE: tl.constexpr):
    """Load an operand's elements and upcast them. `full`: no element is masked, so that the load can be vectorised."""
    if strides is None:
        value = tl.full(index.shape, tl.load(ptr), ptr.dtype.element_ty)
    else:
        at = ptr + offsets(index, inner_sizes, strides)
        if full:
            value = tl.load(at)
        else:
            value = tl.load(at, mask=mask, other=0)
    return value.to(DTYPE)


@triton.jit
def write(ptr, index, value, mask, full):
    """Round once and store to a dense output, element `index` of the walk."""
    value = value.to(ptr.dtype.element_ty)
    if full:
        tl.store(ptr + index, value)
    else:
        tl.store(ptr + index, value, mask=mask)


@triton.jit
def update(ptr, index, inner_sizes, strides, value, mask, full):
    """Round once and store in place, through an operand's own strides (None: its only element)."""
    value = value.to(ptr.dtype.element_ty)
    if strides is None:
        at = ptr + index
    else:
        at = ptr + offsets(index, inner_sizes, strides)
    if full:
        tl.store(at, value)
    else:
        tl.store(at, value, mask=mask)
