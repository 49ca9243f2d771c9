"""How programs divide the rows of tensors, and what specializes their kernels.

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

from . import strides, tile_configs

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


class Rows:
    """The rows of tensors (..., V), whose leading dimensions are the same, and how programs share them out.

    Attributes
    ----------
    rows, columns, chunks
        Chunks of a row, of BLOCK_V columns each.
    sizes, strides, unit
        The walk over the rows (`strides.coalesce_rows`); strides per tensor, in units.
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
        given_strides = [t.stride()[:-1] for t in tensors] + [t.stride() for t in given if t is not None]
        self.unit = strides.row_unit(tensors)
        units = [self.unit] * len(tensors) + [1] * (len(given_strides) - len(tensors))
        walk = strides.coalesce_rows(lead, given_strides, units)
        merged = iter(walk.strides)
        self.rows, self.columns, self.sizes = walk.rows, columns, walk.sizes
        self.strides = [next(merged) for _ in tensors]
        self.row_strides = [None if t is None else next(merged) for t in given]
        itemsize = max(t.dtype.itemsize for t in tensors)
        contiguous = all(t.stride(-1) == 1 for t in tensors)
        self.config = tile_configs.logits(itemsize, self.rows, columns, contiguous, whole_rows)
        self.chunks = max(1, tile_configs.cdiv(columns, self.config["BLOCK_V"]))
        reach = max(t.stride(-1) for t in tensors) * (columns + self.config["BLOCK_V"])
        self.wide = max(8 * (self.rows + self.config["BLOCK_N"]) * self.chunks, walk.extent + reach) >= 2**31

    @property
    def grid(self) -> tuple[int]:
        """A program for each block of rows and each chunk."""
        return (tile_configs.cdiv(self.rows, self.config["BLOCK_N"]) * self.chunks,)
