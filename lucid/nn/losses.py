"""Losses of rows of logits, which `lucid.nn.functional` exports."""

from __future__ import annotations

from lucid import _loss_args, ops
from lucid._clobbered import check_writable
from lucid._docs import documented
from lucid.autograd import is_grad_enabled
from lucid.autograd.function import shares_memory_with_leaf
from lucid.nn.checks import LUCID
from lucid.tensor import Tensor
from lucid.typing import Divergence, LabelReduction, Reduction


@documented
def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    divergence: Divergence = "forward_kl",
    beta: float | None = None,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    weight: Tensor | None = None,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
    hard_label_weight: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    vocab_size: int | None = None,
    inplace_gradient: bool = False,
) -> Tensor:
    r"""Divergence between the distributions of a student and of a teacher, from their logits.

    {divergences}

    Parameters
    ----------
    {distillation_logits}
    {divergence}
    {beta}
    {temperature}
    {temperature_squared}
    {weight}
    {labels}
    {ignore_index}
    {hard_label_weight}
    {reduction}
    {normalizer}
    {vocab_size}
    {inplace_gradient}
        To use the values after that is an error.

    Returns
    -------
    {distillation_returns}

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described above.
    RuntimeError
        If shapes or devices do not fit; if second derivatives are asked for.
    IndexError
        If a label is neither a column nor `ignore_index`: at once on the CPU. On a GPU, when values are next read back
        (``.item()``, ``.numpy()``, printing), until when the loss is NaN; within ``lucid.check_values()`` the call
        waits and raises. A normalizer in device memory that is not positive is a ValueError in the same way.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> student = lucid.tensor([[0.5, 1.0, 0.2], [0.0, 0.0, 0.0]], requires_grad=True)
    >>> teacher = lucid.tensor([[0.3, 0.9, 0.4], [9.0, 9.0, 9.0]])
    >>> loss = F.distillation_loss(student, teacher, labels=lucid.tensor([1, -100]))
    >>> f"{loss.item():.6f}"
    '0.011704'
    >>> loss.backward()
    >>> student.grad[1].tolist()
    [0.0, 0.0, 0.0]
    """
    options, how, denominator = _loss_args.distillation(
        LUCID,
        student_logits,
        teacher_logits,
        divergence=divergence,
        beta=beta,
        temperature=temperature,
        temperature_squared=temperature_squared,
        weight=weight,
        labels=labels,
        ignore_index=ignore_index,
        hard_label_weight=hard_label_weight,
        reduction=reduction,
        normalizer=normalizer,
        vocab_size=vocab_size,
        inplace_gradient=inplace_gradient,
    )
    if options.inplace_gradient and is_grad_enabled():
        check_writable(student_logits._buffer, teacher_logits._buffer, leaf=shares_memory_with_leaf(student_logits))
    return ops.distillation_loss(
        student_logits,
        teacher_logits,
        weight=weight,
        labels=labels,
        normalizer=denominator,
        options=options,
        reduction=how,
    )


@documented
def cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: LabelReduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy of labels or class probabilities with logits.

    {cross_entropy_formula}

    Parameters
    ----------
    x : Tensor
        {class_logits}
    {class_target}
    {class_weight}
    {label_to_ignore}
    {label_reduction}
    {label_smoothing}

    Returns
    -------
    {cross_entropy_returns}

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described above.
    RuntimeError
        If shapes or devices do not fit; if second derivatives are asked for.
    IndexError
        If a label is neither a class nor `ignore_index`: at once on the CPU. On a GPU, when values are next read back
        (``.item()``, ``.numpy()``, printing), until when the loss is NaN; within ``lucid.check_values()`` the call
        waits and raises.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> x = lucid.tensor([[0.0, 0.0], [5.0, 1.0]])
    >>> F.cross_entropy(x, lucid.tensor([1, -100]))
    tensor(0.6931)
    >>> F.cross_entropy(x, lucid.tensor([[0.5, 0.5], [0.9, 0.1]]))
    tensor(0.5556)
    """
    of = _loss_args.cross_entropy(
        LUCID, x, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    return ops.cross_entropy(of, class_weight=weight)
