"""Tiling of rows across programs, batch-invariant.

Rows are indexed by all dimensions but one, with any strides. A program handles BLOCK_N rows of one chunk of BLOCK_V
columns; the chunks of a row have adjacent program ids. Tile sizes and the compiled code depend on the number of
columns, their stride and the dtype, never on the number of rows: a row's bits depend neither on the batch size, nor on
the row's index, nor on other rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton

from . import strides, tile_configs

#: Pointers to one element per row or chunk: their alignment changes with the batch, and they need no vectorized access.
_PER_ROW = (
    "weight",
    "weights",
    "labels",
    "report",
    "losses",
    "stats",
    "partials",
    "dloss",
    "dloss_factor",
    "factor",
    "flags",
)


def row_jit(fn: Callable[..., Any]) -> Any:
    """`triton.jit` for a kernel over rows, without specialization on anything that changes with the batch.

    That is the number of rows, and the alignment of per-row tensors such as slices of labels. So one specialization
    serves all batch sizes, with the same bits for a row. The options do not reach into tuples, so per-row tensors are
    passed as a pointer and strides, not as an operand.
    """
    names = inspect.signature(fn).parameters
    counts = [name for name in ("rows", "chunks", "tiles", "polls", "ignore_index") if name in names]
    unaligned = [name for name in names if name.removesuffix("_ptr") in _PER_ROW]
    return triton.jit(do_not_specialize=counts, do_not_specialize_on_alignment=unaligned)(fn)


class RowTiling:
    """Tiling of the rows along `dim` of tensors whose other dimensions are equal.

    Parameters
    ----------
    columns
        Number of columns to tile.
    tensors
        Tensors by operand name of the kernel; None is passed through.
    per_row
        Tensors that broadcast to one element per row, by name of the kernel's pointer.
    whole_rows
        Prefer one chunk per row.
    meeting
        Where the programs of a row's chunks merge statistics within the launch, the most registers per thread; it
        bounds `chunks`, by chunks of several tiles.
    config
        Tile sizes, by default those of losses of logits.
    crowded
        A kernel holds so much of each element that it takes twice the threads.
    in_order
        Index rows in the order of dimensions, not in memory order.

    Attributes
    ----------
    rows, columns
        Number of each.
    chunks
        Number of chunks per row, of BLOCK_V columns each.
    tiles
        Number of tiles of BLOCK_V columns per chunk; None for 1.
    config
        Tile sizes and warps.
    """

    def __init__(
        self,
        columns: int,
        tensors: Mapping[str, torch.Tensor | None],
        per_row: Mapping[str, torch.Tensor | None] | None = None,
        *,
        dim: int = -1,
        whole_rows: bool = True,
        meeting: int | None = None,
        config: tile_configs.Config | None = None,
        crowded: bool = False,
        in_order: bool = True,
    ) -> None:
        given = {name: t for name, t in tensors.items() if t is not None}
        first = next(iter(given.values()))
        row_dims = [d for d in range(first.dim()) if d != dim % first.dim()]
        shape = [first.shape[d] for d in row_dims]
        per_row = per_row or {}
        expanded = {name: t.expand(shape) for name, t in per_row.items() if t is not None}
        unit = strides.row_unit(list(given.values()), dim)
        row_strides = [[t.stride(d) for d in row_dims] for t in given.values()]
        row_strides += [list(t.stride()) for t in expanded.values()]
        units = [unit] * len(given) + [1] * len(expanded)
        coalesced = strides.coalesce_rows(shape, row_strides, units, in_order=in_order)
        self.rows, self.columns = coalesced.rows, columns
        itemsize = max(t.dtype.itemsize for t in given.values())
        if config is None:
            contiguous = all(t.stride(dim) == 1 for t in given.values())
            config = tile_configs.logits(itemsize, self.rows, columns, contiguous, whole_rows)
        if crowded:
            config = tile_configs.of_more_threads(config)
        self.config = config
        self.chunks = max(1, tile_configs.cdiv(columns, self.config["BLOCK_V"]))
        self.tiles: int | None = None
        if meeting is not None:
            self.config, self.chunks, self.tiles = tile_configs.meeting(config, itemsize, self.chunks, meeting)
        merged = iter(coalesced.strides)
        self._args: dict[str, Any] = {"sizes": coalesced.sizes, "rows": self.rows, "chunks": self.chunks}
        for name, tensor in tensors.items():
            self._args[name] = None
            if tensor is not None:
                stride = tensor.stride(dim)
                # Encoded like row strides, so that its divisibility by 16 does not specialize the kernel.
                column_stride = None if stride == 1 else 2 * stride - 1
                self._args[name] = (tensor, next(merged), column_stride, unit)
        for name, tensor in per_row.items():
            self._args[f"{name}_ptr"] = tensor
            self._args[f"{name}_strides"] = None if tensor is None else next(merged)

    @property
    def grid(self) -> tuple[int]:
        """Grid with one program per block of rows and chunk."""
        return (tile_configs.cdiv(self.rows, self.config["BLOCK_N"]) * self.chunks,)

    def args(self, *names: str) -> dict[str, Any]:
        """Return launch arguments: row sizes, numbers of rows and chunks, and the named operands.

        An operand of `tensors` is (tensor, row strides, column stride, unit of the row strides): see `jit.tiles`.
        """
        selected = ["sizes", "rows", "chunks"]
        for name in names:
            selected += [name] if name in self._args else [f"{name}_ptr", f"{name}_strides"]
        return {name: self._args[name] for name in selected}
