"""Products of matrices and of batches of them, with float32 or float64 accumulation: out = a @ b (+ bias), or +=.

Programs take tiles of the result in groups of GROUP_M rows of tiles, so that those that run at the same time share
operands in the L2 cache. K is walked in order in blocks, of a size that depends on the dtype only: an element's bits
depend neither on the number of rows nor on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..jit.tiles import offsets
from ..runtime import launch, strides, tile_configs
from ..runtime.replay import replayable

#: Factor of M that the kernel knows of where columns of `a` are contiguous: with it the mask of rows is aligned too.
_UNIT = 16


@triton.jit(do_not_specialize=["m_units"])
def _matmul_kernel(
    a,  # (batch, M, K): (pointer, strides of a matrix, strides of the batch)
    b,  # (batch, K, N)
    bias,  # (N,), or None
    out,  # (batch, M, N)
    batch_sizes,
    m_units,  # M / UNIT_M
    N,
    K,
    UNIT_M: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    TF32: tl.constexpr,  # float32 operands are rounded to tf32
    ACCUMULATE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    M = m_units * UNIT_M
    # A 1-d grid: CUDA allows 65,535 programs along the other dimensions.
    programs_m, programs_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    batch = tl.program_id(0) // (programs_m * programs_n)
    pid = tl.program_id(0) % (programs_m * programs_n)
    first_m = pid // (GROUP_M * programs_n) * GROUP_M
    group_m = tl.minimum(programs_m - first_m, GROUP_M)
    pid_m = first_m + pid % (GROUP_M * programs_n) % group_m
    pid_n = pid % (GROUP_M * programs_n) // group_m
    offs_m = pid_m.to(INDEX_DTYPE) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(INDEX_DTYPE) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K).to(INDEX_DTYPE)
    mask_m, mask_n = offs_m < M, offs_n < N
    batch = batch.to(INDEX_DTYPE)
    a_ptrs = a[0] + _batch_offset(a, batch, batch_sizes) + (offs_m * a[1][0])[:, None] + (offs_k * a[1][1])[None, :]
    b_ptrs = b[0] + _batch_offset(b, batch, batch_sizes) + (offs_k * b[1][0])[:, None] + (offs_n * b[1][1])[None, :]
    block_k = tl.full((), BLOCK_K, INDEX_DTYPE)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            mask_a, mask_b = mask_m[:, None], mask_n[None, :]
        else:
            mask_k = offs_k < K - start
            mask_a, mask_b = mask_m[:, None] & mask_k[None, :], mask_k[:, None] & mask_n[None, :]
        tile_a = tl.load(a_ptrs, mask=mask_a, other=0)
        tile_b = tl.load(b_ptrs, mask=mask_b, other=0)
        acc = tl.dot(tile_a, tile_b, acc, input_precision="tf32" if TF32 else "ieee", out_dtype=ACC_DTYPE)
        a_ptrs += block_k * a[1][1]
        b_ptrs += block_k * b[1][0]
    if bias is not None:
        acc += tl.load(bias[0] + offs_n * bias[1][0], mask=mask_n, other=0).to(ACC_DTYPE)[None, :]
    out_ptrs = out[0] + _batch_offset(out, batch, batch_sizes)
    out_ptrs += (offs_m * out[1][0])[:, None] + (offs_n * out[1][1])[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    if ACCUMULATE:
        acc += tl.load(out_ptrs, mask=mask, other=0).to(ACC_DTYPE)
    tl.store(out_ptrs, acc.to(out[0].dtype.element_ty), mask=mask)


@triton.jit
def _batch_offset(operand, batch, sizes):
    """Return the offset of a matrix; the strides of the batch are None if all are 0."""
    if operand[2] is None:
        offset = batch * 0
    else:
        offset = offsets(batch, sizes, operand[2])
    return offset


@replayable
def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    accumulate: bool = False,
    tf32: bool = False,
) -> torch.Tensor:
    """Return a @ b, plus a bias on each row.

    Parameters
    ----------
    a, b, bias
        (…, M, K), (…, K, N) and (N,), of one floating dtype, any strides. Leading dimensions broadcast. Accumulation is
        in float32 (float64 for float64).
    out
        Where the product is written: (…, M, N), of any floating dtype and strides; rounded once.
    accumulate
        Add the product to `out`.
    tf32
        Round float32 operands to tf32, of 10 bits after the point, for tensor cores. Other dtypes are not affected.

    Returns
    -------
    torch.Tensor
        `out`, or (…, M, N) of the same dtype.

    Examples
    --------
    >>> a = torch.tensor([[1.0, 2.0]]).to(DEVICE)
    >>> matmul(a, a.t()).tolist()
    [[5.0]]
    """
    (m, k), n = a.shape[-2:], b.shape[-1]
    lead = strides.broadcast(a.shape[:-2], b.shape[:-2])
    if out is None:
        out = torch.empty((*lead, m, n), dtype=a.dtype, device=a.device)
    # A recorded call passes its arguments themselves to kernels.
    a = a if a.shape[:-2] == lead else a.expand(*lead, m, k)
    b = b if b.shape[:-2] == lead else b.expand(*lead, k, n)
    a_strides, b_strides, out_strides = a.stride(), b.stride(), out.stride()
    batch = strides.walk_in_order(lead, [s[:-2] for s in (a_strides, b_strides, out_strides)])
    a_batch, b_batch, out_batch = batch.strides
    count = batch.numel
    if b_batch is None and count > 1:
        # One matrix b: the batch is rows of a, if those have one stride.
        rows = strides.walk_in_order((*lead, m), [a_strides[:-1], out_strides[:-1]])
        if rows.dims == 1:
            m, count, a_batch, out_batch = rows.numel, 1, None, None
            a_row, out_row = (s[0] if s else 0 for s in rows.strides)
            a_strides, out_strides = (a_row, a_strides[-1]), (out_row, out_strides[-1])
    wide = _is_wide((m, k), a_strides[-2:]) and _is_wide((k, n), b_strides[-2:])
    config = tile_configs.matmul(a.dtype, count * m, n, k, tf32, wide, a.device)
    unit = _UNIT if a_strides[-2] == 1 and m % _UNIT == 0 else 1
    extents = [
        sum((size - 1) * stride for size, stride in zip(lead, s[:-2], strict=False))
        + sum((size + 2048) * stride for size, stride in zip(sizes, s[-2:], strict=True))
        for sizes, s in (((m, k), a_strides), ((k, n), b_strides), ((m, n), out_strides))
    ]
    tiles = tile_configs.cdiv(m, config["BLOCK_M"]) * tile_configs.cdiv(n, config["BLOCK_N"])
    launch.run(
        _matmul_kernel,
        (count * tiles,),
        config,
        a=(a, a_strides[-2:], a_batch),
        b=(b, b_strides[-2:], b_batch),
        bias=None if bias is None else (bias, bias.stride()),
        out=(out, out_strides[-2:], out_batch),
        batch_sizes=batch.inner_sizes,
        m_units=m // unit,
        N=n,
        K=k,
        UNIT_M=unit,
        EVEN_K=k % config["BLOCK_K"] == 0,
        TF32=tf32 and a.dtype is torch.float32,
        ACCUMULATE=accumulate,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(a.dtype)),
        INDEX_DTYPE=launch.index_dtype(max(*extents, count * tiles)),
    )
    return out


def _is_wide(sizes: Sequence[int], steps: Sequence[int]) -> bool:
    """Return whether a matrix of these strides allows wide accesses: along rows or columns, aligned and contiguous."""
    return any(
        steps[dim] == 1 and sizes[dim] % _UNIT == 0 and (steps[1 - dim] % _UNIT == 0 or sizes[1 - dim] == 1)
        for dim in (1, 0)
    )
