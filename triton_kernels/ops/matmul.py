"""Matrix product with float32 or float64 accumulation: out = a @ b (+ bias), or out += a @ b."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..runtime import launch, tile_configs


@triton.jit(do_not_specialize=["M"])
def _matmul_kernel(
    a,  # (M, K)
    b,  # (K, N)
    bias,  # (N,), or None
    out,  # (M, N)
    M,
    N,
    K,
    ACCUMULATE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    stride_am, stride_ak = a[1]
    stride_bk, stride_bn = b[1]
    stride_om, stride_on = out[1]
    # A 1-d grid: CUDA allows 65,535 programs along the other dimensions.
    pid = tl.program_id(0).to(INDEX_DTYPE)
    programs_n = tl.cdiv(N, BLOCK_N)
    offs_m = pid // programs_n * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid % programs_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < N
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC_DTYPE)
    for start in range(0, K, BLOCK_K):
        offs_k = (start + tl.arange(0, BLOCK_K)).to(INDEX_DTYPE)
        mask_k = offs_k < K
        a_ptrs = a[0] + (offs_m * stride_am)[:, None] + (offs_k * stride_ak)[None, :]
        b_ptrs = b[0] + (offs_k * stride_bk)[:, None] + (offs_n * stride_bn)[None, :]
        tile_a = tl.load(a_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0)
        tile_b = tl.load(b_ptrs, mask=mask_k[:, None] & mask_n[None, :], other=0)
        # ieee: float32 operands are not rounded to tf32.
        acc = tl.dot(tile_a, tile_b, acc, input_precision="ieee", out_dtype=ACC_DTYPE)
    if bias is not None:
        acc += tl.load(bias[0] + offs_n * bias[1][0], mask=mask_n, other=0).to(ACC_DTYPE)[None, :]
    out_ptrs = out[0] + (offs_m * stride_om)[:, None] + (offs_n * stride_on)[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    if ACCUMULATE:
        acc += tl.load(out_ptrs, mask=mask, other=0).to(ACC_DTYPE)
    tl.store(out_ptrs, acc.to(out[0].dtype.element_ty), mask=mask)


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    accumulate: bool = False,
) -> torch.Tensor:
    """Return a @ b, plus a bias on each row.

    Parameters
    ----------
    a, b, bias
        (M, K), (K, N) and (N,), of one floating dtype, any strides. Accumulation is in float32 (float64 for float64).
    out
        Where the product is written: (M, N), of any floating dtype and strides; rounded once.
    accumulate
        Add the product to `out`.

    Returns
    -------
    torch.Tensor
        `out`, or (M, N) of the same dtype.

    Examples
    --------
    >>> a = torch.tensor([[1.0, 2.0]]).to(DEVICE)
    >>> matmul(a, a.t()).tolist()
    [[5.0]]
    """
    (m, k), n = a.shape, b.shape[1]
    if out is None:
        out = torch.empty((m, n), dtype=a.dtype, device=a.device)
    config = tile_configs.matmul(a.dtype.itemsize, m, n, k)
    extents = [(size + 2048) * stride for t in (a, b, out) for size, stride in zip(t.shape, t.stride(), strict=True)]
    launch.run(
        _matmul_kernel,
        (tile_configs.cdiv(m, config["BLOCK_M"]) * tile_configs.cdiv(n, config["BLOCK_N"]),),
        config,
        a=(a, a.stride()),
        b=(b, b.stride()),
        bias=None if bias is None else (bias, bias.stride()),
        out=(out, out.stride()),
        M=m,
        N=n,
        K=k,
        ACCUMULATE=accumulate,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(a.dtype)),
        INDEX_DTYPE=launch.index_dtype(max(extents)),
    )
    return out
