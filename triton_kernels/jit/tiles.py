"""Offsets, loads and stores of operands, and jit functions that the losses of logits share.

Kernels over n elements compile their bodies twice (``for MASKED in tl.static_range(2)``): without a mask for full
blocks, and with one for the last. n is not specialized, so one specialization serves all batch sizes. A mask of unknown
alignment makes loads and stores scalar; full blocks have 128-bit accesses.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..runtime import device_errors


@triton.jit
def offsets(index, inner_sizes, strides):
    """Return offsets of an operand's elements from their linear indices in a coalesced iteration."""
    result = tl.zeros_like(index)
    for i in tl.static_range(len(inner_sizes), 0, -1):
        result += (index % inner_sizes[i - 1]) * strides[i]
        index = index // inner_sizes[i - 1]
    return result + index * strides[0]


@triton.jit
def load(operand, offs, mask, inner_sizes, OTHER: tl.constexpr, DTYPE: tl.constexpr):
    """Load and upcast elements of an operand (pointer, strides); OTHER, or undefined values if None, where masked.

    mask is None if all are in bounds. Strides are None if the operand has a single element.
    """
    ptr = operand[0]
    if operand[1] is None:
        # Upcast first: the interpreter has no bfloat16 constants for `tl.where`.
        value = tl.full(offs.shape, tl.load(ptr).to(DTYPE), DTYPE)
        if mask is not None and OTHER is not None:
            value = tl.where(mask, value, OTHER)
    else:
        at = ptr + offsets(offs, inner_sizes, operand[1])
        if mask is None:
            value = tl.load(at)
        else:
            value = tl.load(at, mask=mask, other=OTHER)
    return value.to(DTYPE)


