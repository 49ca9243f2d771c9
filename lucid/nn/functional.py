"""Functions of neural networks, which check their arguments."""

from __future__ import annotations

from lucid import ops
from lucid._arguments import check_bool, check_choice
from lucid._docs import documented, listing
from lucid._loss_args import check_deprecated
from lucid.dtype import float32
from lucid.nn.checks import check_device, check_floating, check_tensor
from lucid.nn.losses import cross_entropy, distillation_loss, linear_cross_entropy, linear_distillation_loss
from lucid.tensor import Tensor
from lucid.typing import REDUCTIONS, Reduction

__all__ = [
    "REDUCTIONS",
    "cross_entropy",
    "distillation_loss",
    "embedding",
    "kl_div",
    "linear",
    "linear_cross_entropy",
    "linear_distillation_loss",
    "log_softmax",
    "relu",
    "softmax",
    "tanh",
]

__dir__ = listing(__all__)


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
    shape = _broadcast(x.shape, target.shape)
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


def softmax(x: Tensor, dim: int | None = None) -> Tensor:
    """Return exp(x) / Σ exp(x) along a dimension.

    Along the last dimension the result is computed when its values are first needed, or not at all where a loss needs
    the logits alone; ``lucid.fusion(False)`` turns that off.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32.
    dim : int, optional
        Dimension along which probabilities add up to 1. Default: the last.

    Returns
    -------
    Tensor
        Of x's shape and dtype. A row of −inf gives NaN.

    Raises
    ------
    TypeError
        If x is no lucid Tensor, or dim no integer.
    IndexError
        If there is no such dimension.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.softmax(lucid.tensor([1.0, 1.0]))
    tensor([0.5, 0.5])
    """
    return ops.softmax(_as_floating(x), _dim(x, dim))


def log_softmax(x: Tensor, dim: int | None = None) -> Tensor:
    """Return x − log Σ exp(x) along a dimension.

    Along the last dimension the result is computed when its values are first needed, or not at all where a loss needs
    the logits alone; ``lucid.fusion(False)`` turns that off.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32.
    dim : int, optional
        Dimension along which probabilities add up to 1. Default: the last.

    Returns
    -------
    Tensor
        Of x's shape and dtype. A row of −inf gives NaN.

    Raises
    ------
    TypeError
        If x is no lucid Tensor, or dim no integer.
    IndexError
        If there is no such dimension.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.log_softmax(lucid.tensor([0.0, 0.0]), dim=0)
    tensor([-0.6931, -0.6931])
    """
    return ops.softmax(_as_floating(x), _dim(x, dim), log=True)


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


def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """Return rows of a table by their indices.

    Parameters
    ----------
    indices : Tensor
        int32 or int64, any shape.
    weight : Tensor
        (rows, width), floating.

    Returns
    -------
    Tensor
        (*indices.shape, width).

    Raises
    ------
    TypeError
        If indices are no integers, or weight not floating.
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
    return ops.embedding(indices, weight)


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent of each element.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides. Integers become float32.

    Returns
    -------
    Tensor
        Of x's shape and dtype.

    Raises
    ------
    TypeError
        If x is no lucid Tensor.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.tanh(lucid.tensor([0.5, 1.0]))
    tensor([0.4621, 0.7616])
    """
    check_tensor("x", x)
    return ops.tanh(x)


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0) of each element.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides.

    Returns
    -------
    Tensor
        Of x's shape and dtype.

    Raises
    ------
    TypeError
        If x is no lucid Tensor.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.relu(lucid.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    check_tensor("x", x)
    return ops.relu(x)


def _as_floating(x: Tensor) -> Tensor:
    check_tensor("x", x)
    return x if x.dtype.is_floating_point else x.to(float32)


def _dim(x: Tensor, dim: int | None) -> int:
    return ops.memory.wrap_dim(x, -1 if dim is None else dim)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    shape = []
    for i in range(1, max(len(a), len(b)) + 1):
        m, n = (a[-i] if i <= len(a) else 1), (b[-i] if i <= len(b) else 1)
        if m != n and 1 not in (m, n):
            return None
        shape.append(n if m == 1 else m)
    return tuple(reversed(shape))
