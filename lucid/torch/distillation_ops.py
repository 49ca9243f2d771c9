"""Divergences of rows of student and teacher logits as operators of torch.

Options come by position, in the order of the schema: the six of both launchers, then those of the forward pass alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_kernels as tk
from lucid._clobbered import mark_overwritten
from lucid.ops.in_forward import loss_factor
from lucid.ops.memory import raise_before_overwriting, raise_device_errors
from lucid.torch import row_ops
from lucid.torch.loss_and_gradients import LossAndGradients
from lucid.torch.operators import launchers, no_gradient, operator, or_empty, saved
from triton_kernels.losses.distillation.terms import STATISTICS

#: Options of both launchers.
_NAMES = ("divergence", "beta", "inv_temperature", "scale", "hard_label_weight", "vocab_size")
_OPTIONS = "str divergence, float beta, float inv_temperature, float scale, float hard_label_weight, SymInt vocab_size"
_NO_SECOND = "distillation_loss has no second derivatives: its gradients cannot be differentiated"
_SAVED = "Tensor{} student, Tensor teacher, Tensor? labels, Tensor statistics, Tensor? factor, Tensor dloss"


def _loss_and_gradients(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    labels: Tensor | None,
    normalizer: Tensor | None,
    *options: Any,
) -> LossAndGradients:
    *shared, ignore_index, in_place, reduce, mean, count, divisor = options
    dtype = tk.launch.compute_dtype(student.dtype, teacher.dtype)
    rows = {"weight": weight, "labels": labels, "ignore_index": ignore_index}
    kernels = launchers(student)

    def weights() -> Tensor:
        return kernels.token_weights(student, **rows, vocab_size=shared[-1], dtype=dtype)

    def run(ds: Tensor | None, dt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale, factor = 1.0, None
        if reduce:
            counting = None if weight is None and labels is None else weights
            scale, factor = loss_factor(student, counting, mean, normalizer, 1 / (count * divisor), dtype, kernels)
        if in_place:
            raise_before_overwriting(student, None if labels is None else weights)
        losses, statistics = kernels.divergence_forward(
            student,
            teacher,
            **rows,
            **_named(shared),
            gradient_scale=scale,
            gradient_factor=factor,
            dstudent=ds,
            dteacher=dt,
        )
        raise_device_errors(student)
        loss = kernels.token_mean(losses, factor=factor, scale=scale)[0] if reduce else losses
        return loss, None if weight is None and labels is None else statistics[0]

    return LossAndGradients(run, _NO_SECOND, shared[-1], in_place)


def _forward(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    labels: Tensor | None,
    normalizer: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *shared, ignore_index, _, reduce, mean, count, divisor = options
    losses, statistics = launchers(student).divergence_forward(
        student, teacher, weight=weight, labels=labels, ignore_index=ignore_index, **_named(shared)
    )
    weights = statistics[0] if mean or normalizer is not None else None
    loss, factor = row_ops.reduce_rows(losses, weights, normalizer, reduce, 1 / (count * divisor), losses.dtype)
    raise_device_errors(student)
    return loss, statistics, factor


def _named(shared: Any) -> dict[str, Any]:
    return dict(zip(_NAMES, shared, strict=True))


def _forward_fake(student: Tensor, teacher: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reduce, _, _, _ = options
    compute = tk.launch.compute_dtype(student.dtype, teacher.dtype)
    return row_ops.fake_results(student, compute, STATISTICS, reduce, compute)


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _, labels, _, *options = inputs
    *ctx.shared, _, ctx.inplace_gradient, reduce, _, _, _ = options
    hard_label_weight = ctx.shared[4]
    row_ops.save_rows(ctx, output, reduce, student, teacher, labels if hard_label_weight else None)


def _forward_backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    student, *others = saved(ctx)
    to_student, to_teacher = ctx.needs_grad
    if to_student and ctx.inplace_gradient and not torch.is_grad_enabled():  # it has no derivative of its own
        dteacher = divergence_backward_(student, *others, dloss, *ctx.shared, to_teacher)
        mark_overwritten(student)
        dstudent = student.detach()
    else:
        dstudent, dteacher = divergence_backward(student, *others, dloss, *ctx.shared, *ctx.needs_grad)
    return dstudent if to_student else None, dteacher if to_teacher else None


def _backward(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    statistics: Tensor,
    factor: Tensor | None,
    dloss: Tensor,
    *options: Any,
    student_out: Tensor | None = None,
) -> tuple[Tensor, ...]:
    *shared, to_student, to_teacher = options
    grads = launchers(student).divergence_backward(
        student,
        teacher,
        statistics,
        dloss,
        labels=labels,
        dloss_factor=factor,
        dstudent_dtype=student.dtype if to_student else None,
        dteacher_dtype=teacher.dtype if to_teacher else None,
        student_out=student_out,
        **_named(shared),
    )
    return or_empty(grads, student)


def _backward_in_place(student: Tensor, *arguments: Any) -> Tensor:
    *given, to_teacher = arguments
    if launchers(student) is tk:  # torch's own operators count what they write
        torch.autograd.graph.increment_version(student)
    _, dteacher = _backward(student, *given, True, to_teacher, student_out=student)
    return dteacher


def _backward_in_place_fake(student: Tensor, teacher: Tensor, *options: Any) -> Tensor:
    return row_ops.fake_pair(student, teacher, False, options[-1])[1]


_no_second, _raise_no_second = no_gradient(_NO_SECOND)

divergence_backward = operator(
    f"divergence_backward({_SAVED.format('')}, {_OPTIONS}, bool to_student, bool to_teacher) -> (Tensor, Tensor)",
    _backward,
    fake=row_ops.fake_pair,
    setup=_no_second,
    backward=_raise_no_second,
)

divergence_backward_ = operator(
    f"divergence_backward_({_SAVED.format('(a!)')}, {_OPTIONS}, bool to_teacher) -> Tensor",
    _backward_in_place,
    fake=_backward_in_place_fake,
    setup=_no_second,
    backward=_raise_no_second,
)

distillation_loss = row_ops.define(
    "divergence",
    f"Tensor student, Tensor teacher, Tensor? weight, Tensor? labels, Tensor? normalizer, {_OPTIONS}, "
    "SymInt ignore_index, bool inplace_gradient, bool reduce, bool mean, SymInt count, float divisor",
    _forward,
    tensors=5,
    loss_and_gradients=_loss_and_gradients,
    fake=_forward_fake,
    setup=_forward_setup,
    backward=_forward_backward,
    error="distillation_loss has no second derivatives",
)
