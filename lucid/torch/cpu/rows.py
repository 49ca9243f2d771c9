"""Rows of logits in chunks: views of tensors, and buffers that all chunks share."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triton_kernels.runtime import device_errors

#: Elements of a chunk for each of torch's threads, up to _THREADS: a few buffers of that size fit in a cache, and one
#: is large enough that the host time of an operator does not matter.
CHUNK = 2**18
_THREADS = 4

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)


class Chunk(NamedTuple):
    """A chunk of rows.

    Attributes
    ----------
    at
        Index of its rows in the tensors.
    rows
        Range of its selected rows among all selected rows.
    selected
        Indices of its selected rows; None where all or none are.
    """

    at: tuple[slice, ...]
    rows: slice
    selected: Tensor | None

    @property
    def empty(self) -> bool:
        """Return whether no row is selected."""
        return self.rows.start == self.rows.stop


class LogitMap(NamedTuple):
    """The map from given logits x to those of a loss: y = softcap·tanh(scale·x/softcap), or scale·x; −inf stays."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return y, in `out` if given; x itself where nothing maps it."""
        if self.softcap is None:
            return x if self.scale == 1 else torch.mul(x, self.scale, out=out)
        masked = x == -math.inf
        y = torch.mul(x, self.scale / self.softcap, out=out).tanh_().mul_(self.softcap)
        return y.masked_fill_(masked, -math.inf)

    def multiply_by_slope(self, gradient: Tensor, y: Tensor) -> Tensor:
        """Multiply a gradient to y by scale·(1 − (y/softcap)²), in place; y may be overwritten."""
        if self.softcap is None:
            return gradient.mul_(self.scale)
        ratio = y.masked_fill_(y == -math.inf, 0).div_(self.softcap)
        return gradient.mul_(ratio.square_().neg_().add_(1)).mul_(self.scale)


_AS_GIVEN = LogitMap()


class Rows:
    """Rows of tensors (..., V) with the same leading dimensions, or those of them that a mask selects, in chunks.

    Parameters
    ----------
    columns
        Number of columns that count.
    tensors
        (..., V), of any strides: viewed as (rows, V) where that needs no copy.
    mask
        Rows to select, (rows,), bool; None for all.
    dtype
        Dtype of the arithmetic.
    buffers
        Number of buffers of a chunk's size.
    """

    def __init__(
        self, columns: int, tensors: Sequence[Tensor], mask: Tensor | None, dtype: torch.dtype, buffers: int
    ) -> None:
        shape: tuple[int, ...] = tensors[0].shape[:-1]
        self.lead, self.rows, self.columns, self.dtype = shape, math.prod(shape), columns, dtype
        try:
            self.tensors = [t.view(self.rows, t.shape[-1]) for t in tensors]
            shape = (self.rows,)
        except RuntimeError:  # a view of them would need a copy
            self.tensors = list(tensors)
        self.mask = None if mask is None or mask.all() else mask
        self.count = self.rows if self.mask is None else int(self.mask.sum())
        self.chunks = list(self._chunks(shape)) if self.rows else []
        self._views: dict[tuple[int, torch.Size], Tensor] = {}
        self._buffers = workspace(whole_vectors(max(chunk_size(), columns)), dtype, buffers)

    def _chunks(self, shape: tuple[int, ...]) -> Iterator[Chunk]:
        first = before = 0
        for at in chunk_indices(shape, self.columns):
            size = math.prod(len(range(*s.indices(n))) for s, n in zip(at, shape, strict=False))
            size *= math.prod(shape[len(at) :])
            index, count = None, size
            if self.mask is not None:
                index = self.mask[first : first + size].nonzero().squeeze(-1)
                count = len(index)
                index = None if count in (0, size) else index
            yield Chunk(at, slice(before, before + count), index)
            first, before = first + size, before + count

    def per_row(self, numbers: Tensor | float) -> Tensor:
        """Return a number for each selected row, (count,), from a number for each row or one for all."""
        if not isinstance(numbers, Tensor):
            return number(numbers, self.dtype).expand(self.count)
        flat = numbers.expand(self.lead).reshape(self.rows)
        return flat if self.mask is None else flat[self.mask]

    def results(self, numbers: Tensor) -> Tensor:
        """Return numbers of the selected rows, (count,), as a fresh tensor (...); 0 in the other rows."""
        if self.mask is None:
            return numbers.reshape(self.lead).clone()  # no view, which autograd would not let be changed in place
        everywhere = numbers.new_zeros(self.lead)
        everywhere.view(self.rows)[self.mask] = numbers
        return everywhere

    def scratch(self, number: int, like: Tensor) -> Tensor:
        """Return a buffer in the shape of a chunk."""
        key = number, like.shape
        if key not in self._views:
            self._views[key] = self._buffers[number][: like.numel()].view(like.shape)
        return self._views[key]

    def exp2(self, number: int, to: int, like: Tensor) -> Tensor:
        """Write 2 to the power of one buffer into another, and return that in the shape of a chunk.

        A column's bits must not depend on its position. torch's vectorized loop computes the remainder in another way,
        so each thread gets whole vectors.
        """
        size = whole_vectors(like.numel())
        torch.exp2(self._buffers[number][:size], out=self._buffers[to][:size])
        return self.scratch(to, like)

    def part(self, tensor: Tensor, chunk: Chunk) -> Tensor:
        """Return the selected rows of a chunk, (rows, V), in their dtype."""
        part = tensor[chunk.at][..., : self.columns]
        if part.dim() > 2:
            part = part.flatten(0, -2)
        return part if chunk.selected is None else part.index_select(0, chunk.selected)

    def load(self, number: int, tensor: Tensor, chunk: Chunk, of: LogitMap = _AS_GIVEN) -> tuple[Tensor, Tensor]:
        """Return the selected rows of a chunk in the dtype of the arithmetic, (rows, V), and a buffer of that shape.

        Rows that are of another dtype, or mapped, are in the buffer.
        """
        part = self.part(tensor, chunk)
        buffer = self.scratch(number, part)
        if part.dtype != buffer.dtype:
            part = buffer.copy_(part)
        return of.apply(part, buffer), buffer

    def unmapped(self, gradient: Tensor, number: int, tensor: Tensor, chunk: Chunk, of: LogitMap) -> Tensor:
        """Return the gradient to the given logits of a chunk, from that to the mapped ones; in a buffer of a number."""
        if of == _AS_GIVEN:
            return gradient
        y, _ = self.load(number, tensor, chunk, of)
        return of.multiply_by_slope(gradient, y)

    def store(self, tensor: Tensor, chunk: Chunk, values: Tensor | None, factor: Tensor | None = None) -> None:
        """Write the selected rows of a chunk, times a factor each; 0 in other rows and in columns beyond."""
        part = tensor[chunk.at]
        if tensor.shape[-1] > self.columns:
            part[..., self.columns :] = 0
            part = part[..., : self.columns]
        if values is None:
            part.zero_()
        elif chunk.selected is not None:
            values = values if factor is None else values.mul_(factor)
            part.zero_()
            if part.dim() == 2:
                part.index_add_(0, chunk.selected, values.to(part.dtype))  # twice as fast as index_copy_
            else:
                mask = part.new_zeros(math.prod(part.shape[:-1]), dtype=torch.bool).index_fill_(0, chunk.selected, True)
                part[mask.view(part.shape[:-1])] = values.to(part.dtype)
        elif factor is not None and part.dtype == values.dtype:
            torch.mul(values.view(part.shape), factor.view(*part.shape[:-1], 1), out=part)
        else:
            part.copy_((values if factor is None else values.mul_(factor)).view(part.shape))


