"""The KL divergence of softmaxes that nobody has looked at, straight from their logits.

Backward, the loss hands on deferred gradients to the log-probabilities and probabilities. Where one arrives at its
softmax as it was sent, the gradient to the logits is calculated from the logits. Where somebody has looked at it, or
something was added to it, it is a gradient as any other.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

import triton_kernels as tk
from lucid._lazy import Deferred, filled, is_fusion_enabled, is_shared
from lucid.ops.scaled import Scaled, ScaledGradient
from lucid.ops.softmax import SoftmaxGradient, SoftmaxOf


class Fusible(NamedTuple):
    """The softmaxes that a loss can do without, of the student and of the teacher.

    Attributes
    ----------
    logits, factor
        What kernels are to read, and to multiply by: the least that will do.
    scaled
        What the softmaxes were taken of, where it is the logits' multiple, deferred.
    """

    softmaxes: tuple[SoftmaxOf, SoftmaxOf]
    logits: list[torch.Tensor]
    factor: float
    scaled: list[Scaled | None]


def fusible(log_q: Any, target: Any, log_target: bool, *read: torch.Tensor) -> Fusible | None:
    """The softmaxes that the memories of x and the target stand for, if the loss can do without their values.

    `read` are buffers that are not read before the values are.
    """
    for memory, log in ((log_q, True), (target, log_target)):
        if not (isinstance(memory, SoftmaxOf) and memory.log == log):
            return None
    if log_q.like.shape != target.like.shape or any(map(is_shared, read)) or not is_fusion_enabled():
        return None
    sources = [log_q.sources(), target.sources()]
    if not all(sources):
        return None
    same = log_q.factor == target.factor
    logits = [filled(of_side[0 if same else -1]) for of_side in sources]
    scaled = [of_side[-1] if isinstance(of_side[-1], Scaled) else None for of_side in sources]
    return Fusible((log_q, target), logits, log_q.factor if same else 1.0, scaled)


def fused_forward(of: Fusible, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """scale · Σ KL over all rows, of the promoted dtype; and what backward wants to know of the rows."""
    student, teacher = of.logits
    losses, statistics = tk.divergence_forward(student, teacher, inv_temperature=of.factor)
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    return tk.sum(losses, range(losses.dim()), scale=scale, dtype=dtype), statistics


class FusedBackward:
    """One time backward through a fused loss, to x (side 0), to the target (side 1), or to both."""

    def __init__(self, of: Fusible, statistics: torch.Tensor, dloss: torch.Tensor, scale: float) -> None:
        self.softmaxes, self.logits, self.factor, self.scaled = of
        self.statistics, self.dloss, self.scale = statistics, dloss, scale
        self.asked: list[weakref.ref[Deferred] | None] = [None, None]
        self.made: list[torch.Tensor | None] = [None, None]

    def gradient(self, side: int) -> _ToSoftmax:
        """The gradient to x or to the target, deferred."""
        return _ToSoftmax(self, side)

    def to_logits(self, side: int) -> torch.Tensor:
        """The gradient to the logits of one side; the same pass makes that of the other, if it may be asked for."""
        if self.made[side] is None:
            waiting = [ref() if ref is not None else None for ref in self.asked]
            self.made = list(
                self._pass(self.scale, [gradient is not None and gradient.pending for gradient in waiting])
            )
        result, self.made[side] = self.made[side], None
        assert result is not None
        return result

    def to_scaled(self, side: int) -> torch.Tensor:
        """The gradient to the multiple of the logits whose softmax was taken."""
        result = self._pass(self.scale / self.factor, [side == 0, side == 1])[side]
        assert result is not None
        return result

    def _pass(self, scale: float, wanted: list[bool]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        student, teacher = self.logits
        return tk.divergence_backward(
            student,
            teacher,
            self.statistics,
            self.dloss,
            inv_temperature=self.factor,
            scale=scale,
            dstudent_dtype=student.dtype if wanted[0] else None,
            dteacher_dtype=teacher.dtype if wanted[1] else None,
        )

    def to_softmax(self, side: int) -> torch.Tensor:
        """The gradient to x or to the target, from their values."""
        x, target = self.softmaxes
        result = tk.kl_div_backward(
            x.buffer() if side else None,
            target.buffer(),
            self.dloss,
            shape=target.like.shape,
            log_target=target.log,
            scale=self.scale,
            dx_dtype=None if side else x.like.dtype,
            dtarget_dtype=target.like.dtype if side else None,
        )[side]
        assert result is not None
        return result


class _ToSoftmax(SoftmaxGradient):
    def __init__(self, run: FusedBackward, side: int) -> None:
        super().__init__(run.logits[side], *run.logits, run.dloss)
        self.run, self.side, self.softmax = run, side, run.softmaxes[side]
        run.asked[side] = weakref.ref(self)

    def calculate(self) -> torch.Tensor:
        result = self.run.to_softmax(self.side)
        del self.run, self.softmax  # and with them logits and softmaxes
        return result

    def to_input(self) -> torch.Tensor | Deferred:
        self.sources()  # unchanged
        scaled = self.run.scaled[self.side]
        if scaled is None or self.run.factor == 1:
            return self.run.to_logits(self.side)
        return _ToScaled(self.run, self.side, scaled)


class _ToScaled(ScaledGradient):
    def __init__(self, run: FusedBackward, side: int, scaled: Scaled) -> None:
        super().__init__(run.logits[side], *run.logits, run.dloss)
        self.run, self.side, self.scaled = run, side, scaled
        run.asked[side] = weakref.ref(self)

    def calculate(self) -> torch.Tensor:
        result = self.run.to_scaled(self.side)
        del self.run, self.scaled
        return result

    def to_unscaled(self) -> torch.Tensor:
        self.sources()  # unchanged
        return self.run.to_logits(self.side)
