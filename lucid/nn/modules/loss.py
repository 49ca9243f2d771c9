"""Losses."""

from __future__ import annotations

from lucid._arguments import check_bool, check_choice
from lucid._docs import documented
from lucid._linear_args import LinearDistillationOptions
from lucid._loss_args import DistillationOptions, check_cross_entropy
from lucid.nn import functional as F
from lucid.nn.module import Module
from lucid.tensor import Tensor
from lucid.typing import LABEL_REDUCTIONS, REDUCTIONS, LabelReduction, Reduction


@documented
class KLDivLoss(Module):
    r"""Kullback-Leibler divergence of a target distribution from a predicted one, as a module.

    Per element, with p the target's probability, y = target and x the predicted log-probability:

    {kl_div_formula}

    Parameters
    ----------
    {kl_div_reduction}
    {log_target}

    Attributes
    ----------
    reduction, log_target
        The options, which are read, and checked, at every call.

    Raises
    ------
    ValueError
        If `reduction` is another word.
    TypeError
        If log_target is no bool.

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

    @documented
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of predicted log-probabilities from a target.

        Parameters
        ----------
        x : Tensor
            {log_probabilities}
        {kl_div_target}

        Returns
        -------
        {kl_div_returns}
            Inside ``lucid.amp.autocast`` it is at least float32.

        Raises
        ------
        TypeError
            If x or target is no lucid Tensor of a floating dtype.
        RuntimeError
            If they are on different devices, or do not broadcast.
        """
        return F.kl_div(x, target, reduction=self.reduction, log_target=self.log_target)

    def extra_repr(self) -> str:
        """The two options, as the constructor takes them."""
        return f"reduction={self.reduction!r}, log_target={self.log_target}"


@documented
class DistillationLoss(DistillationOptions, Module):
    r"""Divergence between the distributions of a student and of a teacher, from their logits, as a module.

    {divergences_of_logits}

    {computed_with_the_loss}

    Each option is an attribute of its name, which is read, and checked, at every call.

    Parameters
    ----------
    {divergence}
    {beta}
    {temperature}
    {temperature_squared}
    {ignore_index}
    {hard_label_weight}
    {reduction}
    {vocab_size}
    {inplace_gradient}
        To use the values after that is an error.

    Attributes
    ----------
    ignored_label : int
        `ignore_index`, or −100 where it is None.

    Raises
    ------
    TypeError, ValueError
        If an option is not what is described above.

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

    @documented
    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        *,
        weight: Tensor | None = None,
        labels: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of logits (..., V).

        Parameters
        ----------
        {distillation_logits}
        {weight}
        {labels}
        {normalizer}

        Returns
        -------
        {distillation_returns}

        Raises
        ------
        TypeError, ValueError, RuntimeError
            If an argument is not what is described above; if second derivatives are asked for.
        IndexError
            If a label is neither a column nor `ignore_index`: at once on the CPU, on a GPU when
            values are next read back, until when the loss is NaN.
        """
        return F.distillation_loss(
            student_logits, teacher_logits, weight=weight, labels=labels, normalizer=normalizer, **self.options
        )


@documented
class LinearDistillationLoss(LinearDistillationOptions, Module):
    r"""Divergence between the distributions of a student and of a teacher, from hidden states, as a module.

    {from_hidden}

    {divergences_of_logits}

    Each option is an attribute of its name, which is read, and checked, at every call.

    Parameters
    ----------
    {divergence}
    {beta}
    {temperature}
    {temperature_squared}
    {ignore_index}
    {hard_label_weight}
    {reduction}
    {vocab_size}
    {logit_maps}
    {chunk_rows}

    Attributes
    ----------
    ignored_label : int
        `ignore_index`, or −100 where it is None.

    Raises
    ------
    TypeError, ValueError
        If an option is not what is described above.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn as nn
    >>> loss = nn.LinearDistillationLoss(temperature=2.0, student_softcap=30.0)
    >>> loss
    LinearDistillationLoss(divergence='forward_kl', temperature=2.0, reduction='mean', student_softcap=30.0)
    >>> student, teacher = nn.Linear(2, 5), nn.Linear(3, 5)
    >>> loss(lucid.ones(4, 2), student.weight, lucid.ones(4, 3), teacher.weight.detach()).backward()
    >>> student.weight.grad.shape
    (5, 2)
    """

    @documented
    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor | None = None,
        teacher_weight: Tensor | None = None,
        *,
        teacher_logits: Tensor | None = None,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        weight: Tensor | None = None,
        labels: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of hidden states (..., D).

        Parameters
        ----------
        {hidden}
        {head}
        {teacher_logits}
        {head_bias}
        {weight}
        {labels}
        {normalizer}

        Returns
        -------
        {distillation_returns}

        Raises
        ------
        TypeError, ValueError, RuntimeError
            If an argument is not what is described above; if second derivatives are asked for.
        IndexError
            If a label is neither a column nor `ignore_index`: at once on the CPU, on a GPU when
            values are next read back, until when the loss is NaN.
        """
        return F.linear_distillation_loss(
            student_hidden,
            student_weight,
            teacher_hidden,
            teacher_weight,
            teacher_logits=teacher_logits,
            student_bias=student_bias,
            teacher_bias=teacher_bias,
            weight=weight,
            labels=labels,
            normalizer=normalizer,
            **self.options,
        )


@documented
class CrossEntropyLoss(Module):
    r"""Cross-entropy of labels or class probabilities with logits, as a module.

    {cross_entropy_of_logits}
    {cross_entropy_reads}

    Parameters
    ----------
    {class_weight}
    {label_to_ignore}
    {label_reduction}
    {label_smoothing}

    Attributes
    ----------
    weight, ignore_index, reduction, label_smoothing
        The options, which are read, and checked, at every call; `weight` is a buffer.

    Raises
    ------
    TypeError, ValueError
        If an option is not what is described above.

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

    @documented
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits with labels or class probabilities.

        Parameters
        ----------
        x : Tensor
            {class_logits}
        {class_target}

        Returns
        -------
        {cross_entropy_returns}
            Inside ``lucid.amp.autocast`` it is at least float32.

        Raises
        ------
        TypeError, RuntimeError
            If dtypes, shapes or devices do not fit; if second derivatives are asked for.
        IndexError
            If a label is neither a class nor `ignore_index`: at once on the CPU, on a GPU when
            values are next read back, until when the loss is NaN.
        """
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


class MSELoss(Module):
    """The mean squared difference of two tensors, as a module.

    Parameters
    ----------
    reduction : {'mean', 'none', 'sum'}

    Raises
    ------
    ValueError
        If `reduction` is another word.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.MSELoss()(lucid.tensor([1.0, 2.0]), lucid.tensor([3.0, 2.0]))
    tensor(2.)
    """

    def __init__(self, reduction: LabelReduction = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, LABEL_REDUCTIONS)
        self.reduction = reduction

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss of `x` against a target of a shape that broadcasts with it."""
        return F.mse_loss(x, target, self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
