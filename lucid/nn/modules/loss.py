"""Losses."""

from __future__ import annotations

from lucid.nn import functional as F
from lucid.nn.module import Module
from lucid.tensor import Tensor


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
        Read, and checked, at every call.

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

    reduction: str
    log_target: bool

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__()
        self.reduction = reduction
        self.log_target = log_target

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The divergence of log-probabilities x from the target."""
        return F.kl_div(x, target, reduction=self.reduction, log_target=self.log_target)

    def extra_repr(self) -> str:
        """The two options, as the constructor takes them."""
        return f"reduction={self.reduction!r}, log_target={self.log_target}"


class DistillationLoss(Module):
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
        The parameters; read, and checked, at every call.

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

    def __init__(
        self,
        divergence: str = "forward_kl",
        *,
        beta: float = 0.5,
        temperature: float = 1.0,
        temperature_squared: bool = False,
        ignore_index: int = -100,
        hard_label_weight: float = 0.0,
        reduction: str = "mean",
        vocab_size: int | None = None,
        inplace_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.divergence = divergence
        self.beta = beta
        self.temperature = temperature
        self.temperature_squared = temperature_squared
        self.ignore_index = ignore_index
        self.hard_label_weight = hard_label_weight
        self.reduction = reduction
        self.vocab_size = vocab_size
        self.inplace_gradient = inplace_gradient

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
            student_logits,
            teacher_logits,
            divergence=self.divergence,
            beta=self.beta,
            temperature=self.temperature,
            temperature_squared=self.temperature_squared,
            weight=weight,
            labels=labels,
            ignore_index=self.ignore_index,
            hard_label_weight=self.hard_label_weight,
            reduction=self.reduction,
            normalizer=normalizer,
            vocab_size=self.vocab_size,
            inplace_gradient=self.inplace_gradient,
        )

    def extra_repr(self) -> str:
        """The options that shape the result, and those of the others that are not as by default."""
        shown: dict[str, object] = {"divergence": self.divergence}
        if self.divergence == "js":
            shown["beta"] = self.beta
        shown |= {"temperature": self.temperature, "reduction": self.reduction}
        others = ("temperature_squared", "hard_label_weight", "vocab_size", "inplace_gradient")
        shown |= {name: getattr(self, name) for name in others if getattr(self, name)}
        if self.ignore_index != -100:
            shown["ignore_index"] = self.ignore_index
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class CrossEntropyLoss(Module):
    """The cross-entropy of labels with the distributions of logits, as a module.

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
        Read, and checked, at every call.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn as nn
    >>> loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    >>> f"{loss(lucid.tensor([[0.0, 2.0]]), lucid.tensor([1])).item():.6f}"
    '0.226928'
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The loss of logits x with labels."""
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
