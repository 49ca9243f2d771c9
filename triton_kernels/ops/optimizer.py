"""Optimizer steps in place, one launch per parameter.

State (momentum, moments) is kept in float32, float64 for float64 parameters, whatever the parameter's dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit.tiles import read, update
from ..runtime import launch, strides, tile_configs


@triton.jit(do_not_specialize=["n"])
def _sgd_kernel(
    param_ptr,
    grad_ptr,
    buffer_ptr,  # momentum, or None
    inner_sizes,
    param_strides,
    grad_strides,
    buffer_strides,
    n,
    lr: tl.float64,
    momentum: tl.float64,
    dampening: tl.float64,
    weight_decay: tl.float64,
    NESTEROV: tl.constexpr,
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    param, grad = (param_ptr, param_strides), (grad_ptr, grad_strides)
    buffer = (buffer_ptr, buffer_strides)
    rates = (
        tl.full((), lr, COMPUTE),
        tl.full((), momentum, COMPUTE),
        tl.full((), 1 - dampening, COMPUTE),
        tl.full((), weight_decay, COMPUTE),
    )
    if (pid + 1) * BLOCK <= n:
        _sgd(param, grad, buffer, inner_sizes, pid, None, rates, NESTEROV, COMPUTE, BLOCK)
    else:
        _sgd(param, grad, buffer, inner_sizes, pid, n, rates, NESTEROV, COMPUTE, BLOCK)


@triton.jit
def _sgd(
    param_operand,
    grad_operand,
    buffer_operand,
    inner_sizes,
    pid,
    n,  # None: every element of the program is there
    rates,
    NESTEROV: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lr, momentum, fresh, weight_decay = rates
    index = pid * BLOCK + tl.arange(0, BLOCK)
    param = read(param_operand, index, inner_sizes, n, COMPUTE)
    step = read(grad_operand, index, inner_sizes, n, COMPUTE)
    step += weight_decay * param
    if buffer_operand[0] is not None:
        kept = momentum * read(buffer_operand, index, inner_sizes, n, COMPUTE) + fresh * step
        update(buffer_operand, index, inner_sizes, kept, n)
        if NESTEROV:
            step += momentum * kept
        else:
            step = kept
    update(param_operand, index, inner_sizes, param - lr * step, n)


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
    """One step of stochastic gradient descent on `param`, in place.

    g ← g + weight_decay·param;   buffer ← momentum·buffer + (1 − dampening)·g;
    param ← param − lr·(buffer, or g + momentum·buffer for Nesterov's variant, or g without a buffer)

    Examples
    --------
    >>> param = torch.tensor([1.0]).to(DEVICE)
    >>> sgd_step(param, torch.tensor([0.5]).to(DEVICE), None, lr=1.0)
    >>> param.tolist()
    [0.5]
    """
    tensors = [param, grad] if buffer is None else [param, grad, buffer]
    walk = strides.coalesce(param.shape, *tensors)
    config = tile_configs.pointwise(max(t.dtype.itemsize for t in tensors), walk.numel, walk.dims)
    launch.run(
        _sgd_kernel,
        (tile_configs.cdiv(walk.numel, config["BLOCK"]),),
        config,
        param_ptr=param,
        grad_ptr=grad,
        buffer_ptr=buffer,
        inner_sizes=walk.inner_sizes,
        param_strides=walk.strides[0],
        grad_strides=walk.strides[1],
        buffer_strides=None if buffer is None else walk.strides[2],
        n=walk.numel,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        NESTEROV=nesterov,
        COMPUTE=launch.tl_dtype(launch.compute_dtype(param.dtype)),
        WIDE=walk.needs_int64(config["BLOCK"]),
    )


@triton.jit(do_not_specialize=["n"])
def _adam_kernel(
    param_ptr,
    grad_ptr,
    m_ptr,  # first moment
    v_ptr,  # second moment
    inner_sizes,
    param_strides,
    grad_strides,
    m_strides,
    v_strides,
    n,
    lr: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    eps: tl.float64,
    weight_decay: tl.float64,
    correction1: tl.float64,
    correction2: tl.float64,
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    param, grad = (param_ptr, param_strides), (grad_ptr, grad_strides)
    m, v = (m_ptr, m_strides), (v_ptr, v_strides)
    rates = (
        tl.full((), lr / correction1, COMPUTE),
        tl.full((), beta1, COMPUTE),
        tl.full((), 1 - beta1, COMPUTE),
        tl.full((), beta2, COMPUTE),
        tl.full((), 1 - beta2, COMPUTE),
        tl.full((), correction2, COMPUTE),
        tl.full((), eps, COMPUTE),
        tl.full((), weight_decay, COMPUTE),
    )
    if (pid + 1) * BLOCK <= n:
        _adam(param, grad, m, v, inner_sizes, pid, None, rates, COMPUTE, BLOCK)
    else:
        _adam(param, grad, m, v, inner_sizes, pid, n, rates, COMPUTE, BLOCK)


@triton.jit
def _adam(
    param_operand,
    grad_operand,
    m_operand,
    v_operand,
    inner_sizes,
    pid,
    n,  # None: every element of the program is there
    rates,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rate, beta1, rest1, beta2, rest2, correction2, eps, weight_decay = rates
    index = pid * BLOCK + tl.arange(0, BLOCK)
    param = read(param_operand, index, inner_sizes, n, COMPUTE)
    grad = read(grad_operand, index, inner_sizes, n, COMPUTE)
    m = read(m_operand, index, inner_sizes, n, COMPUTE)
    v = read(v_operand, index, inner_sizes, n, COMPUTE)
    grad += weight_decay * param
    m = beta1 * m + rest1 * grad
    v = beta2 * v + rest2 * grad * grad
    update(m_operand, index, inner_sizes, m, n)
    update(v_operand, index, inner_sizes, v, n)
    param -= rate * m / (tl.sqrt(v / correction2) + eps)
    update(param_operand, index, inner_sizes, param, n)


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
    """One step of Adam (Kingma & Ba 2015, algorithm 1) on `param` and its moments m and v, in place; `step` is from 1.

    Examples
    --------
    >>> param, grad = torch.tensor([1.0]).to(DEVICE), torch.tensor([0.5]).to(DEVICE)
    >>> m, v = torch.zeros(1).to(DEVICE), torch.zeros(1).to(DEVICE)
    >>> adam_step(param, grad, m, v, step=1, lr=0.25, betas=(0.9, 0.999), eps=1e-8)
    >>> round(param.item(), 4)
    0.75
    """
    tensors = (param, grad, m, v)
    walk = strides.coalesce(param.shape, *tensors)
    config = tile_configs.pointwise(max(t.dtype.itemsize for t in tensors), walk.numel, walk.dims)
    launch.run(
        _adam_kernel,
        (tile_configs.cdiv(walk.numel, config["BLOCK"]),),
        config,
        param_ptr=param,
        grad_ptr=grad,
        m_ptr=m,
        v_ptr=v,
        inner_sizes=walk.inner_sizes,
        param_strides=walk.strides[0],
        grad_strides=walk.strides[1],
        m_strides=walk.strides[2],
        v_strides=walk.strides[3],
        n=walk.numel,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        correction1=1 - betas[0] ** step,
        correction2=1 - betas[1] ** step,
        COMPUTE=launch.tl_dtype(launch.compute_dtype(param.dtype)),
        WIDE=walk.needs_int64(config["BLOCK"]),
    )
