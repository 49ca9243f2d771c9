"""Losses of rows of logits, which `lucid.nn.functional` exports."""

from __future__ import annotations

from lucid import _linear_args, _loss_args, ops
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

    {divergences_of_logits}

    {computed_with_the_loss}

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
def linear_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    *,
    teacher_logits: Tensor | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
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
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    chunk_rows: int | None = None,
    workspace_mib: float | None = None,
) -> Tensor:
    r"""Divergence between the distributions of a student and of a teacher, from hidden states.

    {from_hidden}

    {divergences_of_logits}

    {linear_gradients}

    Parameters
    ----------
    {hidden}
    {head}
    {teacher_logits}
    {head_bias}
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
    {logit_maps}
    {chunk_rows}

    Returns
    -------
    {distillation_returns}

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If an argument is not what is described above; if second derivatives are asked for.
    IndexError
        If a label is neither a column nor `ignore_index`: at once on the CPU. On a GPU, when values are next read back
        (``.item()``, ``.numpy()``, printing), until when the loss is NaN; within ``lucid.check_values()`` the call
        waits and raises.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> hidden = lucid.tensor([[0.5, 1.0], [0.2, 0.1]], requires_grad=True)
    >>> student_weight, teacher_weight = lucid.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), lucid.ones(3, 2)
    >>> loss = F.linear_distillation_loss(hidden, student_weight, hidden.detach(), teacher_weight)
    >>> f"{loss.item():.6f}"
    '0.042494'
    >>> loss.backward()
    >>> hidden.grad.shape
    (2, 2)
    """
    options, linear, how, denominator = _linear_args.linear_distillation(
        LUCID,
        (student_hidden, student_weight, student_bias),
        (teacher_hidden, teacher_weight, teacher_bias),
        teacher_logits,
        autocast=(None, None),
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
        student_logit_scale=student_logit_scale,
        teacher_logit_scale=teacher_logit_scale,
        student_softcap=student_softcap,
        teacher_softcap=teacher_softcap,
        chunk_rows=chunk_rows,
        workspace_mib=workspace_mib,
    )
    return ops.linear_distillation_loss(
        (student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias, teacher_logits),
        weight=weight,
        labels=labels,
        normalizer=denominator,
        options=options,
        linear=linear,
        reduction=how,
    )


@documented
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: LabelReduction = "mean",
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    workspace_mib: float | None = None,
) -> Tensor:
    r"""Cross-entropy of labels with the logits of a linear layer, from hidden states.

    {from_hidden_labels}

    Parameters
    ----------
    hidden : Tensor
        (..., D), floating, any strides.
    weight : Tensor
        (C, D), of any floating dtype and strides. One of another dtype than the product's is converted once. Its
        gradient is summed over chunks in float32, and rounded once.
    target : Tensor
        Labels, int32 or int64, of shape (...), from 0 to C − 1, or `ignore_index`.
    bias : Tensor, optional
        (C,), floating; −inf masks a class. Default: none.
    class_weight : Tensor, optional
        Weight of each class: (C,), floating, without a gradient. By default 1.
    ignore_index : int
        Label of rows that do not count: their hidden states are not used, and get a gradient of 0. Default: −100.
    {label_reduction}
    {label_smoothing}
    logit_scale : float
        Factor on the logits, from 1e-15 to 1e15. Default: 1.
    softcap : float, optional
        Bound k of the logits, k·tanh(logit_scale·x/k), from 1e-15 to 1e15; −inf stays −inf. Default: none.
    {chunk_rows}

    Returns
    -------
    Tensor
        0-d, or of shape (...) for 'none'; float32, or float64 for hidden states of that dtype. 0 where no label counts.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If an argument is not what is described above; if second derivatives are asked for.
    IndexError
        If a label is neither a class nor `ignore_index`: at once on the CPU. On a GPU, when values are next read back
        (``.item()``, ``.numpy()``, printing), until when the loss is NaN; within ``lucid.check_values()`` the call
        waits and raises.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> hidden, target = lucid.tensor([[0.5, 1.0], [9.0, 9.0]]), lucid.tensor([1, -100])
    >>> weight = lucid.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> f"{F.linear_cross_entropy(hidden, weight, target).item():.6f}"
    '0.680270'
    """
    of, dtype, chunk = _linear_args.linear_cross_entropy(
        LUCID,
        hidden,
        weight,
        target,
        bias=bias,
        class_weight=class_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        logit_scale=logit_scale,
        softcap=softcap,
        chunk_rows=chunk_rows,
        workspace_mib=workspace_mib,
        autocast=None,
    )
    return ops.linear_cross_entropy(
        (hidden, weight, bias),
        of,
        class_weight=class_weight,
        logit_scale=logit_scale,
        softcap=softcap,
        dtype=dtype,
        chunk=chunk,
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

    {cross_entropy_of_logits}
    {cross_entropy_reads}

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
        Inside ``lucid.amp.autocast`` it is at least float32.

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
