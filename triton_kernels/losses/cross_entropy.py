"""Cross-entropy of logits x with labels y, class weights c and label smoothing ε, of each row; and its gradient.

    loss = (1 − ε)·c_y·(−log q_y) + ε/V·Σ c_v·(−log q_v),   q = softmax(x)
    dx   = (1 − ε)·c_y·(q − [v = y]) + ε/V·(C·q − c_v),     C = Σ c_v

In base 2 as in `divergence`: with m = log₂e·max x, z = log₂e·x − m and d = Σ 2^z of a row, −log q = log d − z·log 2. A
program takes one chunk of a row, another kernel merges chunks in order. Rows of `ignore_index` are not read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit import math
from ..jit.tiles import get, load_row, load_tile, place, put, row_offsets, store_tile
from ..runtime import device_errors, launch, strides, tile_configs
from ..runtime.replay import replayable
from ..runtime.row_tiling import Rows, row_jit
from .cross_entropy_rows import classes, merge_chunks

#: What is kept of a row: the weight of its label's class, m, d, C.
STATISTICS = 4
_W, _M, _D, _C = (tl.constexpr(number) for number in range(STATISTICS))


@triton.jit
def _labels(labels_operand, report_ptr, offs_n, sizes, mask_n, ignore_index, V):
    """Labels, which rows count, and which of these have a label that is a column; the others are reported."""
    label = load_row(labels_operand, offs_n, sizes, mask_n, 0, tl.int64)
    kept = mask_n & (label != ignore_index)
    valid = kept & (label >= 0) & (label < V)
    device_errors.record(report_ptr, device_errors.LABELS, label, V, kept & (valid == 0))
    return label, kept, valid


@triton.jit
def _look(x_operand, class_ptr, offs_n, offs_v, V, sizes, mask, factor, SMOOTH: tl.constexpr):
    """m and d of each row of a tile; Σ c·z and Σ c."""
    x = load_tile(x_operand, offs_n, offs_v, sizes, mask, float("-inf"), factor.dtype)
    m, z, e = math.tile_exp2(x, factor)
    d = tl.sum(e, axis=1)
    a, total = d, d
    if SMOOTH:
        c = classes(class_ptr, offs_v, offs_v < V, x)
        total = tl.sum(tl.broadcast_to(c, x.shape), axis=1)
        a = tl.sum(c * tl.where(c != 0, z, 0.0), axis=1)
    return m, d, a, total


@triton.jit
def _finish(out, x_operand, class_ptr, offs_n, sizes, mask_n, labels, rows, V, of_row, scalars, SMOOTH: tl.constexpr):
    """Store the losses of rows, and what backward needs."""
    factor, smoothing = scalars
    label, kept, valid = labels
    m, d, a, total = of_row
    at = x_operand[0] + row_offsets(offs_n, sizes, x_operand[1], x_operand[3]) + label * x_operand[2]
    x = tl.load(at, mask=valid, other=float("nan")).to(factor.dtype)
    if class_ptr is None:
        w = kept.to(factor.dtype)
    else:
        w = tl.load(class_ptr + label, mask=valid, other=0).to(factor.dtype)
    log_d = math.log(d)
    loss = w * (log_d - tl.fma(x, factor, -math.finite(m)) * math.LN_2)
    if SMOOTH:
        loss = (1 - smoothing) * loss + smoothing / V * (total * log_d - a * math.LN_2)
    tl.store(out[0] + offs_n, tl.where(kept, loss, 0.0), mask=mask_n)
    put(out[1], _W, rows, offs_n, tl.where(kept, w, 0.0), mask_n)
    put(out[1], _M, rows, offs_n, m, kept)
    put(out[1], _D, rows, offs_n, d, kept)
    put(out[1], _C, rows, offs_n, total, kept)


@row_jit
def _cross_entropy_kernel(
    x_ptr,  # (rows, V), strided
    labels_ptr,  # (rows,), strided
    class_ptr,  # (V,), dense, or None
    report_ptr,
    losses_ptr,  # (rows,)
    stats_ptr,  # (STATISTICS, rows)
    partials_ptr,  # (4, rows, chunks), written instead where rows have several chunks; else None
    sizes,
    x_row_strides,
    labels_strides,
    rows,
    V,
    chunks,
    stride_xv,
    ignore_index,
    factor: tl.float64,
    smoothing: tl.float64,
    SMOOTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = place(rows, chunks, BLOCK_N, WIDE)
    offs_v = chunk * BLOCK_V + tl.arange(0, BLOCK_V)
    x = (x_ptr, x_row_strides, stride_xv, UNIT)
    scalars = (tl.full((), factor, COMPUTE), tl.full((), smoothing, COMPUTE))
    labels = _labels((labels_ptr, labels_strides), report_ptr, offs_n, sizes, mask_n, ignore_index, V)
    kept = labels[1]
    if (chunk + 1) * BLOCK_V <= V and tl.min(kept.to(tl.int32), axis=0) > 0:
        of_row = _look(x, class_ptr, offs_n, offs_v, V, sizes, None, scalars[0], SMOOTH)
    elif tl.max(kept.to(tl.int32), axis=0) > 0:
        mask = kept[:, None] & (offs_v < V)[None, :]
        of_row = _look(x, class_ptr, offs_n, offs_v, V, sizes, mask, scalars[0], SMOOTH)
    else:
        nothing = tl.zeros((BLOCK_N,), COMPUTE)
        of_row = (nothing, nothing, nothing, nothing)
    if partials_ptr is None:
        out = (losses_ptr, stats_ptr)
        _finish(out, x, class_ptr, offs_n, sizes, mask_n, labels, rows, V, of_row, scalars, SMOOTH)
    else:
        at, size = offs_n * chunks + chunk, tl.cast(rows, offs_n.dtype) * chunks
        for number in tl.static_range(4 if SMOOTH else 2):
            put(partials_ptr, number, size, at, of_row[number], kept)


@row_jit
def _cross_entropy_merge_kernel(
    x_ptr,  # (rows, V), strided: only the labels' columns are read
    labels_ptr,
    class_ptr,
    report_ptr,
    losses_ptr,
    stats_ptr,
    partials_ptr,
    sizes,
    x_row_strides,
    labels_strides,
    rows,
    V,
    chunks,
    stride_xv,
    ignore_index,
    factor: tl.float64,
    smoothing: tl.float64,
    SMOOTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merge the chunks of rows."""
    offs_n, mask_n, _ = place(rows, 1, BLOCK_N, WIDE)
    scalars = (tl.full((), factor, COMPUTE), tl.full((), smoothing, COMPUTE))
    labels = _labels((labels_ptr, labels_strides), report_ptr, offs_n, sizes, mask_n, ignore_index, V)
    of_row = merge_chunks(partials_ptr, offs_n, labels[1], rows, chunks, SMOOTH, COMPUTE, BLOCK_N, BLOCK_C)
    x, out = (x_ptr, x_row_strides, stride_xv, UNIT), (losses_ptr, stats_ptr)
    _finish(out, x, class_ptr, offs_n, sizes, mask_n, labels, rows, V, of_row, scalars, SMOOTH)


