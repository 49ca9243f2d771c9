"""Losses of torch tensors, which check their arguments."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lucid import _linear_args, _loss_args
from lucid._arguments import TensorValidator, check_bool, check_choice, check_dense
from lucid._clobbered import check_not_overwritten, check_writable
from lucid._docs import documented
from lucid.tensor import Tensor as LucidTensor
from lucid.torch import cross_entropy_ops, distillation_ops, kl_div_ops, linear_ops
from lucid.typing import REDUCTIONS, Divergence, LabelReduction, Reduction


class _LocalTensors(TensorValidator):
    def check(self, name: str, value: Any) -> None:
        """Raise a TypeError unless `value` is a dense torch.Tensor, and not a DTensor; see that it has its values."""
        super().check(name, value)
        check_dense(name, value)
        if hasattr(value, "placements"):
            raise TypeError(f"{name} must be a local tensor, got a {type(value).__name__}: pass {name}.to_local()")
        check_not_overwritten(name, value)


TORCH = _LocalTensors(
    Tensor,
    "a torch.Tensor",
    lambda tensor: tensor,
    lambda tensor: tensor,
    {LucidTensor: "{}.to_torch()", np.ndarray: "torch.from_numpy({})"},
)


@documented
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    log_target: bool = False,
) -> Tensor:
    r"""Kullback-Leibler divergence of a target distribution from a predicted one, in place of `F.kl_div`.

    Per element, with p the target's probability, y = target and x = input the predicted log-probability:

    {kl_div_formula}

    That is where it differs from `torch.nn.functional.kl_div`, whose loss is NaN there, and whose gradient to a zero
    target is infinite. A reduced loss reads each element once and allocates nothing of the inputs' size.

    Parameters
    ----------
    input : Tensor
        {log_probabilities}
    {kl_div_target}
    {deprecated}
    {kl_div_reduction}
        'mean' gives a warning, as torch's does, since it is not that.
    {log_target}

    Returns
    -------
    {kl_div_returns}
        Under autocast the result is float32.

    Raises
    ------
    ValueError
        If `reduction` is another word.
    TypeError
        If input or target is no dense torch.Tensor of a floating dtype, or is a DTensor; if log_target is no bool.
    RuntimeError
        If they are on different devices, or do not broadcast; if no kernel can run on their device.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> x = torch.tensor([[0.5, 1.0, 0.2]], device=device).log_softmax(-1).requires_grad_()
    >>> target = torch.tensor([[0.3, 0.9, 0.4]], device=device).softmax(-1)
    >>> loss = lucid.torch.kl_div(x, target, reduction="batchmean")
    >>> f"{loss.item():.6f}"
    '0.011704'
    >>> loss.backward()
    >>> torch.allclose(x.grad, -target)
    True
    """
    if size_average is not None or reduce is not None:
        resolved: str = _deprecated(size_average, reduce)
    else:
        resolved = _reduction(reduction)
    check_bool("log_target", log_target)
    TORCH.check_floating("input", input)
    TORCH.check_floating("target", target)
    TORCH.check_device("input", input, "target", target)
    dtype = _autocast(input, _promoted(input, target))
    rows = input.shape[0] if reduction == "batchmean" and input.dim() else 1
    # The compiler may know sizes only as symbols, which it can broadcast but not compare.
    if torch.compiler.is_compiling() or input.shape != target.shape:
        input, target = _broadcast(input, target)
    count = rows * input.numel() if resolved == "mean" else rows
    return kl_div_ops.kl_div(input, target, bool(log_target), resolved != "none", count, dtype)


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

    Under autocast nothing is converted: the arithmetic is float32, or float64, whatever dtype arrives.

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
        To `torch.compile` an int or a Tensor may be another one at each call; floats, here and in other options, are
        constants of a graph.
    {vocab_size}
    {inplace_gradient}
        PyTorch raises an error in backward if it saved them before, or if they change before it, and a loss of
        `lucid.torch` if it gets them again; whatever else uses them after the loss uses the gradient. Without effect
        under `torch.compile`, which plans memory by itself.

    Returns
    -------
    {distillation_returns}

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If an argument is not what is described above; if second derivatives are asked for.
    IndexError
        If a label is neither a column nor `ignore_index`: at once on the CPU. On a GPU the loss is NaN, without a host
        sync; within ``lucid.check_values()`` the call waits and raises. A normalizer in device memory that is not
        positive is a ValueError in the same way.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> student = torch.tensor([[0.5, 1.0, 0.2], [0.0, 0.0, 0.0]], device=device, requires_grad=True)
    >>> teacher = torch.tensor([[0.3, 0.9, 0.4], [9.0, 9.0, 9.0]], device=device)
    >>> loss = lucid.torch.distillation_loss(student, teacher, labels=torch.tensor([1, -100], device=device))
    >>> f"{loss.item():.6f}"
    '0.011704'
    >>> loss.backward()
    >>> student.grad[1].tolist()
    [0.0, 0.0, 0.0]
    """
    options, resolved, denominator = _loss_args.distillation(
        TORCH,
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
        normalizer=_as_input(normalizer, student_logits),
        vocab_size=vocab_size,
        inplace_gradient=inplace_gradient,
    )
    in_place = options.inplace_gradient and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if in_place:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError("inplace_gradient must be False within transforms of torch.func, got True")
        base = student_logits if student_logits._base is None else student_logits._base
        check_writable(student_logits, teacher_logits, leaf=student_logits.is_leaf or base.is_leaf)
    return distillation_ops.distillation_loss(
        student_logits,
        teacher_logits,
        weight,
        labels,
        denominator,
        options.divergence,
        options.beta,
        options.inv_temperature,
        options.scale,
        options.hard_label_weight,
        options.vocab_size,
        options.ignore_index,
        in_place,
        resolved.reduce,
        resolved.mean,
        resolved.count,
        resolved.normalizer,
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
        If a label is neither a column nor `ignore_index`: at once on the CPU. On a GPU the loss is NaN, without a host
        sync; within ``lucid.check_values()`` the call waits and raises.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> hidden = torch.tensor([[0.5, 1.0], [0.2, 0.1]], device=device, requires_grad=True)
    >>> student_weight, teacher_weight = torch.eye(3, 2, device=device), torch.ones(3, 2, device=device)
    >>> loss = lucid.torch.linear_distillation_loss(hidden, student_weight, hidden.detach(), teacher_weight)
    >>> f"{loss.item():.6f}"
    '0.042494'
    >>> loss.backward()
    >>> hidden.grad.shape
    torch.Size([2, 2])
    """
    options, linear, resolved, denominator = _linear_args.linear_distillation(
        TORCH,
        (student_hidden, student_weight, student_bias),
        (teacher_hidden, teacher_weight, teacher_bias),
        teacher_logits,
        autocast=(_autocast_dtype(student_hidden), _autocast_dtype(teacher_hidden)),
        divergence=divergence,
        beta=beta,
        temperature=temperature,
        temperature_squared=temperature_squared,
        weight=weight,
        labels=labels,
        ignore_index=ignore_index,
        hard_label_weight=hard_label_weight,
        reduction=reduction,
        normalizer=_as_input(normalizer, student_hidden),
        vocab_size=vocab_size,
        student_logit_scale=student_logit_scale,
        teacher_logit_scale=teacher_logit_scale,
        student_softcap=student_softcap,
        teacher_softcap=teacher_softcap,
        chunk_rows=chunk_rows,
        workspace_mib=workspace_mib,
    )
    return linear_ops.linear_distillation_loss(
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden,
        teacher_weight,
        teacher_bias,
        teacher_logits,
        weight,
        labels,
        denominator,
        options.divergence,
        options.beta,
        options.inv_temperature,
        options.scale,
        options.hard_label_weight,
        options.vocab_size,
        linear.student_scale,
        linear.student_softcap,
        linear.teacher_scale,
        linear.teacher_softcap,
        options.ignore_index,
        resolved.reduce,
        resolved.mean,
        resolved.count,
        resolved.normalizer,
        linear.chunk_rows,
        linear.workspace,
        linear.student_dtype,
        linear.teacher_dtype,
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
        If a label is neither a class nor `ignore_index`: at once on the CPU. On a GPU the loss is NaN, without a host
        sync; within ``lucid.check_values()`` the call waits and raises.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> hidden = torch.tensor([[0.5, 1.0], [9.0, 9.0]], device=device)
    >>> target = torch.tensor([1, -100], device=device)
    >>> f"{lucid.torch.linear_cross_entropy(hidden, torch.eye(3, 2, device=device), target).item():.6f}"
    '0.680270'
    """
    of, dtype, chunk = _linear_args.linear_cross_entropy(
        TORCH,
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
        autocast=_autocast_dtype(hidden),
    )
    return linear_ops.linear_cross_entropy(
        hidden,
        weight,
        bias,
        target,
        class_weight,
        of.ignore_index,
        of.label_smoothing,
        float(logit_scale),
        None if softcap is None else float(softcap),
        of.reduction.reduce,
        of.reduction.mean,
        *chunk,
        dtype,
    )


@documented
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: LabelReduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy of labels or class probabilities with logits, in place of `F.cross_entropy`.

    {cross_entropy_of_logits}
    {cross_entropy_reads}

    It differs from `torch.nn.functional.cross_entropy` in two places: the 'mean' over no label is 0, and a class
    of probability 0 whose logit is −inf adds 0; torch gives NaN in both.

    Parameters
    ----------
    input : Tensor
        {class_logits}
    {class_target}
    {class_weight}
    {deprecated}
    {label_to_ignore}
    {label_reduction}
    {label_smoothing}

    Returns
    -------
    {cross_entropy_returns}
        Under autocast the result is float32 for shorter dtypes.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If an argument is not what is described above; if second derivatives are asked for.
    IndexError
        If a label is neither a class nor `ignore_index`: at once on the CPU. On a GPU the loss is NaN, without a host
        sync; within ``lucid.check_values()`` the call waits and raises.

    Examples
    --------
    >>> import torch
    >>> import lucid.torch
    >>> device = "cuda" if torch.cuda.is_available() else "cpu"
    >>> logits = torch.tensor([[0.0, 0.0], [5.0, 1.0]], device=device)
    >>> loss = lucid.torch.cross_entropy(logits, torch.tensor([1, -100], device=device))
    >>> f"{loss.item():.6f}"
    '0.693147'
    >>> probabilities = torch.tensor([[0.5, 0.5], [0.9, 0.1]], device=device)
    >>> f"{lucid.torch.cross_entropy(logits, probabilities).item():.6f}"
    '0.555649'
    """
    if size_average is not None or reduce is not None:
        reduction = _deprecated(size_average, reduce)
    of = _loss_args.cross_entropy(
        TORCH,
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        name="input",
    )
    resolved, smoothing = of.reduction, of.label_smoothing
    if of.soft:
        dtype = _autocast(input, torch.promote_types(input.dtype, target.dtype))
        return cross_entropy_ops.soft_cross_entropy(
            of.logits, of.target, weight, smoothing, resolved.reduce, resolved.count, dtype
        )
    dtype = _autocast(input, input.dtype)
    return cross_entropy_ops.cross_entropy(
        of.logits, of.target, weight, of.ignore_index, smoothing, resolved.reduce, resolved.mean, dtype
    )


def _reduction(reduction: str) -> str:
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "mean":
        _warn("reduction 'mean' also divides by the number of columns; the divergence is reduction 'batchmean'")
    return reduction


def _deprecated(size_average: bool | None, reduce: bool | None) -> LabelReduction:
    """Return the reduction that the deprecated arguments stand for."""
    _loss_args.check_deprecated("size_average", size_average)
    _loss_args.check_deprecated("reduce", reduce)
    reduction: LabelReduction
    if reduce is not None and not reduce:
        reduction = "none"
    else:
        reduction = "mean" if size_average is None or size_average else "sum"
    _warn(f"size_average and reduce are deprecated: pass reduction={reduction!r}")
    return reduction


def _warn(message: str) -> None:
    if not torch.compiler.is_compiling():  # it does not trace warnings
        warnings.warn(message, stacklevel=4)


def _as_input(normalizer: float | Tensor | None, like: Tensor) -> float | Tensor | None:
    """Return a count of tokens as a tensor where a graph is compiled.

    It differs from step to step, and the compiler takes an operator's numbers for constants.
    """
    if torch.compiler.is_compiling() and isinstance(normalizer, int) and isinstance(like, Tensor):
        return torch.full((), normalizer, device=like.device)
    return normalizer


def _autocast_dtype(hidden: Tensor | None) -> torch.dtype | None:
    """Return the dtype that autocast gives a linear layer's product; None where it does not."""
    if not isinstance(hidden, Tensor) or hidden.dtype == torch.float64 or not _is_autocast(hidden):
        return None
    return torch.get_autocast_dtype(hidden.device.type)


def _is_autocast(tensor: Tensor) -> bool:
    """Return whether autocast is enabled for the device of a tensor; torch 2.11's compiler cannot ask if it has it."""
    device = tensor.device.type
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def _autocast(input: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a loss: that of its inputs, or float32 for shorter ones under autocast."""
    if dtype in (torch.float32, torch.float64):
        return dtype
    return torch.float32 if _is_autocast(input) else dtype


def _promoted(input: Tensor, target: Tensor) -> torch.dtype:
    """Return `torch.result_type`, which the compiler does not trace: a 0-d tensor promotes no other."""
    if bool(input.dim()) == bool(target.dim()):
        return torch.promote_types(input.dtype, target.dtype)
    return input.dtype if input.dim() else target.dtype


def _broadcast(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    try:
        shape = torch.broadcast_shapes(input.shape, target.shape)
    except RuntimeError:
        raise RuntimeError(
            f"input and target must have shapes that broadcast, got input {tuple(input.shape)} and target "
            f"{tuple(target.shape)}"
        ) from None
    return input.expand(shape), target.expand(shape)
