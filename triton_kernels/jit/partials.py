"""Deterministic second stage of reductions.

A reduction writes one partial sum per program, in a row per result; `finalize` sums each row in a fixed order and
multiplies by a host-side factor.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..runtime import launch, tile_configs


def allocate(rows: int, programs: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return uninitialized partial results, (rows, programs)."""
    return torch.empty((rows, programs), dtype=dtype, device=device)


@triton.jit(do_not_specialize=["columns"])
def _finalize_kernel(
    partials_ptr,  # (rows, columns)
    out_ptr,  # (rows,)
    columns,
    scale: tl.float64,
    ACC_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), ACC_DTYPE)
    for start in range(0, columns, BLOCK):
        mask = start + offs < columns
        acc += tl.load(partials_ptr + row * columns + start + offs, mask=mask, other=0)
    total = tl.sum(acc, axis=0) * tl.full((), scale, ACC_DTYPE)
    tl.store(out_ptr + row, total.to(out_ptr.dtype.element_ty))


def finalize(partials: torch.Tensor, out: torch.Tensor, scale: float) -> torch.Tensor:
    """Write scale · Σ of each row of `partials` (rows, columns) to `out` (rows elements); both contiguous."""
    rows, columns = partials.shape
    launch.run(
        _finalize_kernel,
        (rows,),
        tile_configs.finalize(columns, rows),
        partials_ptr=partials,
        out_ptr=out,
        columns=columns,
        scale=scale,
        ACC_DTYPE=launch.tl_dtype(partials.dtype),
    )
    return out
