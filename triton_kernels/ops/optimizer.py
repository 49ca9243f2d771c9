"""In-place optimizer steps, one launch per parameter.

State (momentum buffers, moments) is float64 for float64 parameters, float32 for all others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit.tiles import load, store
from ..runtime import launch, strides, tile_configs


@triton.jit(do_not_specialize=["n"])
def _sgd_kernel(
    param,  # (n,), as all operands
    grad,
    momentum_buffer,  # or (None, None): Triton 3.6 cannot compare an operand (tensor, None) with None
    inner_sizes,
    n,
    lr: tl.float64,
    momentum: tl.float64,
    dampening: tl.float64,
    weight_decay: tl.float64,
    NESTEROV: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lr = tl.full((), lr, ACC_DTYPE)
    momentum = tl.full((), momentum, ACC_DTYPE)
    one_minus_dampening = tl.full((), 1 - dampening, ACC_DTYPE)
    weight_decay = tl.full((), weight_decay, ACC_DTYPE)
    first = tl.program_id(0).to(INDEX_DTYPE) * BLOCK
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if (first + BLOCK > n) == MASKED:
            offs = first + tl.arange(0, BLOCK)
            mask = offs < n if MASKED else None
            p = load(param, offs, mask, inner_sizes, None, ACC_DTYPE)
            step = load(grad, offs, mask, inner_sizes, None, ACC_DTYPE)
            step += weight_decay * p
            if momentum_buffer[0] is not None:
                buf = load(momentum_buffer, offs, mask, inner_sizes, None, ACC_DTYPE)
                buf = momentum * buf + one_minus_dampening * step
                store(momentum_buffer, offs, mask, inner_sizes, buf)
                if NESTEROV:
                    step += momentum * buf
                else:
                    step = buf
            store(param, offs, mask, inner_sizes, p - lr * step)


def sgd_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    buffer: torch.Tensor | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """Update `param` in place by one step of stochastic gradient descent.

    g ← g + weight_decay·param;   buffer ← momentum·buffer + (1 − dampening)·g;
    param ← param − lr·(buffer; g + momentum·buffer if `nesterov`; g without a buffer)

    Examples
    --------
    >>> param = torch.tensor([1.0]).to(DEVICE)
    >>> sgd_step(param, torch.tensor([0.5]).to(DEVICE), None, lr=1.0)
    >>> param.tolist()
    [0.5]
    """
    tensors = [param, grad] if buffer is None else [param, grad, buffer]
    coalesced = strides.coalesce(param.shape, *tensors)
    operands = list(zip(tensors, coalesced.strides, strict=True))
    config = tile_configs.pointwise(max(t.dtype.itemsize for t in tensors), coalesced.numel, coalesced.dims)
    launch.run(
        _sgd_kernel,
        (tile_configs.cdiv(coalesced.numel, config["BLOCK"]),),
        config,
        param=operands[0],
        grad=operands[1],
        momentum_buffer=(None, None) if buffer is None else operands[2],
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        NESTEROV=nesterov,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(param.dtype)),
        **launch.element_args(coalesced, config["BLOCK"]),
    )


@triton.jit(do_not_specialize=["n"])
def _adam_kernel(
    param,  # (n,), as all operands
    grad,
    exp_avg,
    exp_avg_sq,
    inner_sizes,
    n,
    lr: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    eps: tl.float64,
    weight_decay: tl.float64,
    bias_correction1: tl.float64,
    bias_correction2: tl.float64,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    step_size = tl.full((), lr / bias_correction1, ACC_DTYPE)
    one_minus_beta1 = tl.full((), 1 - beta1, ACC_DTYPE)
    one_minus_beta2 = tl.full((), 1 - beta2, ACC_DTYPE)
    beta1 = tl.full((), beta1, ACC_DTYPE)
    beta2 = tl.full((), beta2, ACC_DTYPE)
    bias_correction2 = tl.full((), bias_correction2, ACC_DTYPE)
    eps = tl.full((), eps, ACC_DTYPE)
    weight_decay = tl.full((), weight_decay, ACC_DTYPE)
    first = tl.program_id(0).to(INDEX_DTYPE) * BLOCK
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if (first + BLOCK > n) == MASKED:
            offs = first + tl.arange(0, BLOCK)
            mask = offs < n if MASKED else None
            p = load(param, offs, mask, inner_sizes, None, ACC_DTYPE)
            g = load(grad, offs, mask, inner_sizes, None, ACC_DTYPE)
            m = load(exp_avg, offs, mask, inner_sizes, None, ACC_DTYPE)
            v = load(exp_avg_sq, offs, mask, inner_sizes, None, ACC_DTYPE)
            g += weight_decay * p
            m = beta1 * m + one_minus_beta1 * g
            v = beta2 * v + one_minus_beta2 * g * g
            store(exp_avg, offs, mask, inner_sizes, m)
            store(exp_avg_sq, offs, mask, inner_sizes, v)
            p -= step_size * m / (tl.sqrt(v / bias_correction2) + eps)
            store(param, offs, mask, inner_sizes, p)


def adam_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """Update `param` and its moments m and v in place by one step of Adam (Kingma & Ba 2015, algorithm 1).

    `step` counts from 1.

    Examples
    --------
    >>> param, grad = torch.tensor([1.0]).to(DEVICE), torch.tensor([0.5]).to(DEVICE)
    >>> m, v = torch.zeros(1).to(DEVICE), torch.zeros(1).to(DEVICE)
    >>> adam_step(param, grad, m, v, step=1, lr=0.25, betas=(0.9, 0.999), eps=1e-8)
    >>> round(param.item(), 4)
    0.75
    """
    tensors = (param, grad, m, v)
    coalesced = strides.coalesce(param.shape, *tensors)
    operands = list(zip(tensors, coalesced.strides, strict=True))
    config = tile_configs.pointwise(max(t.dtype.itemsize for t in tensors), coalesced.numel, coalesced.dims)
    launch.run(
        _adam_kernel,
        (tile_configs.cdiv(coalesced.numel, config["BLOCK"]),),
        config,
        param=operands[0],
        grad=operands[1],
        exp_avg=operands[2],
        exp_avg_sq=operands[3],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        bias_correction1=1 - betas[0] ** step,
        bias_correction2=1 - betas[1] ** step,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(param.dtype)),
        **launch.element_args(coalesced, config["BLOCK"]),
    )
