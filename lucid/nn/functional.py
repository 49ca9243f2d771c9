"""Functions of neural networks, which check their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lucid import ops
from lucid._arguments import accepts_axis, check_bool, check_choice, check_int, check_real
from lucid._docs import documented, left_out, listing
from lucid._loss_args import check_deprecated
from lucid.dtype import float32
from lucid.nn.checks import check_device, check_floating, check_probability, check_tensor
from lucid.nn.losses import cross_entropy, distillation_loss, linear_cross_entropy, linear_distillation_loss
from lucid.ops.arithmetic import gelu, relu, sigmoid, silu, tanh
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


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Layer normalization, (x − mean)/√(var + eps)·weight + bias, over the last dimensions.

    (J. Ba, J. Kiros and G. Hinton, "Layer normalization", 2016.) Forward and backward are one kernel each; further
    launches sum the gradients of weight and bias. The arithmetic is float32, or float64.

    Parameters
    ----------
    x : Tensor
        Floating, of any strides.
    normalized_shape : int or sequence of int
        Sizes of the last dimensions, over which mean and variance are.
    weight, bias : Tensor, optional
        Of these sizes, and any floating dtype.
    eps : float
        At least 0. Default: 1e-5.

    Returns
    -------
    Tensor
        Of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, or eps negative.
    RuntimeError
        If shapes or devices do not fit.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.layer_norm(lucid.tensor([[1.0, 3.0]]), 2)
    tensor([[-1., 1.]])
    """
    sizes = _check_normalized("layer_norm", x, normalized_shape, weight=weight, bias=bias)
    eps = check_real("eps", eps, "a number of at least 0", lambda e: e >= 0)
    return ops.normalize(x, weight, bias, len(sizes), eps, centred=True)


