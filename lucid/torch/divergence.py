"""Divergences of rows of logits as operators of torch.

Each forward operator also returns what its backward needs: the rows' statistics, and the factor of each row's loss in
the result (one, where there is no reduction).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_kernels as tk
from lucid.ops.memory import raise_device_errors
from lucid.torch import cpu
from lucid.torch.cpu import step
from lucid.torch.cpu.rows import number
from lucid.torch.cpu.token_mean import factor_of, reduced
from lucid.torch.operators import kernels_on_cpu, launchers, no_gradient, operator
from lucid.torch.rows import fake_like, fake_results, row_loss, with_gradient
from lucid.torch.saving import save, saved
from triton_kernels.losses.distillation.terms import STATISTICS


def divergence(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    labels: Tensor | None,
    normalizer: Tensor | None,
    *options: Any,
) -> Tensor:
    """The loss; by an operator, or in one step where eager autograd on the CPU wants the student's gradient alone."""
    given = (student, teacher, weight, labels, normalizer)
    if launchers(student) is cpu and not options[7]:
        if step.applies(*given):
            return step.Step.apply(student, _parts(*given, *options))
        if step.applies_compiled(*given):
            return _divergence_and_gradient(*given, *options)[0]
    return _divergence_operator(*given, *options)[0]


def _parts(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    labels: Tensor | None,
    normalizer: Tensor | None,
    *options: Any,
) -> step.Parts:
    *shared, V, ignore_index, _, reduce, mean, count, divisor = options
    of = cpu.divergence.Options(*shared)
    weights = cpu.divergence.token_weights(student, teacher, weight, labels, ignore_index, V)
    factor = None
    if reduce:
        counting = weights if mean or normalizer is not None else None
        factor = factor_of(counting, normalizer, 1 / (count * divisor))

    def loss_and_gradient(ds: Tensor) -> Tensor:
        dloss = 1.0 if factor is None else factor.value
        losses = cpu.divergence.run(student, teacher, weights, labels, of, V, losses=True, dloss=dloss, ds=ds)
        return losses if factor is None else reduced(losses, factor, weights.dtype)

    def again(dloss: Tensor, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        with kernels_on_cpu(False):
            statistics = weights.new_zeros((STATISTICS, weights.numel()))
            statistics[0] = weights
            in_loss = None if factor is None else number(factor.value, weights.dtype)
            return divergence_backward(student, teacher, labels, statistics, in_loss, dloss, *shared, V, True, False)[0]

    needed = (student, teacher, labels if of.hard_label_weight else None)
    return step.Parts(needed, loss_and_gradient, again, lambda: weights != 0)


def _divergence(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    labels: Tensor | None,
    normalizer: Tensor | None,
    divergence: str,
    beta: float,
    inv_temperature: float,
    scale: float,
    hard_label_weight: float,
    vocab_size: int,
    ignore_index: int,
    inplace_gradient: bool,
    reduce: bool,
    mean: bool,
    count: int,
    divisor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    losses, statistics = launchers(student).divergence_forward(
        student,
        teacher,
        divergence=divergence,
        beta=beta,
        inv_temperature=inv_temperature,
        scale=scale,
        weight=weight,
        labels=labels,
        ignore_index=ignore_index,
        hard_label_weight=hard_label_weight,
        vocab_size=vocab_size,
    )
    weights = statistics[0] if mean or normalizer is not None else None
    loss, factor = row_loss(losses, weights, normalizer, reduce, 1 / (count * divisor), losses.dtype)
    raise_device_errors(student)
    return loss, statistics, factor


def _divergence_fake(student: Tensor, teacher: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    arithmetic = tk.launch.compute_dtype(student.dtype, teacher.dtype)
    return fake_results(student, arithmetic, STATISTICS, options[11], arithmetic)


def _divergence_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _, labels, _, *options = inputs
    _, statistics, factor = output
    ctx.options, ctx.inplace_gradient, ctx.reduce = options[:6], options[7], options[8]
    ctx.wanted = ctx.needs_input_grad[:2]
    ctx.mark_non_differentiable(statistics, factor)
    ctx.set_materialize_grads(False)  # they get none, and zeros would have to be made
    save(ctx, student, teacher, labels if ctx.options[4] else None, statistics, factor if ctx.reduce else None)


def _divergence_backward(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return (None,) * 17
    student, *others = saved(ctx)
    if ctx.wanted[0] and ctx.inplace_gradient and not torch.is_grad_enabled():  # which has no derivative of its own
        dteacher = divergence_backward_(student, *others, dloss, *ctx.options, ctx.wanted[1])
        dstudent = student.detach()
    else:
        dstudent, dteacher = divergence_backward(student, *others, dloss, *ctx.options, *ctx.wanted)
    return dstudent if ctx.wanted[0] else None, dteacher if ctx.wanted[1] else None, *(None,) * 15


def _backward(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    statistics: Tensor,
    factor: Tensor | None,
    dloss: Tensor,
    divergence: str,
    beta: float,
    inv_temperature: float,
    scale: float,
    hard_label_weight: float,
    vocab_size: int,
    to_student: bool,
    to_teacher: bool,
    *,
    student_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    grads = launchers(student).divergence_backward(
        student,
        teacher,
        statistics,
        dloss,
        divergence=divergence,
        beta=beta,
        inv_temperature=inv_temperature,
        scale=scale,
        labels=labels,
        hard_label_weight=hard_label_weight,
        vocab_size=vocab_size,
        dloss_factor=factor,
        dstudent_dtype=student.dtype if to_student else None,
        dteacher_dtype=teacher.dtype if to_teacher else None,
        student_out=student_out,
    )
    dstudent, dteacher = (student.new_empty(0) if grad is None else grad for grad in grads)
    return dstudent, dteacher


def _backward_fake(student: Tensor, teacher: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    to_student, to_teacher = options[-2:]
    return (
        fake_like(student, student.dtype) if to_student else student.new_empty(0),
        fake_like(teacher, teacher.dtype) if to_teacher else student.new_empty(0),
    )


def _backward_in_place(student: Tensor, *arguments: Any) -> Tensor:
    *given, to_teacher = arguments
    if launchers(student) is tk:  # torch's own operators count what they write
        torch.autograd.graph.increment_version(student)
    _, dteacher = _backward(student, *given, True, to_teacher, student_out=student)  # type: ignore[call-arg, misc, arg-type]
    return dteacher


def _backward_in_place_fake(student: Tensor, teacher: Tensor, *options: Any) -> Tensor:
    return fake_like(teacher, teacher.dtype) if options[-1] else student.new_empty(0)


_SAVED = "Tensor{} student, Tensor teacher, Tensor? labels, Tensor statistics, Tensor? factor, Tensor dloss"
_OPTIONS = "str divergence, float beta, float inv_temperature, float scale, float hard_label_weight, SymInt vocab_size"

_ARGUMENTS = (
    f"Tensor student, Tensor teacher, Tensor? weight, Tensor? labels, Tensor? normalizer, {_OPTIONS}, "
    "SymInt ignore_index, bool inplace_gradient, bool reduce, bool mean, SymInt count, float divisor"
)

_no_second, _raise_no_second = no_gradient(
    "distillation_loss has no second derivatives: its gradients cannot be differentiated"
)

divergence_backward = operator(
    f"divergence_backward({_SAVED.format('')}, {_OPTIONS}, bool to_student, bool to_teacher) -> (Tensor, Tensor)",
    _backward,
    fake=_backward_fake,
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

_divergence_operator = operator(
    f"divergence({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _divergence,
    fake=_divergence_fake,
    setup=_divergence_setup,
    backward=_divergence_backward,
)

_divergence_and_gradient = with_gradient(
    f"divergence_and_gradient({_ARGUMENTS})",
    _parts,
    lambda *arguments: _divergence_fake(*arguments)[0],
    "distillation_loss has no second derivatives",
)
