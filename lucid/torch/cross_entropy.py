"""Cross-entropies of rows of logits as operators of torch: with labels, and with class probabilities.

Results of a forward operator are as those of `lucid.torch.divergence`.
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
from triton_kernels.losses.cross_entropy import STATISTICS
from triton_kernels.losses.soft_cross_entropy import STATISTICS as SOFT_STATISTICS


def cross_entropy(
    x: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduce: bool,
    mean: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The loss; by an operator, or by eager autograd on the CPU in one step where the gradient is wanted."""
    arguments = (x, labels, class_weight, ignore_index, label_smoothing, reduce, mean, dtype)
    if launchers(x) is cpu:
        if step.applies(x, labels, class_weight):
            return step.Step.apply(x, _parts(*arguments))
        if step.applies_compiled(x, labels, class_weight):
            return _cross_entropy_and_gradient(*arguments)[0]
    return _cross_entropy_operator(*arguments)[0]


def _parts(
    x: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduce: bool,
    mean: bool,
    dtype: torch.dtype,
) -> step.Parts:
    weights = cpu.cross_entropy.label_weights(x, labels, class_weight, ignore_index)
    factor = factor_of(weights if mean else None, None, 1.0) if reduce else None
    of = (class_weight, ignore_index, label_smoothing)

    def loss_and_gradient(dx: Tensor) -> Tensor:
        dloss = 1.0 if factor is None else factor.value
        losses = cpu.cross_entropy.run(x, labels, *of, losses=True, dloss=dloss, dx=dx)
        return losses.to(dtype) if factor is None else reduced(losses, factor, dtype)

    def again(dloss: Tensor, x: Tensor, labels: Tensor, class_weight: Tensor | None) -> Tensor:
        with kernels_on_cpu(False):
            statistics = weights.new_zeros((STATISTICS, weights.numel()))
            statistics[0] = weights
            in_loss = None if factor is None else number(factor.value, weights.dtype)
            return cross_entropy_backward(x, labels, class_weight, statistics, in_loss, dloss, *of[1:])

    return step.Parts((x, labels, class_weight), loss_and_gradient, again, lambda: labels != ignore_index)