#: torch splits no fewer elements than the first among threads; the second is a multiple of its vectors' length.
_GRAIN, _VECTOR = 32768, 64


def whole_vectors(size: int) -> int:
    """Return the smallest size of at least `size` that gives each of torch's threads whole vectors."""
    while True:
        threads = min(torch.get_num_threads(), -(-size // _GRAIN)) or 1
        whole = -(-size // (_VECTOR * threads)) * _VECTOR * threads
        if whole == size:
            return whole
        size = whole


class _Workspace(threading.local):
    """Buffers of a thread: page faults of fresh ones at each call would take longer than the arithmetic."""

    buffers: tuple[Tensor, ...] = ()


_workspace = _Workspace()


def workspace(size: int, dtype: torch.dtype, count: int) -> tuple[Tensor, ...]:
    """Return buffers for a call, which the next call in the thread reuses unless they are large."""
    buffers = _workspace.buffers
    if len(buffers) < count or buffers[0].dtype != dtype or len(buffers[0]) < size:
        with torch.inference_mode(False):  # for calls outside of the mode, too
            buffers = torch.empty((count, size), dtype=dtype, device="cpu").unbind()
        if size <= 2 * _THREADS * CHUNK:
            _workspace.buffers = buffers
    return buffers[:count]


def chunk_size() -> int:
    """Return the number of elements of a chunk."""
    return CHUNK * min(torch.get_num_threads(), _THREADS)


def chunk_indices(shape: tuple[int, ...], columns: int) -> Iterator[tuple[slice, ...]]:
    """Yield indices of chunks of about `chunk_size` elements, in order, for rows of leading dimensions `shape`."""
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
            for rest in chunk_indices(shape[1:], columns):
                yield (slice(start, start + 1), *rest)


def row_sum(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the sum of each row, (rows, 1), in an order that does not depend on the number of rows."""
    if len(x) == 1:  # torch may split a single sum among threads, but not one of two
        result = x.expand(2, -1).sum(-1, keepdim=True)[:1]
        return result if out is None else out.copy_(result)
    return torch.sum(x, -1, keepdim=True, out=out)


def number(value: float, dtype: torch.dtype) -> Tensor:
    """Return a number as a 0-d tensor; infinite where it overflows the dtype."""
    return torch.tensor(value, dtype=torch.float64, device="cpu").to(dtype)


def sub_max(x: Tensor, m: Tensor, factor: float, out: Tensor) -> Tensor:
    """Write z = factor·(x − m), whose difference is exact near 0."""
    return torch.sub(x, m, out=out).mul_(factor)


def check_labels(labels: Tensor, columns: int, name: str = "labels") -> None:
    """Raise an IndexError with the argument's name if a label is no column."""
    bad = (labels < 0) | (labels >= columns)
    if bad.any():
        error = device_errors.error(device_errors.LABELS.value, int(labels[bad][0]), columns)
        raise IndexError(str(error).replace("labels", name, 1))
