"""Cross-entropies of rows of logits as operators of torch: with labels, and with class probabilities.

Options come by position, in the order of the schemas.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import triton_kernels as tk
from lucid.ops.in_forward import loss_factor
from lucid.ops.memory import of_argument, raise_device_errors
from lucid.torch import row_ops
from lucid.torch.loss_and_gradients import LossAndGradients
from lucid.torch.operators import launchers, no_gradient, operator, or_empty, saved
from triton_kernels.losses.cross_entropy import COUNTS, STATISTICS
from triton_kernels.losses.soft_cross_entropy import STATISTICS as SOFT_STATISTICS

_NO_SECOND = "cross_entropy has no second derivatives: its gradient cannot be differentiated"
_no_second, _raise_no_second = no_gradient(_NO_SECOND)
_ERROR = "cross_entropy has no second derivatives"


def _contiguous(class_weight: Tensor | None) -> Tensor | None:
    return None if class_weight is None else class_weight.contiguous()


# With labels.


def _loss_and_gradients(x: Tensor, labels: Tensor, class_weight: Tensor | None, *options: Any) -> LossAndGradients:
    ignore_index, label_smoothing, reduce, mean, dtype = options
    kernels, of_classes, compute = launchers(x), _contiguous(class_weight), tk.launch.compute_dtype(x.dtype)

    def weights() -> Tensor:
        try:
            return kernels.token_weights(
                x, labels=labels, class_weight=of_classes, ignore_index=ignore_index, dtype=compute
            )
        except IndexError as error:
            raise of_argument(error, "target") from None

    def run(dx: Tensor | None, _: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale, factor = loss_factor(x, weights, reduce and mean, None, 1.0, compute, kernels)
        losses, statistics = kernels.cross_entropy_forward(
            x,
            labels,
            class_weight=of_classes,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            gradient_scale=scale,
            gradient_factor=factor,
            dx=dx,
        )
        raise_device_errors(x, labels="target")
        loss = kernels.token_mean(losses, factor=factor, scale=scale, dtype=dtype)[0] if reduce else losses.to(dtype)
        return loss, statistics[COUNTS]

    return LossAndGradients(run, _NO_SECOND)


def _forward(x: Tensor, labels: Tensor, class_weight: Tensor | None, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    ignore_index, label_smoothing, reduce, mean, dtype = options
    losses, statistics = launchers(x).cross_entropy_forward(
        x, labels, class_weight=_contiguous(class_weight), ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    loss, factor = row_ops.reduce_rows(losses, statistics[0] if mean else None, None, reduce, 1.0, dtype)
    raise_device_errors(x, labels="target")
    return loss, statistics, factor


def _forward_fake(x: Tensor, labels: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reduce, _, dtype = options
    return row_ops.fake_results(x, tk.launch.compute_dtype(x.dtype), STATISTICS, reduce, dtype)


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, labels, class_weight, *ctx.options, reduce, _, _ = inputs
    row_ops.save_rows(ctx, output, reduce, x, labels, class_weight)


def _forward_backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    return (cross_entropy_backward(*saved(ctx), dloss, *ctx.options),)


def _backward(
    x: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    statistics: Tensor,
    factor: Tensor | None,
    dloss: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return launchers(x).cross_entropy_backward(
        x,
        labels,
        statistics,
        dloss,
        class_weight=_contiguous(class_weight),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        dloss_factor=factor,
    )


cross_entropy_backward = operator(
    "cross_entropy_backward(Tensor x, Tensor labels, Tensor? class_weight, Tensor statistics, Tensor? factor, "
    "Tensor dloss, SymInt ignore_index, float label_smoothing) -> Tensor",
    _backward,
    fake=lambda x, *_: row_ops.fake_like(x),
    setup=_no_second,
    backward=_raise_no_second,
)

cross_entropy = row_ops.define(
    "cross_entropy",
    "Tensor x, Tensor labels, Tensor? class_weight, SymInt ignore_index, float label_smoothing, bool reduce, "
    "bool mean, ScalarType dtype",
    _forward,
    tensors=3,
    loss_and_gradients=_loss_and_gradients,
    pair=False,
    fake=_forward_fake,
    setup=_forward_setup,
    backward=_forward_backward,
    error=_ERROR,
)


# With class probabilities: the sum over `count`, if reduced.


def _soft_loss_and_gradients(x: Tensor, target: Tensor, class_weight: Tensor | None, *options: Any) -> LossAndGradients:
    label_smoothing, reduce, count, dtype = options
    kernels, of_classes, scale = launchers(x), _contiguous(class_weight), 1 / count if reduce else 1.0

    def run(dx: Tensor | None, _: Tensor | None) -> tuple[Tensor, Tensor | None]:
        losses, _ = kernels.soft_cross_entropy_forward(
            x,
            target,
            class_weight=of_classes,
            label_smoothing=label_smoothing,
            gradient_scale=scale,
            dx=dx,
        )
        return kernels.token_mean(losses, scale=scale, dtype=dtype)[0] if reduce else losses.to(dtype), None

    return LossAndGradients(run, _NO_SECOND)


def _soft_forward(
    x: Tensor, target: Tensor, class_weight: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    label_smoothing, reduce, count, dtype = options
    losses, statistics = launchers(x).soft_cross_entropy_forward(
        x, target, class_weight=_contiguous(class_weight), label_smoothing=label_smoothing
    )
    loss, factor = row_ops.reduce_rows(losses, None, None, reduce, 1 / count, dtype)
    return loss, statistics, factor


def _soft_forward_fake(x: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reduce, _, dtype = options
    compute = tk.launch.compute_dtype(x.dtype, target.dtype)
    return row_ops.fake_results(x, compute, SOFT_STATISTICS, reduce, dtype)


def _soft_forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, target, class_weight, ctx.label_smoothing, reduce, *_ = inputs
    row_ops.save_rows(ctx, output, reduce, x, target, class_weight)


def _soft_forward_backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    grads = soft_cross_entropy_backward(*saved(ctx), dloss, ctx.label_smoothing, *ctx.needs_grad)
    return tuple(grad if needed else None for grad, needed in zip(grads, ctx.needs_grad, strict=True))


def _soft_backward(
    x: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    statistics: Tensor,
    factor: Tensor | None,
    dloss: Tensor,
    label_smoothing: float,
    to_input: bool,
    to_target: bool,
) -> tuple[Tensor, ...]:
    grads = launchers(x).soft_cross_entropy_backward(
        x,
        target,
        statistics,
        dloss,
        class_weight=_contiguous(class_weight),
        label_smoothing=label_smoothing,
        dloss_factor=factor,
        dx_dtype=x.dtype if to_input else None,
        dy_dtype=target.dtype if to_target else None,
    )
    return or_empty(grads, x)


soft_cross_entropy_backward = operator(
    "soft_cross_entropy_backward(Tensor x, Tensor target, Tensor? class_weight, Tensor statistics, Tensor? factor, "
    "Tensor dloss, float label_smoothing, bool to_input, bool to_target) -> (Tensor, Tensor)",
    _soft_backward,
    fake=row_ops.fake_pair,
    setup=_no_second,
    backward=_raise_no_second,
)

soft_cross_entropy = row_ops.define(
    "soft_cross_entropy",
    "Tensor x, Tensor target, Tensor? class_weight, float label_smoothing, bool reduce, SymInt count, ScalarType dtype",
    _soft_forward,
    tensors=3,
    loss_and_gradients=_soft_loss_and_gradients,
    pair=False,
    fake=_soft_forward_fake,
    setup=_soft_forward_setup,
    backward=_soft_forward_backward,
    error=_ERROR,
)