@replayable
def cross_entropy_forward(
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each row of logits with its label.

    Parameters
    ----------
    x
        Logits (..., V), of a floating dtype and any strides.
    labels
        int32 or int64, of the leading dimensions' shape. `ignore_index` marks rows that are not read; another label
        that is no column is reported by the next `raise_pending_errors`, and its loss is NaN.
    class_weight
        (V,), dense, floating.
    label_smoothing
        ε in [0, 1].

    Returns
    -------
    tuple
        Losses, of the leading dimensions' shape, float32 (float64 for float64); and the rows' statistics,
        (STATISTICS, rows), whose first row are the weights of the labels' classes.

    Examples
    --------
    >>> x, labels = torch.tensor([[0.0, 0.0], [0.0, 0.0]]).to(DEVICE), torch.tensor([1, -100]).to(DEVICE)
    >>> losses, statistics = cross_entropy_forward(x, labels)
    >>> [round(loss, 4) for loss in losses.tolist()], statistics[0].tolist()
    ([0.6931, 0.0], [1.0, 0.0])
    """
    V = x.shape[-1]
    plan = Rows(V, (x,), (labels,))
    compute = launch.compute_dtype(x.dtype)
    losses = torch.empty(x.shape[:-1], dtype=compute, device=x.device)
    stats = torch.empty((STATISTICS, plan.rows), dtype=compute, device=x.device)
    partials = None
    if plan.chunks > 1:
        partials = torch.empty((4, plan.rows, plan.chunks), dtype=compute, device=x.device)
    args = {
        "x_ptr": x,
        "labels_ptr": labels,
        "class_ptr": class_weight,
        "report_ptr": device_errors.buffer(x.device),
        "losses_ptr": losses,
        "stats_ptr": stats,
        "partials_ptr": partials,
        "sizes": plan.sizes,
        "x_row_strides": plan.strides[0],
        "labels_strides": plan.row_strides[0],
        "rows": plan.rows,
        "V": V,
        "chunks": plan.chunks,
        "stride_xv": x.stride(-1),
        "ignore_index": ignore_index,
        "factor": math.factors(1.0)[0],
        "smoothing": label_smoothing,
        "SMOOTH": label_smoothing != 0,
        "COMPUTE": launch.tl_dtype(compute),
        "UNIT": plan.unit,
        "WIDE": plan.wide,
    }
    launch.run(_cross_entropy_kernel, plan.grid, plan.config, **args)
    if partials is not None:
        merge = tile_configs.merge(compute.itemsize, plan.rows, plan.chunks)
        launch.run(_cross_entropy_merge_kernel, (tile_configs.cdiv(plan.rows, merge["BLOCK_N"]),), merge, **args)
    return losses, stats


@row_jit
def _cross_entropy_backward_kernel(
    x_ptr,  # (rows, V), strided
    labels_ptr,  # (rows,), strided
    class_ptr,  # (V,), dense, or None
    stats_ptr,  # (STATISTICS, rows)
    dloss_ptr,  # (rows,), strided, or a scalar
    dloss_factor_ptr,  # a scalar, or None
    dx_ptr,  # (rows, V), strided
    sizes,
    x_row_strides,
    labels_strides,
    dloss_strides,
    dx_row_strides,
    rows,
    V,
    chunks,
    stride_xv,
    stride_dxv,
    ignore_index,
    factor: tl.float64,
    smoothing: tl.float64,
    SMOOTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = place(rows, chunks, BLOCK_N, WIDE)
    offs_v = chunk * BLOCK_V + tl.arange(0, BLOCK_V)
    x, dx = (x_ptr, x_row_strides, stride_xv, UNIT), (dx_ptr, dx_row_strides, stride_dxv, UNIT)
    label = load_row((labels_ptr, labels_strides), offs_n, sizes, mask_n, 0, tl.int64)
    kept = mask_n & (label != ignore_index)
    g = load_row((dloss_ptr, dloss_strides), offs_n, sizes, kept, 0, COMPUTE)
    if dloss_factor_ptr is not None:
        g *= tl.load(dloss_factor_ptr).to(COMPUTE)
    to_label = g * get(stats_ptr, _W, rows, offs_n, kept, 0.0)
    to_all = g * 0
    if SMOOTH:
        smoothing = tl.full((), smoothing, COMPUTE)
        to_label *= 1 - smoothing
        to_all = g * (smoothing / V)
    m, d = get(stats_ptr, _M, rows, offs_n, kept, 0.0), get(stats_ptr, _D, rows, offs_n, kept, 1.0)
    to_q = math.div(to_label + to_all * get(stats_ptr, _C, rows, offs_n, kept, 0.0), d)
    of_row = (m, to_q, to_label, to_all, label)
    if (chunk + 1) * BLOCK_V <= V and tl.min(kept.to(tl.int32), axis=0) > 0:
        _backward(x, dx, class_ptr, offs_n, offs_v, V, sizes, mask_n, None, of_row, factor, SMOOTH, COMPUTE)
    else:
        mask = kept[:, None] & (offs_v < V)[None, :]
        _backward(x, dx, class_ptr, offs_n, offs_v, V, sizes, mask_n, mask, of_row, factor, SMOOTH, COMPUTE)


@triton.jit
def _backward(
    x_operand,
    dx_operand,
    class_ptr,
    offs_n,
    offs_v,
    V,
    sizes,
    mask_n,
    mask,  # None: every element of the tile counts; where not, the gradient is 0
    of_row,
    factor,
    SMOOTH: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    m, to_q, to_label, to_all, label = of_row
    x = load_tile(x_operand, offs_n, offs_v, sizes, mask, float("-inf"), COMPUTE)
    z = math.rebase(x, tl.full((), factor, COMPUTE), m)
    gradient = math.exp2(z) * to_q[:, None] - tl.where(offs_v[None, :] == label[:, None], to_label[:, None], 0.0)
    if SMOOTH:
        gradient -= to_all[:, None] * classes(class_ptr, offs_v, offs_v < V, x)
    if mask is None:
        store_tile(dx_operand, offs_n, offs_v, sizes, gradient, None)
    else:
        there = mask_n[:, None] & (offs_v < V)[None, :]
        store_tile(dx_operand, offs_n, offs_v, sizes, tl.where(mask, gradient, 0.0), there)


@replayable
def cross_entropy_backward(
    x: torch.Tensor,
    labels: torch.Tensor,
    statistics: torch.Tensor,
    dloss: torch.Tensor,
    *,
    class_weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    dloss_factor: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient of `cross_entropy_forward` to the logits, in one launch; arguments as there.

    Parameters
    ----------
    statistics
        From the forward pass.
    dloss
        The gradient of the losses: of the leading dimensions' shape, or 0-d. Read on the device.
    dloss_factor
        A 0-d factor on dloss, read on the device.

    Returns
    -------
    torch.Tensor
        Of x's shape and dtype; laid out in memory as x is, without gaps.

    Examples
    --------
    >>> x, labels = torch.tensor([[0.0, 0.0]]).to(DEVICE), torch.tensor([1]).to(DEVICE)
    >>> _, statistics = cross_entropy_forward(x, labels)
    >>> cross_entropy_backward(x, labels, statistics, torch.tensor(1.0).to(DEVICE)).tolist()
    [[0.5, -0.5]]
    """
    dx = strides.coalesce(x.shape, x).empty(x.shape, x.dtype, x.device)
    plan = Rows(x.shape[-1], (x, dx), (labels, dloss), whole_rows=False)
    launch.run(
        _cross_entropy_backward_kernel,
        plan.grid,
        plan.config,
        x_ptr=x,
        labels_ptr=labels,
        class_ptr=class_weight,
        stats_ptr=statistics,
        dloss_ptr=dloss,
        dloss_factor_ptr=dloss_factor,
        dx_ptr=dx,
        sizes=plan.sizes,
        x_row_strides=plan.strides[0],
        labels_strides=plan.row_strides[0],
        dloss_strides=plan.row_strides[1],
        dx_row_strides=plan.strides[1],
        rows=plan.rows,
        V=x.shape[-1],
        chunks=plan.chunks,
        stride_xv=x.stride(-1),
        stride_dxv=dx.stride(-1),
        ignore_index=ignore_index,
        factor=math.factors(1.0)[0],
        smoothing=label_smoothing,
        SMOOTH=label_smoothing != 0,
        COMPUTE=launch.tl_dtype(launch.compute_dtype(x.dtype)),
        UNIT=plan.unit,
        WIDE=plan.wide,
    )
    return dx
