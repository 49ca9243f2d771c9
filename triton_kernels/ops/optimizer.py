"""Optimizer steps in place: one launch for all parameters of a dtype and device.

State (momentum buffers, moments) is float64 for float64 parameters, float32 for all others. Numbers of steps are 0-d
float32 tensors on the device, as a step may be skipped there: where `found_inf` is not 0, a launch changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..jit import multi_tensor as mt

Tensors = torch.Tensor | Sequence[torch.Tensor]


@triton.jit(do_not_specialize=["n"])
def _sgd_kernel(
    table_ptr,  # addresses of parameters, gradients, momentum buffers, steps
    found_inf_ptr,  # 0-d, or None
    n,
    lr: tl.float64,
    momentum: tl.float64,
    dampening: tl.float64,
    weight_decay: tl.float64,
    MOMENTUM: tl.constexpr,
    DAMPENING: tl.constexpr,  # the first step is not dampened, which needs its number
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    DTYPE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    if found_inf_ptr is not None:
        if tl.load(found_inf_ptr) != 0:
            return
    column, start, remaining = mt.locate(table_ptr, n, BLOCK, TILES, BLOCK_T)
    param_at = mt.address(table_ptr, n, column, 0)
    grad_at = mt.address(table_ptr, n, column, 1)
    buf_at = mt.address(table_ptr, n, column, 2) if MOMENTUM else grad_at
    lr = tl.full((), lr, ACC_DTYPE)
    momentum = tl.full((), momentum, ACC_DTYPE)
    one_minus_dampening = tl.full((), 1 - dampening, ACC_DTYPE)
    weight_decay = tl.full((), weight_decay, ACC_DTYPE)
    if DAMPENING:
        step_ptr = mt.pointer(mt.address(table_ptr, n, column, 3), 0, tl.float32, False)
        steps = tl.load(step_ptr)
        one_minus_dampening = tl.where(steps == 0, 1.0, one_minus_dampening)
        mt.advance_step(table_ptr, n, column, step_ptr, steps + 1, BLOCK * TILES)
    wide = ((param_at | grad_at | buf_at) % 16 == 0) & (remaining >= BLOCK * TILES)
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if wide != MASKED:
            param_ptr = mt.pointer(param_at, start, DTYPE, not MASKED)
            grad_ptr = mt.pointer(grad_at, start, DTYPE, not MASKED)
            for tile in range(mt.tiles_in_bounds(remaining, BLOCK, TILES) if MASKED else TILES):
                offs = tile * BLOCK + tl.arange(0, BLOCK)
                mask = offs < remaining if MASKED else None
                p = tl.load(param_ptr + offs, mask=mask).to(ACC_DTYPE)
                step = tl.load(grad_ptr + offs, mask=mask).to(ACC_DTYPE)
                if MAXIMIZE:
                    step = -step
                step += weight_decay * p
                if MOMENTUM:
                    buf_ptr = mt.pointer(buf_at, start, ACC_DTYPE, not MASKED)
                    buf = tl.load(buf_ptr + offs, mask=mask)
                    buf = momentum * buf + one_minus_dampening * step
                    tl.store(buf_ptr + offs, buf, mask=mask)
                    if NESTEROV:
                        step += momentum * buf
                    else:
                        step = buf
                tl.store(param_ptr + offs, (p - lr * step).to(DTYPE), mask=mask)


def sgd_step(
    params: Tensors,
    grads: Tensors,
    buffers: Tensors | None,
    steps: Sequence[torch.Tensor] | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    found_inf: torch.Tensor | None = None,
) -> None:
    """Update parameters in place by one step of stochastic gradient descent.

    g ← ±g + weight_decay·param;   buffer ← momentum·buffer + (1 − dampening)·g;
    param ← param − lr·(buffer; g + momentum·buffer if `nesterov`; g without a buffer)

    Parameters
    ----------
    params, grads, buffers
        Lists of tensors, or a tensor of each, any strides; grads of their parameters' dtypes. Buffers start at 0.
    steps
        A 0-d float32 tensor per parameter, which the launch increments: the first step, from 0, is not dampened. By
        default no step is the first.
    maximize
        Change the sign of g.
    found_inf
        0-d, float32; unless it is 0, nothing is changed.

    Examples
    --------
    >>> params = [torch.tensor([1.0]).to(DEVICE), torch.tensor([2.0, 3.0]).to(DEVICE)]
    >>> sgd_step(params, [torch.full_like(param, 0.5) for param in params], None, lr=1.0)
    >>> [param.tolist() for param in params]
    [[0.5], [1.5, 2.5]]
    """
    lists = [_as_list(params), _as_list(grads)]
    if buffers is not None:
        lists.append(_as_list(buffers))
    dampened = buffers is not None and steps is not None and dampening != 0
    for batch in mt.batches(*lists, written=range(0, len(lists), 2), scalars=[steps] if dampened and steps else []):
        batch.run(
            _sgd_kernel,
            found_inf_ptr=None if found_inf is None else found_inf.to(batch.table.device),
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            MOMENTUM=buffers is not None,
            DAMPENING=dampened,
            NESTEROV=nesterov,
            MAXIMIZE=maximize,
        )


@triton.jit(do_not_specialize=["n"])
def _adam_kernel(
    table_ptr,  # addresses of parameters, gradients, first and second moments, maxima of the second if AMSGRAD; steps
    found_inf_ptr,  # 0-d, or None
    n,
    lr: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    log2_beta1: tl.float64,
    log2_beta2: tl.float64,
    eps: tl.float64,
    weight_decay: tl.float64,
    AMSGRAD: tl.constexpr,
    DECOUPLED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    DTYPE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    if found_inf_ptr is not None:
        if tl.load(found_inf_ptr) != 0:
            return
    column, start, remaining = mt.locate(table_ptr, n, BLOCK, TILES, BLOCK_T)
    param_at = mt.address(table_ptr, n, column, 0)
    grad_at = mt.address(table_ptr, n, column, 1)
    avg_at = mt.address(table_ptr, n, column, 2)
    sq_at = mt.address(table_ptr, n, column, 3)
    max_at = mt.address(table_ptr, n, column, 4) if AMSGRAD else sq_at
    step_ptr = mt.pointer(mt.address(table_ptr, n, column, 5 if AMSGRAD else 4), 0, tl.float32, False)
    steps = tl.load(step_ptr) + 1
    mt.advance_step(table_ptr, n, column, step_ptr, steps, BLOCK * TILES)
    t = steps.to(tl.float64)
    step_size = (lr / (1 - tl.exp2(t * log2_beta1))).to(ACC_DTYPE)
    bias_correction2 = (1 - tl.exp2(t * log2_beta2)).to(ACC_DTYPE)
    decay = tl.full((), 1 - lr * weight_decay, ACC_DTYPE)
    one_minus_beta1 = tl.full((), 1 - beta1, ACC_DTYPE)
    one_minus_beta2 = tl.full((), 1 - beta2, ACC_DTYPE)
    beta1 = tl.full((), beta1, ACC_DTYPE)
    beta2 = tl.full((), beta2, ACC_DTYPE)
    eps = tl.full((), eps, ACC_DTYPE)
    weight_decay = tl.full((), weight_decay, ACC_DTYPE)
    wide = ((param_at | grad_at | avg_at | sq_at | max_at) % 16 == 0) & (remaining >= BLOCK * TILES)
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if wide != MASKED:
            param_ptr = mt.pointer(param_at, start, DTYPE, not MASKED)
            grad_ptr = mt.pointer(grad_at, start, DTYPE, not MASKED)
            avg_ptr = mt.pointer(avg_at, start, ACC_DTYPE, not MASKED)
            sq_ptr = mt.pointer(sq_at, start, ACC_DTYPE, not MASKED)
            for tile in range(mt.tiles_in_bounds(remaining, BLOCK, TILES) if MASKED else TILES):
                offs = tile * BLOCK + tl.arange(0, BLOCK)
                mask = offs < remaining if MASKED else None
                p = tl.load(param_ptr + offs, mask=mask).to(ACC_DTYPE)
                g = tl.load(grad_ptr + offs, mask=mask).to(ACC_DTYPE)
                m = tl.load(avg_ptr + offs, mask=mask)
                v = tl.load(sq_ptr + offs, mask=mask)
                if MAXIMIZE:
                    g = -g
                if DECOUPLED:
                    p *= decay
                else:
                    g += weight_decay * p
                m = beta1 * m + one_minus_beta1 * g
                v = beta2 * v + one_minus_beta2 * g * g
                tl.store(avg_ptr + offs, m, mask=mask)
                tl.store(sq_ptr + offs, v, mask=mask)
                if AMSGRAD:
                    max_ptr = mt.pointer(max_at, start, ACC_DTYPE, not MASKED)
                    v = tl.maximum(v, tl.load(max_ptr + offs, mask=mask), propagate_nan=tl.PropagateNan.ALL)
                    tl.store(max_ptr + offs, v, mask=mask)
                p -= step_size * m / (tl.sqrt(v / bias_correction2) + eps)
                tl.store(param_ptr + offs, p.to(DTYPE), mask=mask)


def adam_step(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors | None = None,
    *,
    step: int | Sequence[torch.Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    found_inf: torch.Tensor | None = None,
) -> None:
    """Update parameters and their moments in place by one step of Adam (Kingma & Ba 2015, algorithm 1).

    g ← ±g + weight_decay·param;   m ← β₁·m + (1 − β₁)·g;   v ← β₂·v + (1 − β₂)·g²;
    param ← param − lr·(m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps)

    Parameters
    ----------
    params, grads, exp_avgs, exp_avg_sqs
        Lists of tensors param, g, m and v, or a tensor of each, any strides; grads of their parameters' dtypes.
    max_exp_avg_sqs
        Maxima of v so far, which then replace v in the last line (AMSGrad, Reddi et al. 2018, algorithm 2).
    step
        A 0-d float32 tensor per parameter with the number of steps before, which the launch increments; or t, the
        number of this one.
    decoupled
        Decay with param ← (1 − lr·weight_decay)·param instead (AdamW, Loshchilov & Hutter 2019, algorithm 2).
    maximize
        Change the sign of g.
    found_inf
        0-d, float32; unless it is 0, nothing is changed.

    Examples
    --------
    >>> param, grad = torch.tensor([1.0]).to(DEVICE), torch.tensor([0.5]).to(DEVICE)
    >>> m, v, steps = torch.zeros(1).to(DEVICE), torch.zeros(1).to(DEVICE), torch.zeros(()).to(DEVICE)
    >>> adam_step([param], [grad], [m], [v], step=[steps], lr=0.25, betas=(0.9, 0.999), eps=1e-8)
    >>> round(param.item(), 4), steps.item()
    (0.75, 1.0)
    """
    lists = [_as_list(params), _as_list(grads), _as_list(exp_avgs), _as_list(exp_avg_sqs)]
    written = [0, 2, 3]
    if max_exp_avg_sqs is not None:
        lists.append(_as_list(max_exp_avg_sqs))
        written.append(4)
    if isinstance(step, int):
        step = [torch.full((), step - 1.0, dtype=torch.float32, device=param.device) for param in lists[0]]
    for batch in mt.batches(*lists, written=written, scalars=[step]):
        batch.run(
            _adam_kernel,
            found_inf_ptr=None if found_inf is None else found_inf.to(batch.table.device),
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            log2_beta1=_log2(betas[0]),
            log2_beta2=_log2(betas[1]),
            eps=eps,
            weight_decay=weight_decay,
            AMSGRAD=max_exp_avg_sqs is not None,
            DECOUPLED=decoupled,
            MAXIMIZE=maximize,
        )


def _as_list(tensors: Tensors) -> Sequence[torch.Tensor]:
    return [tensors] if isinstance(tensors, torch.Tensor) else tensors


def _log2(x: float) -> float:
    return math.log2(x) if x else -math.inf
