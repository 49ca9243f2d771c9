"""Filling tensors with initial values, in place, from the generator that ``lucid.manual_seed`` seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lucid._arguments import type_name
from lucid._docs import listing
from lucid.random import generator
from lucid.tensor import Tensor

__all__ = ["normal_", "uniform_", "zeros_"]

__dir__ = listing(__all__)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fill `tensor` from the uniform distribution between a and b.

    Parameters
    ----------
    tensor : Tensor
        Floating, any shape.
    a, b : float
        The bounds.

    Returns
    -------
    Tensor
        `tensor` itself.

    Raises
    ------
    TypeError
        If `tensor` is no floating Tensor.
    ValueError
        If `a` is above `b`.
    """
    draw_dtype = _draw_dtype(tensor)
    if not a <= b:
        raise ValueError(f"uniform_ expects a <= b, got a={a} and b={b}")
    return _fill(tensor, generator().random(tensor.shape, dtype=draw_dtype), b - a, a)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill `tensor` from the normal distribution.

    Parameters
    ----------
    tensor : Tensor
        Floating, any shape.
    mean, std : float
        The mean and the standard deviation.

    Returns
    -------
    Tensor
        `tensor` itself.

    Raises
    ------
    TypeError
        If `tensor` is no floating Tensor.
    ValueError
        If `std` is negative.
    """
    draw_dtype = _draw_dtype(tensor)
    if not std >= 0:
        raise ValueError(f"normal_ expects std >= 0, got {std}")
    return _fill(tensor, generator().standard_normal(tensor.shape, dtype=draw_dtype), std, mean)


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
    _check_tensor(tensor)
    tensor._buffer_for_write().zero_()
    return tensor


def _check_tensor(tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a lucid.Tensor, got {type_name(tensor)}")


def _draw_dtype(tensor: Tensor) -> type[np.float32] | type[np.float64]:
    """Return what to draw in: single precision, as it halves the array, but for float64."""
    _check_tensor(tensor)
    if not tensor._buffer.is_floating_point():
        raise TypeError(f"tensor must be of a floating dtype, got {tensor.dtype}")
    return np.float64 if tensor._buffer.dtype == torch.float64 else np.float32


def _fill(tensor: Tensor, values: np.ndarray[Any, Any], scale: float, shift: float) -> Tensor:
    values *= scale
    values += shift
    tensor._buffer_for_write().copy_(torch.from_numpy(values))
    return tensor
