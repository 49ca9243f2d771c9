"""Filling tensors with initial values, in place, from the generator that ``lucid.manual_seed`` seeds.

As in torch, leaves that require grad may be filled, and nothing is recorded.
"""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Literal

import numpy as np

from lucid._arguments import check_choice, check_real, type_name
from lucid._docs import left_out, listing
from lucid.ops import random
from lucid.tensor import Tensor

__all__ = [
    "calculate_gain",
    "constant_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

__dir__ = listing(__all__)

if not TYPE_CHECKING:
    __getattr__ = left_out(__name__)

#: Gains of activations: factors that keep the variance of what a layer passes on.
_GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}

Mode = Literal["fan_in", "fan_out"]


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the recommended gain of an activation, a factor on the standard deviation of weights.

    1 for 'linear' and 'sigmoid', 5/3 for 'tanh', √2 for 'relu', 3/4 for 'selu', √(2 / (1 + a²)) for
    'leaky_relu' of negative slope a (He et al. 2015, "Delving deep into rectifiers", eq. 15).

    Parameters
    ----------
    nonlinearity : str
        One of these names.
    param : float, optional
        The slope a of 'leaky_relu', 0.01 by default; an error for others.

    Raises
    ------
    ValueError
        If there is no such activation, or it has no `param`.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.init.calculate_gain("tanh")
    1.6666666666666667
    """
    check_choice("nonlinearity", nonlinearity, (*_GAINS, "leaky_relu"))
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else _number("param", param)
        return math.sqrt(2 / (1 + slope**2))
    if param is not None:
        raise ValueError(f"param must be None for {nonlinearity!r}, which has no parameter, got {param!r}")
    return _GAINS[nonlinearity]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fill `tensor` from the uniform distribution between a and b: a + (b − a)·u, u in [0, 1).

    Parameters
    ----------
    tensor : Tensor
        Floating, any shape and strides.
    a, b : float
        The bounds.

    Returns
    -------
    Tensor
        `tensor` itself.

    Raises
    ------
    TypeError
        If `tensor` is no floating Tensor, or a bound no number.
    ValueError
        If `a` is above `b`, or one is not finite.
    RuntimeError
        If `tensor` is expanded: several elements in one place of memory.
    """
    _check_floating(tensor)
    low, high = _number("a", a), _number("b", b)
    if not low <= high:
        raise ValueError(f"uniform_ expects a <= b, got a={a} and b={b}")
    return random.uniform_(tensor, low, high)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill `tensor` from the normal distribution.

    Parameters
    ----------
    tensor : Tensor
        Floating, any shape and strides.
    mean, std : float
        The mean and the standard deviation.

    Returns
    -------
    Tensor
        `tensor` itself.

    Raises
    ------
    TypeError
        If `tensor` is no floating Tensor, or `mean` or `std` no number.
    ValueError
        If `std` is negative, or one is not finite.
    RuntimeError
        If `tensor` is expanded.
    """
    _check_floating(tensor)
    return random.normal_(tensor, _number("mean", mean), _std("normal_", std))


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fill `tensor` from the normal distribution, truncated to [a, b]: Φ⁻¹ of numbers between Φ(a) and Φ(b).

    Parameters
    ----------
    tensor : Tensor
        Floating, any shape and strides.
    mean, std : float
        Mean and standard deviation of the distribution before it is truncated.
    a, b : float
        The bounds; they may be infinite.

    Returns
    -------
    Tensor
        `tensor` itself.

    Raises
    ------
    TypeError
        If `tensor` is no floating Tensor, or one of the others no number.
    ValueError
        If `std` is not positive, or the distribution has nothing between `a` and `b`.
    RuntimeError
        If `tensor` is expanded.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.nn.init.trunc_normal_(lucid.empty(100), std=0.02, a=-0.01, b=0.01)
    >>> bool((abs(x.numpy()) <= 0.01).all())
    True
    """
    _check_floating(tensor)
    center, spread = _number("mean", mean), _std("trunc_normal_", std)
    low, high = (value if math.isinf(value) else _number(name, value) for name, value in (("a", a), ("b", b)))
    if not (spread > 0 and low < high and random.normal_probability(center, spread, low, high) > 0):
        raise ValueError(
            f"trunc_normal_ expects std > 0 and bounds with a part of the distribution between them, got mean={mean}, "
            f"std={std}, a={a} and b={b}"
        )
    return random.normal_(tensor, center, spread, low, high)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill `tensor`, of any shape and dtype, with a number and return it.

    Raises
    ------
    TypeError
        If `tensor` is no Tensor, or `val` no number.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.init.constant_(lucid.empty(2), 0.5)
    tensor([0.5, 0.5])
    """
    _check_tensor(tensor)
    if not isinstance(val, bool | np.generic | numbers.Real):
        raise TypeError(f"val must be a number, got {type_name(val)}")
    tensor._buffer_for_write().fill_(val)
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Fill `tensor`, of any shape and dtype, with zeros and return it.

    Raises
    ------
    TypeError
        If `tensor` is no Tensor.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.init.zeros_(lucid.tensor([1.0, 2.0]))
    tensor([0., 0.])
    """
    return constant_(tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill `tensor`, of any shape and dtype, with ones and return it.

    Raises
    ------
    TypeError
        If `tensor` is no Tensor.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.init.ones_(lucid.tensor([0.0, 2.0]))
    tensor([1., 1.])
    """
    return constant_(tensor, 1)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill `tensor` uniformly between ±gain·√(6 / (fan_in + fan_out)).

    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, eq. 16.

    Parameters
    ----------
    tensor : Tensor
        Floating, (out, in) or (out, in, ...): fan_in is the number of elements per entry of the first dimension,
        fan_out that per entry of the second.
    gain : float
        See `calculate_gain`.

    Raises
    ------
    TypeError, RuntimeError
        As for `uniform_`.
    ValueError
        If `tensor` has fewer than two dimensions.

    Examples
    --------
    >>> import lucid
    >>> weight = lucid.nn.init.xavier_uniform_(lucid.empty(3, 3))
    >>> bool((abs(weight.numpy()) <= 1).all())
    True
    """
    bound = _xavier_std(tensor, gain) * math.sqrt(3)
    return random.uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill `tensor` from the normal distribution, of standard deviation gain·√(2 / (fan_in + fan_out)).

    Source, parameters and errors as for `xavier_uniform_`.
    """
    return random.normal_(tensor, 0.0, _xavier_std(tensor, gain))


def kaiming_uniform_(tensor: Tensor, a: float = 0, mode: Mode = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Fill `tensor` uniformly between ±gain·√(3 / fan).

    K. He et al., "Delving deep into rectifiers", 2015, eq. 10.

    Parameters
    ----------
    tensor : Tensor
        Floating, (out, in) or (out, in, ...), as for `xavier_uniform_`.
    a : float
        Negative slope of 'leaky_relu'; ignored for other activations, as in torch.
    mode : {'fan_in', 'fan_out'}
        Which fan: 'fan_in' keeps variances in the forward pass, 'fan_out' in the backward pass.
    nonlinearity : str
        Which gain, see `calculate_gain`.

    Raises
    ------
    TypeError, RuntimeError
        As for `uniform_`.
    ValueError
        If `tensor` has fewer than two dimensions; if there is no such mode or activation.

    Examples
    --------
    >>> import lucid
    >>> weight = lucid.nn.init.kaiming_uniform_(lucid.empty(5, 6))
    >>> bool((abs(weight.numpy()) <= 1).all())
    True
    """
    bound = _kaiming_std(tensor, a, mode, nonlinearity) * math.sqrt(3)
    return random.uniform_(tensor, -bound, bound)


def kaiming_normal_(tensor: Tensor, a: float = 0, mode: Mode = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Fill `tensor` from the normal distribution, of standard deviation gain / √fan.

    Source, parameters and errors as for `kaiming_uniform_`.
    """
    return random.normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def _xavier_std(tensor: Tensor, gain: float) -> float:
    fan_in, fan_out = _fans(tensor)
    return _number("gain", gain) * math.sqrt(2 / max(fan_in + fan_out, 1))


def _kaiming_std(tensor: Tensor, a: float, mode: Mode, nonlinearity: str) -> float:
    fan_in, fan_out = _fans(tensor)
    check_choice("mode", mode, ("fan_in", "fan_out"))
    slope = _number("a", a)
    gain = calculate_gain(nonlinearity, slope if nonlinearity == "leaky_relu" else None)
    return gain / math.sqrt(max(fan_in if mode == "fan_in" else fan_out, 1))


def _fans(tensor: Tensor) -> tuple[int, int]:
    _check_floating(tensor)
    if tensor.ndim < 2:
        raise ValueError(f"tensor must have at least two dimensions for fans in and out, got shape {tensor.shape}")
    receptive_field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * receptive_field, tensor.shape[0] * receptive_field


def _number(name: str, value: float) -> float:
    return check_real(name, value, "a finite number", lambda _: True)


def _std(function: str, value: float) -> float:
    std = _number("std", value)
    if not std >= 0:
        raise ValueError(f"{function} expects std >= 0, got {value}")
    return std


def _check_tensor(tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a lucid.Tensor, got {type_name(tensor)}")


def _check_floating(tensor: Tensor) -> None:
    _check_tensor(tensor)
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"tensor must be of a floating dtype, got {tensor.dtype}")
