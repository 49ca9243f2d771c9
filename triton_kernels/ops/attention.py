"""Scaled dot-product attention: out = softmax(scale·q·kᵀ)·v, without scores in memory.

Forward walks over blocks of keys with an online softmax, and saves each row's logsumexp (T. Dao et al.,
"FlashAttention", 2022; M. Milakov and N. Gimelshein, 2018). Backward computes the probabilities p again from it: with
delta = Σ dout·out of a row and ds = p·(dout·vᵀ − delta),

    dq = scale·ds·k        a program per block of queries
    dk = scale·dsᵀ·q       a program per block of keys, as
    dv = pᵀ·dout

Sums are in a fixed order, without atomics. Scores are in base 2. Causal: query i sees keys up to number i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..jit.math import LOG2_E
from ..jit.tiles import offsets
from ..runtime import launch, strides, tile_configs
from ..runtime.replay import replayable


def most_columns(dtype: torch.dtype) -> int:
    """Return the most columns of a head: those whose tiles fit the registers and the shared memory of sm_90."""
    return 128 if dtype is torch.float64 else 256


@triton.jit
def _tile(operand, batch, batch_sizes, offs_row, offs_column):
    """Return pointers to a tile of a matrix of a batch; operand is (pointer, strides of a matrix, of the batch)."""
    at = operand[0]
    if operand[2] is not None:
        at += offsets(batch, batch_sizes, operand[2])
    return at + (offs_row * operand[1][0])[:, None] + (offs_column * operand[1][1])[None, :]


@triton.jit
def _scores(query, keys, offs_m, offs_n, S, scale_log2, CAUSAL: tl.constexpr, PRECISION: tl.constexpr):
    """Return scores in base 2 of blocks of queries (M, E) and keys (N, E); −inf where a query does not see a key."""
    scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION, out_dtype=scale_log2.dtype) * scale_log2
    seen = (offs_n < S)[None, :]
    if CAUSAL:
        seen = seen & (offs_n[None, :] <= offs_m[:, None])
    return tl.where(seen, scores, float("-inf"))


@triton.jit(do_not_specialize=["L", "S"])
def _attention_kernel(
    q,  # (batch, L, E): (pointer, strides of a matrix, strides of the batch)
    k,  # (batch, S, E)
    v,  # (batch, S, D)
    out,  # (batch, L, D)
    lse_ptr,  # (batch, L), contiguous
    batch_sizes,
    L,
    S,
    E,
    D,
    scale: tl.float64,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tiles = tl.cdiv(L, BLOCK_M)
    pid = tl.program_id(0).to(INDEX_DTYPE)
    batch = pid // tiles
    # Of causal attention the last queries see the most keys, so they come first.
    offs_m = (tiles - 1 - pid % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_e, offs_d = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_D)
    scale_log2 = tl.full((), scale * LOG2_E, ACC_DTYPE)
    mask_m = (offs_m < L)[:, None]
    query = tl.load(_tile(q, batch, batch_sizes, offs_m, offs_e), mask=mask_m & (offs_e < E)[None, :], other=0)
    row_max = tl.full((BLOCK_M,), float("-inf"), ACC_DTYPE)
    sum_exp = tl.zeros((BLOCK_M,), ACC_DTYPE)
    acc = tl.zeros((BLOCK_M, BLOCK_D), ACC_DTYPE)
    end = tl.minimum(S, tl.max(offs_m, axis=0).to(tl.int32) + 1) if CAUSAL else S
    for start in range(0, end, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N).to(INDEX_DTYPE)
        mask_n = (offs_n < S)[:, None]
        keys = tl.load(_tile(k, batch, batch_sizes, offs_n, offs_e), mask=mask_n & (offs_e < E)[None, :], other=0)
        values = tl.load(_tile(v, batch, batch_sizes, offs_n, offs_d), mask=mask_n & (offs_d < D)[None, :], other=0)
        scores = _scores(query, keys, offs_m, offs_n, S, scale_log2, CAUSAL, PRECISION)
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        p = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        sum_exp = sum_exp * rescale + tl.sum(p, axis=1)
        acc = acc * rescale[:, None]
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision=PRECISION, out_dtype=ACC_DTYPE)
        row_max = new_max
    mask = mask_m & (offs_d < D)[None, :]
    result = acc / sum_exp[:, None]
    tl.store(_tile(out, batch, batch_sizes, offs_m, offs_d), result.to(out[0].dtype.element_ty), mask=mask)
    tl.store(lse_ptr + batch * L + offs_m, row_max + tl.log2(sum_exp), mask=offs_m < L)


@triton.jit(do_not_specialize=["L", "S"])
def _attention_dq_kernel(
    q,
    k,
    v,
    out,
    dout,  # (batch, L, D)
    dq,  # (batch, L, E)
    lse_ptr,
    delta_ptr,  # (batch, L), contiguous
    batch_sizes,
    L,
    S,
    E,
    D,
    scale: tl.float64,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tiles = tl.cdiv(L, BLOCK_M)
    pid = tl.program_id(0).to(INDEX_DTYPE)
    batch = pid // tiles
    offs_m = (tiles - 1 - pid % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_e, offs_d = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_D)
    scale_log2 = tl.full((), scale * LOG2_E, ACC_DTYPE)
    mask_e, mask_d = (offs_m < L)[:, None] & (offs_e < E)[None, :], (offs_m < L)[:, None] & (offs_d < D)[None, :]
    query = tl.load(_tile(q, batch, batch_sizes, offs_m, offs_e), mask=mask_e, other=0)
    grad = tl.load(_tile(dout, batch, batch_sizes, offs_m, offs_d), mask=mask_d, other=0)
    result = tl.load(_tile(out, batch, batch_sizes, offs_m, offs_d), mask=mask_d, other=0)
    delta = tl.sum(grad.to(ACC_DTYPE) * result.to(ACC_DTYPE), axis=1)
    lse = tl.load(lse_ptr + batch * L + offs_m, mask=offs_m < L, other=0)
    tl.store(delta_ptr + batch * L + offs_m, delta, mask=offs_m < L)
    acc = tl.zeros((BLOCK_M, BLOCK_E), ACC_DTYPE)
    end = tl.minimum(S, tl.max(offs_m, axis=0).to(tl.int32) + 1) if CAUSAL else S
    for start in range(0, end, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N).to(INDEX_DTYPE)
        mask_n = (offs_n < S)[:, None]
        keys = tl.load(_tile(k, batch, batch_sizes, offs_n, offs_e), mask=mask_n & (offs_e < E)[None, :], other=0)
        values = tl.load(_tile(v, batch, batch_sizes, offs_n, offs_d), mask=mask_n & (offs_d < D)[None, :], other=0)
        p = tl.exp2(_scores(query, keys, offs_m, offs_n, S, scale_log2, CAUSAL, PRECISION) - lse[:, None])
        dp = tl.dot(grad, tl.trans(values), input_precision=PRECISION, out_dtype=ACC_DTYPE)
        ds = p * (dp - delta[:, None])
        acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision=PRECISION, out_dtype=ACC_DTYPE)
    acc *= tl.full((), scale, ACC_DTYPE)
    tl.store(_tile(dq, batch, batch_sizes, offs_m, offs_e), acc.to(dq[0].dtype.element_ty), mask=mask_e)


@triton.jit(do_not_specialize=["L", "S"])
def _attention_dkdv_kernel(
    q,
    k,
    v,
    dout,
    dk,  # (batch, S, E)
    dv,  # (batch, S, D)
    lse_ptr,
    delta_ptr,
    batch_sizes,
    L,
    S,
    E,
    D,
    scale: tl.float64,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tiles = tl.cdiv(S, BLOCK_N)
    pid = tl.program_id(0).to(INDEX_DTYPE)
    batch = pid // tiles
    offs_n = pid % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_e, offs_d = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_D)
    scale_log2 = tl.full((), scale * LOG2_E, ACC_DTYPE)
    mask_e, mask_d = (offs_n < S)[:, None] & (offs_e < E)[None, :], (offs_n < S)[:, None] & (offs_d < D)[None, :]
    keys = tl.load(_tile(k, batch, batch_sizes, offs_n, offs_e), mask=mask_e, other=0)
    values = tl.load(_tile(v, batch, batch_sizes, offs_n, offs_d), mask=mask_d, other=0)
    acc_k = tl.zeros((BLOCK_N, BLOCK_E), ACC_DTYPE)
    acc_v = tl.zeros((BLOCK_N, BLOCK_D), ACC_DTYPE)
    # The first queries that see a key of the block.
    first = (tl.min(offs_n, axis=0).to(tl.int32) // BLOCK_M) * BLOCK_M if CAUSAL else 0
    for start in range(first, L, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M).to(INDEX_DTYPE)
        mask_m = (offs_m < L)[:, None]
        query = tl.load(_tile(q, batch, batch_sizes, offs_m, offs_e), mask=mask_m & (offs_e < E)[None, :], other=0)
        grad = tl.load(_tile(dout, batch, batch_sizes, offs_m, offs_d), mask=mask_m & (offs_d < D)[None, :], other=0)
        # Rows out of bounds have a logsumexp of infinity, and so probabilities of 0.
        lse = tl.load(lse_ptr + batch * L + offs_m, mask=offs_m < L, other=float("inf"))
        delta = tl.load(delta_ptr + batch * L + offs_m, mask=offs_m < L, other=0)
        p = tl.exp2(_scores(query, keys, offs_m, offs_n, S, scale_log2, CAUSAL, PRECISION) - lse[:, None])
        dp = tl.dot(grad, tl.trans(values), input_precision=PRECISION, out_dtype=ACC_DTYPE)
        ds = p * (dp - delta[:, None])
        acc_v = tl.dot(tl.trans(p.to(grad.dtype)), grad, acc_v, input_precision=PRECISION, out_dtype=ACC_DTYPE)
        acc_k = tl.dot(tl.trans(ds.to(query.dtype)), query, acc_k, input_precision=PRECISION, out_dtype=ACC_DTYPE)
    acc_k *= tl.full((), scale, ACC_DTYPE)
    tl.store(_tile(dk, batch, batch_sizes, offs_n, offs_e), acc_k.to(dk[0].dtype.element_ty), mask=mask_e)
    tl.store(_tile(dv, batch, batch_sizes, offs_n, offs_d), acc_v.to(dv[0].dtype.element_ty), mask=mask_d)


@replayable
def attention_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, causal: bool = False, tf32: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention and each row's logsumexp.

    Parameters
    ----------
    q, k, v
        (…, L, E), (…, S, E) and (…, S, D), of one floating dtype, any strides, with equal leading dimensions; S is at
        least 1, E and D at most `most_columns`. Products and sums are in float32 (float64 for float64).
    scale
        Factor on scores.
    causal
        Query i sees keys 0 to i only.
    tf32
        Round float32 operands of products to tf32.

    Returns
    -------
    out
        (…, L, D), of the same dtype.
    lse
        (…, L), float32 or float64: the logarithm to base 2 of Σ exp(scores).

    Examples
    --------
    >>> q, v = torch.zeros(2, 1).to(DEVICE), torch.tensor([[1.0], [3.0]]).to(DEVICE)
    >>> attention_forward(q, q, v, scale=1.0)[0].tolist()
    [[2.0], [2.0]]
    """
    out = torch.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:-1], dtype=launch.compute_dtype(q.dtype), device=q.device)
    operands = {"q": q, "k": k, "v": v, "out": out}
    _run(_attention_kernel, "out", operands, {"lse_ptr": lse}, scale, causal, tf32)
    return out, lse


