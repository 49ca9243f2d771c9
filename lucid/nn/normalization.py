"""Normalizations, which `lucid.nn.functional` exports."""

from __future__ import annotations

from collections.abc import Sequence

from lucid import ops
from lucid._arguments import check_int, check_real
from lucid.dtype import float32
from lucid.nn.checks import check_device, check_floating
from lucid.tensor import Tensor


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
        At least 0; by default the distance of 1 from the next number of float32, or of float64 where x is.

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
        eps = (x.dtype if x.dtype.itemsize > 2 else float32).eps
    eps = check_real("eps", eps, "a number of at least 0", lambda e: e >= 0)
    return ops.normalize(x, weight, None, len(sizes), eps, centred=False)


def normalized_sizes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of normalized dimensions; raise unless they are positive ints."""
    given = normalized_shape if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
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
