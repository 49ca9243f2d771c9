"""Text representation of tensors."""

from __future__ import annotations

import math

import numpy as np

from lucid.device import get_default_device
from lucid.tensor import Tensor


def tensor_repr(tensor: Tensor) -> str:
    """The values, then the device unless it is the default, the dtype unless float32, and requires_grad if so.

    Examples
    --------
    >>> import lucid
    >>> lucid.tensor([1.0, 2.5], dtype="float64", requires_grad=True)
    tensor([1., 2.5], dtype=lucid.float64, requires_grad=True)
    """
    parts = [_values(tensor._numpy_compatible().numpy())]
    if tensor.device != get_default_device():
        parts.append(f"device='{tensor.device}'")
    if tensor.dtype.name != "float32":
        parts.append(f"dtype={tensor.dtype!r}")
    if tensor.requires_grad:
        parts.append("requires_grad=True")
    return f"tensor({', '.join(parts)})"


def _values(array: np.ndarray) -> str:
    if array.size == 0:
        return "[]" if array.ndim == 1 else f"[], shape={array.shape}"
    return np.array2string(array, separator=", ", prefix="tensor(", formatter={"float_kind": _number}, threshold=1000)


def _number(value: np.floating) -> str:
    magnitude = abs(float(value))  # the limits would overflow in float16
    if not math.isfinite(magnitude):
        return str(value)
    if magnitude and not 1e-4 <= magnitude < 1e8:
        return np.format_float_scientific(value, precision=4, trim=".")
    return np.format_float_positional(value, precision=4, trim=".")