@replayable
def attention_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    dout: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of `attention_forward` to q, k and v, from its results and the upstream gradient.

    Examples
    --------
    >>> q, v = torch.zeros(2, 1).to(DEVICE), torch.tensor([[1.0], [3.0]]).to(DEVICE)
    >>> out, lse = attention_forward(q, q, v, scale=1.0)
    >>> attention_backward(q, q, v, out, lse, torch.ones_like(out), scale=1.0)[2].tolist()
    [[1.0], [1.0]]
    """
    dq, dk, dv = (torch.empty(tuple(x.shape), dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty(tuple(lse.shape), dtype=lse.dtype, device=lse.device)
    operands = {"q": q, "k": k, "v": v, "dout": dout}
    statistics = {"lse_ptr": lse, "delta_ptr": delta}
    _run(_attention_dq_kernel, "dq", operands | {"out": out, "dq": dq}, statistics, scale, causal, tf32)
    _run(_attention_dkdv_kernel, "dkdv", operands | {"dk": dk, "dv": dv}, statistics, scale, causal, tf32)
    return dq, dk, dv


def _run(
    kernel: object,
    of: str,
    matrices: dict[str, torch.Tensor],
    statistics: dict[str, torch.Tensor],
    scale: float,
    causal: bool,
    tf32: bool,
) -> None:
    """Launch a program for each block of queries or, of "dkdv", of keys, of each of the batch."""
    q, k, v = (matrices[name] for name in "qkv")
    lead = tuple(q.shape[:-2])
    by_matrix = [matrix.stride() for matrix in matrices.values()]
    batch = strides.walk_in_order(lead, [s[:-2] for s in by_matrix])
    config = tile_configs.attention(q.dtype.itemsize, q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], of)
    rows, block = (k.shape[-2], "BLOCK_N") if of == "dkdv" else (q.shape[-2], "BLOCK_M")
    tiles = tile_configs.cdiv(rows, config[block])
    extents = [_extent(matrix) for matrix in matrices.values()]
    launch.run(
        kernel,
        (batch.numel * tiles,),
        config,
        **{
            name: (matrix, s[-2:], of_batch)
            for (name, matrix), s, of_batch in zip(matrices.items(), by_matrix, batch.strides, strict=True)
        },
        **statistics,
        batch_sizes=batch.inner_sizes,
        L=q.shape[-2],
        S=k.shape[-2],
        E=q.shape[-1],
        D=v.shape[-1],
        scale=scale,
        CAUSAL=causal,
        PRECISION="tf32" if tf32 and q.dtype is torch.float32 else "ieee",
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(q.dtype)),
        INDEX_DTYPE=launch.index_dtype(max(extents)),
    )


def _extent(matrix: torch.Tensor) -> int:
    """Return the largest offset of an element of tiles that may extend past the end."""
    sizes: Sequence[int] = [*matrix.shape[:-2], *(size + 1024 for size in matrix.shape[-2:])]
    return sum(size * abs(stride) for size, stride in zip(sizes, matrix.stride(), strict=True))
