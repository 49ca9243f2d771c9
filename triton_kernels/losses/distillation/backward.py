"""Gradients of `divergence_forward` to the logits of student and teacher, from the statistics of its rows.

    forward KL      ds = q − p               dt = p·(log p − log q − KL)
    reverse KL      ds = q·(log q − log p − KL)   dt = p − q
    JS              ds = (1 − beta)·q·(log(q/m) − KL(q‖m))
    total variation ds = ½·q·(sign(q − p) − Σ q·sign(q − p))
    hard labels     ds = q₁ − [label], q₁ = softmax(s)

each times the row's weight, the gradient of its loss, and 1/T (not for hard labels). One launch reads each logit once
and writes each gradient once; it may write the student's over the student's logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...jit import math
from ...jit.tiles import get, load_row, load_tile, place, store_tile
from ...runtime import launch, strides
from ...runtime.replay import replayable
from ...runtime.row_tiling import Rows, row_jit
from . import terms as of
from .terms import D_1, D_S, D_T, K_S, K_T, M_S, M_T, W

_GRADIENTS = {
    "forward_kl": of.forward_kl_gradients,
    "reverse_kl": of.reverse_kl_gradients,
    "js": of.js_gradients,
    "total_variation": of.total_variation_gradients,
}


@row_jit
def _divergence_backward_kernel(
    s_ptr,  # (rows, V), strided
    t_ptr,
    labels_ptr,  # (rows,), strided, or None
    stats_ptr,  # (STATISTICS, rows)
    dloss_ptr,  # (rows,), strided, or a scalar
    dloss_factor_ptr,  # a scalar, or None
    ds_ptr,  # (rows, S), strided, or None
    dt_ptr,  # (rows, T), strided, or None
    sizes,
    s_row_strides,
    t_row_strides,
    labels_strides,
    dloss_strides,
    ds_row_strides,
    dt_row_strides,
    rows,
    V,
    S,
    T,
    chunks,
    stride_sv,
    stride_tv,
    stride_dsv,
    stride_dtv,
    factor: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    soft: tl.float64,
    hard: tl.float64,
    GRADIENTS: tl.constexpr,
    HARD: tl.constexpr,
    APART: tl.constexpr,
    COMPUTE: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides between rows
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offs_n, mask_n, chunk = place(rows, chunks, BLOCK_N, WIDE)
    offs_v = chunk * BLOCK_V + tl.arange(0, BLOCK_V)
    s, t = (s_ptr, s_row_strides, stride_sv, UNIT), (t_ptr, t_row_strides, stride_tv, UNIT)
    outs = ((ds_ptr, ds_row_strides, stride_dsv, UNIT, S), (dt_ptr, dt_row_strides, stride_dtv, UNIT, T))
    w = get(stats_ptr, W, rows, offs_n, mask_n, 0.0)
    kept = mask_n & (w != 0)
    g = w * load_row((dloss_ptr, dloss_strides), offs_n, sizes, kept, 0, COMPUTE)
    if dloss_factor_ptr is not None:
        g *= tl.load(dloss_factor_ptr).to(COMPUTE)
    g_hard = g * tl.full((), hard, COMPUTE)
    m_s, d_s = get(stats_ptr, M_S, rows, offs_n, kept, 0.0), get(stats_ptr, D_S, rows, offs_n, kept, 1.0)
    m_t, d_t = get(stats_ptr, M_T, rows, offs_n, kept, 0.0), get(stats_ptr, D_T, rows, offs_n, kept, 1.0)
    k_s, k_t = get(stats_ptr, K_S, rows, offs_n, kept, 0.0), get(stats_ptr, K_T, rows, offs_n, kept, 0.0)
    d_1 = get(stats_ptr, D_1, rows, offs_n, kept, 1.0) if APART else d_s
    label = load_row((labels_ptr, labels_strides), offs_n, sizes, kept, -1, tl.int64) if HARD else offs_n
    of_row = (m_s, d_s, m_t, d_t, k_s, k_t, g * tl.full((), soft, COMPUTE), g_hard, d_1, label)
    scalars = (tl.full((), factor, COMPUTE), tl.full((), temperature, COMPUTE), tl.full((), beta, COMPUTE))
    end = (chunk + 1) * BLOCK_V
    if end <= V and tl.min(kept.to(tl.int32), axis=0) > 0:
        _backward(s, t, outs, offs_n, offs_v, sizes, mask_n, None, of_row, scalars, GRADIENTS, HARD, APART)
    else:
        mask = kept[:, None] & (offs_v < V)[None, :]
        _backward(s, t, outs, offs_n, offs_v, sizes, mask_n, mask, of_row, scalars, GRADIENTS, HARD, APART)


@triton.jit
def _backward(
    s_operand,
    t_operand,
    outs,
    offs_n,
    offs_v,
    sizes,
    mask_n,
    mask,  # None: every element of the tile counts; where not, the gradient is 0
    of_row,
    scalars,
    GRADIENTS: tl.constexpr,
    HARD: tl.constexpr,
    APART: tl.constexpr,
):
    m_s, d_s, m_t, d_t, k_s, k_t, g, g_hard, d_1, label = of_row
    factor, temperature, beta = scalars
    s = load_tile(s_operand, offs_n, offs_v, sizes, mask, float("-inf"), factor.dtype)
    t = load_tile(t_operand, offs_n, offs_v, sizes, mask, float("-inf"), factor.dtype)
    z_s, z_t = math.rebase(s, factor, m_s), math.rebase(t, factor, m_t)
    ds, dt = GRADIENTS(z_s, z_t, d_s, d_t, k_s, k_t, beta, g)
    if HARD:
        e_1 = math.exp2(z_s * temperature) if APART else math.exp2(z_s)
        ds += e_1 * (g_hard / d_1)[:, None]
        ds -= tl.where(offs_v[None, :] == label[:, None], g_hard[:, None], 0.0)
    _store(outs[0], offs_n, offs_v, sizes, mask_n, mask, ds)
    _store(outs[1], offs_n, offs_v, sizes, mask_n, mask, dt)


@triton.jit
def _store(out, offs_n, offs_v, sizes, mask_n, mask, gradient):
    if out[0] is not None:
        operand = (out[0], out[1], out[2], out[3])
        if mask is None:
            store_tile(operand, offs_n, offs_v, sizes, gradient, None)
        else:
            there = mask_n[:, None] & (offs_v < out[4])[None, :]
            store_tile(operand, offs_n, offs_v, sizes, tl.where(mask, gradient, 0.0), there)


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
        The gradient of the losses: of the leading dimensions' shape, or 0-d. Read on the device.
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
    tensors = (student, teacher, *(g for g in (ds, dt) if g is not None))
    plan = Rows(widest, tensors, (labels, dloss), whole_rows=False)
    gradient_strides = iter(plan.strides[2:])
    compute = launch.compute_dtype(student.dtype, teacher.dtype)
    factor, temperature = math.factors(inv_temperature)
    launch.run(
        _divergence_backward_kernel,
        plan.grid,
        plan.config,
        s_ptr=student,
        t_ptr=teacher,
        labels_ptr=labels,
        stats_ptr=statistics,
        dloss_ptr=dloss,
        dloss_factor_ptr=dloss_factor,
        ds_ptr=ds,
        dt_ptr=dt,
        sizes=plan.sizes,
        s_row_strides=plan.strides[0],
        t_row_strides=plan.strides[1],
        labels_strides=plan.row_strides[0],
        dloss_strides=plan.row_strides[1],
        ds_row_strides=None if ds is None else next(gradient_strides),
        dt_row_strides=None if dt is None else next(gradient_strides),
        rows=plan.rows,
        V=V,
        S=student.shape[-1],
        T=teacher.shape[-1],
        chunks=plan.chunks,
        stride_sv=student.stride(-1),
        stride_tv=teacher.stride(-1),
        stride_dsv=1 if ds is None else ds.stride(-1),
        stride_dtv=1 if dt is None else dt.stride(-1),
        factor=factor,
        temperature=temperature,
        beta=beta,
        soft=(1 - hard_label_weight) * scale * inv_temperature,
        hard=hard_label_weight,
        GRADIENTS=_GRADIENTS[divergence],
        HARD=hard_label_weight != 0,
        APART=hard_label_weight != 0 and inv_temperature != 1,
        COMPUTE=launch.tl_dtype(compute),
        UNIT=plan.unit,
        WIDE=plan.wide,
    )
    return ds, dt
