"""Cross-entropy of rows of logits with labels, and its gradient, with torch's operators.

The formulas are those of `triton_kernels.losses.cross_entropy`; m, z, e and d of a row are as in
`lucid.torch.cpu.divergence`, at T = 1. One pass over chunks of rows computes loss and gradient, each where asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

import triton_kernels as tk
from lucid.torch.cpu.divergence import factor_on_gradient
from lucid.torch.cpu.rows import LN_2, LOG2_E, LogitMap, Rows, check_labels, row_sum, sub_max
from triton_kernels.losses.cross_entropy import COUNTS, STATISTICS


def cross_entropy_forward(
    x: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    gradient_scale: float = 1.0,
    gradient_factor: Tensor | None = None,
    dx: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `triton_kernels.cross_entropy_forward` with torch's operators.

    A label that is no column is an IndexError. Of the statistics only the first row is used, the weights of the labels'
    classes.
    """
    weights = label_weights(labels, x.shape[-1], class_weight, ignore_index, tk.launch.compute_dtype(x.dtype))
    statistics = weights.new_zeros((STATISTICS, weights.numel()))
    statistics[0], statistics[COUNTS] = weights, labels.reshape(-1) != ignore_index
    dloss, of = factor_on_gradient(gradient_scale, gradient_factor), LogitMap(logit_scale, softcap)
    losses = run(x, labels, class_weight, ignore_index, label_smoothing, of, losses=True, dloss=dloss, dx=dx)
    return losses, statistics


def cross_entropy_backward(
    x: Tensor,
    labels: Tensor,
    statistics: Tensor,
    dloss: Tensor,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    dloss_factor: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Compute `triton_kernels.cross_entropy_backward` with torch's operators."""
    dx, g = tk.strides.empty_as(x) if out is None else out, dloss.to(statistics.dtype)
    if dloss_factor is not None:
        g = g * dloss_factor.to(statistics.dtype)
    run(x, labels, class_weight, ignore_index, label_smoothing, LogitMap(logit_scale, softcap), dloss=g, dx=dx)
    return dx


def label_weights(
    labels: Tensor, columns: int, class_weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """Return the weight of each label's class, (rows,); 0 where it is ignored."""
    flat = labels.reshape(-1)
    valid = flat != ignore_index
    check_labels(flat[valid], columns, "target")
    if class_weight is None:
        return valid.to(dtype)
    return torch.where(valid, class_weight.to(dtype)[torch.where(valid, flat, 0).long()], 0)


def run(
    x: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    smoothing: float,
    of: LogitMap,
    *,
    losses: bool = False,
    dloss: Tensor | float | None = None,
    dx: Tensor | None = None,
) -> Tensor:
    """One pass over the rows whose labels are not ignored: their losses if wanted, and the gradient times dloss.

    Parameters
    ----------
    dloss
        Of the leading dimensions' shape, or 0-d; needed for the gradient.
    dx
        Where the gradient is written.
    """
    V, compute = x.shape[-1], tk.launch.compute_dtype(x.dtype)
    rows = Rows(V, (x,) if dx is None else (x, dx), labels.reshape(-1) != ignore_index, compute, buffers=5)
    label = rows.per_row(labels).long().unsqueeze(-1)
    c = None if class_weight is None else class_weight.to(compute)
    w = 1.0 if c is None else c[label]  # of the label, and of all classes
    of_all = V if c is None else c.sum()
    if dloss is not None:
        g = rows.per_row(dloss).double().unsqueeze(-1)
        to_label = to_q = g * w
        if smoothing:
            to_label, to_each = to_label * (1 - smoothing), g * (smoothing / V)
            to_q, to_each = to_label + to_each * of_all, to_each.to(compute)
        to_label, to_q = to_label.to(compute), to_q.to(compute)
    numbers = x.new_empty((4, rows.count, 1), dtype=compute)
    for chunk in rows.chunks:
        if chunk.empty:
            if dx is not None:
                rows.store(rows.tensors[1], chunk, None)
            continue
        r = chunk.rows
        m, d, hard, smooth = numbers[:, r].unbind()
        part, z = rows.load(0, rows.tensors[0], chunk, of)
        torch.amax(part, -1, keepdim=True, out=m)
        torch.sub(m, part.gather(-1, label[r]), out=hard)
        sub_max(part, m, LOG2_E, z)
        e = rows.exp2(0, 1, part)
        row_sum(e, d)
        if losses and smoothing:
            row_sum(z if c is None else torch.where(c != 0, z.mul_(c), 0), smooth)
        if dx is None:
            continue
        if smoothing:
            gradient = e.mul_(to_q[r] / d).sub_(to_each[r] * (1.0 if c is None else c))
            gradient, factor = gradient.scatter_add_(-1, label[r], -to_label[r]), None
        else:  # (e − [label]·d)·g·w/d
            gradient, factor = e.scatter_add_(-1, label[r], -d), to_q[r] / d
        rows.store(rows.tensors[1], chunk, rows.unmapped(gradient, 0, rows.tensors[0], chunk, of), factor)
    _, d, hard, smooth = numbers.double().unbind()
    log_d = d.log_()
    loss = hard.add_(log_d).mul_(w)
    if smoothing:
        loss = (1 - smoothing) * loss + smoothing / V * (of_all * log_d - smooth * LN_2)
    return rows.results(loss.squeeze(-1).to(compute))
