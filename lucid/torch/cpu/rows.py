"""Rows of logits in chunks: views of tensors, and buffers that every chunk uses again."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triton_kernels.runtime import device_errors

#: Elements of a chunk for each of torch's threads, up to so many: a few buffers of that size fit in a cache, and it
#: is worth the call of an operator.
CHUNK = 2**18
_THREADS = 4

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)


class Chunk(NamedTuple):
    """A chunk of rows.

    Attributes
    ----------
    at
        Where its rows are in the tensors.
    rows
        Where those that are kept are among all that are.
    kept
        Which of its rows are kept; None where it is all or none of them.
    """

    at: tuple[slice, ...]
    rows: slice
    kept: Tensor | None

    @property
    def empty(self) -> bool:
        """Whether no row is kept."""
        return self.rows.start == self.rows.stop


class Rows:
    """The rows of tensors (..., V) of the same leading dimensions, of which some are kept.

    Parameters
    ----------
    columns
        How many of each row count.
    tensors
        (..., V), of any strides: seen as (rows, V) where all can be without a copy.
    kept
        Which rows are, as (rows,); None for all.
    dtype
        Of the arithmetic.
    buffers
        How many there are of a chunk's size.
    """

    def __init__(
        self, columns: int, tensors: Sequence[Tensor], kept: Tensor | None, dtype: torch.dtype, buffers: int
    ) -> None:
        shape: tuple[int, ...] = tensors[0].shape[:-1]
        self.lead, self.rows, self.columns, self.dtype = shape, math.prod(shape), columns, dtype
        try:
            self.tensors = [t.view(self.rows, t.shape[-1]) for t in tensors]
            shape = (self.rows,)
        except RuntimeError:  # a view of them would need a copy
            self.tensors = list(tensors)
        self.kept = None if kept is None or kept.all() else kept
        self.count = self.rows if self.kept is None else int(self.kept.sum())
        self.chunks = list(self._chunks(shape)) if self.rows else []
        self._views: dict[tuple[int, torch.Size], Tensor] = {}
        self._buffers = workspace(whole_vectors(max(chunk_size(), columns)), dtype, buffers)

    def _chunks(self, shape: tuple[int, ...]) -> Iterator[Chunk]:
        first = before = 0
        for at in cut(shape, self.columns):
            size = math.prod(len(range(*s.indices(n))) for s, n in zip(at, shape, strict=False))
            size *= math.prod(shape[len(at) :])
            index, count = None, size
            if self.kept is not None:
                index = self.kept[first : first + size].nonzero().squeeze(-1)
                count = len(index)
                index = None if count in (0, size) else index
            yield Chunk(at, slice(before, before + count), index)
            first, before = first + size, before + count

    def per_row(self, numbers: Tensor | float) -> Tensor:
        """One number for each kept row, (count,), of a tensor with one for each row, or of one for all of them."""
        if not isinstance(numbers, Tensor):
            return number(numbers, self.dtype).expand(self.count)
        flat = numbers.expand(self.lead).reshape(self.rows)
        return flat if self.kept is None else flat[self.kept]

    def results(self, numbers: Tensor) -> Tensor:
        """Numbers of the kept rows, (count,), as a fresh tensor of the leading dimensions' shape; 0 for the others."""
        if self.kept is None:
            return numbers.reshape(self.lead).clone()  # no view, which autograd would not let be changed in place
        everywhere = numbers.new_zeros(self.lead)
        everywhere.view(self.rows)[self.kept] = numbers
        return everywhere

    def scratch(self, number: int, like: Tensor) -> Tensor:
        """A buffer in the shape of a chunk."""
        key = number, like.shape
        if key not in self._views:
            self._views[key] = self._buffers[number][: like.numel()].view(like.shape)
        return self._views[key]

    def exp2(self, number: int, to: int, like: Tensor) -> Tensor:
        """2 to the power of what is in a buffer, in another one.

        A column's bits do not depend on where it is: torch calculates what is left over by vectors in another way, so
        nothing is left over in the part of any thread.
        """
        size = whole_vectors(like.numel())
        torch.exp2(self._buffers[number][:size], out=self._buffers[to][:size])
        return self.scratch(to, like)

    def load(self, number: int, tensor: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """The kept rows of a chunk in the dtype of the arithmetic, (rows, V), and a buffer of that shape.

        If the dtype is another one, they are in the buffer.
        """
        part = tensor[chunk.at][..., : self.columns]
        if part.dim() > 2:
            part = part.flatten(0, -2)
        if chunk.kept is not None:
            part = part.index_select(0, chunk.kept)
        buffer = self.scratch(number, part)
        if part.dtype != buffer.dtype:
            part = buffer.copy_(part)
        return part, buffer

    def store(self, tensor: Tensor, chunk: Chunk, values: Tensor | None, factor: Tensor | None = None) -> None:
        """Write rows to a chunk, times a factor for each: 0 in rows that are not kept, and in columns beyond."""
        part = tensor[chunk.at]
        if tensor.shape[-1] > self.columns:
            part[..., self.columns :] = 0
            part = part[..., : self.columns]
        if values is None:
            part.zero_()
        elif chunk.kept is not None:
            values = values if factor is None else values.mul_(factor)
            part.zero_()
            if part.dim() == 2:
                part.index_add_(0, chunk.kept, values.to(part.dtype))  # twice as fast as index_copy_
            else:
                kept = part.new_zeros(math.prod(part.shape[:-1]), dtype=torch.bool).index_fill_(0, chunk.kept, True)
                part[kept.view(part.shape[:-1])] = values.to(part.dtype)
        elif factor is not None and part.dtype == values.dtype:
            torch.mul(values.view(part.shape), factor.view(*part.shape[:-1], 1), out=part)
        else:
            part.copy_((values if factor is None else values.mul_(factor)).view(part.shape))


#: Of torch: fewer elements are not shared out among threads; and a multiple of what it calculates at once.
_GRAIN, _VECTOR = 32768, 64


def whole_vectors(size: int) -> int:
    """The least size, not below the given one, of which each of torch's threads gets whole vectors."""
    while True:
        threads = min(torch.get_num_threads(), -(-size // _GRAIN)) or 1
        whole = -(-size // (_VECTOR * threads)) * _VECTOR * threads
        if whole == size:
            return whole
        size = whole


class _Kept(threading.local):
    """A thread's buffers of one size: fresh pages at each call would take longer than what is calculated in them."""

    buffers: tuple[Tensor, ...] = ()


_kept = _Kept()


def workspace(size: int, dtype: torch.dtype, count: int) -> tuple[Tensor, ...]:
    """Buffers for a call, which the thread's next call uses again unless they are large."""
    buffers = _kept.buffers
    if len(buffers) < count or buffers[0].dtype != dtype or len(buffers[0]) < size:
        with torch.inference_mode(False):  # for calls outside of the mode, too
            buffers = torch.empty((count, size), dtype=dtype, device="cpu").unbind()
        if size <= 2 * _THREADS * CHUNK:
            _kept.buffers = buffers
    return buffers[:count]


def chunk_size() -> int:
    """Elements of a chunk."""
    return CHUNK * min(torch.get_num_threads(), _THREADS)


def cut(shape: tuple[int, ...], columns: int) -> Iterator[tuple[slice, ...]]:
    """Indices that take rows of leading dimensions `shape` apart in chunks of about `chunk_size` elements, in order."""
    if not shape:
        yield ()
        return
    inner, size = math.prod(shape[1:]) * columns, chunk_size()
    if len(shape) == 1 or inner <= size:
        step = max(1, size // max(inner, 1))
        for start in range(0, shape[0], step):
            yield (slice(start, start + step),)
    else:
        for start in range(shape[0]):
            for rest in cut(shape[1:], columns):
                yield (slice(start, start + 1), *rest)


def total(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The sum of each row as (rows, 1), in an order that does not depend on how many there are."""
    if len(x) == 1:  # torch may share one sum out among threads, but not one of two
        result = x.expand(2, -1).sum(-1, keepdim=True)[:1]
        return result if out is None else out.copy_(result)
    return torch.sum(x, -1, keepdim=True, out=out)


def number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a 0-d tensor; infinite where the dtype has no number that large."""
    return torch.tensor(value, dtype=torch.float64, device="cpu").to(dtype)


def rebase(x: Tensor, m: Tensor, factor: float, out: Tensor) -> Tensor:
    """z = factor·(x − m), which is exact near 0."""
    return torch.sub(x, m, out=out).mul_(factor)


def check_labels(labels: Tensor, columns: int) -> None:
    """Raise an IndexError where a label is no column."""
    bad = (labels < 0) | (labels >= columns)
    if bad.any():
        raise device_errors.error(device_errors.LABELS.value, int(labels[bad][0]), columns)
