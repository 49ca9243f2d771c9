"""Divergences of rows of student logits s and teacher logits t, and their gradients, with torch's operators.

The formulas are those of `triton_kernels.losses.distillation`. With p = softmax(t/T), q = softmax(s/T),
c = log₂e/T, of a row

    m = max x,   z = c·(x − m),   e = 2^z,   d = Σ e        so that q = e_s/d_s and log₂ q = z_s − log₂ d_s

One pass over chunks of rows computes loss and gradients, each where asked for. A product e·(…) with e = 0 is 0,
whatever the other factor: such a product is NaN at most, and one that should be NaN has a d that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

import triton_kernels as tk
from lucid.torch.cpu.rows import LN_2, LOG2_E, LogitMap, Rows, check_labels, number, row_sum, sub_max
from triton_kernels.losses.distillation.terms import SMALL, STATISTICS


class Options(NamedTuple):
    """Options of `triton_kernels.divergence_forward`."""

    divergence: str = "forward_kl"
    beta: float = 0.5
    inv_temperature: float = 1.0
    scale: float = 1.0
    hard_label_weight: float = 0.0
    student: LogitMap = LogitMap()
    teacher: LogitMap = LogitMap()


class _Chunk(NamedTuple):
    """Rows of a chunk: z and e of student and teacher, and one more buffer of that size; and d as (rows, 1).

    Tensors of V columns may be overwritten.
    """

    z_s: Tensor
    e_s: Tensor
    d_s: Tensor
    z_t: Tensor
    e_t: Tensor
    d_t: Tensor
    spare: Tensor

    @property
    def undefined(self) -> Tensor:
        """Return NaN for rows without a distribution, else 0."""
        return (self.d_s + self.d_t) * 0

    def exchanged(self) -> _Chunk:
        """Return the chunk with teacher and student exchanged."""
        return _Chunk(self.z_t, self.e_t, self.d_t, self.z_s, self.e_s, self.d_s, self.spare)


class _Gradient(NamedTuple):
    """An unscaled gradient, (rows, V), and the factor of each row, (rows, 1), that scales it."""

    values: Tensor
    factor: Tensor


_Gradients = tuple[_Gradient | None, _Gradient | None]


def divergence_forward(
    student: Tensor,
    teacher: Tensor,
    *,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    inv_temperature: float = 1.0,
    scale: float = 1.0,
    weight: Tensor | None = None,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    hard_label_weight: float = 0.0,
    vocab_size: int | None = None,
    gradient_scale: float = 1.0,
    gradient_factor: Tensor | None = None,
    dstudent: Tensor | None = None,
    dteacher: Tensor | None = None,
    student_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `triton_kernels.divergence_forward` with torch's operators.

    A label that is no column is an IndexError. Of the statistics only the first row is used, the weights.
    """
    V = student.shape[-1] if vocab_size is None else vocab_size
    weights = token_weights(student, teacher, weight, labels, ignore_index, V)
    maps = LogitMap(student_scale, student_softcap), LogitMap(teacher_scale, teacher_softcap)
    options = Options(divergence, beta, inv_temperature, scale, hard_label_weight, *maps)
    dloss = factor_on_gradient(gradient_scale, gradient_factor)
    losses = run(student, teacher, weights, labels, options, V, losses=True, dloss=dloss, ds=dstudent, dt=dteacher)
    statistics = weights.new_zeros((STATISTICS, weights.numel()))
    statistics[0] = weights
    return losses, statistics


