"""Text representation of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    formatter: Callable[[np.floating], str] = _number
    if array.ndim > 1 and array.size > array.shape[-1] and array.dtype.kind == "f":
        formatter = _aligned(array)
    return np.array2string(
        array, separator=", ", prefix="tensor(", formatter={"float_kind": formatter}, threshold=_MOST
    )


#: Tensors of more elements are shown in part.
_MOST = 1000


def _aligned(array: np.ndarray) -> Callable[[np.floating], str]:
    """Return a formatter that pads numbers so that their decimal points are below each other."""
    shown = array.reshape(-1) if array.size <= _MOST else array[np.ix_(*map(_ends, array.shape))].reshape(-1)
    parts = [_split(_number(value)) for value in shown]
    after = max(len(fraction) for _, fraction in parts)
    before = max(len(whole) if fraction else len(whole) - after for whole, fraction in parts)

    def aligned(value: np.floating) -> str:
        whole, fraction = _split(_number(value))
        return whole.rjust(before) + fraction.ljust(after) if fraction else whole.rjust(before + after)

    return aligned


def _ends(size: int) -> list[int]:
    """The indices along a dimension that are shown of a large tensor."""
    return list(range(size)) if size <= 6 else [0, 1, 2, -3, -2, -1]


def _split(number: str) -> tuple[str, str]:
    whole, point, fraction = number.partition(".")
    return whole, point + fraction


def _number(value: np.floating) -> str:
    magnitude = abs(float(value))  # the limits would overflow in float16
    if not math.isfinite(magnitude):
        return str(value)
    if magnitude and not 1e-4 <= magnitude < 1e8:
        return np.format_float_scientific(value, precision=4, trim=".")
    return np.format_float_positional(value, precision=4, trim=".")
