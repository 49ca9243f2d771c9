"""What kernels of cross-entropies share: weights of classes, and how chunks of a row are merged."""

from __future__ import annotations

import triton
import triton.language as tl

from ..jit import math
from ..jit.tiles import get


@triton.jit
def classes(class_ptr, offs_v, mask_v, like):
    """Weights of columns as a row of a tile; 0 for columns that are not there."""
    if class_ptr is None:
        c = mask_v.to(like.dtype)
    else:
        c = tl.load(class_ptr + offs_v, mask=mask_v, other=0).to(like.dtype)
    return c[None, :]


@triton.jit
def merge_chunks(
    partials_ptr,  # (2, rows, chunks): m and d; or (4, rows, chunks): and Σ w·z and Σ w of weights w
    offs_n,
    kept,
    rows,
    chunks,
    WEIGHTED: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of each row m and d, and if WEIGHTED Σ w·z and Σ w, from those of its chunks in their order."""
    size = tl.cast(rows, offs_n.dtype) * chunks
    m = tl.full((BLOCK_N, BLOCK_C), float("-inf"), COMPUTE)
    for start in range(0, chunks, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        at, mask = (offs_n * chunks)[:, None] + offs_c[None, :], kept[:, None] & (offs_c < chunks)[None, :]
        m = tl.maximum(m, get(partials_ptr, 0, size, at, mask, float("-inf")))
    m = tl.max(m, axis=1)
    d = tl.zeros((BLOCK_N, BLOCK_C), COMPUTE)
    a, total = d, d
    for start in range(0, chunks, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        at, mask = (offs_n * chunks)[:, None] + offs_c[None, :], kept[:, None] & (offs_c < chunks)[None, :]
        by = get(partials_ptr, 0, size, at, mask, float("-inf")) - math.finite(m)[:, None]
        d += get(partials_ptr, 1, size, at, mask, 0.0) * math.exp2(by)
        if WEIGHTED:
            weights = get(partials_ptr, 3, size, at, mask, 0.0)
            a += get(partials_ptr, 2, size, at, mask, 0.0) + tl.where(weights != 0, weights * by, 0.0)
            total += weights
    return m, tl.sum(d, axis=1), tl.sum(a, axis=1), tl.sum(total, axis=1)
