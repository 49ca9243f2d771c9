"""Checks of arguments that functions share: each raises one error that names the argument."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from lucid.tensor import Tensor


def check_tensor(name: str, value: Any) -> None:
    """A lucid Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a lucid Tensor, got {type(value).__name__}")


def check_floating(name: str, value: Any) -> None:
    """A Tensor of a floating dtype."""
    check_tensor(name, value)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """On the device of another Tensor."""
    places = value._like.device, other._like.device  # without looking at values
    if places[0] != places[1]:
        raise RuntimeError(
            f"{name} and {other_name} must be on one device, got {name} on {places[0]} and {other_name} on {places[1]}"
        )


def number(name: str, value: Any, accepted: str, fits: Any) -> float:
    """A real number that fits, as a float; `accepted` says which do."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {accepted}, got {type(value).__name__}")
    if not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{name} must be {accepted}, got {value}")
    return float(value)


def integer(name: str, value: Any) -> int:
    """An integer; a bool is a mix-up of arguments."""
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of some words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
