"""Gradients of `divergence_forward` with respect to the logits of student and teacher, from the statistics of rows.

    forward KL       ds = q − p                                   dt = p·(log p − log q − KL)
    reverse KL       ds = q·(log q − log p − KL)                  dt = p − q
    JS               ds = (1 − β)·q·(log(q/m) − KL(q‖m))          dt = β·p·(log(p/m) − KL(p‖m))
    total variation  ds = ½·q·(σ − Σ q·σ),  σ = sign(q − p)       dt = ½·p·(Σ p·σ − σ)
    hard labels      ds = q₁ − [v = label],  q₁ = softmax(s)

each times the row's weight and the upstream gradient; divergences also times (1 − α)·scale/T, where 1/T is of the chain
rule through logits/T, and hard labels times α = `hard_label_weight`. One launch reads each logit once and writes each
gradient once; it may write the student's over the student's logits.
"""

from __future__ import annotations

import torch
import triton.language as tl

from ...jit import math
from ...jit.tiles import (
    load_row,
    load_stat,
    program_tile,
    store_gradient,
    tile_columns,
    valid_labels,
)
from ...runtime import launch, strides
from ...runtime.replay import replayable
from ...runtime.row_tiling import RowTiling, row_jit
from .chunks import load_tiles, relative_to_row
from .terms import (
    DIVERGENCES,
    K_S,
    K_T,
    WEIGHT,
    add_label_gradient,
    cast_scalars,
    load_stats,
    log2_ratio,
    softmax_scales,
)


