"""Pointwise KL divergence as operators of torch, with first and second derivatives.

``lucid::kl_div`` divides the sum by `count`; each operator is one call of a launcher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

import triton_kernels as tk
from lucid.ops.in_forward import in_forward
from lucid.torch import cpu, eager
from lucid.torch.operators import kernels_on_cpu, launchers, operator, or_empty, save, saved


def _scale(count: int) -> float:
    # A sum over nothing is 0, and 0·inf is the NaN of 0 / 0.
    return 1 / count if count else float("inf")


def kl_div(x: Tensor, target: Tensor, log_target: bool, reduce: bool, count: int, dtype: torch.dtype) -> Tensor:
    """Return the loss."""
    if (
        reduce
        and log_target
        and launchers(x) is cpu
        and torch.is_grad_enabled()
        and in_forward(x if x.requires_grad else None)
        and not target.requires_grad
        and eager.is_eager(x, target)
    ):
        loss: Tensor = _LogTargetLoss.apply(x, target, count, dtype)
        return loss
    return _kl_div_operator(x, target, log_target, reduce, count, dtype)


class _LogTargetLoss(Function):
    """Node of a reduced loss on the CPU whose gradient to x, −p·g, is computed with it.

    The exponentials of the target are at hand then. A second backward pass computes it anew.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        ctx.gradient, ctx.count, ctx.dtype = tk.strides.empty_as(x), count, x.dtype
        save(ctx, target)
        return cpu.kl_div_forward(x, target, log_target=True, scale=_scale(count), dtype=dtype, dx=ctx.gradient)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        (target,) = saved(ctx)  # raises if it was changed in place, or freed
        if gradient is None or torch.is_grad_enabled() or eager.is_batched(dloss) or not eager.is_eager(dloss):
            with kernels_on_cpu(False):
                gradient = kl_div_backward(dloss, None, target, True, ctx.count, ctx.dtype, True, False)[0]
        elif dloss.item() != 1:
            gradient.mul_(dloss)
        return gradient, None, None, None


def _forward(x: Tensor, target: Tensor, log_target: bool, reduce: bool, count: int, dtype: torch.dtype) -> Tensor:
    return launchers(x).kl_div_forward(
        x, target, log_target=log_target, reduce=reduce, scale=_scale(count), dtype=dtype
    )


def _forward_fake(x: Tensor, target: Tensor, log_target: bool, reduce: bool, count: int, dtype: torch.dtype) -> Tensor:
    if reduce:
        return torch.empty((), dtype=dtype, device=x.device)
    return tk.strides.fake_output(x.shape, (x, target), dtype)


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, target, ctx.log_target, _, ctx.count, _ = inputs
    ctx.dtype, ctx.needs_grad = x.dtype, ctx.needs_input_grad[:2]
    # Without the target's gradient, the gradient to x is −p: x itself is not needed.
    save(ctx, x if ctx.needs_grad[1] else None, target)


def _forward_backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    x, target = saved(ctx)
    dx, dtarget = kl_div_backward(dloss, x, target, ctx.log_target, ctx.count, ctx.dtype, *ctx.needs_grad)
    return dx if ctx.needs_grad[0] else None, dtarget if ctx.needs_grad[1] else None, None, None, None, None


def _backward(
    dloss: Tensor,
    x: Tensor | None,
    target: Tensor,
    log_target: bool,
    count: int,
    dtype: torch.dtype,
    to_x: bool,
    to_target: bool,
) -> tuple[Tensor, ...]:
    grads = launchers(target).kl_div_backward(
        x,
        target,
        dloss,
        shape=target.shape,
        log_target=log_target,
        scale=_scale(count),
        dx_dtype=dtype if to_x else None,
        dtarget_dtype=target.dtype if to_target else None,
    )
    return or_empty(grads, target)


def _backward_fake(
    dloss: Tensor,
    x: Tensor | None,
    target: Tensor,
    log_target: bool,
    count: int,
    dtype: torch.dtype,
    to_x: bool,
    to_target: bool,
) -> tuple[Tensor, Tensor]:
    operands = (target, dloss) if x is None else (target, dloss, x)
    dx, dtarget = (
        tk.strides.fake_output(target.shape, operands, dtype) if needed else target.new_empty(0)
        for needed, dtype in ((to_x, dtype), (to_target, target.dtype))
    )
    return dx, dtarget


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dloss, x, target, ctx.log_target, ctx.count, _, ctx.to_x, ctx.to_target = inputs
    ctx.mark_non_differentiable(
        *(grad for grad, needed in zip(output, (ctx.to_x, ctx.to_target), strict=True) if not needed)
    )
    save(ctx, dloss, x, target)


def _backward_backward(ctx: Any, outer_x: Tensor, outer_target: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate dx = −p·g and dtarget = (log p − x + 1)·g, or p·(log p − x + 1)·g, with g = dloss / count.

    The gradients are 0 where p = 0.
    """
    dloss, x, target = saved(ctx)
    compute = tk.launch.compute_dtype(dloss.dtype, target.dtype, *(() if x is None else (x.dtype,)))
    scale = _scale(ctx.count)
    y, g = target.to(compute), dloss.to(compute) * scale
    p = y.exp() if ctx.log_target else y
    to_x, to_target, to_dloss = None, torch.zeros((), dtype=compute, device=y.device), torch.zeros_like(y)
    if ctx.to_x:
        outer = outer_x.to(compute)
        to_target = to_target - (g * p if ctx.log_target else g) * outer
        to_dloss = to_dloss - p * outer
    if ctx.to_target:
        # Where p = 0 the gradient is 0 throughout; harmless values keep infinities out of the products.
        present = p != 0
        outer = torch.where(present, outer_target.to(compute), 0)
        y, p = (torch.where(present, t, 1) for t in (y, p))
        slope = (y if ctx.log_target else p.log()) - torch.where(present, x.to(compute), 0)
        weighted = (p * g if ctx.log_target else g) * outer
        to_x = -weighted
        to_target = to_target + (weighted * (slope + 2) if ctx.log_target else weighted / p)
        to_dloss = to_dloss + (p * outer if ctx.log_target else outer) * (slope + 1)
    to_dloss = to_dloss.sum() if dloss.dim() == 0 else to_dloss
    return (
        (to_dloss * scale).to(dloss.dtype),
        None if to_x is None or x is None else to_x.to(x.dtype),
        to_target.to(target.dtype).expand(target.shape),
        *(None,) * 5,
    )


kl_div_backward = operator(
    "kl_div_backward(Tensor dloss, Tensor? x, Tensor target, bool log_target, SymInt count, ScalarType dtype, "
    "bool to_x, bool to_target) -> (Tensor, Tensor)",
    _backward,
    fake=_backward_fake,
    setup=_backward_setup,
    backward=_backward_backward,
)

_kl_div_operator = operator(
    "kl_div(Tensor x, Tensor target, bool log_target, bool reduce, SymInt count, ScalarType dtype) -> Tensor",
    _forward,
    fake=_forward_fake,
    setup=_forward_setup,
    backward=_forward_backward,
)
