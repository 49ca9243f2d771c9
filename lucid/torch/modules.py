"""Losses as modules of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from lucid._arguments import check_bool, check_choice
from lucid._docs import documented
from lucid._linear_args import LinearDistillationOptions
from lucid._loss_args import DistillationOptions, check_cross_entropy, check_deprecated
from lucid.torch import functional as F
from lucid.typing import REDUCTIONS, LabelReduction, Reduction


@documented
class KLDivLoss(torch.nn.KLDivLoss):
    r"""Kullback-Leibler divergence of a target distribution from a predicted one, for `torch.nn.KLDivLoss`.

    A subclass of that module, with its arguments and attributes. Per element, with p the target's probability,
    y = target and x = input the predicted log-probability:

    {kl_div_formula}

    That is where it differs from torch's, whose loss is NaN there, and whose gradient to a zero target is infinite.

    Parameters
    ----------
    {deprecated}
    {kl_div_reduction}
        'mean' gives a warning at each call, as torch's does, since it is not that.
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
        check_deprecated("size_average", size_average)
        check_deprecated("reduce", reduce)
        super().__init__(size_average, reduce, reduction, check_bool("log_target", log_target))
        check_choice("reduction", self.reduction, REDUCTIONS)

    @documented
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of predicted log-probabilities from a target.

        Parameters
        ----------
        input : Tensor
            {log_probabilities}
        {kl_div_target}

        Returns
        -------
        {kl_div_returns}

        Raises
        ------
        TypeError
            If input or target is no torch.Tensor of a floating dtype.
        RuntimeError
            If they are on different devices, or do not broadcast.
        """
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


@documented
class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    r"""Cross-entropy of labels or class probabilities with logits, for `torch.nn.CrossEntropyLoss`.

    A subclass of that module, with its arguments and attributes.

    {cross_entropy_of_logits}
    {cross_entropy_reads}

    It differs from torch's in two places: the 'mean' over no label is 0, and a class of probability 0 whose logit is
    −inf adds 0; torch gives NaN in both.

    Parameters
    ----------
    {class_weight}
    {deprecated}
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
        check_deprecated("size_average", size_average)
        check_deprecated("reduce", reduce)
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        check_cross_entropy(ignore_index=ignore_index, reduction=self.reduction, label_smoothing=label_smoothing)

    @documented
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits with labels or class probabilities.

        Parameters
        ----------
        input : Tensor
            {class_logits}
        {class_target}

        Returns
        -------
        {cross_entropy_returns}

        Raises
        ------
        TypeError, RuntimeError
            If dtypes, shapes or devices do not fit; if second derivatives are asked for.
        IndexError
            If a label is neither a class nor `ignore_index`: at once on the CPU, on a GPU within
            ``lucid.check_values()``, elsewhere the loss is NaN.
        """
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


@documented
class DistillationLoss(DistillationOptions, torch.nn.Module):
    r"""Divergence between the distributions of a student and of a teacher, from their logits, as a module of torch.

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
        PyTorch raises an error in backward if it saved them before, or if they change before it, and a loss of
        `lucid.torch` if it gets them again; whatever else uses them after the loss uses the gradient.

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
            If a label is neither a column nor `ignore_index`: at once on the CPU, on a GPU within
            ``lucid.check_values()``, elsewhere the loss is NaN.
        """
        return F.distillation_loss(
            student_logits, teacher_logits, weight=weight, labels=labels, normalizer=normalizer, **self.options
        )


@documented
class LinearDistillationLoss(LinearDistillationOptions, torch.nn.Module):
    r"""Divergence between the distributions of a student and of a teacher, from hidden states, as a module of torch.

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
    >>> import torch
    >>> import lucid.torch
    >>> loss = lucid.torch.LinearDistillationLoss(temperature=2.0, student_softcap=30.0)
    >>> loss
    LinearDistillationLoss(divergence='forward_kl', temperature=2.0, reduction='mean', student_softcap=30.0)
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> student, teacher = torch.nn.Linear(2, 5, device=device), torch.nn.Linear(3, 5, device=device)
    >>> student_hidden, teacher_hidden = torch.ones(4, 2, device=device), torch.ones(4, 3, device=device)
    >>> loss(student_hidden, student.weight, teacher_hidden, teacher.weight.detach()).backward()
    >>> student.weight.grad.shape
    torch.Size([5, 2])
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
            If a label is neither a column nor `ignore_index`: at once on the CPU, on a GPU within
            ``lucid.check_values()``, elsewhere the loss is NaN.
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
