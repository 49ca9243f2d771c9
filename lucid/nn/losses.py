"""Losses of rows of logits, and where their arguments are checked; found in `lucid.nn.functional`."""

from __future__ import annotations

from typing import Any

from lucid import ops
from lucid.nn.checks import check_device, check_floating, check_tensor, integer, number, one_of
from lucid.ops.divergence import Distillation, Reduction
from lucid.tensor import Tensor

REDUCTIONS = ("none", "mean", "sum", "batchmean")
DIVERGENCES = ("forward_kl", "reverse_kl", "js", "total_variation")


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    weight: Tensor | None = None,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    hard_label_weight: float = 0.0,
    reduction: str = "mean",
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
        same V unless `vocab_size` is given. −inf is a logit like others. Gradients flow to both.
    divergence : {'forward_kl', 'reverse_kl', 'js', 'total_variation'}
        The table's first column.
    beta : float
        The teacher's part of the mixture of 'js', between 0 and 1.
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
    ignore_index : int
        See `labels`.
    hard_label_weight : float
        α between 0 and 1: the loss of a token is (1 − α)·divergence + α·cross-entropy of the student, at temperature 1,
        with its label; in the same pass.
    reduction : {'mean', 'none', 'sum', 'batchmean'}
        Σ weight·loss / Σ weight; each token's weight·loss; Σ weight·loss; or Σ weight·loss / student_logits.shape[0].
    normalizer : float or Tensor, optional
        What 'mean' or 'batchmean' divide by instead; positive, a Tensor must be 0-d and is read on its device.
    vocab_size : int, optional
        Count only the first so many columns, of padded or unequal vocabularies; the others get a zero gradient.
    inplace_gradient : bool
        Write the student's gradient over its logits in backward, which then needs no memory of that size. To use the
        logits afterwards is an error.

    Returns
    -------
    Tensor
        0-d, or of the leading dimensions' shape for 'none'; float32, or float64 where either is. 0 where no token
        counts.

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
    one_of("divergence", divergence, DIVERGENCES)
    one_of("reduction", reduction, REDUCTIONS)
    beta = number("beta", beta, "a number between 0 and 1, not these", lambda x: 0 < x < 1)
    temperature = number("temperature", temperature, "a positive number", lambda x: x > 0)
    alpha = number("hard_label_weight", hard_label_weight, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    student, teacher = student_logits, teacher_logits
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        check_floating(name, logits)
        if not logits.ndim:
            raise RuntimeError(f"{name} must have a dimension of columns, got shape ()")
    check_device("student_logits", student, "teacher_logits", teacher)
    if student.shape[:-1] != teacher.shape[:-1]:
        raise RuntimeError(
            "student_logits and teacher_logits must have the same leading dimensions, got student_logits "
            f"{student.shape} and teacher_logits {teacher.shape}"
        )
    columns = _columns(student, teacher, vocab_size)
    _check_tokens("weight", weight, student, "bool or floating", _is_weight)
    _check_tokens("labels", labels, student, "int32 or int64", _is_label)
    if alpha and labels is None:
        raise ValueError(f"labels must be given for a hard_label_weight of {alpha}, got None")
    if inplace_gradient and student.requires_grad:
        _check_writable(student, teacher)
    options = Distillation(
        divergence=divergence,
        beta=beta,
        inv_temperature=1 / temperature,
        scale=temperature * temperature if temperature_squared else 1.0,
        ignore_index=integer("ignore_index", ignore_index),
        hard_label_weight=alpha,
        vocab_size=columns,
        inplace_gradient=bool(inplace_gradient),
    )
    how, denominator = _reduction(reduction, normalizer, student)
    return ops.distillation_loss(
        student, teacher, weight=weight, labels=labels, normalizer=denominator, options=options, reduction=how
    )


def cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""The cross-entropy of labels with the distributions q = softmax(x) of logits.

    Per label y, with c the classes' weights, C their number, and ε = `label_smoothing` (Szegedy et al. 2016,
    "Rethinking the inception architecture", section 7):

        loss = (1 − ε)·c_y·(−log q_y) + ε/C·Σ c_v·(−log q_v)

    Parameters
    ----------
    x : Tensor
        Logits of a floating dtype, (C,), (N, C) or (N, C, ...); any strides.
    target : Tensor
        Labels, int32 or int64: x's shape without the dimension of classes.
    weight : Tensor, optional
        (C,), floating, without a gradient.
    ignore_index : int
        A label whose logits are not read, and get a zero gradient.
    reduction : {'mean', 'none', 'sum'}
        Σ loss / Σ c_y, each loss, or Σ loss.
    label_smoothing : float
        From 0 to 1.

    Returns
    -------
    Tensor
        0-d, or of target's shape for 'none'; of x's dtype. 0 where no label counts.

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
    >>> F.cross_entropy(lucid.tensor([[0.0, 0.0], [5.0, 1.0]]), lucid.tensor([1, -100]))
    tensor(0.6931)
    """
    one_of("reduction", reduction, REDUCTIONS[:3])
    smoothing = number("label_smoothing", label_smoothing, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    check_floating("x", x)
    if not x.ndim:
        raise RuntimeError("x must have a dimension of classes, got shape ()")
    classes = min(x.ndim - 1, 1)
    logits = x if classes == x.ndim - 1 else x.permute(*(d for d in range(x.ndim) if d != classes), classes)
    if not x.shape[classes]:
        raise RuntimeError(f"x must have at least one class, got shape {x.shape}")
    check_tensor("target", target)
    _check_tokens("target", target, logits, "int32 or int64", _is_label)
    if weight is not None:
        check_floating("weight", weight)
        check_device("weight", weight, "x", x)
        if weight.shape != (x.shape[classes],):
            raise RuntimeError(f"weight must have shape ({x.shape[classes]},), one for each class, got {weight.shape}")
        _check_constant("weight", weight)
    return ops.cross_entropy(
        logits,
        target,
        class_weight=weight,
        ignore_index=integer("ignore_index", ignore_index),
        label_smoothing=smoothing,
        reduction=_reduction(reduction, None, logits)[0],
    )


def _columns(student: Tensor, teacher: Tensor, vocab_size: int | None) -> int:
    widths = student.shape[-1], teacher.shape[-1]
    if vocab_size is None:
        if widths[0] != widths[1]:
            raise RuntimeError(
                "student_logits and teacher_logits must have equally many columns unless vocab_size says how many "
                f"count, got {widths[0]} and {widths[1]}"
            )
        if not widths[0]:
            raise RuntimeError(f"student_logits must have at least one column, got shape {student.shape}")
        return widths[0]
    columns = integer("vocab_size", vocab_size)
    if not 1 <= columns <= min(widths):
        raise ValueError(
            f"vocab_size must lie in 1 to {min(widths)}, got {columns}; student_logits have {widths[0]} columns and "
            f"teacher_logits {widths[1]}"
        )
    return columns


def _is_weight(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.name == "bool_"


def _is_label(tensor: Tensor) -> bool:
    return tensor.dtype.name in ("int32", "int64")


def _check_tokens(name: str, value: Any, logits: Tensor, accepted: str, fits: Any) -> None:
    """Something for each row of logits."""
    if value is None:
        return
    check_tensor(name, value)
    if not fits(value):
        raise TypeError(f"{name} must be {accepted}, got {value.dtype}")
    if value.shape != logits.shape[:-1]:
        raise RuntimeError(f"{name} must have shape {logits.shape[:-1]}, one for each row of logits, got {value.shape}")
    check_device(name, value, "logits", logits)
    _check_constant(name, value)


def _check_constant(name: str, value: Tensor) -> None:
    if value.requires_grad:
        raise RuntimeError(f"{name} must not require grad, as it gets no gradient: pass {name}.detach()")


def _check_writable(student: Tensor, teacher: Tensor) -> None:
    sizes = zip(student.shape, student.stride(), strict=True)
    if any(stride == 0 and size > 1 for size, stride in sizes):
        raise RuntimeError(
            f"student_logits must not be expanded for inplace_gradient=True, got strides {student.stride()} for shape "
            f"{student.shape}"
        )
    memory = [tensor._buffer.untyped_storage().data_ptr() for tensor in (student, teacher)]
    if memory[0] == memory[1]:
        raise RuntimeError(
            "student_logits must share no memory with teacher_logits for inplace_gradient=True, but they do: leave it "
            "out"
        )


def _reduction(reduction: str, normalizer: Any, logits: Tensor) -> tuple[Reduction, Tensor | None]:
    """The reduction, and the denominator where it is a Tensor."""
    if reduction == "batchmean" and logits.ndim < 2:
        raise RuntimeError(
            f"reduction 'batchmean' divides by student_logits.shape[0], a number of rows, got shape {logits.shape}"
        )
    if normalizer is None:
        scale = 1 / max(logits.shape[0], 1) if reduction == "batchmean" else 1.0
        return Reduction(reduce=reduction != "none", mean=reduction == "mean", scale=scale), None
    if reduction not in ("mean", "batchmean"):
        raise ValueError(f"normalizer is what 'mean' and 'batchmean' divide by, got one for reduction {reduction!r}")
    if not isinstance(normalizer, Tensor):
        accepted = "a positive number or a 0-d Tensor"
        return Reduction(reduce=True, scale=1 / number("normalizer", normalizer, accepted, lambda x: x > 0)), None
    if normalizer.shape != ():
        raise RuntimeError(f"normalizer must be a positive number or a 0-d Tensor, got shape {normalizer.shape}")
    if normalizer.dtype.name == "bool_":
        raise TypeError("normalizer must be a positive number or a 0-d Tensor of numbers, got bool_")
    check_device("normalizer", normalizer, "student_logits", logits)
    _check_constant("normalizer", normalizer)
    return Reduction(reduce=True), normalizer