def divergence_backward(
    student: Tensor,
    teacher: Tensor,
    statistics: Tensor,
    dloss: Tensor,
    *,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    inv_temperature: float = 1.0,
    scale: float = 1.0,
    labels: Tensor | None = None,
    hard_label_weight: float = 0.0,
    vocab_size: int | None = None,
    dloss_factor: Tensor | None = None,
    dstudent_dtype: torch.dtype | None = None,
    dteacher_dtype: torch.dtype | None = None,
    student_out: Tensor | None = None,
    teacher_out: Tensor | None = None,
    student_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: float | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute `triton_kernels.divergence_backward` with torch's operators."""
    V = student.shape[-1] if vocab_size is None else vocab_size
    ds = student_out
    if ds is None and dstudent_dtype is not None:
        ds = tk.strides.empty_as(student, dstudent_dtype)
    dt = teacher_out
    if dt is None and dteacher_dtype is not None:
        dt = tk.strides.empty_as(teacher, dteacher_dtype)
    g = dloss.to(statistics.dtype)
    if dloss_factor is not None:
        g = g * dloss_factor.to(statistics.dtype)
    maps = LogitMap(student_scale, student_softcap), LogitMap(teacher_scale, teacher_softcap)
    options = Options(divergence, beta, inv_temperature, scale, hard_label_weight, *maps)
    run(student, teacher, statistics[0], labels, options, V, dloss=g, ds=ds, dt=dt)
    return ds, dt


def factor_on_gradient(scale: float, factor: Tensor | None) -> Tensor:
    """Return the product of a number and a tensor, 0-d, float64."""
    product = number(scale, torch.float64)
    return product if factor is None else product * factor


def token_weights(
    student: Tensor, teacher: Tensor, weight: Tensor | None, labels: Tensor | None, ignore_index: int, columns: int
) -> Tensor:
    """Return the weight of each token, (rows,), in the dtype of the arithmetic: 0 where it is skipped."""
    compute, lead = tk.launch.compute_dtype(student.dtype, teacher.dtype), student.shape[:-1]
    weights = student.new_ones(lead, dtype=compute) if weight is None else weight.to(compute, copy=True)
    weights = weights.reshape(-1)
    if labels is not None:
        flat = labels.reshape(-1)
        weights = torch.where(flat == ignore_index, 0, weights)
        check_labels(flat[weights != 0], columns)
    return weights


def run(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    labels: Tensor | None,
    options: Options,
    columns: int,
    *,
    losses: bool = False,
    dloss: Tensor | float | None = None,
    ds: Tensor | None = None,
    dt: Tensor | None = None,
) -> Tensor:
    """One pass over the rows of weights other than 0: their weighted losses if wanted, and gradients times dloss.

    Parameters
    ----------
    dloss
        Of the leading dimensions' shape, or 0-d; needed for gradients.
    ds, dt
        Where gradients are written; `ds` may be the student, and `dt` the teacher.
    """
    alpha, factor = options.hard_label_weight, LOG2_E * options.inv_temperature
    outs = [out for out in (ds, dt) if out is not None]
    tensors = (student, teacher, *outs)
    rows = Rows(columns, tensors, weights != 0, weights.dtype, buffers=7)  # the last for `unmapped` alone
    views = iter(rows.tensors[2:])
    ds_view, dt_view = (None if out is None else next(views) for out in (ds, dt))
    w = weights if rows.mask is None else weights[rows.mask]
    g = None if dloss is None else (w * rows.per_row(dloss).double()).to(w.dtype).unsqueeze(-1)
    label = rows.per_row(labels).long().unsqueeze(-1) if labels is not None and alpha else None
    numbers = weights.new_empty((7, rows.count, 1))
    small_kl = {"forward_kl": False, "reverse_kl": True}.get(options.divergence) if losses else None
    of_values: Tensor | None
    small = weights.new_full((rows.count, 1), math.nan)  # NaN where the sums that `terms` makes are accurate
    hard = weights.new_zeros((rows.count, 1))
    terms = _TERMS[options.divergence]
    for chunk in rows.chunks:
        if chunk.empty:
            for view in (ds_view, dt_view):
                if view is not None:
                    rows.store(view, chunk, None)
            continue
        r = chunk.rows
        m_s, d_s, m_t, d_t, first, second, d_1 = numbers[:, r].unbind()
        s, z_s = rows.load(0, rows.tensors[0], chunk, options.student)
        t, z_t = rows.load(1, rows.tensors[1], chunk, options.teacher)
        torch.amax(s, -1, keepdim=True, out=m_s)
        torch.amax(t, -1, keepdim=True, out=m_t)
        if label is not None:
            hard[r] = m_s - s.gather(-1, label[r])
            sub_max(s, m_s, LOG2_E, rows.scratch(4, s))
            e_1 = rows.exp2(4, 4, s)
            row_sum(e_1, d_1)
        sub_max(s, m_s, factor, z_s)
        sub_max(t, m_t, factor, z_t)
        e_s, e_t = rows.exp2(0, 2, s), rows.exp2(1, 3, t)
        row_sum(e_s, d_s)
        row_sum(e_t, d_t)
        of_chunk = _Chunk(z_s, e_s, d_s, z_t, e_t, d_t, rows.scratch(5, s))
        to_s, to_t = terms(of_chunk, options.beta, first, second, ds is not None, dt is not None)
        if small_kl is not None:
            parts = (
                of.apply(rows.part(x, chunk).to(w.dtype))
                for x, of in zip(rows.tensors, (options.student, options.teacher), strict=False)
            )
            _store_small_kl(small[r], first, parts, (m_s, m_t), (d_s, d_t), factor, exchanged=small_kl)
        if g is None:
            continue
        of_row = g[r]
        soft = of_row * ((1 - alpha) * options.scale * options.inv_temperature)
        if dt_view is not None and to_t is not None:
            values = rows.unmapped(to_t.values, 6, rows.tensors[1], chunk, options.teacher)
            rows.store(dt_view, chunk, values, to_t.factor * soft)
        if ds_view is not None and to_s is not None:
            values, of_values = to_s.values, to_s.factor * soft
            if label is not None:
                to_label, of_values = of_row * alpha, None
                values = values.mul_(to_s.factor * soft).add_(e_1.mul_(to_label / d_1))
                values.scatter_add_(-1, label[r], -to_label)
            rows.store(ds_view, chunk, rows.unmapped(values, 6, rows.tensors[0], chunk, options.student), of_values)
    if not losses:
        return weights
    _, d_s, _, d_t, first, second, d_1 = numbers.double().unbind()
    loss = _FINISH[options.divergence](first, second, d_s, d_t, options.beta)
    loss = torch.where(small.isnan(), loss, small).mul_((1 - alpha) * options.scale)
    if label is not None:
        loss = loss + alpha * (hard.double() + d_1.log())
    return rows.results((w * loss.squeeze(-1)).to(weights.dtype))


def _defined(products: Tensor) -> Tensor:
    """Replace NaN by 0 in place."""
    return products.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)