@row_jit
def _divergence_backward_kernel(
    s,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    t,  # (N, V)
    labels_ptr,  # (N,), or None
    stats_ptr,  # (STATISTICS, N)
    dloss_ptr,  # (N,), or a scalar
    dloss_factor_ptr,  # a scalar, or None
    ds,  # (N, columns_s), or None; may be s
    dt,  # (N, columns_t), or None; may be t
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    columns_s,  # V or more; gradients of columns from V on are 0
    columns_t,
    chunks,
    labels_strides,
    dloss_strides,
    log2e_over_T: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    divergence_scale: tl.float64,  # (1 − α)·scale/T
    ce_scale: tl.float64,
    factor_s: tl.float64,  # of `math.map_logits`, with MAP_S, as the next three
    cap_s: tl.float64,
    factor_t: tl.float64,
    cap_t: tl.float64,
    GRADIENTS_FN: tl.constexpr,
    TO_S: tl.constexpr,  # with ds: Triton 3.6 cannot compare a tuple with None
    TO_T: tl.constexpr,  # with dt
    HARD: tl.constexpr,  # with hard labels
    SEPARATE_SUM_T1: tl.constexpr,  # hard labels and T ≠ 1: sum_s_T1 is a statistic beside sum_s
    MAP_S: tl.constexpr,  # of `math.logit_map`
    MAP_T: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    w = load_stat(stats_ptr, WEIGHT, rows, offs_n, mask_n, 0.0)
    active = mask_n & (w != 0)
    g = w * load_row((dloss_ptr, dloss_strides), offs_n, sizes, active, 0, ACC_DTYPE)
    if dloss_factor_ptr is not None:
        g *= tl.load(dloss_factor_ptr).to(ACC_DTYPE)
    row_stats = load_stats(stats_ptr, rows, offs_n, active, SEPARATE_SUM_T1)
    k_s = load_stat(stats_ptr, K_S, rows, offs_n, active, 0.0)
    k_t = load_stat(stats_ptr, K_T, rows, offs_n, active, 0.0)
    label = offs_n  # not used unless HARD
    if HARD:
        label = valid_labels(load_row((labels_ptr, labels_strides), offs_n, sizes, active, -1, tl.int64), V)
    cast = cast_scalars(log2e_over_T, temperature, beta, divergence_scale, ce_scale, ACC_DTYPE)
    scalars = (
        cast[0], cast[1], cast[2], cast[3], cast[4],
        tl.full((), factor_s, ACC_DTYPE) if MAP_S >= 1 else None,
        tl.full((), cap_s, ACC_DTYPE) if MAP_S == 2 else None,
        tl.full((), factor_t, ACC_DTYPE) if MAP_T >= 1 else None,
        tl.full((), cap_t, ACC_DTYPE) if MAP_T == 2 else None,
    )  # fmt: skip
    log2e_over_T, beta, divergence_scale, ce_scale = scalars[0], scalars[2], scalars[3], scalars[4]
    x_s, x_t = load_tiles(s, t, offs_n, active, sizes, chunk, V, scalars, BLOCK_V)
    _, _, e_s, e_t, diff, max_s, max_t = relative_to_row(x_s, x_t, row_stats, scalars)
    inv_s, inv_t, constant = softmax_scales(max_s, max_t, row_stats, log2e_over_T)
    r = log2_ratio(diff, constant, log2e_over_T)
    to_s, to_t = GRADIENTS_FN(e_s, e_t, r, inv_s, inv_t, k_s, k_t, beta, g * divergence_scale)
    if HARD:
        offs_v = tile_columns(chunk, V, BLOCK_V)
        to_s = add_label_gradient(
            to_s, x_s, e_s, inv_s, row_stats, offs_v, label, g * ce_scale, scalars, SEPARATE_SUM_T1
        )
    if TO_S:
        to_s = math.to_unmapped(to_s, x_s, scalars[5], scalars[6])
        store_gradient(ds, offs_n, active, mask_n, sizes, chunk, to_s, V, columns_s, BLOCK_V)
    if TO_T:
        to_t = math.to_unmapped(to_t, x_t, scalars[7], scalars[8])
        store_gradient(dt, offs_n, active, mask_n, sizes, chunk, to_t, V, columns_t, BLOCK_V)


@replayable
def divergence_backward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    statistics: torch.Tensor,
    dloss: torch.Tensor,
    *,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    inv_temperature: float = 1.0,
    scale: float = 1.0,
    labels: torch.Tensor | None = None,
    hard_label_weight: float = 0.0,
    vocab_size: int | None = None,
    dloss_factor: torch.Tensor | None = None,
    dstudent_dtype: torch.dtype | None = None,
    dteacher_dtype: torch.dtype | None = None,
    student_out: torch.Tensor | None = None,
    teacher_out: torch.Tensor | None = None,
    student_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: float | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `divergence_forward` with respect to student and teacher logits, in one launch.

    Parameters
    ----------
    student, teacher, divergence, beta, inv_temperature, scale, labels, hard_label_weight, vocab_size, student_scale, \
    student_softcap, teacher_scale, teacher_softcap
        As in the forward pass; `labels` only where there are hard labels. Rows of weight 0 are not read.
    statistics
        From the forward pass; it holds the weights, too.
    dloss
        Upstream gradient, that of the losses: of the leading dimensions' shape, or 0-d. Read on the device.
    dloss_factor
        A 0-d factor on dloss, read on the device.
    dstudent_dtype, dteacher_dtype
        Dtypes of the gradients; None: that gradient is not calculated, unless it is written to a given tensor.
    student_out, teacher_out
        Where a gradient is written: a tensor of the logits' shape, which may be these logits themselves.

    Returns
    -------
    tuple
        (dstudent, dteacher), None where not calculated. A new one is dense, with its dimensions in the order of the
        logits' in memory.

    Examples
    --------
    >>> s, t = torch.tensor([[0.0, 0.0]]).to(DEVICE), torch.tensor([[0.0, 1.0]]).to(DEVICE)
    >>> _, statistics = triton_kernels.divergence_forward(s, t)
    >>> one = torch.tensor(1.0).to(DEVICE)
    >>> ds, _ = divergence_backward(s, t, statistics, one, dstudent_dtype=torch.float32)
    >>> [round(x, 4) for x in ds[0].tolist()]
    [0.2311, -0.2311]
    """
    V = student.shape[-1] if vocab_size is None else vocab_size
    ds, dt = student_out, teacher_out
    if ds is None and dstudent_dtype is not None:
        ds = strides.empty_as(student, dstudent_dtype)
    if dt is None and dteacher_dtype is not None:
        dt = strides.empty_as(teacher, dteacher_dtype)
    # With `vocab_size` logits have columns beyond V, whose gradients are written, too.
    columns = max([V] + [gradient.shape[-1] for gradient in (ds, dt) if gradient is not None])
    tensors = {"s": student, "t": teacher, "ds": ds, "dt": dt}
    factor_s, cap_s, map_s = math.logit_map(student_scale, student_softcap)
    factor_t, cap_t, map_t = math.logit_map(teacher_scale, teacher_softcap)
    # Backward merges nothing, so its rows are not held in a single chunk.
    crowded = dt is not None and max(map_s, map_t) == 2
    tiling = RowTiling(columns, tensors, {"labels": labels, "dloss": dloss}, whole_rows=False, crowded=crowded)
    dtype = launch.compute_dtype(student.dtype, teacher.dtype)
    log2e_over_T, temperature = math.base2_scalars(inv_temperature)
    launch.run(
        _divergence_backward_kernel,
        tiling.grid,
        tiling.config,
        **tiling.args("s", "t", "labels", "dloss", "ds", "dt"),
        stats_ptr=statistics,
        dloss_factor_ptr=dloss_factor,
        V=V,
        columns_s=student.shape[-1],
        columns_t=teacher.shape[-1],
        log2e_over_T=log2e_over_T,
        temperature=temperature,
        beta=beta,
        divergence_scale=(1 - hard_label_weight) * scale * inv_temperature,
        ce_scale=hard_label_weight,
        factor_s=factor_s,
        cap_s=cap_s,
        factor_t=factor_t,
        cap_t=cap_t,
        GRADIENTS_FN=DIVERGENCES[divergence].gradients,
        TO_S=ds is not None,
        TO_T=dt is not None,
        HARD=hard_label_weight != 0,
        SEPARATE_SUM_T1=hard_label_weight != 0 and inv_temperature != 1,
        MAP_S=map_s,
        MAP_T=map_t,
        ACC_DTYPE=launch.tl_dtype(dtype),
    )
    return ds, dt
