"""Cross-entropy of rows of logits with class probabilities, and its gradients, with torch's operators.

The formulas are those of `triton_kernels.losses.soft_cross_entropy`; m, z, e and d of a row are as in
`lucid.torch.cpu.cross_entropy`. One pass over chunks of rows computes loss and gradients, each where asked for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import triton_kernels as tk
from lucid.torch.cpu.rows import LN_2, LOG2_E, Rows, row_sum, sub_max
from triton_kernels.losses.soft_cross_entropy import STATISTICS


def soft_cross_entropy_forward(
    x: Tensor,
    y: Tensor,
    *,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    gradient_scale: float = 1.0,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `triton_kernels.soft_cross_entropy_forward` with torch's operators.

    Of the statistics only the dtype is used.
    """
    losses = run(x, y, class_weight, label_smoothing, losses=True, dloss=gradient_scale, dx=dx)
    return losses, losses.new_zeros((STATISTICS, losses.numel()))


def soft_cross_entropy_backward(
    x: Tensor,
    y: Tensor,
    statistics: Tensor,
    dloss: Tensor,
    *,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    dloss_factor: Tensor | None = None,
    dx_dtype: torch.dtype | None = None,
    dy_dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute `triton_kernels.soft_cross_entropy_backward` with torch's operators."""
    dx = None if dx_dtype is None else tk.strides.empty_as(x, dx_dtype)
    dy = None if dy_dtype is None else tk.strides.empty_as(y, dy_dtype)
    g = dloss.to(statistics.dtype)
    if dloss_factor is not None:
        g = g * dloss_factor.to(statistics.dtype)
    run(x, y, class_weight, label_smoothing, dloss=g, dx=dx, dy=dy)
    return dx, dy


def run(
    x: Tensor,
    y: Tensor,
    class_weight: Tensor | None,
    smoothing: float,
    *,
    losses: bool = False,
    dloss: Tensor | float | None = None,
    dx: Tensor | None = None,
    dy: Tensor | None = None,
) -> Tensor:
    """One pass over the rows: their losses if wanted, and the gradients times dloss.

    Parameters
    ----------
    dloss
        Of the leading dimensions' shape, or 0-d; needed for gradients.
    dx, dy
        Where gradients are written.
    """
    V, compute = x.shape[-1], tk.launch.compute_dtype(x.dtype, y.dtype)
    gradients = [gradient for gradient in (dx, dy) if gradient is not None]
    rows = Rows(V, (x, y, *gradients), None, compute, buffers=4)
    x, y, *gradients = rows.tensors
    c = None if class_weight is None else class_weight.to(compute)
    m, d, a, sums = x.new_zeros((4, rows.count, 1), dtype=compute).unbind()
    if dloss is not None:
        g = rows.per_row(dloss).unsqueeze(-1)
    for chunk in rows.chunks:
        r = chunk.rows
        part, z = rows.load(0, x, chunk)
        torch.amax(part, -1, keepdim=True, out=m[r])
        sub_max(part, m[r], LOG2_E, z)
        e = rows.exp2(0, 1, part)
        row_sum(e, d[r])
        if losses or dx is not None:
            w, buffer = rows.load(2, y, chunk)
            if smoothing:
                w = torch.mul(w, 1 - smoothing, out=buffer).add_(smoothing / V)
            if c is not None:
                w = torch.mul(w, c, out=buffer)
            row_sum(w, sums[r])
        if losses:
            products = torch.mul(w, z, out=rows.scratch(3, z))
            if row_sum(products, a[r]).isnan().any():  # 0·∞, or of a row whose d or Σ w are NaN, too
                row_sum(products.nan_to_num_(0, math.inf, -math.inf), a[r])
        if dx is not None:
            gradient = e.mul_(g[r] * sums[r] / d[r])
            rows.store(gradients[0], chunk, gradient.sub_(torch.mul(w, g[r], out=rows.scratch(3, z))))
        if dy is not None:
            nll = z.mul_(-LN_2).add_(d[r].double().log().to(compute))
            to_y = g[r] * (1 - smoothing) * (1.0 if c is None else c)
            rows.store(gradients[-1], chunk, nll.masked_fill_((to_y == 0) & (nll == math.inf), 0).mul_(to_y))
    loss = sums.double() * d.double().log() - a.double() * LN_2
    return rows.results(loss.squeeze(-1).to(compute))
