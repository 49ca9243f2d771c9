"""Losses of rows of logits: divergences between two of them, and cross-entropy with labels or probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import triton_kernels as tk
from lucid._clobbered import mark_clobbered
from lucid._loss_args import CrossEntropyConfig, DistillationConfig, Reduction
from lucid.autograd.function import Function
from lucid.ops.autocast import loss_dtype
from lucid.ops.in_forward import in_forward, loss_factor, save_gradients, scaled_gradients
from lucid.ops.memory import raise_before_overwriting, raise_device_errors
from lucid.tensor import Tensor
from triton_kernels.losses.cross_entropy import COUNTS


def _reduced(
    losses: torch.Tensor,
    weights: torch.Tensor | None,
    reduction: Reduction,
    dtype: torch.dtype,
    denominator: Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss, and the factor that each token's has in it; None for 1."""
    if not reduction.reduce:
        return losses.to(dtype), None
    return tk.token_mean(
        losses,
        weights=weights if reduction.mean or denominator is not None else None,
        denominator=None if denominator is None else denominator._buffer,
        scale=reduction.scale,
        dtype=dtype,
    )


def _factor(
    logits: torch.Tensor,
    weights: Callable[[], torch.Tensor] | None,
    reduction: Reduction,
    normalizer: Tensor | None,
    dtype: torch.dtype,
) -> tuple[float, torch.Tensor | None]:
    """The factor of each token's loss in the result, before losses are known; see `loss_factor`."""
    if not reduction.reduce:
        return 1.0, None
    number = None if normalizer is None else normalizer._buffer
    return loss_factor(logits, weights, reduction.mean, number, reduction.scale, dtype)


class DistillationLoss(Function):
    """(1 − α)·divergence + α·cross-entropy of each token, reduced."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None,
        labels: Tensor | None,
        normalizer: Tensor | None,
        options: DistillationConfig,
        reduction: Reduction,
    ) -> Tensor:
        ctx.options = options
        s, t = student._buffer, teacher._buffer
        rows = {
            "weight": None if weight is None else weight._buffer,
            "labels": None if labels is None else labels._buffer,
            "ignore_index": options.ignore_index,
        }
        to_s, to_t = ctx.needs_input_grad[:2]
        ctx.in_forward = in_forward(s if to_s else None, t if to_t else None)
        if not ctx.in_forward:
            losses, statistics = tk.divergence_forward(s, t, **rows, **options.shared)
            loss, factor = _reduced(losses, statistics[0], reduction, losses.dtype, normalizer)
            raise_device_errors(s)
            ctx.save_for_backward(student, teacher, labels, Tensor._wrap(statistics), _wrapped(factor))
            return Tensor._wrap(loss)
        dtype = tk.launch.compute_dtype(s.dtype, t.dtype)

        def weights() -> torch.Tensor:
            return tk.token_weights(s, **rows, vocab_size=options.vocab_size, dtype=dtype)

        all_count = weight is None and labels is None
        scale, factor = _factor(s, None if all_count else weights, reduction, normalizer, dtype)
        in_place = to_s and options.inplace_gradient
        if in_place:
            raise_before_overwriting(s, None if labels is None else weights)
        ds = student._buffer_for_write() if in_place else tk.strides.empty_as(s) if to_s else None
        dt = tk.strides.empty_as(t) if to_t else None
        losses, statistics = tk.divergence_forward(
            s, t, **rows, **options.shared, gradient_scale=scale, gradient_factor=factor, dstudent=ds, dteacher=dt
        )
        raise_device_errors(s)
        gradients = mark_clobbered(s) if in_place else ds, dt
        counts = None if all_count else statistics[0]
        save_gradients(ctx, (student, teacher), gradients, counts, options.vocab_size, "distillation_loss")
        return Tensor._wrap(tk.token_mean(losses, factor=factor, scale=scale)[0] if reduction.reduce else losses)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.in_forward:
            return (*scaled_gradients(ctx, dloss), None, None, None, None, None)
        student, teacher, labels, statistics, factor = ctx.saved_tensors
        needs_grad = ctx.needs_input_grad[:2]
        grads = DistillationLossBackward.apply(
            student, teacher, labels, statistics, factor, dloss, ctx.options, needs_grad
        )
        return (*grads, None, None, None, None, None)


class DistillationLossBackward(Function):
    """Gradients to student and teacher logits."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        statistics: Tensor,
        factor: Tensor | None,
        dloss: Tensor,
        options: DistillationConfig,
        needs_grad: tuple[bool, bool],
    ) -> tuple[Tensor | None, ...]:
        in_place = needs_grad[0] and options.inplace_gradient
        dstudent, dteacher = tk.divergence_backward(
            student._buffer,
            teacher._buffer,
            statistics._buffer,
            dloss._buffer,
            labels=None if labels is None or not options.hard_label_weight else labels._buffer,
            dloss_factor=None if factor is None else factor._buffer,
            dstudent_dtype=student._buffer.dtype if needs_grad[0] else None,
            dteacher_dtype=teacher._buffer.dtype if needs_grad[1] else None,
            student_out=student._buffer_for_write() if in_place else None,
            **options.shared,
        )
        if in_place:
            dstudent = mark_clobbered(student._buffer)
        return _wrapped(dstudent), _wrapped(dteacher)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("distillation_loss has no second derivatives: its gradients cannot be differentiated")


