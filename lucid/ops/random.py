"""Dropout, and buffers filled with random numbers: by the seed and the next counters of the generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import triton_kernels as tk
from lucid import _generator
from lucid.autograd.function import Function
from lucid.tensor import Tensor


def uniform_(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Fill a floating tensor uniformly from [low, high), in place."""
    return _fill(x, lambda out, seed, offset: tk.random.fill_uniform(out, seed, offset, low, high))


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0, least: float = -math.inf, most: float = math.inf) -> Tensor:
    """Fill a floating tensor from the normal distribution, truncated to [least, most], in place."""
    return _fill(x, lambda out, seed, offset: tk.random.fill_normal(out, seed, offset, mean, std, least, most))


def normal_probability(mean: float, std: float, least: float, most: float) -> float:
    """Return the probability of a normal number between two bounds."""
    return tk.random.normal_probability(mean, std, least, most)


def randint_(x: Tensor, low: int, high: int) -> Tensor:
    """Fill an integer tensor with integers from low to high − 1, in place."""
    return _fill(x, lambda out, seed, offset: tk.random.fill_randint(out, seed, offset, low, high))


def bernoulli_(x: Tensor, p: float) -> Tensor:
    """Fill a floating tensor with 1 at a probability of p and 0 elsewhere, in place."""

    def fill(out: torch.Tensor, seed: int, offset: int) -> None:
        out.copy_(tk.random.dropout(torch.ones_like(out), 1 - p, 1.0, seed, offset))

    return _fill(x, fill)


def _fill(x: Tensor, fill: Callable[[torch.Tensor, int, int], None]) -> Tensor:
    buffer = x._buffer_for_write()
    if any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True)):
        raise RuntimeError(
            f"tensor must have a place in memory for each element, got an expanded one of shape {x.shape} and strides "
            f"{buffer.stride()}: pass tensor.clone()"
        )
    state = _generator.take(tk.random.counters(buffer.numel()))
    if buffer.device.type == kernel_device().type:
        fill(buffer, *state)
        # Kernels do not bump torch's version counter; autograd relies on it for saved tensors.
        torch.autograd.graph.increment_version(buffer)
    else:
        filled = torch.empty(buffer.shape, dtype=buffer.dtype, device=kernel_device())
        fill(filled, *state)
        buffer.copy_(filled)
    return x


def kernel_device() -> torch.device:
    """Return where random numbers are made."""
    return tk.backend.default_device()


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int, offset: int) -> Tensor:
        ctx.args = p, seed, offset
        scale = 1 / (1 - p) if p < 1 else 0.0
        return Tensor._wrap(tk.random.dropout(x._buffer, p, scale, seed, offset))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Dropout.apply(grad, *ctx.args), None, None, None


def dropout(x: Tensor, p: float) -> Tensor:
    """Return x / (1 − p), with 0 at a probability of p; backward computes the same mask again from the counters."""
    return _Dropout.apply(x, p, *_generator.take(tk.random.counters(x.numel())))
