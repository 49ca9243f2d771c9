"""Launches over lists of tensors: one launch for any number of tensors of one dtype, on one device.

A table in device memory has a column per tensor: the first program that works on it, its number of elements, a counter
of arrived programs, and one address per list, such as those of a parameter, its gradient and its momentum buffer. A
program finds its tensor by its own number. Elements that belong together have the same position in the memory of each
list's tensor: tensors of other layouts are moved through dense copies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..runtime import launch, strides, tile_configs
from . import chunk_flags

#: Rows of the table before those of addresses.
_FIRST, _NUMEL, _ARRIVED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_HEADER = tl.constexpr(3)


@triton.jit
def locate(table_ptr, n, BLOCK: tl.constexpr, TILES: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return the program's column of the table, its first element, and the number of elements from there on."""
    pid = tl.program_id(0)
    offs = tl.arange(0, BLOCK_T)
    column = tl.full((), -1, tl.int32)
    for block in range(0, n, BLOCK_T):
        first = tl.load(table_ptr + _FIRST * n + block + offs, mask=block + offs < n, other=2**62)
        column += tl.sum((first <= pid).to(tl.int32), axis=0)
    chunk = pid - tl.load(table_ptr + _FIRST * n + column)
    start = chunk * (BLOCK * TILES)
    return column, start, tl.load(table_ptr + _NUMEL * n + column) - start


@triton.jit
def address(table_ptr, n, column, LIST: tl.constexpr):
    """Return the address of a list's tensor."""
    return tl.load(table_ptr + (_HEADER + LIST) * n + column)


@triton.jit
def pointer(at, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the pointer to element `start` of the tensor at an address, of which 16 is a divisor if ALIGNED."""
    ptr = at.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        ptr = tl.multiple_of(ptr, 16)
    return ptr + start


@triton.jit
def tiles_in_bounds(remaining, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Return how many of a program's tiles have elements in bounds."""
    return tl.minimum(tl.cdiv(remaining, BLOCK), TILES).to(tl.int32)


@triton.jit
def advance_step(table_ptr, n, column, step_ptr, step, CHUNK: tl.constexpr):
    """Store the step of a tensor after all of its programs have read the one before: the last to arrive does."""
    counter_ptr = table_ptr + _ARRIVED * n + column
    programs = tl.cdiv(tl.load(table_ptr + _NUMEL * n + column), CHUNK)
    if chunk_flags.arrive(counter_ptr) == programs - 1:
        tl.store(step_ptr, step)
        tl.store(counter_ptr, tl.zeros((), tl.int64))


class Batch(NamedTuple):
    """Tensors for one launch.

    Attributes
    ----------
    table
        (3 + lists, tensors), int64.
    programs
        Of the launch.
    dtype
        That of the first list.
    copies
        Tensors that are written through a dense copy, and the copy.
    """

    table: torch.Tensor
    programs: int
    config: tile_configs.Config
    dtype: torch.dtype
    copies: list[tuple[torch.Tensor, torch.Tensor]]

    def run(self, kernel: Any, **args: Any) -> None:
        """Launch a kernel, and copy what it wrote to dense copies back."""
        acc_dtype = launch.compute_dtype(self.dtype)
        launch.run(
            kernel,
            (self.programs,),
            self.config,
            table_ptr=self.table,
            n=self.table.shape[1],
            DTYPE=launch.tl_dtype(self.dtype),
            ACC_DTYPE=launch.tl_dtype(acc_dtype),
            **args,
        )
        for tensor, copy in self.copies:
            tensor.copy_(copy)


def batches(
    *lists: Sequence[torch.Tensor], written: Sequence[int], scalars: Sequence[Sequence[torch.Tensor]] = ()
) -> Iterator[Batch]:
    """Sort the tensors of lists of equal length by dtype and device of the first list's, in order of appearance.

    Parameters
    ----------
    *lists
        Tensors of equal index have the same shape, of any strides, and are on one device.
    written
        Indices of the lists that the launch writes.
    scalars
        Further lists, of 0-d tensors, whose addresses come last.
    """
    columns: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(lists[0]):
        columns.setdefault((tensor.device, tensor.dtype), []).append(i)
    for (device, dtype), indices in columns.items():
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        rows: list[list[int]] = [[] for _ in (*lists, *scalars)]
        keep_alive = []
        for i in indices:
            tensors = [tensors[i] for tensors in lists]
            dense = _dense(tensors)
            keep_alive.append(dense)
            copies += [(tensors[k], dense[k]) for k in written if dense[k] is not tensors[k]]
            for row, tensor in zip(rows, (*dense, *(scalar[i] for scalar in scalars)), strict=True):
                row.append(tensor.data_ptr())
        sizes = tuple(lists[0][i].numel() for i in indices)
        config = tile_configs.multi_tensor(max(t[i].dtype.itemsize for t in lists for i in indices[:1]), max(sizes))
        chunk = config["BLOCK"] * config["TILES"]
        table = _table(device, _stream(device), chunk, sizes, tuple(map(tuple, rows)))
        yield Batch(table, sum(tile_configs.cdiv(size, chunk) for size in sizes), config, dtype, copies)


def _dense(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors of equal shape with one dense layout: themselves, or copies in the layout of the first."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return tensors
    coalesced = strides.coalesce(tensors[0].shape, *tensors)
    if coalesced.dims == 1 and all(stride in (None, (1,)) for stride in coalesced.strides):
        return tensors
    like = strides.empty_as(tensors[0])
    return [
        tensor if tensor.stride() == like.stride() else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
        for tensor in tensors
    ]


def _stream(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    stream = torch.cuda.current_stream(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("launches over lists of tensors cannot be captured in a CUDA graph: addresses are copied")
    return stream.cuda_stream


@functools.lru_cache(maxsize=128)
def _table(
    device: torch.device, stream: int, chunk: int, sizes: tuple[int, ...], addresses: tuple[tuple[int, ...], ...]
) -> torch.Tensor:
    """Return the table on the device: copied asynchronously, and kept for launches of the same addresses and stream.

    Pinned memory is allocated for each copy: torch does not reuse it before the copy has run.
    """
    first, total = [], 0
    for size in sizes:
        first.append(total)
        total += tile_configs.cdiv(size, chunk)
    rows = [first, sizes, [0] * len(sizes), *addresses]
    if device.type != "cuda":
        return torch.tensor(rows, dtype=torch.int64, device=device)
    return torch.tensor(rows, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)
