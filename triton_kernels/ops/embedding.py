"""Embedding lookup and its gradient to the table, which adds up the values of equal indices.

A row of the sum is a product of a one-hot matrix with the tokens' values: deterministic, in token order, without
atomics. A program computes a tile of rows, or, where there are fewer tokens than rows, the rows of a tile of tokens:
tokens with one index store the same bits. It reads all indices of its line, and loads and multiplies only blocks of
tokens with an index in its tile. A block with infinite or NaN values adds one token after the other: 0·inf would make
other rows NaN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit.tiles import program_rows
from ..runtime import device_errors, launch, tile_configs


@triton.jit(do_not_specialize=["tokens"])
def _embedding_kernel(
    index_ptr,  # (tokens,), contiguous
    table,  # (rows, width)
    out_ptr,  # (tokens, width), contiguous
    report_ptr,
    tokens,
    rows,
    width,
    INDEX_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_n, mask_n, pid_d = program_rows(tokens, tl.cdiv(width, BLOCK_D), BLOCK_N, INDEX_DTYPE)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < width
    row = tl.load(index_ptr + offs_n, mask=mask_n, other=0).to(tl.int64)
    valid = (row >= 0) & (row < rows)
    stride_row, stride_d = table[1]
    at = table[0] + (row * stride_row)[:, None] + (offs_d * stride_d)[None, :]
    value = tl.load(at, mask=(mask_n & valid)[:, None] & mask_d[None, :], other=float("nan"))
    tl.store(out_ptr + (offs_n * width)[:, None] + offs_d[None, :], value, mask=mask_n[:, None] & mask_d[None, :])
    device_errors.record(report_ptr, device_errors.EMBEDDING, row, rows, mask_n & ~valid)


def embedding_forward(indices: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return table[indices].

    Parameters
    ----------
    indices
        int32 or int64, any shape and strides. An index out of range gives NaN, and is reported by the next
        `raise_pending_errors`.
    table
        (rows, width), floating dtype, any strides.

    Returns
    -------
    torch.Tensor
        (*indices.shape, width), of the table's dtype.

    Examples
    --------
    >>> embedding_forward(torch.tensor([1, 0]).to(DEVICE), torch.tensor([[1.0], [2.0]]).to(DEVICE)).tolist()
    [[2.0], [1.0]]
    """
    rows, width = table.shape
    flat = indices.reshape(-1)
    out = torch.empty((*indices.shape, width), dtype=table.dtype, device=table.device)
    tokens = flat.numel()
    config = tile_configs.embedding(table.dtype.itemsize, width)
    launch.run(
        _embedding_kernel,
        (tile_configs.cdiv(tokens, config["BLOCK_N"]) * tile_configs.cdiv(width, config["BLOCK_D"]),),
        config,
        index_ptr=flat.contiguous(),
        table=(table, table.stride()),
        out_ptr=out,
        report_ptr=device_errors.buffer(table.device),
        tokens=tokens,
        rows=rows,
        width=width,
        INDEX_DTYPE=launch.index_dtype((tokens + config["BLOCK_N"]) * width),
    )
    return out


