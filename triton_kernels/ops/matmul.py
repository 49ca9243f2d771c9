"""Matrix products with full-precision accumulation: out = a @ b (+ bias)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..runtime import launch, tile_configs


@triton.jit(do_not_specialize=["M"])
def _matmul_kernel(
    a_ptr,  # (M, K)
    b_ptr,  # (K, N)
    bias_ptr,  # (N,), or None
    out_ptr,  # (M, N), dense
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_bias,
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # One dimension of the grid: CUDA refuses more than 65,535 programs along the others.
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    programs_n = tl.cdiv(N, BLOCK_N)
    pid_m, pid_n = pid // programs_n, pid % programs_n
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        if WIDE:
            offs_k = offs_k.to(tl.int64)
        mask_k = offs_k < K
        a_at = a_ptr + (offs_m * stride_am)[:, None] + (offs_k * stride_ak)[None, :]
        b_at = b_ptr + (offs_k * stride_bk)[:, None] + (offs_n * stride_bn)[None, :]
        a = tl.load(a_at, mask=(offs_m < M)[:, None] & mask_k[None, :], other=0)
        b = tl.load(b_at, mask=mask_k[:, None] & (offs_n < N)[None, :], other=0)
        # Products of float32 operands are taken in float32, not in the matrix units' narrower tf32.
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=COMPUTE)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n * stride_bias, mask=offs_n < N, other=0).to(COMPUTE)[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    at = out_ptr + (offs_m * N)[:, None] + offs_n[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=mask)


def matmul(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b, plus a bias on each row.

    Parameters
    ----------
    a, b, bias
        (M, K), (K, N) and (N,), of one floating dtype, any strides. The sum is taken in float32 (float64 for float64).

    Returns
    -------
    torch.Tensor
        (M, N), of the same dtype.

    Examples
    --------
    >>> a = torch.tensor([[1.0, 2.0]]).to(DEVICE)
    >>> matmul(a, a.t()).tolist()
    [[5.0]]
    """
    (m, k), n = a.shape, b.shape[1]
    compute = launch.compute_dtype(a.dtype)
    out = torch.empty((m, n), dtype=a.dtype, device=a.device)
    config = tile_configs.matmul(a.dtype.itemsize, m, n, k)
    extents = [(size + 2048) * stride for t in (a, b) for size, stride in zip(t.shape, t.stride(), strict=True)]
    launch.run(
        _matmul_kernel,
        (tile_configs.cdiv(m, config["BLOCK_M"]) * tile_configs.cdiv(n, config["BLOCK_N"]),),
        config,
        a_ptr=a,
        b_ptr=b,
        bias_ptr=bias,
        out_ptr=out,
        M=m,
        N=n,
        K=k,
        stride_am=a.stride(0),
        stride_ak=a.stride(1),
        stride_bk=b.stride(0),
        stride_bn=b.stride(1),
        stride_bias=0 if bias is None else bias.stride(0),
        COMPUTE=launch.tl_dtype(compute),
        WIDE=max((m + 2048) * n, *extents) >= 2**31,
    )
    return out
