"""Sums, products, maxima and minima over any dimensions, deterministic and batch-invariant.

    Σ f(x, c),   Π x,   max x,   min x,   argmax x,   argmin x        f and the centre c of a row: `_MAPS`

The kept dimensions are rows, the reduced ones columns. A program reduces a chunk of columns of a tile of rows, tile by
tile. The chunks of a row depend on its length only; their results are reduced in order, by `partials.finalize` for sums
and by the same kernel for others.

Maxima are those of integer keys in the order of the values: NaN is the largest of all, and −0 equals 0. Minima have the
complements of the keys. Of equal elements the first has the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..jit import math, partials
from ..jit.tiles import offsets, program_rows, row_offsets
from ..runtime import backend, launch, strides, tile_configs
from ..runtime.replay import replayable

_COMPILED = tl.constexpr(not backend.INTERPRETED)


@triton.jit
def _value(x, centre):
    return x


@triton.jit
def _square(x, centre):
    return x * x


@triton.jit
def _abs(x, centre):
    return tl.abs(x)


@triton.jit
def _squared_deviation(x, centre):
    return (x - centre) * (x - centre)


@triton.jit
def _exp_difference(x, centre):
    return math.accurate_exp(x - tl.where(tl.abs(centre) == float("inf"), 0.0, centre))


#: What is summed: x, x², |x|, (x − c)², and exp(x − c), or exp x if c is infinite. And where that is 0; None: nowhere.
_MAPS: dict[str, tuple[Any, float | None]] = {
    "value": (_value, 0),
    "square": (_square, 0),
    "abs": (_abs, 0),
    "squared_deviation": (_squared_deviation, None),
    "exp_difference": (_exp_difference, float("-inf")),
}


@triton.jit
def _columns(offs_v, column_sizes, column_strides):
    """Return offsets of columns; their strides are None if a row is a single element in memory."""
    if column_strides is None:
        column_offs = offs_v * 0
    else:
        column_offs = offsets(offs_v, column_sizes, column_strides)
    return column_offs


@triton.jit(do_not_specialize=["rows", "columns", "programs"])
def _sum_kernel(
    x,  # (rows, columns), with the strides of rows
    centre_ptr,  # (rows,), or None
    out_ptr,  # (rows, programs of a row)
    row_sizes,
    column_sizes,
    column_strides,  # of x, None if a row is a single element in memory
    rows,
    columns,
    programs,  # of a row
    scale: tl.float64,
    MAP: tl.constexpr,
    OTHER: tl.constexpr,  # what MAP turns to the neutral element; None: nothing
    PRODUCT: tl.constexpr,  # multiply, not add
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
    centre = None
    if centre_ptr is not None:
        centre = tl.load(centre_ptr + offs_n, mask=mask_n, other=0).to(ACC_DTYPE)[:, None]
    acc = tl.full((BLOCK_N, BLOCK_V), 1 if PRODUCT else 0, ACC_DTYPE)
    first = chunk * TILES
    for tile in range(first, tl.minimum(first + TILES, tl.cdiv(columns, BLOCK_V))):
        offs_v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        at = x[0] + row_offs[:, None] + _columns(offs_v, column_sizes, column_strides)[None, :]
        # Full tiles without a mask: sizes are not specialized, so a mask would make accesses scalar.
        if rows_full and (tile + 1) * BLOCK_V <= columns:
            value = MAP(tl.load(at).to(ACC_DTYPE), centre)
        else:
            mask = mask_n[:, None] & (offs_v < columns)[None, :]
            value = MAP(tl.load(at, mask=mask, other=0 if OTHER is None else OTHER).to(ACC_DTYPE), centre)
            if OTHER is None:
                value = tl.where(mask, value, 0)
        if PRODUCT:
            acc *= value
        else:
            acc += value
    if PRODUCT:
        total = _row_product(acc)
    else:
        total = tl.sum(acc, axis=1) * tl.full((), scale, ACC_DTYPE)
    tl.store(out_ptr + offs_n * programs + chunk, total.to(out_ptr.dtype.element_ty), mask=mask_n)


@triton.jit
def _multiply(x, y):
    return x * y


@triton.jit
def _row_product(x):
    """Return the product of each row."""
    if _COMPILED:
        product = tl.reduce(x, 1, _multiply)
    else:  # there `tl.reduce` loops over elements
        for _ in tl.static_range(21):
            if x.shape[1] > 1:
                left, right = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
                x = left * right
        product = tl.reshape(x, (x.shape[0],))
    return product


class _Reduction(NamedTuple):
    """Rows and columns of a tensor: the arguments that kernels share, the rows' number, order and shape."""

    args: dict[str, Any]
    rows: int
    columns: int
    contiguous: bool
    kept: strides.Coalesced
    kept_sizes: list[int]
    sizes: list[int]  # with those that are reduced, which become 1
    extent: int

    @classmethod
    def of(cls, x: torch.Tensor, dims: Sequence[int], *, in_order: bool = False) -> _Reduction:
        """Reduce x over `dims`; with `in_order` columns are numbered in the order of dimensions, not of memory."""
        reduced = sorted(dim % x.dim() for dim in dims) if x.dim() else []
        kept = [dim for dim in range(x.dim()) if dim not in reduced]
        kept_dims = strides.coalesce_dims(kept, x)
        if in_order:
            shape = [x.shape[dim] for dim in reduced]
            reduced_dims = strides.walk_in_order(shape, [[x.stride(dim) for dim in reduced]])
        else:
            reduced_dims = strides.coalesce_dims(reduced, x)
        kept_sizes, kept_strides = [x.shape[dim] for dim in kept], [x.stride(dim) for dim in kept]
        unit = 16 if all(stride % 16 == 0 for stride in kept_strides) else 1
        row_dims = strides.coalesce_rows(kept_sizes, [kept_strides], [unit], in_order=False)
        column_strides = reduced_dims.strides[0]
        args = {
            "x": (x, row_dims.strides[0]),
            "row_sizes": row_dims.sizes,
            "column_sizes": reduced_dims.inner_sizes,
            "column_strides": column_strides,
            "rows": kept_dims.numel,
            "columns": reduced_dims.numel,
            "UNIT": unit,
        }
        sizes = [1 if dim in reduced else size for dim, size in enumerate(x.shape)]
        contiguous = column_strides is not None and column_strides[-1] == 1
        extent = kept_dims.extent + reduced_dims.extent
        return cls(args, kept_dims.numel, reduced_dims.numel, contiguous, kept_dims, kept_sizes, sizes, extent)

    def tiling(self, itemsize: int) -> tuple[tile_configs.Config, dict[str, Any]]:
        """Return tile sizes, and the arguments of all kernels, with `programs` of a row among them."""
        config = tile_configs.sums(itemsize, self.rows, self.columns, self.contiguous)
        chunk = config["BLOCK_V"] * config["TILES"]
        programs = max(1, tile_configs.cdiv(self.columns, chunk))
        padded = max((self.rows + config["BLOCK_N"]) * programs, self.columns + chunk, self.extent)
        return config, {**self.args, "programs": programs, "INDEX_DTYPE": launch.index_dtype(padded)}

    def empty(self, dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialized result without the reduced dimensions, contiguous in the order of rows."""
        return self.kept.empty(self.kept_sizes, dtype, self.args["x"][0].device)

    def shaped(self, out: torch.Tensor, keepdim: bool) -> torch.Tensor:
        """Return a result with or without the reduced dimensions."""
        return out.view(self.sizes) if keepdim else out


@replayable
def sum(
    x: torch.Tensor,
    dims: Sequence[int],
    *,
    keepdim: bool = False,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    of: str = "value",
    centre: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return scale · Σ f(x, c) over `dims`.

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
    of
        f: "value", "square", "abs", "squared_deviation" or "exp_difference"; the last two are of a centre.
    centre
        c of each row: a result of a reduction of x over `dims`, with `keepdim` or not.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(DEVICE)
    >>> sum(x, [1]).tolist(), sum(x, [1], of="square").tolist()
    ([3.0, 7.0], [5.0, 25.0])
    """
    function, other = _MAPS[of]
    dtype = dtype or (x.dtype if x.dtype.is_floating_point else torch.int64)
    reduction = _Reduction.of(x, dims)
    out = reduction.empty(dtype)
    acc_dtype = launch.compute_dtype(x.dtype) if x.dtype.is_floating_point else torch.int64
    config, args = reduction.tiling(x.dtype.itemsize)
    programs = args["programs"]
    sums = partials.allocate(reduction.rows, programs, acc_dtype, x.device) if programs > 1 else out
    launch.run(
        _sum_kernel,
        (tile_configs.cdiv(reduction.rows, config["BLOCK_N"]) * programs,),
        config,
        **args,
        centre_ptr=centre,
        out_ptr=sums,
        scale=scale if sums is out else 1.0,
        MAP=function,
        OTHER=other,
        PRODUCT=False,
        ACC_DTYPE=launch.tl_dtype(acc_dtype),
    )
    if sums is not out:
        partials.finalize(sums, out, scale)
    return reduction.shaped(out, keepdim)


def prod(x: torch.Tensor, dims: Sequence[int], *, keepdim: bool = False) -> torch.Tensor:
    """Return Π x over `dims`, as `sum` does a sum: in float32, float64, or int64 for integers and bool.

    Examples
    --------
    >>> prod(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(DEVICE), [1]).tolist()
    [2.0, 12.0]
    """
    dtype = x.dtype if x.dtype.is_floating_point else torch.int64
    acc_dtype = launch.compute_dtype(dtype) if dtype.is_floating_point else torch.int64
    reduction = _Reduction.of(x, dims)
    out = reduction.empty(dtype)
    part = reduction
    while True:
        config, args = part.tiling(x.dtype.itemsize)
        programs = args["programs"]
        products = partials.allocate(part.rows, programs, acc_dtype, x.device) if programs > 1 else out
        launch.run(
            _sum_kernel,
            (tile_configs.cdiv(part.rows, config["BLOCK_N"]) * programs,),
            config,
            **args,
            centre_ptr=None,
            out_ptr=products,
            scale=1.0,
            MAP=_value,
            OTHER=1.0 if dtype.is_floating_point else 1,
            PRODUCT=True,
            ACC_DTYPE=launch.tl_dtype(acc_dtype),
        )
        if products is out:
            return reduction.shaped(out, keepdim)
        part = _Reduction.of(products, [1])


@triton.jit(do_not_specialize=["rows", "columns", "programs"])
def _extreme_kernel(
    x,  # (rows, columns), with the strides of rows
    index_ptr,  # (rows, columns), the indices of the elements of x, or None: their columns
    values_ptr,  # (rows, programs of a row), or None
    indices_ptr,  # (rows, programs of a row), or None
    row_sizes,
    column_sizes,
    column_strides,  # of x, None if a row is a single element in memory
    rows,
    columns,
    programs,  # of a row
    SMALLEST: tl.constexpr,
    KEY_DTYPE: tl.constexpr,
    UNIT: tl.constexpr,  # common factor of row strides
    INDEX_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILES: tl.constexpr,  # of columns per program
):
    LARGEST: tl.constexpr = 2**31 - 1 if KEY_DTYPE.primitive_bitwidth == 32 else 2**63 - 1
    LAST: tl.constexpr = 2**31 - 1 if INDEX_DTYPE.primitive_bitwidth == 32 else 2**63 - 1
    offs_n, mask_n, chunk = program_rows(rows, programs, BLOCK_N, INDEX_DTYPE)
    row_offs = row_offsets(offs_n, row_sizes, x[1], UNIT)
    rows_full = tl.max(offs_n, axis=0) < rows
    best = tl.full((BLOCK_N, BLOCK_V), -LARGEST - 1, KEY_DTYPE)
    best_index = tl.full((BLOCK_N, BLOCK_V), LAST, INDEX_DTYPE)
    first = chunk * TILES
    for tile in range(first, tl.minimum(first + TILES, tl.cdiv(columns, BLOCK_V))):
        offs_v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        at = x[0] + row_offs[:, None] + _columns(offs_v, column_sizes, column_strides)[None, :]
        mask = mask_n[:, None] & (offs_v < columns)[None, :]
        if rows_full and (tile + 1) * BLOCK_V <= columns:
            key = _key(tl.load(at), SMALLEST, KEY_DTYPE, LARGEST)
        else:
            key = _key(tl.load(at, mask=mask, other=0), SMALLEST, KEY_DTYPE, LARGEST)
            key = tl.where(mask, key, -LARGEST - 1)
        if indices_ptr is not None:
            if index_ptr is None:
                index = tl.broadcast_to(offs_v[None, :], (BLOCK_N, BLOCK_V))
            else:
                index_at = index_ptr + offs_n[:, None] * columns + offs_v[None, :]
                index = tl.load(index_at, mask=mask, other=LAST).to(INDEX_DTYPE)
            # Of the smallest key only an index in bounds is less than the first.
            better = (key > best) | ((key == best) & (index < best_index))
            best_index = tl.where(better, index, best_index)
        best = tl.maximum(best, key)
    row_best = tl.max(best, axis=1)
    out_at = offs_n * programs + chunk
    if values_ptr is not None:
        dtype: tl.constexpr = values_ptr.dtype.element_ty
        tl.store(values_ptr + out_at, _of_key(row_best, dtype, SMALLEST, LARGEST), mask=mask_n)
    if indices_ptr is not None:
        row_index = tl.min(tl.where(best == row_best[:, None], best_index, LAST), axis=1)
        tl.store(indices_ptr + out_at, row_index.to(tl.int64), mask=mask_n)


@triton.jit
def _key(x, SMALLEST: tl.constexpr, KEY_DTYPE: tl.constexpr, LARGEST: tl.constexpr):
    """Return an integer that is larger for a larger x, or for a smaller x with SMALLEST; the largest for NaN."""
    if x.dtype.is_floating():
        wide = x.to(tl.float64 if KEY_DTYPE.primitive_bitwidth == 64 else tl.float32)
        bits = tl.where(wide == 0, 0.0, wide).to(KEY_DTYPE, bitcast=True)
        # The order of negative numbers is that of their complements.
        key = bits ^ ((bits >> (KEY_DTYPE.primitive_bitwidth - 1)) & LARGEST)
        if SMALLEST:
            key = ~key
        key = tl.where(wide != wide, LARGEST, key)
    else:
        key = x.to(KEY_DTYPE)
        if SMALLEST:
            key = ~key
    return key


@triton.jit
def _of_key(key, DTYPE: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr):
    """Return the value of a key; the largest, and its complement, are bits of a NaN."""
    if SMALLEST:
        key = ~key
    if DTYPE.is_floating():
        bits = key ^ ((key >> (key.dtype.primitive_bitwidth - 1)) & LARGEST)
        value = bits.to(tl.float64 if key.dtype == tl.int64 else tl.float32, bitcast=True)
    else:
        value = key
    return value.to(DTYPE)


def extreme(x: torch.Tensor, dims: Sequence[int], *, smallest: bool = False, keepdim: bool = False) -> torch.Tensor:
    """Return the maximum or minimum over `dims`, which are not empty; NaN if one is NaN.

    Parameters
    ----------
    x
        Any dtype, shape and strides.
    dims
        Dimensions to reduce.
    smallest
        Return the minimum.
    keepdim
        Keep them with size 1.

    Examples
    --------
    >>> extreme(torch.tensor([[1.0, 2.0], [4.0, 3.0]]).to(DEVICE), [1]).tolist()
    [2.0, 4.0]
    """
    return _extreme(x, dims, smallest, keepdim, indices=False)


def extreme_index(
    x: torch.Tensor, dims: Sequence[int], *, smallest: bool = False, keepdim: bool = False
) -> torch.Tensor:
    """Return the index of the first maximum or minimum over `dims`, int64; the first NaN is both.

    The index is that of the element where `dims` are flattened, in their order.

    Examples
    --------
    >>> extreme_index(torch.tensor([[1.0, 2.0], [4.0, 3.0]]).to(DEVICE), [0, 1]).item()
    2
    """
    return _extreme(x, dims, smallest, keepdim, indices=True)


def _extreme(x: torch.Tensor, dims: Sequence[int], smallest: bool, keepdim: bool, *, indices: bool) -> torch.Tensor:
    reduction = _Reduction.of(x, dims, in_order=indices)
    out = reduction.empty(torch.int64 if indices else x.dtype)
    part, index = reduction, None
    while True:
        config, args = part.tiling(x.dtype.itemsize)
        programs = args["programs"]
        whole = programs == 1
        # Of several chunks: the extreme of each, and where it is.
        values = out if whole else partials.allocate(part.rows, programs, x.dtype, x.device)
        found = out if whole else partials.allocate(part.rows, programs, torch.int64, x.device) if indices else None
        launch.run(
            _extreme_kernel,
            (tile_configs.cdiv(part.rows, config["BLOCK_N"]) * programs,),
            config,
            **args,
            index_ptr=index,
            values_ptr=None if whole and indices else values,
            indices_ptr=found if indices else None,
            SMALLEST=smallest,
            KEY_DTYPE=tl.int64 if x.dtype in (torch.float64, torch.int64) else tl.int32,
        )
        if whole:
            return reduction.shaped(out, keepdim)
        part, index = _Reduction.of(values, [1]), found