@triton.jit(do_not_specialize=["tokens", "rows"])
def _scatter_add_kernel(
    index_ptr,  # (lines, tokens), contiguous
    values,  # (lines, tokens, width)
    out_ptr,  # (lines, rows, width), contiguous
    tokens,
    rows,
    width,
    BY_TOKENS: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    size = tokens if BY_TOKENS else rows
    tiles, programs_d = tl.cdiv(size, BLOCK_R), tl.cdiv(width, BLOCK_D)
    pid = tl.program_id(0).to(INDEX_DTYPE)
    line = pid // (tiles * programs_d)
    offs_r = pid // programs_d % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d = pid % programs_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_r, mask_d = offs_r < size, offs_d < width
    stride_line, stride_n, stride_d = values[1]
    index_ptr += line * tokens
    if BY_TOKENS:
        own_row = tl.load(index_ptr + offs_r, mask=mask_r, other=-1).to(INDEX_DTYPE)
        own_row = tl.where((own_row >= 0) & (own_row < rows), own_row, -1)
    else:
        own_row = offs_r
    acc = tl.zeros((BLOCK_R, BLOCK_D), ACC_DTYPE)
    for start in range(0, tokens, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        row = tl.load(index_ptr + offs_n, mask=offs_n < tokens, other=-2).to(INDEX_DTYPE)
        equal = own_row[:, None] == row[None, :]
        if BY_TOKENS:
            in_tile = tl.max(equal.to(tl.int32), axis=0) > 0
        else:
            in_tile = (row >= tl.min(offs_r, axis=0)) & (row <= tl.max(offs_r, axis=0))
        if tl.max(in_tile.to(tl.int32), axis=0) > 0:
            at = values[0] + line * stride_line
            at += (offs_n.to(INDEX_DTYPE) * stride_n)[:, None] + (offs_d * stride_d)[None, :]
            value = tl.load(at, mask=in_tile[:, None] & mask_d[None, :], other=0).to(ACC_DTYPE)
            finite = tl.abs(value) < float("inf")
            if tl.min(tl.min(finite.to(tl.int32), axis=1), axis=0) > 0:
                acc = tl.dot(equal.to(ACC_DTYPE), value, acc, input_precision="ieee", out_dtype=ACC_DTYPE)
            else:
                for n in range(start, tl.minimum(start + BLOCK_N, tokens)):
                    own = own_row == tl.load(index_ptr + n).to(INDEX_DTYPE)
                    at_n = values[0] + line * stride_line + tl.full((), n, INDEX_DTYPE) * stride_n + offs_d * stride_d
                    token = tl.load(at_n, mask=mask_d, other=0).to(ACC_DTYPE)
                    acc += tl.where(own[:, None], token[None, :], 0)
    if BY_TOKENS:
        mask_r = mask_r & (own_row >= 0)
    at = out_ptr + ((line * rows + own_row) * width)[:, None] + offs_d[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=mask_r[:, None] & mask_d[None, :])


def embedding_backward(indices: torch.Tensor, dout: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the gradient of `embedding_forward` to the table: (rows, width), of dout's dtype; deterministic.

    Examples
    --------
    >>> indices, dout = torch.tensor([1, 1]).to(DEVICE), torch.tensor([[1.0], [2.0]]).to(DEVICE)
    >>> embedding_backward(indices, dout, 2).tolist()
    [[0.0], [3.0]]
    """
    return scatter_add(indices.reshape(1, -1), dout.reshape(1, indices.numel(), dout.shape[-1]), rows)[0]


def scatter_add(indices: torch.Tensor, values: torch.Tensor, rows: int) -> torch.Tensor:
    """Return zeros (lines, rows, width), to whose row indices[l, n] of line l values[l, n] is added; deterministic.

    Parameters
    ----------
    indices
        (lines, tokens), int32 or int64; out of range, they are left out.
    values
        (lines, tokens, width), floating dtype, any strides; sums are float32 (float64 of float64), rounded once.
    rows
        Rows of a line.

    Examples
    --------
    >>> indices, values = torch.tensor([[1, 1]]).to(DEVICE), torch.tensor([[[1.0], [2.0]]]).to(DEVICE)
    >>> scatter_add(indices, values, 3).tolist()
    [[[0.0], [3.0], [0.0]]]
    """
    lines, tokens, width = values.shape
    by_tokens = tokens < rows
    make = torch.zeros if by_tokens else torch.empty
    out = make((lines, rows, width), dtype=values.dtype, device=values.device)
    size = tokens if by_tokens else rows
    config = tile_configs.embedding_gradient(values.dtype.itemsize, tokens, size, width)
    extent = sum((n + 4096) * abs(s) for n, s in zip(values.shape, values.stride(), strict=True))
    launch.run(
        _scatter_add_kernel,
        (lines * tile_configs.cdiv(size, config["BLOCK_R"]) * tile_configs.cdiv(width, config["BLOCK_D"]),),
        config,
        index_ptr=indices.contiguous(),
        values=(values, values.stride()),
        out_ptr=out,
        tokens=tokens,
        rows=rows,
        width=width,
        BY_TOKENS=by_tokens,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(values.dtype)),
        INDEX_DTYPE=launch.index_dtype(max((lines * rows + 512) * width, extent, lines * tokens)),
    )
    return out
