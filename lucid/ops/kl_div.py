"""Pointwise KL divergence."""

from __future__ import annotations

import weakref
from typing import Any

import triton_kernels as tk
from lucid.autograd.function import Function
from lucid.autograd.grad_mode import is_grad_enabled
from lucid.dtype import dtype
from lucid.ops.arithmetic import add, div, exp, log, meta, mul, ne, neg, sub, where
from lucid.ops.autocast import loss_dtype
from lucid.ops.kl_div_fused import FusedBackward, fused_forward, match_fusion
from lucid.ops.memory import to
from lucid.ops.reduction import expand, sum_to
from lucid.tensor import Tensor


class KLDiv(Function):
    """scale · Σ p·(log p − x), or the terms themselves, where the target is p or log p."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, log_target: bool, reduce: bool, scale: float) -> Tensor:
        ctx.log_target, ctx.scale, ctx.x, ctx.gradients = log_target, scale, meta(x), [None, None]
        # Without the target's gradient, the gradient to x is −p: x itself is not needed.
        kept = x if ctx.needs_input_grad[1] else None
        of_logits = match_fusion(x._memory, target._memory, log_target) if reduce else None
        if of_logits is None:
            ctx.save_for_backward(kept, target)
            buffers = x._buffer, target._buffer
            options = {"log_target": log_target, "reduce": reduce, "scale": scale, "dtype": loss_dtype(*buffers)}
            loss = tk.kl_div_forward(*buffers, **options)
        else:
            # The gradient to a softmax that is a leaf goes no further, to logits.
            to_x, to_target = ctx.needs_input_grad[:2]
            wanted = (to_x and not x.is_leaf, to_target and not target.is_leaf)
            loss, statistics, ctx.gradients = fused_forward(of_logits, scale, wanted)
            ctx.save_for_backward(kept, target, Tensor._wrap(statistics))
            # Its own node keeps it as long as a fused backward pass may want it.
            ctx.log_q = weakref.ref(x._memory)
        return Tensor._wrap(loss)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        x, target, *statistics = ctx.saved_tensors
        wanted, gradients = ctx.needs_input_grad[:2], ctx.gradients
        if not ctx.keeps_graph:
            ctx.gradients = [None, None]
        if statistics and not is_grad_enabled():
            of_logits = match_fusion(ctx.log_q(), target._memory, ctx.log_target, dloss._buffer)
            if of_logits is not None:
                run = FusedBackward(
                    of_logits, statistics[0]._buffer, gradients, dloss._buffer, ctx.scale, ctx.keeps_graph
                )
                dx, dtarget = (Tensor._wrap(run.gradient(side)) if want else None for side, want in enumerate(wanted))
                return dx, dtarget, None, None, None
        dx, dtarget = KLDivBackward.apply(x, target, dloss, ctx.log_target, ctx.scale, ctx.x, wanted)
        return dx, dtarget, None, None, None


class KLDivBackward(Function):
    """dx = −p·g and dp = (log p − x + 1)·g, or dlog p = p·(log p − x + 1)·g, with g = scale·dloss; 0 where p = 0."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor | None,
        target: Tensor,
        dloss: Tensor,
        log_target: bool,
        scale: float,
        x_meta: Any,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.log_target, ctx.scale, ctx.wanted = log_target, scale, wanted
        ctx.save_for_backward(x, target, dloss)
        ctx.shape = shape = tk.strides.broadcast(tuple(x_meta.shape), target.shape)
        compute = tk.launch.compute_dtype(x_meta.dtype.torch, target._buffer.dtype)
        # A broadcast operand's gradient is summed afterwards, and rounded only then.
        dtypes = [
            None if not want else operand.dtype.torch if operand.shape == shape else compute
            for want, operand in zip(wanted, (x_meta, target), strict=True)
        ]
        grads = tk.kl_div_backward(
            None if x is None else x._buffer,
            target._buffer,
            dloss._buffer,
            shape=shape,
            log_target=log_target,
            scale=scale,
            dx_dtype=dtypes[0],
            dtarget_dtype=dtypes[1],
        )
        return tuple(
            None if grad is None else to(sum_to(Tensor._wrap(grad), operand.shape), None, operand.dtype)
            for grad, operand in zip(grads, (x_meta, target), strict=True)
        )

    @staticmethod
    def backward(ctx: Any, outer_x: Tensor | None, outer_target: Tensor | None) -> tuple[Tensor | None, ...]:
        x, target, dloss = ctx.saved_tensors
        need_x, need_target, need_dloss = ctx.needs_input_grad[:3]
        compute = dtype.of(tk.launch.compute_dtype(*(t._buffer.dtype for t in (x, target) if t is not None)))
        y, g = to(target, None, compute), mul(to(dloss, None, compute), ctx.scale)
        p = exp(y) if ctx.log_target else y
        to_x: list[Tensor] = []
        to_target: list[Tensor] = []
        to_dloss: list[Tensor] = []
        if outer_x is not None:
            outer = expand(to(outer_x, None, compute), ctx.shape)
            to_target.append(neg(mul(mul(g, p) if ctx.log_target else g, outer)))
            to_dloss.append(neg(mul(p, outer)))
        if outer_target is not None:
            # Where p = 0 the gradient is 0 throughout; harmless values keep infinities out of the products.
            present = ne(p, 0)
            outer = where(present, expand(to(outer_target, None, compute), ctx.shape), 0)
            y, p = (where(present, t, 1) for t in (y, p))
            slope = sub(y if ctx.log_target else log(p), where(present, to(x, None, compute), 0))
            weighted = mul(mul(p, g) if ctx.log_target else g, outer)
            to_x.append(neg(weighted))
            to_target.append(mul(weighted, add(slope, 2)) if ctx.log_target else div(weighted, p))
            to_dloss.append(mul(mul(p, outer) if ctx.log_target else outer, add(slope, 1)))
        return (
            _total(to_x, x) if need_x else None,
            _total(to_target, target) if need_target else None,
            _total([mul(term, ctx.scale) for term in to_dloss], dloss) if need_dloss else None,
            *(None,) * 4,
        )


def _total(terms: list[Tensor], operand: Tensor) -> Tensor | None:
    """The sum of terms as a gradient of the operand."""
    if not terms:
        return None
    total = terms[0] if len(terms) == 1 else add(*terms)
    return to(sum_to(total, operand.shape), None, operand.dtype)


def kl_div(x: Tensor, target: Tensor, *, log_target: bool, reduce: bool, scale: float) -> Tensor:
    """KL(target ‖ exp x), per element or summed, times `scale`."""
    return KLDiv.apply(x, target, log_target, reduce, scale)
