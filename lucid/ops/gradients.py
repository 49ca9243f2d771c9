"""Gradients of many parameters at once, in place: norms, clipping, unscaling. Nothing is recorded for autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import triton_kernels as tk
from lucid.tensor import Tensor


def total_norm(grads: Sequence[Tensor], order: float) -> Tensor:
    """Return the norm of all elements of at least one gradient, 0-d; float32, or float64 if one is."""
    return Tensor._wrap(tk.total_norm([grad._buffer for grad in grads], order))


def clip_by_norm(grads: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
    """Multiply gradients by max_norm / (norm + 1e-6), unless that is above 1."""
    _change(tk.clip_by_norm, grads, norm._buffer, max_norm)


def clip_by_value(grads: Sequence[Tensor], bound: float) -> None:
    """Clamp gradients to the interval from −bound to bound."""
    _change(tk.clip_by_value, grads, bound)


def unscale(grads: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Divide gradients, on one device, by `scale`; return 1 if a quotient is infinite or NaN, else 0, 0-d."""
    device = grads[0]._buffer.device
    found_inf = torch.zeros((), dtype=torch.float32, device=device)
    _change(tk.unscale, grads, scale._buffer.to(device), found_inf)
    return Tensor._wrap(found_inf)


def accumulate(grad: Tensor, more: Tensor) -> None:
    """Add a gradient of the same shape and dtype to one that is there."""
    buffer, other = grad._buffer_for_write(), more._buffer
    if buffer.is_contiguous() and other.is_contiguous():
        tk.pointwise("add", buffer, other, dtype=buffer.dtype, out=buffer)
        torch.autograd.graph.increment_version(buffer)  # kernels do not
    else:
        buffer.copy_(tk.pointwise("add", buffer, other, dtype=buffer.dtype))


def update_scale(scale: Tensor, growth_tracker: Tensor, found_inf: Sequence[Tensor], **options: Any) -> None:
    """Multiply the scale by the `backoff_factor` or `growth_factor` of a `GradScaler`, in place."""
    device = scale._buffer.device
    flags = torch.cat([flag._buffer.reshape(1).to(device) for flag in found_inf])
    tk.update_scale(scale._buffer, growth_tracker._buffer, flags, **options)


def _change(launcher: Callable[..., None], grads: Sequence[Tensor], *args: Any) -> None:
    buffers = [grad._buffer_for_write() for grad in grads]
    launcher(buffers, *args)
    for buffer in buffers:
        torch.autograd.graph.increment_version(buffer)  # kernels do not
