"""Gradients of `divergence_forward` to the logits of student and teacher, from the statistics of its rows.

    forward KL      ds = q − p               dt = p·(log p − log q − KL)
    reverse KL      ds = q·(log q − log p − KL)   dt = p − q
    JS              ds = (1 − beta)·q·(log(q/m) − KL(q‖m))
    total variation ds = ½·q·(sign(q − p) − Σ q·sign(q − p))
    hard labels     ds = q₁ − [label], q₁ = softmax(s)

each times the row's weight and the upstream gradient; divergences also times (1 − α)·scale/T, where 1/T is of the chain
rule through z, and hard labels times α. One launch reads each logit once and
writes each gradient once; it may write the student's over the student's logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...jit import math
from ...jit.tiles import (
    load_row,
    load_stat,
    load_tile,
    program_tile,
    store_gradient,
    tile_columns,
    tile_is_full,
    tile_mask,
    valid_labels,
)
from ...runtime import launch, strides
from ...runtime.replay import replayable
from ...runtime.row_tiling import RowTiling, row_jit
from . import terms
from .forward import load_stats
from .terms import K_S, K_T, SUM_S_T1, WEIGHT

_GRADIENTS = {
    "forward_kl": terms.forward_kl_gradients,
    "reverse_kl": terms.reverse_kl_gradients,
    "js": terms.js_gradients,
    "total_variation": terms.total_variation_gradients,
}


@row_jit
def _divergence_backward_kernel(
    s,  # (N, V): (pointer, row strides, column stride, unit)
    t,  # (N, V)
    labels_ptr,  # (N,), or None
    stats_ptr,  # (STATISTICS, N)
    dloss_ptr,  # (N,), or a scalar
    dloss_factor_ptr,  # a scalar, or None
    ds,  # (N, S), or None
    dt,  # (N, T), or None
    labels_strides,
    dloss_strides,
    sizes,
    rows,
    V,
    S,
    T,
    chunks,
    log2e_over_T: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    kl_scale: tl.float64,
    ce_scale: tl.float64,
    GRADIENTS: tl.constexpr,
    TO_S: tl.constexpr,  # with ds
    TO_T: tl.constexpr,  # with dt
    HARD: tl.constexpr,
    SEPARATE_CE_LSE: tl.constexpr,
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
    stats = load_stats(stats_ptr, rows, offs_n, active)
    k_s = load_stat(stats_ptr, K_S, rows, offs_n, active, 0.0)
    k_t = load_stat(stats_ptr, K_T, rows, offs_n, active, 0.0)
    sum_s_T1 = load_stat(stats_ptr, SUM_S_T1, rows, offs_n, active, 1.0) if SEPARATE_CE_LSE else stats[1]
    label = offs_n
    if HARD:
        label = valid_labels(load_row((labels_ptr, labels_strides), offs_n, sizes, active, -1, tl.int64), V)
    of_rows = (k_s, k_t, g * tl.full((), kl_scale, ACC_DTYPE), g * tl.full((), ce_scale, ACC_DTYPE), sum_s_T1, label)
    scalars = (
        tl.full((), log2e_over_T, ACC_DTYPE),
        tl.full((), temperature, ACC_DTYPE),
        tl.full((), beta, ACC_DTYPE),
    )
    offs_v = tile_columns(chunk, V, BLOCK_V)
    row_args, columns = (stats, of_rows, scalars), (S, T)
    if tile_is_full(active, chunk, V, BLOCK_V):
        _tile_gradients(
            s,
            t,
            ds,
            dt,
            offs_n,
            offs_v,
            mask_n,
            None,
            sizes,
            columns,
            row_args,
            GRADIENTS,
            TO_S,
            TO_T,
            HARD,
            SEPARATE_CE_LSE,
        )
    else:
        mask = tile_mask(active, offs_v, V)
        _tile_gradients(
            s,
            t,
            ds,
            dt,
            offs_n,
            offs_v,
            mask_n,
            mask,
            sizes,
            columns,
            row_args,
            GRADIENTS,
            TO_S,
            TO_T,
            HARD,
            SEPARATE_CE_LSE,
        )


@triton.jit
def _tile_gradients(
    s,
    t,
    ds,
    dt,
    offs_n,
    offs_v,
    mask_n,
    mask,  # None: the tile is full; where false, gradients are 0
    sizes,
    columns,
    row_args,
    GRADIENTS: tl.constexpr,
    TO_S: tl.constexpr,
    TO_T: tl.constexpr,
    HARD: tl.constexpr,
    SEPARATE_CE_LSE: tl.constexpr,
):
    """Store the gradients of a tile."""
    stats, of_rows, scalars = row_args
    max_s, sum_s, max_t, sum_t = stats
    k_s, k_t, g, g_ce, sum_s_T1, label = of_rows
    log2e_over_T, temperature, beta = scalars
    x_s = load_tile(s, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    x_t = load_tile(t, offs_n, offs_v, sizes, mask, float("-inf"), beta.dtype)
    z_s, z_t = math.shifted(x_s, log2e_over_T, max_s), math.shifted(x_t, log2e_over_T, max_t)
    to_s, to_t = GRADIENTS(z_s, z_t, sum_s, sum_t, k_s, k_t, beta, g)
    if HARD:
        e_T1 = math.exp2(z_s * temperature) if SEPARATE_CE_LSE else math.exp2(z_s)
        to_s += e_T1 * (g_ce / sum_s_T1)[:, None]
        to_s -= tl.where(offs_v[None, :] == label[:, None], g_ce[:, None], 0.0)
    if TO_S:
        store_gradient(ds, offs_n, offs_v, sizes, to_s, mask, mask_n, columns[0])
    if TO_T:
        store_gradient(dt, offs_n, offs_v, sizes, to_t, mask, mask_n, columns[1])


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
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `divergence_forward` to student and teacher logits, in one launch.

    Parameters
    ----------
    student, teacher, divergence, beta, inv_temperature, scale, labels, hard_label_weight, vocab_size
        As in the forward pass; `labels` only where there are hard labels. Rows of weight 0 are not read.
    statistics
        From the forward pass; it holds the weights, too.
    dloss
        Upstream gradient, that of the losses: of the leading dimensions' shape, or 0-d. Read on the device.
    dloss_factor
        A 0-d factor on dloss, read on the device.
    dstudent_dtype, dteacher_dtype
        Dtypes of the gradients; None leaves that gradient out.
    student_out
        Where the student's gradient is written: a tensor of its shape, which may be `student` itself.

    Returns
    -------
    tuple
        (dstudent, dteacher), None where not asked for; laid out in memory as the logits are, without gaps.

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
    ds, dt = student_out, None
    if ds is None and dstudent_dtype is not None:
        ds = strides.coalesce(student.shape, student).empty(student.shape, dstudent_dtype, student.device)
    if dteacher_dtype is not None:
        dt = strides.coalesce(teacher.shape, teacher).empty(teacher.shape, dteacher_dtype, student.device)
    widest = max(g.shape[-1] for g in (ds, dt, student) if g is not None)
    tensors = {"s": student, "t": teacher, "ds": ds, "dt": dt}
    tiling = RowTiling(widest, tensors, {"labels": labels, "dloss": dloss}, whole_rows=False)
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
        S=student.shape[-1],
        T=teacher.shape[-1],
        log2e_over_T=log2e_over_T,
        temperature=temperature,
        beta=beta,
        kl_scale=(1 - hard_label_weight) * scale * inv_temperature,
        ce_scale=hard_label_weight,
        GRADIENTS=_GRADIENTS[divergence],
        TO_S=ds is not None,
        TO_T=dt is not None,
        HARD=hard_label_weight != 0,
        SEPARATE_CE_LSE=hard_label_weight != 0 and inv_temperature != 1,
        ACC_DTYPE=launch.tl_dtype(dtype),
    )
    return ds, dt
