"""Checks of constructor arguments shared by layers, and allocation of parameters."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import numpy as np
import torch

from lucid.device import device as Device
from lucid.device import get_default_device
from lucid.dtype import dtype as DType
from lucid.dtype import float32
from lucid.nn.parameter import Parameter
from lucid.tensor import Tensor

__all__ = ["empty_parameter", "optional_dim", "positive_int"]


def _as_int(name: str, value: SupportsIndex, accepted: str) -> int:
    # A bool is an int to Python, and a mix-up of arguments to everyone else.
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be {accepted}, got {type(value).__name__}")


def positive_int(name: str, value: SupportsIndex) -> int:
    """Return `value` as an int, or raise an error that names the argument."""
    size = _as_int(name, value, "an int")
    if size <= 0:
        raise ValueError(f"{name} must be positive, got {size}")
    return size


def optional_dim(value: SupportsIndex | None) -> int | None:
    """Return the dimension `value` as an int, or None where it is None."""
    return None if value is None else _as_int("dim", value, "an int or None")


def empty_parameter(*shape: int, device: str | Device | None, dtype: str | DType | None) -> Parameter:
    """Return a parameter that is still to be filled in; None means float32 and the default device."""
    kind = float32 if dtype is None else DType.of(dtype)
    if not kind.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype, got {kind}")
    place = get_default_device() if device is None else Device(device)
    return Parameter(Tensor._wrap(torch.empty(shape, dtype=kind.torch, device=place.torch)))
