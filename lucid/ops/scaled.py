"""Logits divided, or multiplied, by a number, as a temperature does: deferred, and left to whoever reads the logits."""

from __future__ import annotations

import numbers
import weakref
from typing import Any

import torch

import triton_kernels as tk
from lucid._lazy import Deferred, filled, is_source
from lucid.autograd.grad_mode import is_grad_enabled
from lucid.tensor import Tensor

#: Numbers that are taken for temperatures or their inverses: far from where float32 ends.
_LEAST, _MOST = 2.0**-20, 2.0**20


class Scaled(Deferred):
    """A quotient ('div') or product ('mul') of a buffer and a number."""

    def __init__(self, name: str, buffer: torch.Tensor, number: float) -> None:
        super().__init__(buffer, buffer)
        self.name, self.number = name, number

    @property
    def factor(self) -> float:
        """What the buffer is multiplied by."""
        return 1 / self.number if self.name == "div" else self.number

    def calculate(self) -> torch.Tensor:
        buffer = filled(*self.sources())
        return tk.pointwise(self.name, buffer, self.number, dtype=buffer.dtype)


class ScaledGradient(Deferred):
    """A gradient to what is scaled, where that to what it was scaled from can be had without it.

    Attributes
    ----------
    scaled : Scaled
        What it is a gradient to.
    """

    scaled: Scaled

    def to_unscaled(self) -> torch.Tensor:
        """The gradient to what was scaled; while this one is pending."""
        raise NotImplementedError


def scale(ctx: Any, name: str, x: Any, number: Any) -> Tensor | None:
    """x / number or x · number, deferred; None where it is not to be."""
    if not isinstance(number, numbers.Real) or isinstance(number, bool) or not _LEAST <= float(number) <= _MOST:
        return None
    if not (isinstance(x, Tensor) and x.ndim and x.dtype.is_floating_point and is_source(x._buffer)):
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
