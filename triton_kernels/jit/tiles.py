"""Offsets, loads and stores of operands, and what losses of rows of logits share."""

from __future__ import annotations

import triton
import triton.language as tl

from ..runtime import device_errors


@triton.jit
def offsets(index, inner_sizes, strides):
    """Element numbers of a walk to an operand's offsets."""
    result = tl.zeros_like(index)
    for i in tl.static_range(len(inner_sizes), 0, -1):
        result += (index % inner_sizes[i - 1]) * strides[i]
        index = index // inner_sizes[i - 1]
    return result + index * strides[0]


@triton.jit
def row_offsets(index, sizes, strides, UNIT: tl.constexpr):
    """Offsets of rows, of sizes and strides as `coalesce_rows` encodes them; strides are in UNITs of elements."""
    result = tl.zeros_like(index)
    for i in tl.static_range(len(sizes), 0, -1):
        size = (sizes[i - 1] >> 1) + 1
        result += (index % size) * ((strides[i] >> 1) + 1)
        index = index // size
    return (result + index * ((strides[0] >> 1) + 1)) * UNIT


@triton.jit
def read(operand, index, inner_sizes, n, DTYPE: tl.constexpr):
    """Load elements of an operand, (pointer, strides), and upcast them.

    Elements from n on are not there and read as 0. None for n says that all are: a kernel calls its body with None for
    whole tiles and with n for the last one, so that whole tiles make wide accesses and execute nothing of a mask.
    """
    ptr = operand[0]
    if operand[1] is None:
        value = tl.full(index.shape, tl.load(ptr), ptr.dtype.element_ty)
    else:
        at = ptr + offsets(index, inner_sizes, operand[1])
        if n is None:
            value = tl.load(at)
        else:
            value = tl.load(at, mask=index < n, other=0)
    return value.to(DTYPE)


@triton.jit
def write(ptr, index, value, n):
    """Round once and store to a dense output, element `index` of the walk; n as for `read`."""
    _store(ptr, ptr + index, index, value, n)


@triton.jit
def update(operand, index, inner_sizes, value, n):
    """Round once and store in place, to an operand of its own strides (None: its only element); n as for `read`."""
    ptr = operand[0]
    if operand[1] is None:
        _store(ptr, ptr + index, index, value, n)
    else:
        _store(ptr, ptr + offsets(index, inner_sizes, operand[1]), index, value, n)


@triton.jit
def _store(ptr, at, index, value, n):
    value = value.to(ptr.dtype.element_ty)
    if n is None:
        tl.store(at, value)
    else:
        tl.store(at, value, mask=index < n)


@triton.jit
def there(value, index, n):
    """The values of elements that are there, and 0 for others; n as for `read`."""
    if n is not None:
        value = tl.where(index < n, value, 0.0)
    return value


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
        device_errors.record(report_ptr, device_errors.LABELS, label, V, bad)
        weight = tl.where(bad, float("nan"), weight)
    return weight