def _forward_kl(
    chunk: _Chunk, beta: float, first: Tensor, second: Tensor, to_student: bool, to_teacher: bool
) -> _Gradients:
    """Σ e_t·(z_t − z_s). To s: q − p. To t: p·(log p − log q − KL), whose logarithms of d cancel."""
    z_s, e_s, d_s, z_t, e_t, d_t, _ = chunk
    slope = torch.sub(z_t, z_s, out=z_t)
    products = torch.mul(slope, e_t, out=z_s)
    if row_sum(products, first).isnan().any():
        row_sum(_defined(products), first).add_(chunk.undefined)
    ds = dt = None
    if to_teacher:
        k = first / d_t
        dt = _Gradient(_defined(slope.sub_(k).mul_(e_t)), LN_2 / d_t + (k - k))
    if to_student:
        # One rounding where the student's is as large as the teacher's: 0 if they are equal.
        ds = _Gradient(e_s.mul_(d_t / d_s).sub_(e_t), 1 / d_t)
    return ds, dt


def _forward_kl_finish(a: Tensor, _: Tensor, d_s: Tensor, d_t: Tensor, beta: float) -> Tensor:
    """KL(p‖q) = log 2·a/d_t − log(d_t/d_s), if not small; in float64, as a difference of larger numbers."""
    k = a / d_t
    # k = inf: q = 0 where p > 0.
    return torch.where(k == math.inf, k, k * LN_2 - torch.log(d_t / d_s))


def _store_small_kl(
    small: Tensor,
    first: Tensor,
    parts: Iterable[Tensor],
    maxima: tuple[Tensor, Tensor],
    sums: tuple[Tensor, Tensor],
    factor: float,
    *,
    exchanged: bool,
) -> None:
    """Store the KL of rows, (rows, 1), where it is below `SMALL`, from terms of which none is negative.

    KL(p‖q) = Σ p·(exp δ − 1 − δ) with δ = log(q/p); its terms are differences of larger numbers unless in a series.
    """
    (d_s, d_t), order = sums, slice(None, None, -1 if exchanged else 1)
    (d_q, d_p) = (d_s, d_t)[order]
    found = (_forward_kl_finish(first, first, d_q, d_p, 0.0) < SMALL.value).squeeze(-1)
    if not found.any():
        return
    z_q, z_p = [
        (part[found].to(maximum.dtype) - maximum[found]) * factor for part, maximum in zip(parts, maxima, strict=True)
    ][order]
    p, q = torch.exp2(z_p) / d_p[found], torch.exp2(z_q) / d_q[found]
    delta = torch.where(p > 0, (z_q - z_p - torch.log2(d_q[found] / d_p[found])) * LN_2, 1)  # any number where p = 0
    series = p * delta * delta * (1 / 2 + delta * (1 / 6 + delta / 24))
    near = delta.abs() < (0.125 if delta.dtype == torch.float32 else 0.001)
    small[found] = torch.where(near, series, q - p - p * delta).sum(-1, keepdim=True)


