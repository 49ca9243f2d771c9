"""How programs divide the rows of tensors, and what specializes their kernels.

Rows are the leading dimensions in their order, of any strides. A program handles BLOCK_N rows of one chunk of BLOCK_V
columns; chunks of a row are neighbours in the grid. Tile sizes depend on the number of columns, their stride and the
dtype, never on the number of rows. Nor does the compiled code, so that results are batch-invariant: a row's bits do
not depend on how many rows there are, on its place among them, or on its neighbours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton

from . import strides, tile_configs

#: Pointers to one element per row or chunk. Their alignment changes with the batch, and wide accesses gain nothing.
_PER_ROW = ("weight", "labels", "report", "losses", "stats", "partials", "dloss", "dloss_factor", "max", "sum", "sums")


def row_jit(fn: Callable[..., Any]) -> Any:
    """`triton.jit` for a kernel over rows: nothing that changes with the batch specializes it.

    Not the number of rows, nor the alignment of what a row has one element of, as in slices of labels. So there is one
    variant for batches of all sizes, and a row's bits are the same in all of them. These options do not reach into
    tuples, so what a row has one element of is passed as a pointer and its strides, not as an operand.
    """
    names = inspect.signature(fn).parameters
    counts = [name for name in ("rows", "chunks", "tiles", "ignore_index") if name in names]
    unaligned = [name for name in names if name.removesuffix("_ptr") in _PER_ROW]
    return triton.jit(do_not_specialize=counts, do_not_specialize_on_alignment=unaligned)(fn)


class RowTiling:
    """Tiling of the rows of tensors whose dimensions are the same but for `dim`, along which rows lie.

    Parameters
    ----------
    columns
        Columns to tile.
    tensors
        Tensors by the names of a kernel's operands.
    per_row
        Tensors of one element per row, which broadcast to the rows, by the names of a kernel's pointers.
    whole_rows
        Make a row one chunk where it can be.
    config
        Tile sizes, by default those of losses of logits.
    in_order
        Number the rows in their own order, not in that of memory.

    Attributes
    ----------
    rows, columns, chunks
        Chunks of a row, of BLOCK_V columns each.
    """

    def __init__(
        self,
        columns: int,
        tensors: Mapping[str, torch.Tensor | None],
        per_row: Mapping[str, torch.Tensor | None] | None = None,
        *,
        dim: int = -1,
        whole_rows: bool = True,
        config: tile_configs.Config | None = None,
        in_order: bool = True,
    ) -> None:
        given = {name: t for name, t in tensors.items() if t is not None}
        first = next(iter(given.values()))
        lead = [d for d in range(first.dim()) if d != dim % first.dim()]
        shape = [first.shape[d] for d in lead]
        per_row = per_row or {}
        one_each = {name: t.expand(shape) for name, t in per_row.items() if t is not None}
        unit = strides.row_unit(list(given.values()), dim)
        row_strides = [[t.stride(d) for d in lead] for t in given.values()] + [t.stride() for t in one_each.values()]
        units = [unit] * len(given) + [1] * len(one_each)
        walk = strides.coalesce_rows(shape, row_strides, units, in_order=in_order)
        self.rows, self.columns = walk.rows, columns
        if config is None:
            itemsize = max(t.dtype.itemsize for t in given.values())
            contiguous = all(t.stride(dim) == 1 for t in given.values())
            config = tile_configs.logits(itemsize, self.rows, columns, contiguous, whole_rows)
        self.config = config
        self.chunks = max(1, triton.cdiv(columns, self.config["BLOCK_V"]))
        merged = iter(walk.strides)
        self._args: dict[str, Any] = {"sizes": walk.sizes, "rows": self.rows, "chunks": self.chunks}
        for name, tensor in tensors.items():
            self._args[name] = None
            if tensor is not None:
                stride = tensor.stride(dim)
                # Encoded as strides between rows are: its divisibility by 16 is not to specialize a kernel.
                column_stride = None if stride == 1 else 2 * stride - 1
                self._args[name] = (tensor, next(merged), column_stride, unit)
        for name, tensor in per_row.items():
            self._args[f"{name}_ptr"] = tensor
            self._args[f"{name}_strides"] = None if tensor is None else next(merged)

    @property
    def grid(self) -> tuple[int]:
        """A program for each block of rows and each chunk."""
        return (triton.cdiv(self.rows, self.config["BLOCK_N"]) * self.chunks,)

    def merging(self, dtype: torch.dtype) -> tuple[tuple[int], tile_configs.Config]:
        """Grid and configuration of a kernel that merges the chunks' statistics, of `dtype`, of each row."""
        config = tile_configs.merge(dtype.itemsize, self.rows, self.chunks)
        return (triton.cdiv(self.rows, config["BLOCK_N"]),), config

    def args(self, *names: str) -> dict[str, Any]:
        """Return arguments of a launch: row sizes, numbers of rows and chunks, and the operands named.

        An operand of `tensors` is (tensor, row strides, column stride, unit of the row strides): see `jit.tiles`.
        """
        taken = ["sizes", "rows", "chunks"]
        for name in names:
            taken += [name] if name in self._args else [f"{name}_ptr", f"{name}_strides"]
        return {name: self._args[name] for name in taken}
