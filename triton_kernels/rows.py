"""What losses of rows of logits share: which rows and columns a program has, which tokens count, tiles in and out.

Rows are the leading dimensions in their order, of any strides. A program handles BLOCK_N rows of one chunk of BLOCK_V
columns; chunks of a row are neighbours in the grid. Tile sizes depend on the number of columns, their stride and the
dtype, never on the number of rows. Nor does the compiled code, so that results are batch-invariant: a row's bits do
not depend on how many rows there are, on its place among them, or on its neighbours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from . import launch, layout, reports
from .layout import row_offsets

#: Loaded and stored one element a row, or with the tile's own alignment: theirs shapes no code worth having twice.
_PER_ROW = ("weight", "labels", "report", "losses", "stats", "partials", "dloss", "dloss_factor", "m", "d", "sums")


def row_jit(fn: Callable[..., Any]) -> Any:
    """`triton.jit` for a kernel over rows: nothing that changes with the batch specializes it.

    Not the number of rows, nor the alignment of what a row has one element of, as in slices of labels. So there is one
    variant for batches of all sizes, and a row's bits are the same in all of them.
    """
    names = inspect.signature(fn).parameters
    counts = [name for name in ("rows", "chunks", "tiles", "ignore_index") if name in names]
    unaligned = [name for name in names if name.removesuffix("_ptr") in _PER_ROW or name.startswith("stride_")]
    return triton.jit(do_not_specialize=counts, do_not_specialize_on_alignment=unaligned)(fn)


@triton.jit
def place(rows, chunks, BLOCK_N: tl.constexpr, WIDE: tl.constexpr):
    """The rows of a program, which of them there are, and the number of its chunk."""
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    offs_n = pid // chunks * BLOCK_N + tl.arange(0, BLOCK_N)
    return offs_n, offs_n < rows, pid % chunks


@triton.jit
def load_row(operand, offs_n, sizes, mask_n, OTHER, DTYPE: tl.constexpr):
    """A number of each row of an operand, (pointer, strides)."""
    return tl.load(operand[0] + row_offsets(offs_n, sizes, operand[1], 1), mask=mask_n, other=OTHER).to(DTYPE)


@triton.jit
def load_tile(operand, offs_n, offs_v, sizes, mask, OTHER: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of an operand, (pointer, row strides, column stride, UNIT), upcast. mask None: it is within bounds."""
    at = operand[0] + row_offsets(offs_n, sizes, operand[1], operand[3])[:, None] + (offs_v * operand[2])[None, :]
    if mask is None:
        value = tl.load(at)
    else:
        value = tl.load(at, mask=mask, other=OTHER)
    return value.to(DTYPE)


@triton.jit
def store_tile(operand, offs_n, offs_v, sizes, value, mask):
    """Round a tile once and store it to an operand, (pointer, row strides, column stride, UNIT)."""
    at = operand[0] + row_offsets(offs_n, sizes, operand[1], operand[3])[:, None] + (offs_v * operand[2])[None, :]
    tl.store(at, value.to(operand[0].dtype.element_ty), mask=mask)


@triton.jit
def put(ptr, NUMBER: tl.constexpr, size, at, value, mask):
    """Store the statistic of a number, of which there are `size`, of some rows."""
    tl.store(ptr + tl.cast(size, at.dtype) * NUMBER + at, value, mask=mask)


@triton.jit
def get(ptr, NUMBER: tl.constexpr, size, at, mask, OTHER: tl.constexpr):
    """Load the statistic of a number, of which there are `size`, of some rows."""
    return tl.load(ptr + tl.cast(size, at.dtype) * NUMBER + at, mask=mask, other=OTHER)


@triton.jit
def token_weights(
    weight_operand,  # (pointer, strides); the pointer may be None
    labels_operand,
    report_ptr,
    offs_n,
    sizes,
    mask_n,
    ignore_index,
    V,
    DTYPE: tl.constexpr,
):
    """What each token counts: 0 where it is skipped. A label that is no column is reported, and counts NaN."""
    if weight_operand[0] is None:
        weight = mask_n.to(DTYPE)
    else:
        weight = load_row(weight_operand, offs_n, sizes, mask_n, 0, DTYPE)
    if labels_operand[0] is not None:
        label = load_row(labels_operand, offs_n, sizes, mask_n, 0, tl.int64)
        weight = tl.where(label == ignore_index, 0.0, weight)
        bad = (weight != 0) & ((label < 0) | (label >= V))
        reports.report(report_ptr, reports.LABELS, label, V, bad)
        weight = tl.where(bad, float("nan"), weight)
    return weight


class Rows:
    """The rows of tensors (..., V), whose leading dimensions are the same, and how programs share them out.

    Attributes
    ----------
    rows, columns, chunks
        Chunks of a row, of BLOCK_V columns each.
    sizes, strides, unit
        The walk over the rows (`layout.walk_rows`); strides per tensor, in units.
    """

    def __init__(
        self,
        columns: int,
        tensors: Sequence[torch.Tensor],
        per_row: Sequence[torch.Tensor | None],
        *,
        whole_rows: bool = True,
    ) -> None:
        first = tensors[0]
        lead = first.shape[:-1]
        given = [None if t is None else t.expand(lead) for t in per_row]
        strides = [t.stride()[:-1] for t in tensors] + [t.stride() for t in given if t is not None]
        self.unit = layout.row_unit(tensors)
        walk = layout.walk_rows(lead, strides, [self.unit] * len(tensors) + [1] * (len(strides) - len(tensors)))
        merged = iter(walk.strides)
        self.rows, self.columns, self.sizes = walk.rows, columns, walk.sizes
        self.strides = [next(merged) for _ in tensors]
        self.row_strides = [None if t is None else next(merged) for t in given]
        itemsize = max(t.dtype.itemsize for t in tensors)
        contiguous = all(t.stride(-1) == 1 for t in tensors)
        self.config = launch.logits(itemsize, self.rows, columns, contiguous, whole_rows)
        self.chunks = max(1, launch.cdiv(columns, self.config["BLOCK_V"]))
        reach = max(t.stride(-1) for t in tensors) * (columns + self.config["BLOCK_V"])
        self.wide = max(8 * (self.rows + self.config["BLOCK_N"]) * self.chunks, walk.span + reach) >= 2**31

    @property
    def grid(self) -> tuple[int]:
        """A program for each block of rows and each chunk."""
        return (launch.cdiv(self.rows, self.config["BLOCK_N"]) * self.chunks,)
