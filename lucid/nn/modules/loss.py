"""Losses."""

from __future__ import annotations

from lucid._arguments import check_bool, check_choice
from lucid._loss_args import DistillationOptions, check_cross_entropy
from lucid.nn import functional as F
from lucid.nn.module import Module
from lucid.tensor import Tensor
from lucid.typing import REDUCTIONS, LabelReduction, Reduction


class KLDivLoss(Module):
    """The Kullback-Leibler divergence of a target distribution from a predicted one, as a module.

    See `lucid.nn.functional.kl_div` for the formula, shapes, dtypes and errors.

    Parameters
    ----------
    reduction : {'mean', 'none', 'sum', 'batchmean'}
        'batchmean' is the divergence per row of x (N, V); the default 'mean' also divides by V.
    log_target : bool
        Whether targets are log-probabilities.

    Attributes
    ----------
    reduction, log_target
        Read at every call, and checked there as here.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn as nn
    >>> import lucid.nn.functional as F
    >>> x = F.log_softmax(lucid.tensor([[0.5, 1.0, 0.2]], dtype="float64"), dim=1)
    >>> target = F.softmax(lucid.tensor([[0.3, 0.9, 0.4]], dtype="float64"), dim=1)
    >>> loss = nn.KLDivLoss(reduction="batchmean")(x, target)
    >>> f"{loss.item():.10f}"
    '0.0117040804'

    Log-probabilities on both sides:

    >>> x = F.log_softmax(lucid.tensor([[1.0, 2.0, 0.5]], dtype="float64"), dim=1)
    >>> target = F.log_softmax(lucid.tensor([[0.8, 1.5, 0.9]], dtype="float64"), dim=1)
    >>> loss = nn.KLDivLoss(reduction="batchmean", log_target=True)(x, target)
    >>> f"{loss.item():.10f}"
    '0.0630953940'
    >>> nn.KLDivLoss()
    KLDivLoss(reduction='mean', log_target=False)
    """

    reduction: Reduction
    log_target: bool

    def __init__(self, reduction: Reduction = "mean", log_target: bool = False) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction
        self.log_target = check_bool("log_target", log_target)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The divergence of log-probabilities x from the target."""
        return F.kl_div(x, target, reduction=self.reduction, log_target=self.log_target)

    def extra_repr(self) -> str:
        """The two options, as the constructor takes them."""
        return f"reduction={self.reduction!r}, log_target={self.log_target}"


class DistillationLoss(DistillationOptions, Module):
    """A divergence between the distributions of a student and of a teacher, from their logits, as a module.

    See `lucid.nn.functional.distillation_loss` for formulas, parameters, shapes, dtypes and errors.

    Parameters
    ----------
    divergence, beta, temperature, temperature_squared, ignore_index, hard_label_weight, reduction, vocab_size, \
inplace_gradient
        As there.

    Attributes
    ----------
    divergence, beta, temperature, ...
        The parameters; read at every call, and checked there as here.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn as nn
    >>> loss = nn.DistillationLoss("js", temperature=2.0)
    >>> loss
    DistillationLoss(divergence='js', beta=0.5, temperature=2.0, reduction='mean')
    >>> f"{loss(lucid.tensor([[0.0, 1.0]]), lucid.tensor([[1.0, 0.0]])).item():.6f}"
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


class CrossEntropyLoss(Module):
    """The cross-entropy of labels or class probabilities with the distributions of logits, as a module.

    See `lucid.nn.functional.cross_entropy` for the formula, shapes, dtypes and errors.

    Parameters
    ----------
    weight : Tensor, optional
        A weight for each class; kept as a buffer.
    ignore_index, reduction, label_smoothing
        As there.

    Attributes
    ----------
    ignore_index, reduction, label_smoothing
        Read at every call, and checked there as here.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn as nn
    >>> loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    >>> f"{loss(lucid.tensor([[0.0, 2.0]]), lucid.tensor([1])).item():.6f}"
    '0.226928'
    >>> f"{loss(lucid.tensor([[0.0, 2.0]]), lucid.tensor([[0.5, 0.5]])).item():.6f}"
    '1.126928'
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: LabelReduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_cross_entropy(ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The loss of logits x with labels or class probabilities."""
        return F.cross_entropy(
            x,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """The options but for the classes' weights."""
        options = f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        return f"{options}, label_smoothing={self.label_smoothing}"
