"""The KL divergence of unrealized softmaxes, computed from their logits.

The backward pass returns deferred gradients to the log-probabilities and probabilities. A softmax that receives such a
gradient unrealized returns the gradient to its logits: the one computed with the loss, scaled, or else one computed
from the logits now. A deferred gradient that was read or added to is realized first, and is then like any other.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

import triton_kernels as tk
from lucid._lazy import Deferred, is_fusion_enabled, is_shared, realize
from lucid.ops.autocast import loss_dtype
from lucid.ops.in_forward import in_forward
from lucid.ops.scaled import Scaled, ScaledGradient
from lucid.ops.softmax import SoftmaxGradient, SoftmaxOf
from triton_kernels.runtime.strides import empty_as


class FusionMatch(NamedTuple):
    """Unrealized softmaxes of student and teacher that a loss can be computed without.

    Attributes
    ----------
    logits, factor
        Buffers that kernels read, and the factor that they apply.
    scaled
        The deferred inputs of the softmaxes, multiples of the logits; None where the logits are the input.
    """

    softmaxes: tuple[SoftmaxOf, SoftmaxOf]
    logits: list[torch.Tensor]
    factor: float
    scaled: list[Scaled | None]


def match_fusion(log_q: Any, target: Any, log_target: bool, *read: torch.Tensor) -> FusionMatch | None:
    """Return the softmaxes behind x and the target, if the loss can be computed without their values.

    `read` are other buffers that the deferred computation would read.
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
    logits = [realize(side_sources[0 if same else -1]) for side_sources in sources]
    scaled = [side_sources[-1] if isinstance(side_sources[-1], Scaled) else None for side_sources in sources]
    return FusionMatch((log_q, target), logits, log_q.factor if same else 1.0, scaled)


def fused_forward(
    of: FusionMatch, scale: float, needs_grad: tuple[bool, bool]
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
    """Return scale · Σ KL over all rows, in the loss's dtype; statistics of rows, for backward; gradients to logits.

    The gradients, for an upstream gradient of 1, are None where they are not needed, or are computed in backward.
    """
    wanted = [logits if needed else None for logits, needed in zip(of.logits, needs_grad, strict=True)]
    one_launch = in_forward(*wanted)
    gradients = [None if logits is None or not one_launch else empty_as(logits) for logits in wanted]
    losses, statistics = tk.divergence_forward(
        *of.logits, inv_temperature=of.factor, gradient_scale=scale, dstudent=gradients[0], dteacher=gradients[1]
    )
    return tk.sum(losses, range(losses.dim()), scale=scale, dtype=loss_dtype(*of.logits)), statistics, gradients


class FusedBackward:
    """One backward pass of a fused loss: to x (side 0), to the target (side 1), or to both.

    `gradients` are those to the logits that were computed with the loss, for an upstream gradient of 1. All passes
    through the same graph share the list: a pass that does not keep the graph takes them out, and overwrites them.
    """

    def __init__(
        self,
        of: FusionMatch,
        statistics: torch.Tensor,
        gradients: list[torch.Tensor | None],
        dloss: torch.Tensor,
        scale: float,
        keeps_graph: bool,
    ) -> None:
        self.softmaxes, self.logits, self.factor, self.scaled = of
        self.gradients, self.keeps_graph = gradients, keeps_graph
        self.statistics, self.dloss, self.scale = statistics, dloss, scale
        self.pending: list[weakref.ref[Deferred] | None] = [None, None]
        self.results: list[torch.Tensor | None] = [None, None]

    def gradient(self, side: int) -> _ToSoftmax:
        """Return the deferred gradient to x or to the target."""
        return _ToSoftmax(self, side)

    def to_logits(self, side: int) -> torch.Tensor:
        """The gradient to the logits of one side; the same pass makes that of the other, if it may be pending for."""
        gradient = self._take(side)
        if gradient is not None:
            return tk.scale_gradient(gradient, self.dloss, in_place=not self.keeps_graph)
        if self.results[side] is None:
            wanted = [number == side or self._waits(number) for number in range(2)]
            self.results = list(self._pass(self.scale, wanted))
        result, self.results[side] = self.results[side], None
        assert result is not None
        return result

    def _take(self, side: int) -> torch.Tensor | None:
        """Return the gradient to the logits that was computed with the loss, if any; it is overwritten or not needed.

        Unless the graph is kept, none is left then.
        """
        gradient = self.gradients[side]
        if not self.keeps_graph:
            self.gradients[side] = None
        return gradient

    def _waits(self, side: int) -> bool:
        """Return whether a deferred gradient may ask for the one to the logits of its side."""
        ref = self.pending[side]
        gradient = None if ref is None else ref()
        return gradient is not None and gradient.pending and self.gradients[side] is None

    def to_scaled(self, side: int) -> torch.Tensor:
        """Return the gradient to the scaled logits, the input of the softmax."""
        self._take(side)
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
        """Return the gradient to x or to the target, from their values."""
        self._take(side)
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
        run.pending[side] = weakref.ref(self)

    def compute(self) -> torch.Tensor:
        result = self.run.to_softmax(self.side)
        del self.run, self.softmax  # releases logits and softmaxes
        return result

    def to_input(self) -> torch.Tensor | Deferred:
        self.sources()  # raises if one was modified
        scaled = self.run.scaled[self.side]
        if scaled is None or self.run.factor == 1:
            return self.run.to_logits(self.side)
        return _ToScaled(self.run, self.side, scaled)


class _ToScaled(ScaledGradient):
    def __init__(self, run: FusedBackward, side: int, scaled: Scaled) -> None:
        super().__init__(run.logits[side], *run.logits, run.dloss)
        self.run, self.side, self.scaled = run, side, scaled
        run.pending[side] = weakref.ref(self)

    def compute(self) -> torch.Tensor:
        result = self.run.to_scaled(self.side)
        del self.run, self.scaled
        return result

    def to_unscaled(self) -> torch.Tensor:
        self.sources()  # raises if one was modified
        return self.run.to_logits(self.side)