def rms_norm(
    x: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    r"""Normalization by the root mean square, x/√(mean x² + eps)·weight, over the last dimensions.

    (B. Zhang and R. Sennrich, "Root mean square layer normalization", 2019.) Forward and backward are one kernel
    each; a further launch sums the gradient of the weight. The arithmetic is float32, or float64.

    Parameters
    ----------
    x : Tensor
        Floating, of any strides.
    normalized_shape : int or sequence of int
        Sizes of the last dimensions, over which the mean is.
    weight : Tensor, optional
        Of these sizes, and any floating dtype.
    eps : float, optional
        At least 0; by default the distance of 1 from the next number of x's dtype.

    Returns
    -------
    Tensor
        Of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, or eps negative.
    RuntimeError
        If shapes or devices do not fit.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> F.rms_norm(lucid.tensor([[3.0, 4.0]]), 2, lucid.tensor([5.0, 5.0]))
    tensor([[4.2426, 5.6569]])
    """
    sizes = _check_normalized("rms_norm", x, normalized_shape, weight=weight)
    if eps is None:
        eps = x.dtype.eps
    eps = check_real("eps", eps, "a number of at least 0", lambda e: e >= 0)
    return ops.normalize(x, weight, None, len(sizes), eps, centred=False)


def normalized_sizes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of normalized dimensions; raise unless they are positive ints."""
    given = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    sizes = tuple(check_int("normalized_shape", size) for size in given)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"normalized_shape must be one or more positive ints, got {normalized_shape}")
    return sizes


def _check_normalized(
    name: str, x: Tensor, normalized_shape: int | Sequence[int], **parameters: Tensor | None
) -> tuple[int, ...]:
    check_floating("x", x)
    sizes = normalized_sizes(normalized_shape)
    if x.shape[x.ndim - len(sizes) :] != sizes or x.ndim < len(sizes):
        raise RuntimeError(f"x of {name} must have the last dimensions {sizes}, got shape {x.shape}")
    for argument, parameter in parameters.items():
        if parameter is None:
            continue
        check_floating(argument, parameter)
        check_device("x", x, argument, parameter)
        if parameter.shape != sizes:
            raise RuntimeError(f"{argument} of {name} must have shape {sizes}, got {parameter.shape}")
    return sizes


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
    squares = ops.square(ops.sub(x, target))
    if reduction == "none":
        return squares
    return ops.mean(squares) if reduction == "mean" else ops.sum(squares)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    r"""Attention of queries to keys, softmax(scale·query·keyᵀ + attn_mask)·value.

    (A. Vaswani et al., "Attention is all you need", 2017, eq. 1.) Without a mask and dropout, forward and backward are
    fused: scores are never in memory, and backward computes them again.

    Parameters
    ----------
    query, key, value : Tensor
        (..., L, E), (..., S, E) and (..., S, D), of one floating dtype, any strides. Leading dimensions broadcast.
    attn_mask : Tensor, optional
        That broadcasts to (..., L, S): of bool_, whether a query sees a key; floating, what is added to the scores. A
        query that sees no key gets 0.
    dropout_p : float
        Probability with which a weight is zeroed; applied whenever it is above 0. Default: 0.
    is_causal : bool
        Query i sees keys 0 to i. Default: False.
    scale : float, optional
        Default: 1/√E.

    Returns
    -------
    Tensor
        (..., L, D), of the same dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument is no lucid Tensor of the right dtype; if dropout_p is not from 0 to 1, or scale not finite.
    RuntimeError
        If dtypes, devices or shapes do not fit, or there is a mask, and attention is causal.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> x = lucid.tensor([[1.0], [3.0]])
    >>> F.scaled_dot_product_attention(lucid.zeros(2, 1), x, x, is_causal=True)
    tensor([[1.],
            [2.]])
    """
    operands = {"query": query, "key": key, "value": value}
    for name, tensor in operands.items():
        check_floating(name, tensor)
        check_device("query", query, name, tensor)
        if tensor.dtype != query.dtype:
            raise RuntimeError(f"query and {name} must have one dtype, got {query.dtype} and {tensor.dtype}")
        if tensor.ndim < 2:
            raise RuntimeError(f"{name} must have at least two dimensions, got shape {tensor.shape}")
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise RuntimeError(
            f"query (..., L, E), key (..., S, E) and value (..., S, D) must fit, got {query.shape}, {key.shape} and "
            f"{value.shape}"
        )
    lead = _broadcast(query.shape[:-2], key.shape[:-2])
    lead = None if lead is None else _broadcast(lead, value.shape[:-2])
    if lead is None:
        raise RuntimeError(
            "query, key and value must have leading dimensions that broadcast, got shapes "
            f"{query.shape}, {key.shape} and {value.shape}"
        )
    check_bool("is_causal", is_causal)
    p = check_real("dropout_p", dropout_p, "a number from 0 to 1", lambda p: 0 <= p <= 1)
    factor = 1 / max(query.shape[-1], 1) ** 0.5
    if scale is not None:
        factor = check_real("scale", scale, "a finite number", lambda _: True)
    if attn_mask is not None:
        if is_causal:
            raise RuntimeError("attn_mask must be None where is_causal is True, got both")
        check_tensor("attn_mask", attn_mask)
        check_device("query", query, "attn_mask", attn_mask)
        if not attn_mask.dtype.is_floating_point and attn_mask.dtype.name != "bool_":
            raise TypeError(f"attn_mask must be of bool_ or a floating dtype, got {attn_mask.dtype}")
        scores = (*lead, query.shape[-2], key.shape[-2])
        if _broadcast(attn_mask.shape, scores) != scores:
            raise RuntimeError(f"attn_mask must have a shape that broadcasts to {scores}, got {attn_mask.shape}")
    return ops.attention(query, key, value, attn_mask, p, is_causal, factor)


@accepts_axis
def softmax(x: Tensor, dim: int | None = None) -> Tensor:
    """Return exp(x) / Σ exp(x) along a dimension.

    Along the last dimension the result is computed when its values are first needed, or not at all where a loss needs
    the logits alone; ``lucid.fusion(False)`` turns that off.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32.
    dim : int, optional
        Dimension along which probabilities add up to 1; ``axis`` is accepted, too. Default: the last.

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


@accepts_axis
def log_softmax(x: Tensor, dim: int | None = None) -> Tensor:
    """Return x − log Σ exp(x) along a dimension.

    Along the last dimension the result is computed when its values are first needed, or not at all where a loss needs
    the logits alone; ``lucid.fusion(False)`` turns that off.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32.
    dim : int, optional
        Dimension along which probabilities add up to 1; ``axis`` is accepted, too. Default: the last.

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
