"""Element types: singletons named as in NumPy and torch."""

from __future__ import annotations

import builtins

import numpy as np
import torch


class dtype:
    """An element type.

    Attributes
    ----------
    name : str
    torch : torch.dtype
        The buffer's type.
    itemsize : int
        Bytes per element.
    is_floating_point : bool

    Examples
    --------
    >>> import lucid
    >>> lucid.float32
    lucid.float32
    >>> lucid.dtype.of("half") is lucid.float16
    True
    """

    __slots__ = ("is_floating_point", "itemsize", "name", "torch")

    def __init__(self, name: str, torch_dtype: torch.dtype) -> None:
        self.name = name
        self.torch = torch_dtype
        self.itemsize = torch_dtype.itemsize
        self.is_floating_point = torch_dtype.is_floating_point

    @staticmethod
    def of(value: object, argument: str = "dtype") -> dtype:
        """The dtype meant by a dtype, its name, or a torch or NumPy dtype.

        Raises
        ------
        TypeError
            If there is no such dtype here.
        """
        if isinstance(value, dtype):
            return value
        if isinstance(value, str) and value in _BY_NAME:
            return _BY_NAME[value]
        if isinstance(value, torch.dtype) and value in _BY_TORCH:
            return _BY_TORCH[value]
        if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
            name = np.dtype(value).name
            if name in _BY_NAME:
                return _BY_NAME[name]
        accepted = ", ".join(str(d) for d in _BY_TORCH.values())
        raise TypeError(f"{argument} must be one of {accepted}, or its name, got {value!r}")

    @property
    def eps(self) -> builtins.float:
        """Distance from 1 to the next number of a floating dtype."""
        return torch.finfo(self.torch).eps

    def check_range(self, array: np.ndarray) -> None:
        """Raise a ValueError for numbers that this dtype does not have: integers out of its range, infinities, NaN."""
        if self.is_floating_point or self.torch is torch.bool or not array.size:
            return
        if np.can_cast(array.dtype, self.name):
            return
        limits, low, high = torch.iinfo(self.torch), array.min(), array.max()
        if not (limits.min <= low and high <= limits.max):
            raise ValueError(f"data must be from {limits.min} to {limits.max} for {self}, got {low} to {high}")

    def __repr__(self) -> str:
        return f"lucid.{self.name}"

    def __reduce__(self) -> str:
        return self.name


float16 = half = dtype("float16", torch.float16)
bfloat16 = dtype("bfloat16", torch.bfloat16)
float32 = float = dtype("float32", torch.float32)
float64 = double = dtype("float64", torch.float64)
uint8 = dtype("uint8", torch.uint8)
int8 = dtype("int8", torch.int8)
int16 = short = dtype("int16", torch.int16)
int32 = int = dtype("int32", torch.int32)
int64 = long = dtype("int64", torch.int64)
bool_ = dtype("bool_", torch.bool)

_BY_TORCH = {d.torch: d for d in (float16, bfloat16, float32, float64, uint8, int8, int16, int32, int64, bool_)}
_BY_NAME = {d.name: d for d in _BY_TORCH.values()} | {
    "half": float16,
    "float": float32,
    "double": float64,
    "short": int16,
    "int": int32,
    "long": int64,
    "bool": bool_,
}
