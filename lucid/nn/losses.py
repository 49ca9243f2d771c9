"""Losses of rows of logits; found in `lucid.nn.functional`."""

from __future__ import annotations

from lucid import _loss_args, ops
from lucid.nn.checks import LUCID
from lucid.tensor import Tensor
from lucid.typing import Divergence, LabelReduction, Reduction


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
    r"""A divergence between the distributions of a student and of a teacher, from their logits.

    Per token, with p = softmax(teacher_logits / T), q = softmax(student_logits / T) and T = temperature:

    =================== ==============================================================
    ``forward_kl``      Σ p·(log p − log q), Hinton et al. 2015
    ``reverse_kl``      Σ q·(log q − log p)
    ``js``              beta·KL(p‖m) + (1 − beta)·KL(q‖m), m = beta·p + (1 − beta)·q
    ``total_variation`` ½·Σ \|p − q\|
    =================== ==============================================================

    The forward pass reads each logit once (js and total_variation twice, where a row does not fit on chip) and keeps a
    few numbers per token; backward reads each once and writes the gradient.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor
        (..., V), any strides, each float16, bfloat16, float32 or float64; with the same leading dimensions, and the
        same V unless `vocab_size` is given. −inf is a logit like others; a row's largest may be up to 10⁹·T in
        magnitude, in float32. Gradients flow to both.
    divergence : {'forward_kl', 'reverse_kl', 'js', 'total_variation'}
        The table's first column.
    beta : float, optional
        The teacher's part of the mixture of 'js', between 0 and 1; by default 0.5. Of 'js' alone.
    temperature : float
        T, positive.
    temperature_squared : bool
        Multiply the divergence by T², so that its gradients keep their size (Hinton et al. 2015, "Distilling the
        knowledge in a neural network", section 2).
    weight : Tensor, optional
        A factor for each token, bool or floating, of the leading dimensions' shape; without a gradient. Logits of a
        token of weight 0 are not read, may hold anything, and get a zero gradient.
    labels : Tensor, optional
        int32 or int64, of the leading dimensions' shape. Tokens labelled `ignore_index` count as those of weight 0.
    ignore_index : int, optional
        See `labels`, which it needs; by default −100.
    hard_label_weight : float
        α between 0 and 1: the loss of a token is (1 − α)·divergence + α·cross-entropy of the student, at temperature 1,
        with its label; in the same pass.
    reduction : {'mean', 'none', 'sum', 'batchmean'}
        Σ weight·loss / Σ weight; each token's weight·loss; Σ weight·loss; or Σ weight·loss / student_logits.shape[0].
    normalizer : float or Tensor, optional
        What 'mean' or 'batchmean' divide by instead; positive, but where no token counts it may be 0. A Tensor must be
        0-d and is read on its device.
    vocab_size : int, optional
        Count only the first so many columns, of padded or unequal vocabularies; the others get a zero gradient.
    inplace_gradient : bool
        Write the student's gradient over its logits in backward, which then needs no memory of that size. To use the
        logits afterwards is an error.

    Returns
    -------
    Tensor
        0-d, or of the leading dimensions' shape for 'none'; float32, or float64 where either is. 0, with a gradient of
        0, where no token counts, that is, where all weights are 0. Where weights of either sign add up to 0 while
        tokens count, 'mean' divides by 0: infinite or NaN.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described above.
    RuntimeError
        If shapes or devices do not fit; if gradients of the gradients are asked for.
    IndexError
        If a label is neither a column nor `ignore_index`: at once on the CPU; on a GPU, which nobody waits for here,
        when values are next read back (``.item()``, ``.numpy()``, printing), until when the loss is NaN, unless
        `lucid.check_values` says to wait. A `normalizer` that is not positive is reported in the same way, as a
        ValueError.

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
    if options.inplace_gradient:
        _loss_args.check_writable(student_logits._buffer, teacher_logits._buffer)
    return ops.distillation_loss(
        student_logits,
        teacher_logits,
        weight=weight,
        labels=labels,
        normalizer=denominator,
        options=options,
        reduction=how,
    )


def cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: LabelReduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""The cross-entropy of labels or class probabilities with the distributions q = softmax(x) of logits.

    Per row, with c the classes' weights, C their number, ε = `label_smoothing` (Szegedy et al. 2016, "Rethinking the
    inception architecture", section 7), and a label y or probabilities p:

        loss = (1 − ε)·c_y·(−log q_y) + ε/C·Σ c_v·(−log q_v)
        loss = Σ c_v·((1 − ε)·p_v + ε/C)·(−log q_v)

    A class with a factor of 0 there adds exactly 0, also where its logit is −inf.

    Parameters
    ----------
    x : Tensor
        Logits of a floating dtype, (C,), (N, C) or (N, C, ...); any strides.
    target : Tensor
        Labels, int32 or int64, of x's shape without the dimension of classes; or class probabilities, of a floating
        dtype and x's shape, which get a gradient where they require one.
    weight : Tensor, optional
        (C,), floating, without a gradient.
    ignore_index : int
        A label whose logits are not read, and get a zero gradient. With class probabilities leave it out.
    reduction : {'mean', 'none', 'sum'}
        Σ loss / Σ c_y, or with class probabilities Σ loss / N with N the number of rows; each loss; or Σ loss.
    label_smoothing : float
        From 0 to 1.

    Returns
    -------
    Tensor
        0-d, or of x's shape without the dimension of classes for 'none'; of x's dtype, or that of x and probabilities
        promoted. 0 where no label counts.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is described above.
    RuntimeError
        If shapes or devices do not fit; if gradients of the gradient are asked for.
    IndexError
        If a label is neither a class nor `ignore_index`: at once on the CPU; on a GPU, which nobody waits for here,
        when values are next read back, until when the loss is NaN, unless `lucid.check_values` says to wait.

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
