"""Logits divided or multiplied by a number, such as a temperature: deferred, so that a kernel can apply the number."""

from __future__ import annotations

import numbers
import weakref
from typing import Any

import torch

import triton_kernels as tk
from lucid._lazy import Deferred, can_defer, realize
from lucid.autograd.grad_mode import is_grad_enabled
from lucid.tensor import Tensor

#: Range of numbers treated as temperatures or their inverses: far from the limits of float32.
_MIN_SCALE, _MAX_SCALE = 2.0**-20, 2.0**20


class Scaled(Deferred):
    """A quotient ('div') or product ('mul') of a buffer and a number."""

    def __init__(self, name: str, buffer: torch.Tensor, number: float) -> None:
        super().__init__(buffer, buffer)
        self.name, self.number = name, number

    @property
    def factor(self) -> float:
        """Factor on the buffer."""
        return 1 / self.number if self.name == "div" else self.number

    def compute(self) -> torch.Tensor:
        buffer = realize(*self.sources())
        return tk.pointwise(self.name, buffer, self.number, dtype=buffer.dtype)


class ScaledGradient(Deferred):
    """Deferred gradient with respect to a `Scaled` value; the gradient to its input can be computed without it.

    Attributes
    ----------
    scaled : Scaled
        The value that it is a gradient of.
    """

    scaled: Scaled

    def to_unscaled(self) -> torch.Tensor:
        """Return the gradient to the unscaled input, while this one is pending."""
        raise NotImplementedError


def scale(ctx: Any, name: str, x: Any, number: Any) -> Tensor | None:
    """Return x / number or x · number, deferred; None if it cannot be deferred."""
    if not isinstance(number, numbers.Real) or isinstance(number, bool):
        return None
    if not _MIN_SCALE <= float(number) <= _MAX_SCALE:
        return None
    if not (isinstance(x, Tensor) and x.ndim and x.dtype.is_floating_point and can_defer(x._buffer)):
        return None
    buffer = x._buffer
    tk.backend.check_device(buffer.device)
    scaled = Scaled(name, buffer, float(number))
    ctx.scaled = weakref.ref(scaled)
    return Tensor._wrap(scaled)


def unscale(ctx: Any, grad: Tensor) -> Tensor | None:
    """The gradient to what `scale` scaled, if the gradient to its result is one that offers it."""
    gradient = grad._memory
    if is_grad_enabled() or not (isinstance(gradient, ScaledGradient) and gradient.pending):
        return None
    made = getattr(ctx, "scaled", None)
    return Tensor._wrap(gradient.to_unscaled()) if made is not None and gradient.scaled is made() else None