def _reverse_kl(
    chunk: _Chunk, beta: float, first: Tensor, second: Tensor, to_student: bool, to_teacher: bool
) -> _Gradients:
    """Forward KL with the roles exchanged."""
    return _forward_kl(chunk.exchanged(), beta, first, second, to_teacher, to_student)[::-1]


def _reverse_kl_finish(a: Tensor, _: Tensor, d_s: Tensor, d_t: Tensor, beta: float) -> Tensor:
    """Forward KL with the roles exchanged."""
    return _forward_kl_finish(a, _, d_t, d_s, beta)


def _js(chunk: _Chunk, beta: float, first: Tensor, second: Tensor, to_student: bool, to_teacher: bool) -> _Gradients:
    """KL(p‖m) and KL(q‖m), m = beta·p + (1 − beta)·q. To s: (1 − beta)·q·(log(q/m) − KL(q‖m)), and so to t.

    With r = log(p/q) and w the part in m of the smaller of p and q, m over the larger one is 1 + w·(exp(−|r|) − 1).
    """
    r, q, d_s, rest, p, d_t, log_pm = chunk
    log_d = torch.log2(d_t.double() / d_s.double()).to(d_s.dtype)
    torch.sub(rest, r, out=r).sub_(log_d).mul_(LN_2)
    # Where both are 0 the ratio is arbitrary. Beyond the bound the smaller of the two adds nothing.
    bound = 80.0 if r.dtype == torch.float32 else 700.0
    r.nan_to_num_(nan=0.0).clamp_(-bound, bound)
    torch.abs(r, out=rest).neg_().expm1_()
    if beta == 0.5:
        rest.mul_(0.5)
    else:
        rest.mul_(torch.sign(r, out=log_pm).mul_(0.5 - beta).add_(0.5))
    rest.log1p_()
    torch.clamp_max(r, 0, out=log_pm).sub_(rest)
    log_mq = r.clamp_min_(0).add_(rest)
    q.mul_(1 / d_s)
    p.mul_(1 / d_t)
    row_sum(torch.mul(log_pm, p, out=rest), first).add_(chunk.undefined)
    dt = _Gradient(log_pm.sub_(first).mul_(p), torch.full_like(d_t, beta)) if to_teacher else None
    row_sum(torch.mul(log_mq, q, out=rest), second).neg_().add_(chunk.undefined)
    ds = _Gradient(log_mq.add_(second).mul_(q), torch.full_like(d_s, beta - 1)) if to_student else None
    return ds, dt


def _js_finish(k_t: Tensor, k_s: Tensor, d_s: Tensor, d_t: Tensor, beta: float) -> Tensor:
    """beta·KL(p‖m) + (1 − beta)·KL(q‖m)."""
    return (beta * k_t + (1 - beta) * k_s).clamp_(min=0)


def _total_variation(
    chunk: _Chunk, beta: float, first: Tensor, second: Tensor, to_student: bool, to_teacher: bool
) -> _Gradients:
    """d_t·Σ |q − p|. To s: ½·q·(sign(q − p) − Σ q·sign(q − p)), and so to t."""
    z_s, e_s, d_s, z_t, e_t, d_t, _ = chunk
    more = torch.mul(e_s, d_t / d_s, out=z_s).sub_(e_t)
    row_sum(torch.abs(more, out=z_t), first).add_(chunk.undefined)

    def gradient(e: Tensor, d: Tensor, half: float) -> _Gradient:
        mean = row_sum(torch.mul(sign, e, out=z_t)) / d + chunk.undefined
        return _Gradient(e.mul_(torch.sub(sign, mean, out=z_t)), half / d)

    if to_student or to_teacher:
        sign = more.sign_()
    return gradient(e_s, d_s, 0.5) if to_student else None, gradient(e_t, d_t, -0.5) if to_teacher else None


def _total_variation_finish(a: Tensor, _: Tensor, d_s: Tensor, d_t: Tensor, beta: float) -> Tensor:
    """½·Σ |q − p|."""
    return 0.5 * a / d_t


#: Name in the API: one or two sums of each row of a chunk, and gradients; the loss of rows from the sums.
_TERMS: dict[str, Callable[[_Chunk, float, Tensor, Tensor, bool, bool], _Gradients]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "js": _js,
    "total_variation": _total_variation,
}
_FINISH: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]] = {
    "forward_kl": _forward_kl_finish,
    "reverse_kl": _reverse_kl_finish,
    "js": _js_finish,
    "total_variation": _total_variation_finish,
}
