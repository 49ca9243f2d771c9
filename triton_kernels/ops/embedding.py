"""Embedding lookup and its gradient to the table.

The gradient of a row is the sum over the tokens with its index, as the product of a one-hot matrix with the tokens'
gradients: deterministic, in token order, without atomics. A program computes a tile of rows. It reads all indices, and
loads and multiplies only blocks of tokens with an index in its tile.
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
def _embedding_backward_kernel(
    index_ptr,  # (tokens,), contiguous
    dout,  # (tokens, width)
    dtable_ptr,  # (rows, width), contiguous
    tokens,
    rows,
    width,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_r, mask_r, pid_d = program_rows(rows, tl.cdiv(width, BLOCK_D), BLOCK_R, INDEX_DTYPE)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < width
    stride_n, stride_d = dout[1]
    acc = tl.zeros((BLOCK_R, BLOCK_D), ACC_DTYPE)
    for start in range(0, tokens, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        row = tl.load(index_ptr + offs_n, mask=offs_n < tokens, other=-1)
        in_tile = (row >= tl.min(offs_r, axis=0)) & (row <= tl.max(offs_r, axis=0))
        if tl.max(in_tile.to(tl.int32), axis=0) > 0:
            one_hot = (offs_r[:, None] == row[None, :]).to(ACC_DTYPE)
            at = dout[0] + (offs_n.to(offs_r.dtype) * stride_n)[:, None] + (offs_d * stride_d)[None, :]
            grad = tl.load(at, mask=in_tile[:, None] & mask_d[None, :], other=0).to(ACC_DTYPE)
            acc = tl.dot(one_hot, grad, acc, input_precision="ieee", out_dtype=ACC_DTYPE)
    at = dtable_ptr + (offs_r * width)[:, None] + offs_d[None, :]
    tl.store(at, acc.to(dtable_ptr.dtype.element_ty), mask=mask_r[:, None] & mask_d[None, :])


def embedding_backward(indices: torch.Tensor, dout: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the gradient of `embedding_forward` to the table: (rows, width), of dout's dtype; deterministic.

    Examples
    --------
    >>> indices, dout = torch.tensor([1, 1]).to(DEVICE), torch.tensor([[1.0], [2.0]]).to(DEVICE)
    >>> embedding_backward(indices, dout, 2).tolist()
    [[0.0], [3.0]]
    """
    width = dout.shape[-1]
    flat, dout = indices.reshape(-1).contiguous(), dout.reshape(-1, width)
    tokens = flat.numel()
    dtable = torch.empty((rows, width), dtype=dout.dtype, device=dout.device)
    config = tile_configs.embedding_gradient(dout.dtype.itemsize, tokens, rows, width)
    extents = ((rows + 512) * width, (tokens + 4096) * dout.stride(0), width * dout.stride(1))
    launch.run(
        _embedding_backward_kernel,
        (tile_configs.cdiv(rows, config["BLOCK_R"]) * tile_configs.cdiv(width, config["BLOCK_D"]),),
        config,
        index_ptr=flat,
        dout=(dout, dout.stride()),
        dtable_ptr=dtable,
        tokens=tokens,
        rows=rows,
        width=width,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(dout.dtype)),
        INDEX_DTYPE=launch.index_dtype(max(extents)),
    )
    return dtable