def _cross_entropy(
    x: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduce: bool,
    mean: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    losses, statistics = launchers(x).cross_entropy_forward(
        x, labels, class_weight=_dense(class_weight), ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    loss, factor = row_loss(losses, statistics[0] if mean else None, None, reduce, 1.0, dtype)
    raise_device_errors(x)
    return loss, statistics, factor


def _cross_entropy_fake(x: Tensor, labels: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reduce, _, dtype = options
    return fake_results(x, tk.launch.compute_dtype(x.dtype), STATISTICS, reduce, dtype)


def _cross_entropy_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, labels, class_weight, ignore_index, label_smoothing, ctx.reduce, *_ = inputs
    _, statistics, factor = output
    ctx.options = ignore_index, label_smoothing
    ctx.mark_non_differentiable(statistics, factor)
    ctx.set_materialize_grads(False)  # they get none, and zeros would have to be made
    save(ctx, x, labels, class_weight, statistics, factor if ctx.reduce else None)


def _cross_entropy_backward(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return (None,) * 8
    return cross_entropy_backward(*saved(ctx), dloss, *ctx.options), *(None,) * 7


def _to_logits(
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
        class_weight=_dense(class_weight),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        dloss_factor=factor,
    )


def soft_cross_entropy(
    x: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    label_smoothing: float,
    reduce: bool,
    count: int,
    dtype: torch.dtype,
) -> Tensor:
    """The loss with class probabilities: Σ over `count`, if reduced. By an operator or in one step, as above."""
    arguments = (x, target, class_weight, label_smoothing, reduce, count, dtype)
    if launchers(x) is cpu:
        if step.applies(x, target, class_weight):
            return step.Step.apply(x, _soft_parts(*arguments))
        if step.applies_compiled(x, target, class_weight):
            return _soft_cross_entropy_and_gradient(*arguments)[0]
    return _soft_cross_entropy_operator(*arguments)[0]


def _soft_parts(
    x: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    label_smoothing: float,
    reduce: bool,
    count: int,
    dtype: torch.dtype,
) -> step.Parts:
    compute = tk.launch.compute_dtype(x.dtype, target.dtype)
    factor = factor_of(None, None, 1 / count) if reduce else None

    def loss_and_gradient(dx: Tensor) -> Tensor:
        dloss = 1.0 if factor is None else factor.value
        losses = cpu.soft_cross_entropy.run(x, target, class_weight, label_smoothing, losses=True, dloss=dloss, dx=dx)
        return losses.to(dtype) if factor is None else reduced(losses, factor, dtype)

    def again(dloss: Tensor, x: Tensor, target: Tensor, class_weight: Tensor | None) -> Tensor:
        with kernels_on_cpu(False):
            statistics = x.new_zeros((), dtype=compute)
            in_loss = None if factor is None else number(factor.value, compute)
            return soft_cross_entropy_backward(
                x, target, class_weight, statistics, in_loss, dloss, label_smoothing, True, False
            )[0]

    return step.Parts((x, target, class_weight), loss_and_gradient, again)


def _soft_cross_entropy(
    x: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    label_smoothing: float,
    reduce: bool,
    count: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    losses, statistics = launchers(x).soft_cross_entropy_forward(
        x, target, class_weight=_dense(class_weight), label_smoothing=label_smoothing
    )
    loss, factor = row_loss(losses, None, None, reduce, 1 / count, dtype)
    return loss, statistics, factor


def _soft_cross_entropy_fake(x: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reduce, _, dtype = options
    arithmetic = tk.launch.compute_dtype(x.dtype, target.dtype)
    return fake_results(x, arithmetic, SOFT_STATISTICS, reduce, dtype)


def _soft_cross_entropy_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, target, class_weight, ctx.smoothing, reduce, *_ = inputs
    _, statistics, factor = output
    ctx.wanted = ctx.needs_input_grad[:2]
    ctx.mark_non_differentiable(statistics, factor)
    ctx.set_materialize_grads(False)  # they get none, and zeros would have to be made
    save(ctx, x, target, class_weight, statistics, factor if reduce else None)


def _soft_cross_entropy_backward(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return (None,) * 7
    grads = soft_cross_entropy_backward(*saved(ctx), dloss, ctx.smoothing, *ctx.wanted)
    return *(grad if wanted else None for grad, wanted in zip(grads, ctx.wanted, strict=True)), *(None,) * 5


def _to_both(
    x: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    statistics: Tensor,
    factor: Tensor | None,
    dloss: Tensor,
    label_smoothing: float,
    to_input: bool,
    to_target: bool,
) -> tuple[Tensor, Tensor]:
    grads = launchers(x).soft_cross_entropy_backward(
        x,
        target,
        statistics,
        dloss,
        class_weight=_dense(class_weight),
        label_smoothing=label_smoothing,
        dloss_factor=factor,
        dx_dtype=x.dtype if to_input else None,
        dy_dtype=target.dtype if to_target else None,
    )
    dx, dtarget = (x.new_empty(0) if grad is None else grad for grad in grads)
    return dx, dtarget


def _to_both_fake(x: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    to_input, to_target = options[-2:]
    return (
        fake_like(x, x.dtype) if to_input else x.new_empty(0),
        fake_like(target, target.dtype) if to_target else x.new_empty(0),
    )


def _dense(class_weight: Tensor | None) -> Tensor | None:
    return None if class_weight is None else class_weight.contiguous()


_ARGUMENTS = (
    "Tensor x, Tensor labels, Tensor? class_weight, SymInt ignore_index, float label_smoothing, bool reduce, "
    "bool mean, ScalarType dtype"
)
_SOFT_ARGUMENTS = (
    "Tensor x, Tensor target, Tensor? class_weight, float label_smoothing, bool reduce, SymInt count, ScalarType dtype"
)

_no_second, _raise_no_second = no_gradient(
    "cross_entropy has no second derivatives: its gradient cannot be differentiated"
)

cross_entropy_backward = operator(
    "cross_entropy_backward(Tensor x, Tensor labels, Tensor? class_weight, Tensor statistics, Tensor? factor, "
    "Tensor dloss, SymInt ignore_index, float label_smoothing) -> Tensor",
    _to_logits,
    fake=lambda x, *_: fake_like(x, x.dtype),
    setup=_no_second,
    backward=_raise_no_second,
)

_cross_entropy_operator = operator(
    f"cross_entropy({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _cross_entropy,
    fake=_cross_entropy_fake,
    setup=_cross_entropy_setup,
    backward=_cross_entropy_backward,
)

soft_cross_entropy_backward = operator(
    "soft_cross_entropy_backward(Tensor x, Tensor target, Tensor? class_weight, Tensor statistics, Tensor? factor, "
    "Tensor dloss, float label_smoothing, bool to_input, bool to_target) -> (Tensor, Tensor)",
    _to_both,
    fake=_to_both_fake,
    setup=_no_second,
    backward=_raise_no_second,
)

_soft_cross_entropy_operator = operator(
    f"soft_cross_entropy({_SOFT_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _soft_cross_entropy,
    fake=_soft_cross_entropy_fake,
    setup=_soft_cross_entropy_setup,
    backward=_soft_cross_entropy_backward,
)

_cross_entropy_and_gradient = with_gradient(
    f"cross_entropy_and_gradient({_ARGUMENTS})",
    _parts,
    lambda *arguments: _cross_entropy_fake(*arguments)[0],
    "cross_entropy has no second derivatives",
)

_soft_cross_entropy_and_gradient = with_gradient(
    f"soft_cross_entropy_and_gradient({_SOFT_ARGUMENTS})",
    _soft_parts,
    lambda *arguments: _soft_cross_entropy_fake(*arguments)[0],
    "cross_entropy has no second derivatives",
)
