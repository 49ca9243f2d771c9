"""Sums over any dimensions, deterministic and batch-invariant.

The kept dimensions are rows, the reduced ones columns. A program sums a chunk of columns of a tile of rows, tile by
tile; `partials.finalize` sums the chunks of longer rows. The chunks of a row depend on its length only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..jit import partials
from ..jit.tiles import offsets, program_rows, row_offsets
from ..runtime import launch, strides, tile_configs


@triton.jit(do_not_specialize=["rows", "columns", "programs"])
def _sum_kernel(
    x,  # (rows, columns), with the strides of rows
    out_ptr,  # (rows, programs of a row)
    row_sizes,
    column_sizes,
    column_strides,  # of x, None if a row is a single element in memory
    rows,
    columns,
    programs,  # of a row
    scale: tl.float64,
    ACC_DTYPE: tl.constexpr,
    UNIT: tl.constexpr,  # common factor of row strides
    INDEX_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILES: tl.constexpr,  # of columns per program
):
    offs_n, mask_n, chunk = program_rows(rows, programs, BLOCK_N, INDEX_DTYPE)
    row_offs = row_offsets(offs_n, row_sizes, x[1], UNIT)
    rows_full = tl.max(offs_n, axis=0) < rows
    acc = tl.zeros((BLOCK_N, BLOCK_V), ACC_DTYPE)
    first = chunk * TILES
    for tile in range(first, tl.minimum(first + TILES, tl.cdiv(columns, BLOCK_V))):
        offs_v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        if column_strides is None:
            column_offs = offs_v * 0
        else:
            column_offs = offsets(offs_v, column_sizes, column_strides)
        at = x[0] + row_offs[:, None] + column_offs[None, :]
        # Full tiles without a mask: sizes are not specialized, so a mask would make accesses scalar.
        if rows_full and (tile + 1) * BLOCK_V <= columns:
            value = tl.load(at)
        else:
            value = tl.load(at, mask=mask_n[:, None] & (offs_v < columns)[None, :], other=0)
        acc += value.to(ACC_DTYPE)
    total = tl.sum(acc, axis=1) * tl.full((), scale, ACC_DTYPE)
    tl.store(out_ptr + offs_n * programs + chunk, total.to(out_ptr.dtype.element_ty), mask=mask_n)


def sum(
    x: torch.Tensor, dims: Sequence[int], *, keepdim: bool = False, scale: float = 1.0, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return scale · Σ x over `dims`.

    Parameters
    ----------
    x
        Any shape and strides. Floating dtypes are summed in float32 (float64 for float64), others in int64.
    dims
        Dimensions to sum over; if empty, the result is a copy.
    keepdim
        Keep them with size 1.
    dtype
        Dtype of the result; by default that of x, int64 for integers and bool.

    Examples
    --------
    >>> sum(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(DEVICE), [1]).tolist()
    [3.0, 7.0]
    """
    summed = sorted(dim % x.dim() for dim in dims) if x.dim() else []
    kept = [dim for dim in range(x.dim()) if dim not in summed]
    dtype = dtype or (x.dtype if x.dtype.is_floating_point else torch.int64)
    acc_dtype = launch.compute_dtype(x.dtype) if x.dtype.is_floating_point else torch.int64
    kept_dims, summed_dims = strides.coalesce_dims(kept, x), strides.coalesce_dims(summed, x)
    rows, columns = kept_dims.numel, summed_dims.numel
    kept_strides = [x.stride(dim) for dim in kept]
    unit = 16 if all(stride % 16 == 0 for stride in kept_strides) else 1
    row_dims = strides.coalesce_rows([x.shape[dim] for dim in kept], [kept_strides], [unit], in_order=False)
    column_strides = summed_dims.strides[0]
    extent = kept_dims.extent + summed_dims.extent
    config = tile_configs.sums(x.dtype.itemsize, rows, columns, column_strides is not None and column_strides[-1] == 1)
    chunk = config["BLOCK_V"] * config["TILES"]
    programs = max(1, tile_configs.cdiv(columns, chunk))
    # Contiguous in the order of rows, which is memory order.
    out = kept_dims.empty([x.shape[dim] for dim in kept], dtype, x.device)
    sums = partials.allocate(rows, programs, acc_dtype, x.device) if programs > 1 else out
    launch.run(
        _sum_kernel,
        (tile_configs.cdiv(rows, config["BLOCK_N"]) * programs,),
        config,
        x=(x, row_dims.strides[0]),
        out_ptr=sums,
        row_sizes=row_dims.sizes,
        column_sizes=summed_dims.inner_sizes,
        column_strides=column_strides,
        rows=rows,
        columns=columns,
        programs=programs,
        scale=scale if sums is out else 1.0,
        ACC_DTYPE=launch.tl_dtype(acc_dtype),
        UNIT=unit,
        INDEX_DTYPE=launch.index_dtype(max((rows + config["BLOCK_N"]) * programs, columns + chunk, extent)),
    )
    if sums is not out:
        partials.finalize(sums, out, scale)
    return out.view([size if dim in kept else 1 for dim, size in enumerate(x.shape) if keepdim or dim in kept])
