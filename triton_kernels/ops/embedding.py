"""Rows of a table by index, and the gradient to the table.

The gradient adds up, for each row, the tokens that named it, as the product of a 0/1 matrix with the tokens' gradients:
in token order, without atomics. A program owns a tile of rows, looks through all indices and multiplies only where one
falls into its tile, so that every token's gradient is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit.tiles import place
from ..runtime import device_errors, launch, tile_configs


@triton.jit(do_not_specialize=["tokens"])
def _embedding_kernel(
    index_ptr,  # (tokens,), dense
    table_ptr,  # (rows, width)
    out_ptr,  # (tokens, width), dense
    report_ptr,
    tokens,
    rows,
    width,
    stride_tr,
    stride_td,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_n, mask_n, pid_d = place(tokens, tl.cdiv(width, BLOCK_D), BLOCK_N, WIDE)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < width
    row = tl.load(index_ptr + offs_n, mask=mask_n, other=0).to(tl.int64)
    good = mask_n & (row >= 0) & (row < rows)
    at = table_ptr + (row * stride_tr)[:, None] + (offs_d * stride_td)[None, :]
    value = tl.load(at, mask=good[:, None] & mask_d[None, :], other=float("nan"))
    tl.store(out_ptr + (offs_n * width)[:, None] + offs_d[None, :], value, mask=mask_n[:, None] & mask_d[None, :])
    device_errors.record(report_ptr, device_errors.EMBEDDING, row, rows, mask_n & ((row < 0) | (row >= rows)))


def embedding_forward(indices: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """table[indices].

    Parameters
    ----------
    indices
        int32 or int64, any shape and strides. An index outside the table gives NaN, reads nothing, and is reported by
        the next `raise_pending_errors`.
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
        table_ptr=table,
        out_ptr=out,
        report_ptr=device_errors.buffer(table.device),
        tokens=tokens,
        rows=rows,
        width=width,
        stride_tr=table.stride(0),
        stride_td=table.stride(1),
        WIDE=(tokens + config["BLOCK_N"]) * width >= 2**31,
    )
    return out


@triton.jit(do_not_specialize=["tokens", "rows"])
def _embedding_backward_kernel(
    index_ptr,  # (tokens,), dense
    dout_ptr,  # (tokens, width)
    dtable_ptr,  # (rows, width), dense
    tokens,
    rows,
    width,
    stride_dn,
    stride_dd,
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_r, mask_r, pid_d = place(rows, tl.cdiv(width, BLOCK_D), BLOCK_R, WIDE)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < width
    acc = tl.zeros((BLOCK_R, BLOCK_D), COMPUTE)
    for start in range(0, tokens, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        row = tl.load(index_ptr + offs_n, mask=offs_n < tokens, other=-1)
        named = offs_r[:, None] == row[None, :]
        mine = (row >= tl.min(offs_r, axis=0)) & (row <= tl.max(offs_r, axis=0))
        if tl.max(mine.to(tl.int32), axis=0) > 0:
            at = (
                dout_ptr
                + ((offs_n.to(tl.int64) if WIDE else offs_n) * stride_dn)[:, None]
                + (offs_d * stride_dd)[None, :]
            )
            dout = tl.load(at, mask=mine[:, None] & mask_d[None, :], other=0).to(COMPUTE)
            acc = tl.dot(named.to(COMPUTE), dout, acc, input_precision="ieee", out_dtype=COMPUTE)
    at = dtable_ptr + (offs_r * width)[:, None] + offs_d[None, :]
    tl.store(at, acc.to(dtable_ptr.dtype.element_ty), mask=mask_r[:, None] & mask_d[None, :])


def embedding_backward(indices: torch.Tensor, dout: torch.Tensor, rows: int) -> torch.Tensor:
    """Gradient of `embedding_forward` to the table: (rows, width), of dout's dtype, the same bits every time.

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
    launch.run(
        _embedding_backward_kernel,
        (tile_configs.cdiv(rows, config["BLOCK_R"]) * tile_configs.cdiv(width, config["BLOCK_D"]),),
        config,
        index_ptr=flat,
        dout_ptr=dout,
        dtable_ptr=dtable,
        tokens=tokens,
        rows=rows,
        width=width,
        stride_dn=dout.stride(0),
        stride_dd=dout.stride(1),
        COMPUTE=launch.tl_dtype(launch.compute_dtype(dout.dtype)),
        WIDE=max((rows + 512) * width, (tokens + 4096) * dout.stride(0), width * dout.stride(1)) >= 2**31,
    )
    return dtable