class HardCrossEntropy(Function):
    """Cross-entropy of each row with its label, reduced."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        labels: Tensor,
        class_weight: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
        reduction: Reduction,
    ) -> Tensor:
        ctx.options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
        logits, of = x._buffer, labels._buffer
        weight = None if class_weight is None else class_weight._buffer.contiguous()
        ctx.in_forward = in_forward(logits if ctx.needs_input_grad[0] else None)
        if not ctx.in_forward:
            losses, statistics = tk.cross_entropy_forward(logits, of, class_weight=weight, **ctx.options)
            loss, factor = _reduced(losses, statistics[0], reduction, loss_dtype(logits))
            raise_device_errors(logits, labels="target")
            ctx.save_for_backward(x, labels, class_weight, Tensor._wrap(statistics), _wrapped(factor))
            return Tensor._wrap(loss)
        dtype = tk.launch.compute_dtype(logits.dtype)
        scale, factor = _factor(
            logits,
            lambda: tk.token_weights(logits, labels=of, class_weight=weight, ignore_index=ignore_index, dtype=dtype),
            reduction,
            None,
            dtype,
        )
        dx = tk.strides.empty_as(logits)
        losses, statistics = tk.cross_entropy_forward(
            logits, of, class_weight=weight, **ctx.options, gradient_scale=scale, gradient_factor=factor, dx=dx
        )
        raise_device_errors(logits, labels="target")
        save_gradients(ctx, (x,), (dx,), statistics[COUNTS], None, "cross_entropy")
        if reduction.reduce:
            return Tensor._wrap(tk.token_mean(losses, factor=factor, scale=scale, dtype=loss_dtype(logits))[0])
        return Tensor._wrap(losses.to(loss_dtype(logits)))

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.in_forward:
            return (*scaled_gradients(ctx, dloss), *(None,) * 5)
        return (HardCrossEntropyBackward.apply(*ctx.saved_tensors, dloss, ctx.options), *(None,) * 5)


class HardCrossEntropyBackward(Function):
    """Gradient to the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        labels: Tensor,
        class_weight: Tensor | None,
        statistics: Tensor,
        factor: Tensor | None,
        dloss: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        dx = tk.cross_entropy_backward(
            x._buffer,
            labels._buffer,
            statistics._buffer,
            dloss._buffer,
            class_weight=None if class_weight is None else class_weight._buffer.contiguous(),
            dloss_factor=None if factor is None else factor._buffer,
            **options,
        )
        return Tensor._wrap(dx)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("cross_entropy has no second derivatives: its gradient cannot be differentiated")


