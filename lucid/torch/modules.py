"""Losses of torch tensors as modules of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from lucid._arguments import check_bool, check_choice
from lucid._loss_args import DistillationOptions, check_cross_entropy
from lucid.torch import functional as F
from lucid.typing import REDUCTIONS, LabelReduction, Reduction


class KLDivLoss(torch.nn.KLDivLoss):
    """The Kullback-Leibler divergence, in place of `torch.nn.KLDivLoss`, whose arguments and attributes it has.

    See `lucid.torch.kl_div` for formula, shapes, dtypes and errors.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> criterion = lucid.torch.KLDivLoss(reduction="batchmean", log_target=True)
    >>> isinstance(criterion, torch.nn.KLDivLoss)
    True
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> x = torch.tensor([[1.0, 2.0, 0.5]], device=device).log_softmax(-1)
    >>> target = torch.tensor([[0.8, 1.5, 0.9]], device=device).log_softmax(-1)
    >>> f"{criterion(x, target).item():.6f}"
    '0.063095'
    """

    reduction: Reduction

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        log_target: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction, check_bool("log_target", log_target))
        check_choice("reduction", self.reduction, REDUCTIONS)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The divergence of log-probabilities from the target."""
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """The cross-entropy of labels or class probabilities, in place of `torch.nn.CrossEntropyLoss`.

    It has that one's arguments and attributes.

    See `lucid.torch.cross_entropy` for shapes, dtypes and errors.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> loss = lucid.torch.CrossEntropyLoss(label_smoothing=0.1)
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> logits, labels = torch.tensor([[0.0, 2.0]], device=device), torch.tensor([1], device=device)
    >>> f"{loss(logits, labels).item():.6f}"
    '0.226928'
    >>> f"{loss(logits, torch.tensor([[0.5, 0.5]], device=device)).item():.6f}"
    '1.126928'
    """

    reduction: LabelReduction

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: LabelReduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        check_cross_entropy(ignore_index=ignore_index, reduction=self.reduction, label_smoothing=label_smoothing)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits with labels or class probabilities."""
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class DistillationLoss(DistillationOptions, torch.nn.Module):
    """A divergence between the distributions of a student and of a teacher, from their logits, as a module of torch.

    See `lucid.torch.distillation_loss` for formulas, parameters, shapes, dtypes and errors.

    Parameters
    ----------
    divergence, beta, temperature, temperature_squared, ignore_index, hard_label_weight, reduction, vocab_size, \
inplace_gradient
        As there; read at every call, and checked there as here.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> loss = lucid.torch.DistillationLoss("js", temperature=2.0)
    >>> loss
    DistillationLoss(divergence='js', beta=0.5, temperature=2.0, reduction='mean')
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> student, teacher = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]], device=device)
    >>> f"{loss(student, teacher).item():.6f}"
    '0.030300'
    """

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        *,
        weight: Tensor | None = None,
        labels: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of logits (..., V)."""
        return F.distillation_loss(
            student_logits, teacher_logits, weight=weight, labels=labels, normalizer=normalizer, **self.options
        )