@triton.jit
def store(operand, offs, mask, inner_sizes, value):
    """Store values to an operand (pointer, strides), rounded once to its dtype."""
    ptr = operand[0]
    if operand[1] is None:
        at = ptr + offs
    else:
        at = ptr + offsets(offs, inner_sizes, operand[1])
    tl.store(at, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _decode(value):
    """Return a size or stride that `coalesce_rows` encoded as 2·value − 1."""
    return (value >> 1) + 1


@triton.jit
def row_offsets(index, sizes, strides, unit):
    """Return offsets of rows, for sizes and strides that `coalesce_rows` encoded; strides in multiples of `unit`."""
    result = tl.zeros_like(index)
    for i in tl.static_range(len(sizes), 0, -1):
        size = _decode(sizes[i - 1])
        result += (index % size) * _decode(strides[i])
        index = index // size
    return (result + index * _decode(strides[0])) * unit


@triton.jit
def program_tile(rows, chunks, BLOCK_N: tl.constexpr):
    """Return the program's rows, int64, their in-bounds mask, and its chunk; a row's chunks have adjacent programs."""
    pid = tl.program_id(0)
    offs_n = (pid // chunks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return offs_n, offs_n < rows, pid % chunks


@triton.jit
def program_rows(rows, chunks, BLOCK_N: tl.constexpr, INDEX_DTYPE: tl.constexpr):
    """Return the program's rows, of INDEX_DTYPE, their in-bounds mask, and its chunk."""
    pid = tl.program_id(0).to(INDEX_DTYPE)
    offs_n = pid // chunks * BLOCK_N + tl.arange(0, BLOCK_N)
    return offs_n, offs_n < rows, pid % chunks


@triton.jit
def load_row(operand, offs_n, sizes, mask_n, OTHER, DTYPE: tl.constexpr):
    """Load and upcast one element per row of an operand (pointer, strides)."""
    return tl.load(operand[0] + row_offsets(offs_n, sizes, operand[1], 1), mask=mask_n, other=OTHER).to(DTYPE)


@triton.jit
def _first_column(chunk, V, BLOCK_V: tl.constexpr):
    # In V's dtype, int64 only if V needs it: int64 columns take registers, and so occupancy.
    return (chunk + (V - V)) * BLOCK_V


@triton.jit
def tile_columns(chunk, V, BLOCK_V: tl.constexpr):
    """Return the columns of a chunk's tile."""
    return _first_column(chunk, V, BLOCK_V) + tl.arange(0, BLOCK_V)


@triton.jit
def chunk_tile(chunk, tiles, i):
    """Return the index of tile i of a chunk of `tiles` tiles, or of one if None."""
    if tiles is None:
        tile = chunk
    else:
        tile = chunk * tiles + i
    return tile


@triton.jit
def column_offsets(offs_v, stride_v):
    """Return offsets of columns in a row; the column stride is encoded like row strides, None if it is 1."""
    if stride_v is None:
        result = offs_v
    else:
        result = offs_v * _decode(stride_v).to(tl.int64)
    return result


@triton.jit
def tile_pointers(operand, offs_n, offs_v, sizes):
    """Return pointers to a tile of an operand (pointer, row strides, column stride, unit of the row strides)."""
    row_ptr = operand[0] + row_offsets(offs_n, sizes, operand[1], operand[3])
    return row_ptr[:, None] + column_offsets(offs_v, operand[2])[None, :]


@triton.jit
def load_column(operand, offs_n, column, sizes, mask_n, OTHER, DTYPE: tl.constexpr):
    """Load and upcast one element of each row of an operand, at the column that `column` has for the row."""
    at = operand[0] + row_offsets(offs_n, sizes, operand[1], operand[3]) + column_offsets(column, operand[2])
    return tl.load(at, mask=mask_n, other=OTHER).to(DTYPE)


@triton.jit
def load_tile(
    operand, offs_n, offs_v, sizes, mask, OTHER: tl.constexpr, DTYPE: tl.constexpr, EVICT_FIRST: tl.constexpr = None
):
    """Load and upcast a tile, OTHER where masked; mask is None if the tile is full.

    EVICT_FIRST selects the eviction policy of masked loads: evict_first (True), evict_last (False) or none (None).
    """
    EVICTION: tl.constexpr = "" if EVICT_FIRST is None else "evict_first" if EVICT_FIRST else "evict_last"
    at = tile_pointers(operand, offs_n, offs_v, sizes)
    if mask is None:
        value = tl.load(at)
    else:
        value = tl.load(at, mask=mask, other=OTHER, eviction_policy=EVICTION)
    return value.to(DTYPE)


@triton.jit
def store_tile(operand, offs_n, offs_v, sizes, value, mask):
    """Store a tile, rounded once to the operand's dtype."""
    at = tile_pointers(operand, offs_n, offs_v, sizes)
    tl.store(at, value.to(operand[0].dtype.element_ty), mask=mask)


@triton.jit
def tile_is_full(active, chunk, V, BLOCK_V: tl.constexpr):
    """Return whether all rows of a tile are active and all its columns in bounds.

    Kernels load and store full tiles without a mask. Instructions per element of the bf16 gradient of forward KL on
    sm_90: 16.0 instead of 18.9 for V divisible by 16; 17.8 instead of 27.3 for odd V; 15.3 instead of 28.3, and 128-bit
    instead of 16-bit loads, for aligned rows with an odd `vocab_size`.
    """
    return (_first_column(chunk, V, BLOCK_V) <= V - BLOCK_V) & (tl.min(active.to(tl.int32), axis=0) > 0)


@triton.jit
def tile_mask(active, offs_v, V):
    """Return the mask of a tile's active rows and in-bounds columns."""
    return active[:, None] & (offs_v < V)[None, :]


@triton.jit
def load_in_bounds(
    operand, offs_n, active, sizes, tile, V, OTHER: tl.constexpr, DTYPE: tl.constexpr, BLOCK_V: tl.constexpr
):
    """Load and upcast a tile of active rows, OTHER in other rows and from column V on."""
    offs_v = tile_columns(tile, V, BLOCK_V)
    if tile_is_full(active, tile, V, BLOCK_V):
        x = load_tile(operand, offs_n, offs_v, sizes, None, OTHER, DTYPE)
    else:
        x = load_tile(operand, offs_n, offs_v, sizes, tile_mask(active, offs_v, V), OTHER, DTYPE)
    return x


@triton.jit
def store_in_bounds(operand, offs_n, active, sizes, tile, value, V, BLOCK_V: tl.constexpr):
    """Store a tile of active rows, up to column V."""
    offs_v = tile_columns(tile, V, BLOCK_V)
    if tile_is_full(active, tile, V, BLOCK_V):
        store_tile(operand, offs_n, offs_v, sizes, value, None)
    else:
        store_tile(operand, offs_n, offs_v, sizes, value, tile_mask(active, offs_v, V))


@triton.jit
def store_gradient(operand, offs_n, active, mask_n, sizes, tile, value, V, columns, BLOCK_V: tl.constexpr):
    """Store a tile of a gradient, 0 in rows that are not active and from column V on; it has `columns` columns."""
    offs_v = tile_columns(tile, V, BLOCK_V)
    if tile_is_full(active, tile, V, BLOCK_V):
        store_tile(operand, offs_n, offs_v, sizes, value, None)
    else:
        in_bounds = mask_n[:, None] & (offs_v < columns)[None, :]
        store_tile(operand, offs_n, offs_v, sizes, tl.where(tile_mask(active, offs_v, V), value, 0.0), in_bounds)


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
    """Load token weights, 0 for ignored labels. Labels out of range are reported, and have weight NaN."""
    if weight_operand[0] is None:
        weight = mask_n.to(DTYPE)
    else:
        weight = load_row(weight_operand, offs_n, sizes, mask_n, 0, DTYPE)
    if labels_operand[0] is not None:
        label = load_row(labels_operand, offs_n, sizes, mask_n, 0, tl.int64)
        weight = tl.where(label == ignore_index, 0.0, weight)
        bad = (weight != 0) & ((label < 0) | (label >= V))
        device_errors.record(report_ptr, device_errors.LABELS, label, V, bad)
        weight = tl.where(bad, float("nan"), weight)
    return weight


@triton.jit
def valid_labels(label, V):
    """Return labels in V's dtype, for narrow comparisons with columns; −1 if out of range."""
    return tl.where((label >= 0) & (label < V), label, -1).to((tl.zeros((), tl.int32) + (V - V)).dtype)


@triton.jit
def store_stat(ptr, STAT: tl.constexpr, size, at, value, mask):
    """Store statistic STAT of rows, or of chunks, at offsets `at`; `size` is the length of each statistic."""
    tl.store(ptr + tl.cast(size, at.dtype) * STAT + at, value, mask=mask)


@triton.jit
def load_stat(ptr, STAT: tl.constexpr, size, at, mask, OTHER: tl.constexpr, VOLATILE: tl.constexpr = False):
    """Load statistic STAT of rows, or of chunks, at offsets `at`; `size` is the length of each statistic.

    VOLATILE: another program of the launch may have stored it.
    """
    return tl.load(ptr + tl.cast(size, at.dtype) * STAT + at, mask=mask, other=OTHER, volatile=VOLATILE)


@triton.jit
def chunk_block(offs_n, active, start, chunks, BLOCK_C: tl.constexpr):
    """Return offsets and mask (BLOCK_N, BLOCK_C) of a block of chunks in partial statistics (…, rows, chunks)."""
    offs_c = start + tl.arange(0, BLOCK_C)
    return (offs_n * chunks)[:, None] + offs_c[None, :], active[:, None] & (offs_c < chunks)[None, :]


@triton.jit
def load_class_weights(class_ptr, offs_v, V, DTYPE: tl.constexpr):
    """Load class weights, (1, BLOCK_V): 1 if class_ptr is None, 0 out of bounds."""
    in_bounds = offs_v < V
    if class_ptr is None:
        weight = in_bounds.to(DTYPE)
    else:
        weight = tl.load(class_ptr + offs_v, mask=in_bounds, other=0).to(DTYPE)
    return weight[None, :]