class SoftCrossEntropy(Function):
    """Cross-entropy of each row with class probabilities, reduced."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, class_weight: Tensor | None, label_smoothing: float, reduction: Reduction
    ) -> Tensor:
        ctx.options = {"label_smoothing": label_smoothing}
        logits, of = x._buffer, y._buffer
        weight = None if class_weight is None else class_weight._buffer.contiguous()
        dtype = loss_dtype(logits, of)
        to_x, to_y = ctx.needs_input_grad[:2]
        # That to probabilities may be infinite; the upstream gradient decides whether it counts.
        ctx.in_forward = not to_y and in_forward(logits if to_x else None)
        if not ctx.in_forward:
            losses, statistics = tk.soft_cross_entropy_forward(logits, of, class_weight=weight, **ctx.options)
            loss, factor = _reduced(losses, None, reduction, dtype)
            ctx.save_for_backward(x, y, class_weight, Tensor._wrap(statistics), _wrapped(factor))
            return Tensor._wrap(loss)
        scale, _ = _factor(logits, None, reduction, None, tk.launch.compute_dtype(logits.dtype, of.dtype))
        dx = tk.strides.empty_as(logits)
        losses, _ = tk.soft_cross_entropy_forward(
            logits, of, class_weight=weight, **ctx.options, gradient_scale=scale, dx=dx
        )
        save_gradients(ctx, (x,), (dx,), None, None, "cross_entropy")
        if reduction.reduce:
            return Tensor._wrap(tk.token_mean(losses, scale=scale, dtype=dtype)[0])
        return Tensor._wrap(losses.to(dtype))

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.in_forward:
            return (*scaled_gradients(ctx, dloss), *(None,) * 4)
        needs_grad = ctx.needs_input_grad[:2]
        grads = SoftCrossEntropyBackward.apply(*ctx.saved_tensors, dloss, ctx.options, needs_grad)
        return (*grads, None, None, None)


class SoftCrossEntropyBackward(Function):
    """Gradients to logits and probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        class_weight: Tensor | None,
        statistics: Tensor,
        factor: Tensor | None,
        dloss: Tensor,
        options: dict[str, Any],
        needs_grad: tuple[bool, bool],
    ) -> tuple[Tensor | None, ...]:
        dx, dy = tk.soft_cross_entropy_backward(
            x._buffer,
            y._buffer,
            statistics._buffer,
            dloss._buffer,
            class_weight=None if class_weight is None else class_weight._buffer.contiguous(),
            dloss_factor=None if factor is None else factor._buffer,
            dx_dtype=x._buffer.dtype if needs_grad[0] else None,
            dy_dtype=y._buffer.dtype if needs_grad[1] else None,
            **options,
        )
        return _wrapped(dx), _wrapped(dy)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("cross_entropy has no second derivatives: its gradients cannot be differentiated")


def _wrapped(buffer: torch.Tensor | None) -> Tensor | None:
    return None if buffer is None else Tensor._wrap(buffer)


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    weight: Tensor | None,
    labels: Tensor | None,
    normalizer: Tensor | None,
    options: DistillationConfig,
    reduction: Reduction,
) -> Tensor:
    """A divergence of student logits from teacher logits, (..., V), with weights and labels of the leading shape."""
    return DistillationLoss.apply(student, teacher, weight, labels, normalizer, options, reduction)


def cross_entropy(of: CrossEntropyConfig, *, class_weight: Tensor | None) -> Tensor:
    """Cross-entropy of logits with labels or probabilities."""
    if of.soft:
        return SoftCrossEntropy.apply(of.logits, of.target, class_weight, of.label_smoothing, of.reduction)
    return HardCrossEntropy.apply(of.logits, of.target, class_weight, of.ignore_index, of.label_smoothing, of.reduction)
