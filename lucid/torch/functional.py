"""Losses of torch tensors, where their arguments are checked."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lucid import _loss_args
from lucid._arguments import TensorValidator, check_bool, check_choice, check_dense
from lucid.tensor import Tensor as LucidTensor
from lucid.torch import cross_entropy as entropies
from lucid.torch import divergence as of_logits
from lucid.torch import kl_div as pointwise
from lucid.typing import REDUCTIONS, Divergence, LabelReduction, Reduction


class _LocalTensors(TensorValidator):
    def check(self, name: str, value: Any) -> None:
        """A dense torch tensor that is all here."""
        super().check(name, value)
        check_dense(name, value)
        if hasattr(value, "placements"):
            raise TypeError(f"{name} must be a local tensor, got a {type(value).__name__}: pass {name}.to_local()")


TORCH = _LocalTensors(
    Tensor,
    "a torch.Tensor",
    lambda tensor: tensor,
    lambda tensor: tensor,
    {LucidTensor: "{}.to_torch()", np.ndarray: "torch.from_numpy({})"},
)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    log_target: bool = False,
) -> Tensor:
    r"""The Kullback-Leibler divergence of a target distribution from a predicted one; as `torch.nn.functional.kl_div`.

    Per element, with p the target's probability, y = target and x = input the predicted log-probability:

    ====================== ====================
    ``log_target=False``   y·(log y − x)
    ``log_target=True``    exp(y)·(y − x)
    ====================== ====================

    Elements with p = 0 add exactly 0 to the loss and to both gradients, also where x = −inf. That is the one place
    where torch's own differs: its loss is NaN there, and its gradient to a zero target infinite. A reduced loss reads
    each element once and allocates nothing of the inputs' size.

    Parameters
    ----------
    input : torch.Tensor
        Log-probabilities, of any shape and strides: float16, bfloat16, float32 or float64.
    target : torch.Tensor
        Probabilities, or log-probabilities if `log_target`; of a shape that broadcasts with input's, on the same
        device.
    size_average, reduce : bool, optional
        Deprecated, as in torch; where one is given, the two decide instead of `reduction`.
    reduction : {'mean', 'none', 'sum', 'batchmean'}
        The sum over the number of elements of the broadcast shape; the terms themselves; their sum; or the sum over
        ``input.shape[0]``, the divergence for input of shape (N, V). 'mean' warns, as in torch, that it is not that.

    Returns
    -------
    torch.Tensor
        0-d, or of the broadcast shape for 'none'; of the promoted dtype, float32 under autocast. The arithmetic is
        float32, or float64 where either is, and the result is rounded once. Gradients flow to both, as do second ones.

    Raises
    ------
    ValueError
        If there is no such reduction.
    TypeError
        If input or target is no Tensor, or not of a floating dtype; if log_target is no bool.
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
    how = _reduction(reduction) if size_average is None and reduce is None else _deprecated(size_average, reduce)
    check_bool("log_target", log_target)
    TORCH.check_floating("input", input)
    TORCH.check_floating("target", target)
    TORCH.check_device("input", input, "target", target)
    dtype = _autocast(input, _promoted(input, target))
    rows = input.shape[0] if reduction == "batchmean" and input.dim() else 1
    # The compiler may know sizes only as symbols, which it can broadcast but not compare.
    if torch.compiler.is_compiling() or input.shape != target.shape:
        input, target = _broadcast(input, target)
    count = rows * input.numel() if how == "mean" else rows
    return pointwise.kl_div(input, target, bool(log_target), how != "none", count, dtype)


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

    Formulas, parameters and errors are those of `lucid.nn.functional.distillation_loss`, with torch tensors. The
    forward pass keeps a few numbers per token, and only the gradient has the logits' size. Under autocast nothing is
    converted: the arithmetic is float32 whatever dtype arrives.

    Parameters
    ----------
    student_logits, teacher_logits : torch.Tensor
        (..., V), any strides, each float16, bfloat16, float32 or float64. Gradients flow to both.
    weight, labels : torch.Tensor, optional
        A factor (bool or floating) and a label (int32 or int64) of each token: of shape (...).
    normalizer : float or torch.Tensor, optional
        What 'mean' or 'batchmean' divide by instead, as the ``num_items_in_batch`` of gradient accumulation; where no
        token counts it may be 0. To `torch.compile` an int or a tensor may be another one at each call; floats, here
        and in other options, are constants of a graph.
    inplace_gradient : bool
        Write the student's gradient over its logits in backward, which then needs no memory of that size. PyTorch knows
        that they were changed: going backward through what else needs them is an error. Without effect under
        `torch.compile`, which shares memory out by itself.

    Returns
    -------
    torch.Tensor
        0-d, or (...) for 'none'; float32, or float64 where either is. 0, with a gradient of 0, where no token counts.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If an argument is not what is described there; if gradients of the gradients are asked for.
    IndexError
        If a label is neither a column nor `ignore_index`: at once on the CPU; on a GPU, which nobody waits for here,
        the loss is NaN, and the error comes within `lucid.check_values`.

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
    if torch.compiler.is_compiling() and isinstance(normalizer, int) and isinstance(student_logits, Tensor):
        # A count of tokens differs from step to step, and the compiler takes an operator's numbers for constants.
        normalizer = torch.full((), normalizer, device=student_logits.device)
    options, how, denominator = _loss_args.distillation(
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
        normalizer=normalizer,
        vocab_size=vocab_size,
        inplace_gradient=inplace_gradient,
    )
    in_place = options.inplace_gradient and not torch.compiler.is_compiling()
    if in_place:
        _loss_args.check_writable(student_logits, teacher_logits)
    return of_logits.divergence(
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
        how.reduce,
        how.mean,
        how.count,
        how.normalizer,
    )


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
    r"""The cross-entropy of labels or class probabilities with logits; as `torch.nn.functional.cross_entropy`.

    Per row, with q = softmax(input), c the classes' weights, C their number, ε = `label_smoothing`, and a label y or
    probabilities p:

        loss = (1 − ε)·c_y·(−log q_y) + ε/C·Σ c_v·(−log q_v)
        loss = Σ c_v·((1 − ε)·p_v + ε/C)·(−log q_v)

    The forward pass reads each logit and each probability once and keeps a few numbers per row; only gradients have the
    size of logits. Two things are different from torch's: where no label counts the 'mean' is 0, where torch gives NaN;
    and a class of probability 0 adds exactly 0 where its logit is −inf, where torch gives NaN.

    Parameters
    ----------
    input : torch.Tensor
        Logits of a floating dtype, (C,), (N, C) or (N, C, ...); any strides.
    target : torch.Tensor
        Labels, int32 or int64, of input's shape without the dimension of classes; or class probabilities, of a floating
        dtype and input's shape, which get a gradient where they require one.
    weight : torch.Tensor, optional
        (C,), floating, without a gradient.
    size_average, reduce : bool, optional
        Deprecated, as in torch; where one is given, the two decide instead of `reduction`.
    ignore_index : int
        A label whose logits are not read, and get a zero gradient. With class probabilities leave it out.
    reduction : {'mean', 'none', 'sum'}
        The sum over that of the labels' c_y, or with class probabilities over the number of rows; each row's loss; or
        the sum.
    label_smoothing : float
        From 0 to 1.

    Returns
    -------
    torch.Tensor
        0-d, or of input's shape without the dimension of classes for 'none'; of input's dtype, or that of input and
        probabilities promoted, but float32 for shorter ones under autocast.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If an argument is not what is described above; if gradients of the gradient are asked for.
    IndexError
        As for `distillation_loss`.

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
    how, smoothing = of.reduction, of.label_smoothing
    if of.soft:
        dtype = _autocast(input, torch.promote_types(input.dtype, target.dtype))
        return entropies.soft_cross_entropy(of.logits, of.target, weight, smoothing, how.reduce, how.count, dtype)
    dtype = _autocast(input, input.dtype)
    return entropies.cross_entropy(
        of.logits, of.target, weight, of.ignore_index, smoothing, how.reduce, how.mean, dtype
    )


def _reduction(reduction: str) -> str:
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "mean":
        _warn("reduction 'mean' also divides by the number of columns; the divergence is reduction 'batchmean'")
    return reduction


def _deprecated(size_average: bool | None, reduce: bool | None) -> LabelReduction:
    """The reduction that was meant."""
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


def _autocast(input: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a loss: that of its inputs, but float32 for shorter ones under autocast."""
    if dtype in (torch.float32, torch.float64):
        return dtype
    device = input.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.float32 if enabled else dtype


def _promoted(input: Tensor, target: Tensor) -> torch.dtype:
    """As `torch.result_type`, which the compiler does not trace: a 0-d tensor promotes no other."""
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
