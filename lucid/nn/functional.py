"""Functions of neural networks, which check their arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lucid import ops
from lucid._arguments import accepts_axis, check_bool, check_choice, check_int
from lucid._docs import documented, left_out, listing
from lucid._loss_args import check_deprecated
from lucid.dtype import dtype as DType
from lucid.dtype import float32
from lucid.nn.attention import scaled_dot_product_attention
from lucid.nn.checks import broadcast_shape, check_device, check_floating, check_probability, check_tensor
from lucid.nn.losses import cross_entropy, distillation_loss, linear_cross_entropy, linear_distillation_loss
from lucid.nn.normalization import layer_norm, rms_norm
from lucid.ops.arithmetic import gelu, relu, sigmoid, silu, tanh
from lucid.ops.autocast import loss_operands
from lucid.tensor import Tensor
from lucid.typing import LABEL_REDUCTIONS, REDUCTIONS, LabelReduction, Reduction

__all__ = [
    "REDUCTIONS",
    "cross_entropy",
    "distillation_loss",
    "dropout",
    "embedding",
    "gelu",
    "kl_div",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_distillation_loss",
    "log_softmax",
    "mse_loss",
    "relu",
    "rms_norm",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
]

__dir__ = listing(__all__)

if not TYPE_CHECKING:
    __getattr__ = left_out(__name__)


@documented
def kl_div(
    x: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduction: Reduction = "mean",
    log_target: bool = False,
) -> Tensor:
    r"""Kullback-Leibler divergence of a target distribution from a predicted one.

    Per element, with p the target's probability, y = target and x the predicted log-probability:

    {kl_div_formula}

    Reduced, of a `log_softmax` and a `softmax` (or `log_softmax`) over the last dimension of logits of one shape, it is
    computed from the logits: faster, in less memory, and without rounding in between. ``lucid.fusion(False)`` turns
    that off.

    Parameters
    ----------
    x : Tensor
        {log_probabilities}
    {kl_div_target}
    size_average : bool, optional
        Part of the documented signature; ignored.
    {kl_div_reduction}
    {log_target}

    Returns
    -------
    {kl_div_returns}
        Inside ``lucid.amp.autocast`` it is at least float32.

    Raises
    ------
    ValueError
        If `reduction` is another word.
    TypeError
        If x or target is no lucid Tensor of a floating dtype; if log_target is no bool.
    RuntimeError
        If they are on different devices, or do not broadcast; if x is 0-d and reduction 'batchmean'.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> x = F.log_softmax(lucid.tensor([[0.5, 1.0, 0.2]]), dim=1)
    >>> target = F.softmax(lucid.tensor([[0.3, 0.9, 0.4]]), dim=1)
    >>> f"{F.kl_div(x, target, reduction='batchmean').item():.6f}"
    '0.011704'
    """
    check_deprecated("size_average", size_average)
    check_choice("reduction", reduction, REDUCTIONS)
    check_bool("log_target", log_target)
    check_floating("x", x)
    check_floating("target", target)
    check_device("x", x, "target", target)
    shape = broadcast_shape(x.shape, target.shape)
    if shape is None:
        raise RuntimeError(f"x and target must have shapes that broadcast, got x {x.shape} and target {target.shape}")
    count = 1
    if reduction == "mean":
        for size in shape:
            count *= size
    elif reduction == "batchmean":
        if not x.ndim:
            raise RuntimeError("reduction 'batchmean' divides by x.shape[0], so x must have a dimension, got shape ()")
        count = x.shape[0]
    # A sum over nothing is 0, and 0·inf is the NaN of 0 / 0.
    scale = 1 / count if count else float("inf")
    return ops.kl_div(x, target, log_target=bool(log_target), reduce=reduction != "none", scale=scale)


def mse_loss(x: Tensor, target: Tensor, reduction: LabelReduction = "mean") -> Tensor:
    """Return the squared difference (x − target)² of each element, or its mean or sum.

    Parameters
    ----------
    x, target : Tensor
        Of shapes that broadcast, on one device.
    reduction : {'mean', 'none', 'sum'}
        The mean over all elements, each by itself, or their sum.

    Returns
    -------
    Tensor
        0-d, or of the broadcast shape for 'none'; of the promoted dtype.

    Raises
    ------
    ValueError
        If `reduction` is another word.
    TypeError, RuntimeError
        If x or target is no lucid Tensor of a floating dtype; if devices or shapes do not fit.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.functional.mse_loss(lucid.tensor([1.0, 2.0]), lucid.tensor([3.0, 2.0]))
    tensor(2.)
    """
    check_choice("reduction", reduction, LABEL_REDUCTIONS)
    check_floating("x", x)
    check_floating("target", target)
    squares = ops.square(ops.sub(*loss_operands(x, target)))
    if reduction == "none":
        return squares
    return ops.mean(squares) if reduction == "mean" else ops.sum(squares)


@accepts_axis
def softmax(x: Tensor, dim: int | None = None, dtype: DType | str | None = None) -> Tensor:
    """Return exp(x) / Σ exp(x) along a dimension.

    Along the last dimension the result is computed when its values are first needed, or not at all where a loss needs
    the logits alone; ``lucid.fusion(False)`` turns that off.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32.
    dim : int, optional
        Dimension along which probabilities add up to 1; ``axis`` is accepted, too. Default: the last.
    dtype : dtype or str, optional
        Floating dtype that x is converted to first. Default: its own.

    Returns
    -------
    Tensor
        Of x's shape and dtype, or of `dtype`. A row of −inf gives NaN.

    Raises
    ------
    TypeError
        If x is no lucid Tensor, dim no integer or `dtype` not floating.
    IndexError
        If there is no such dimension.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.softmax(lucid.tensor([1.0, 1.0]))
    tensor([0.5, 0.5])
    """
    return ops.softmax(_as_floating(x, dtype), _dim(x, dim))


@accepts_axis
def log_softmax(x: Tensor, dim: int | None = None, dtype: DType | str | None = None) -> Tensor:
    """Return x − log Σ exp(x) along a dimension.

    Along the last dimension the result is computed when its values are first needed, or not at all where a loss needs
    the logits alone; ``lucid.fusion(False)`` turns that off.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32.
    dim : int, optional
        Dimension along which probabilities add up to 1; ``axis`` is accepted, too. Default: the last.
    dtype : dtype or str, optional
        Floating dtype that x is converted to first. Default: its own.

    Returns
    -------
    Tensor
        Of x's shape and dtype, or of `dtype`. A row of −inf gives NaN.

    Raises
    ------
    TypeError
        If x is no lucid Tensor, dim no integer or `dtype` not floating.
    IndexError
        If there is no such dimension.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.log_softmax(lucid.tensor([0.0, 0.0]), dim=0)
    tensor([-0.6931, -0.6931])
    """
    return ops.softmax(_as_floating(x, dtype), _dim(x, dim), log=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·weightᵀ + bias.

    Parameters
    ----------
    x : Tensor
        (..., in), of a floating dtype.
    weight : Tensor
        (out, in), of the same dtype: nothing is converted silently.
    bias : Tensor, optional
        (out,), of the same dtype. Default: none.

    Returns
    -------
    Tensor
        (..., out).

    Raises
    ------
    TypeError, RuntimeError
        If they are no lucid Tensors of a floating dtype; if dtypes, devices or shapes do not fit.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.linear(lucid.tensor([[1.0, 2.0]]), lucid.tensor([[3.0, 4.0]]), lucid.tensor([0.5]))
    tensor([[11.5]])
    """
    return ops.linear(x, weight, bias)


def embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Return rows of a table by their indices.

    Parameters
    ----------
    indices : Tensor
        int32 or int64, any shape.
    weight : Tensor
        (rows, width), floating.
    padding_idx : int, optional
        A row that gets no gradient; counted from the end if negative. Default: none.

    Returns
    -------
    Tensor
        (*indices.shape, width).

    Raises
    ------
    TypeError, ValueError
        If indices are no integers, weight not floating, or `padding_idx` no row.
    IndexError
        If an index lies outside the table: at once on the CPU. On a GPU, when values are next read back (``.item()``,
        ``.numpy()``, printing), until when the row is NaN; within ``lucid.check_values()`` the call waits and raises.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.embedding(lucid.tensor([1, 0]), lucid.tensor([[1.0], [2.0]]))
    tensor([[2.],
            [1.]])
    """
    check_tensor("indices", indices)
    if indices.dtype.name not in ("int32", "int64"):
        raise TypeError(f"indices must be int32 or int64, got {indices.dtype}")
    check_floating("weight", weight)
    if weight.ndim != 2:
        raise RuntimeError(f"weight must have shape (rows, width), got {weight.shape}")
    if indices._buffer.device != weight._buffer.device:
        raise RuntimeError(f"indices and weight must be on one device, got {indices.device} and {weight.device}")
    return ops.embedding(indices, weight, padding_row(padding_idx, weight.shape[0]))


def padding_row(padding_idx: int | None, rows: int) -> int | None:
    """Return the number of the row that gets no gradient; raise unless there is one of that number."""
    if padding_idx is None:
        return None
    row = check_int("padding_idx", padding_idx)
    if not -rows <= row < rows:
        raise ValueError(f"padding_idx must lie in {-rows} to {rows - 1}, got {padding_idx}")
    return row % rows


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Return x / (1 − p), with each element set to 0 at a probability of p.

    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014, in the inverted
    form: evaluation needs no scaling. The mask is not stored; backward computes it again, from the generator's seed and
    counters. It depends on these and on the position in x alone, not on the device.

    Parameters
    ----------
    x : Tensor
        Floating, any shape and strides.
    p : float
        From 0 to 1. Default: 0.5.
    training : bool
        Where False, or where p is 0, x itself is returned. Default: True.

    Returns
    -------
    Tensor
        Of x's shape and dtype. A dropped element is 0, also where x is infinite or NaN.

    Raises
    ------
    TypeError
        If x is no lucid Tensor of a floating dtype, p no number, or training no bool.
    ValueError
        If p is not from 0 to 1.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> sorted(set(F.dropout(lucid.ones(100), p=0.75).tolist()))
    [0.0, 4.0]
    """
    check_floating("x", x)
    check_bool("training", training)
    probability = check_probability("p", p)
    return ops.dropout(x, probability) if training and probability > 0 else x


def _as_floating(x: Tensor, dtype: DType | str | None) -> Tensor:
    check_tensor("x", x)
    if dtype is not None:
        x = x.to(dtype=dtype)
        if not x.dtype.is_floating_point:
            raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {x.dtype}")
    return x if x.dtype.is_floating_point else x.to(float32)


def _dim(x: Tensor, dim: int | None) -> int:
    return ops.memory.wrap_dim(x, -1 if dim is None else dim)
