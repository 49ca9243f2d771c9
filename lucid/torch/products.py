"""Matrix products with torch: cuBLAS on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

#: Elements of a block of an operand that is converted for a product on the CPU.
_BLOCK = 2**22


def matmul(
    a: Tensor, b: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None, accumulate: bool = False
) -> Tensor:
    """Compute `triton_kernels.matmul` with torch."""
    if out is None:
        out = a.new_empty((a.shape[0], b.shape[1]))
    if a.dtype == out.dtype:
        if bias is not None:
            torch.addmm(bias, a, b, out=out)
        elif accumulate:
            torch.addmm(out, a, b, out=out)
        else:
            torch.mm(a, b, out=out)
    elif a.device.type == "cuda" and out.dtype == torch.float32:
        if accumulate:
            torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
        else:
            torch.mm(a, b, out_dtype=out.dtype, out=out)
        if bias is not None:
            out.add_(bias)
    else:
        _in_wider_dtype(a, b, bias, out, accumulate)
    return out


def _in_wider_dtype(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor, accumulate: bool) -> None:
    """Compute a product whose operands are of another dtype than its result, in the wider of both, by rows."""
    dtype = torch.promote_types(a.dtype, out.dtype)
    b = b.to(dtype)
    size = max(1, _BLOCK // max(a.shape[1], b.shape[1], 1))
    for start in range(0, len(a), size):
        part, target = a[start : start + size].to(dtype), out[start : start + size]
        product = torch.mm(part, b) if bias is None else torch.addmm(bias.to(dtype), part, b)
        if accumulate:
            product += target
        target.copy_(product)
