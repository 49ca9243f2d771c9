"""Validation of arguments, for tensors of lucid and of torch: each check raises one error that names the argument."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

R = TypeVar("R")

#: Dtypes of operands, and of labels.
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True, slots=True)
class TensorValidator:
    """Checks of tensors of one class, lucid's or torch's.

    Attributes
    ----------
    kind
        The accepted class.
    name
        The class's name in messages.
    like
        Return a torch tensor of the same shape, dtype, device and strides, without reading values.
    wrap
        Make a tensor of the class on the memory of a torch tensor.
    others
        Other array classes, and the expression that converts them, with {} for the argument's name.
    """

    kind: type[Any]
    name: str
    like: Callable[[Any], torch.Tensor]
    wrap: Callable[[torch.Tensor], Any]
    others: dict[type[Any], str]

    def check(self, name: str, value: Any) -> None:
        """Raise TypeError unless `value` is a tensor of the class."""
        if not isinstance(value, self.kind):
            # Of the output of a model of transformers.
            part = "last_hidden_state" if name.endswith("hidden") else "logits"
            remedy = next(
                (f": pass {how.format(name)}" for kind, how in self.others.items() if isinstance(value, kind)),
                f": pass {name}.{part}" if hasattr(value, part) else "",
            )
            raise TypeError(f"{name} must be {self.name}, got {type_name(value)}{remedy}")

    def check_floating(self, name: str, value: Any) -> None:
        """Raise TypeError unless `value` is a tensor of a floating dtype."""
        self.check(name, value)
        if self.like(value).dtype not in FLOATING:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")

    def check_device(self, name: str, value: Any, other_name: str, other: Any) -> None:
        """Raise RuntimeError unless both tensors are on one device."""
        devices = self.like(value).device, self.like(other).device
        if devices[0] != devices[1]:
            raise RuntimeError(
                f"{name} and {other_name} must be on one device, got {name} on {devices[0]} and {other_name} on "
                f"{devices[1]}"
            )

    def check_tokens(
        self,
        name: str,
        value: Any,
        student: Any,
        accepted: str,
        dtypes: tuple[torch.dtype, ...],
        rows_name: str = "student_logits",
    ) -> None:
        """Raise unless `value` is None, or has one entry per row of logits, an accepted dtype, and no gradient."""
        if value is None:
            return
        self.check(name, value)
        if self.like(value).dtype not in dtypes:
            raise TypeError(f"{name} must be {accepted}, got {value.dtype}")
        shape = tuple(student.shape[:-1])
        if not same_shape(value.shape, shape):
            raise RuntimeError(f"{name} must have shape {shape}, one for each row of logits, got {tuple(value.shape)}")
        self.check_device(name, value, rows_name, student)
        self.check_constant(name, value)

    def check_constant(self, name: str, value: Any) -> None:
        """Raise RuntimeError if `value` requires grad."""
        if value.requires_grad:
            raise RuntimeError(f"{name} must not require grad, as it gets no gradient: pass {name}.detach()")


def same_shape(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether shapes are equal; data-dependent sizes are compared when the compiled graph runs."""
    if not torch.compiler.is_compiling():
        return tuple(shape) == tuple(other)
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # which takes a second to import

    if len(shape) != len(other) or not all(guard_or_true(m == n) for m, n in zip(shape, other, strict=True)):
        return False
    for m, n in zip(shape, other, strict=True):
        torch._check(m == n)
    return True


def type_name(value: Any) -> str:
    """Return the name of a value's type, qualified with its library where several have one of that name."""
    name, library = type(value).__name__, type(value).__module__.partition(".")[0]
    full = {"Tensor": "{}.Tensor", "Parameter": "{}.nn.Parameter", "ndarray": "{}.ndarray"}
    return full.get(name, name).format(library)


def check_dense(name: str, value: torch.Tensor) -> None:
    """Raise TypeError unless a torch tensor is strided."""
    if value.is_nested:
        remedy = f"torch.cat({name}.unbind())" if value.layout is torch.strided else f"{name}.values()"
        raise TypeError(f"{name} must not be a nested tensor: pass {remedy}, the elements of all its parts")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got layout {value.layout}: pass {name}.to_dense()")


def check_real(name: str, value: Any, accepted: str, predicate: Callable[[Any], bool]) -> float:
    """Return `value` as a float; raise unless it is real and satisfies `predicate`, which `accepted` describes."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {accepted}, got {type_name(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    # Compared with infinity, since torch's compiler may know a number only as a symbol; NaN compares false.
    if not (abs(result) < math.inf and predicate(value)):
        raise ValueError(f"{name} must be {accepted}, got {value}")
    return result


def check_bool(name: str, value: Any) -> bool:
    """Return `value` as a bool; raise TypeError unless it is one, or NumPy's."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a bool, got {type_name(value)}")
    return bool(value)


def check_int(name: str, value: Any) -> int:
    """Return `value` as an int; raise unless it is an integer of 64 bits. A bool is rejected."""
    if not isinstance(value, bool | np.bool_):
        try:
            result = operator.index(value)
        except TypeError:
            pass
        else:
            if isinstance(result, int) and not -(2**63) <= result < 2**63:
                raise ValueError(f"{name} must be an int of 64 bits, got {value}")
            return result
    raise TypeError(f"{name} must be an int, got {type_name(value)}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


#: NumPy's names of arguments, and torch's.
_ALIASES = {"axis": "dim", "keepdims": "keepdim"}


def accepts_axis(function: Callable[..., R]) -> Callable[..., R]:
    """Make a function accept NumPy's ``axis`` and ``keepdims`` for the ``dim`` and ``keepdim`` that it has.

    Both names of one argument at once are a TypeError.

    >>> @accepts_axis
    ... def count(x, dim=None):
    ...     return dim
    >>> count([], axis=1)
    1
    """
    names = list(inspect.signature(function).parameters)
    aliases = [(alias, name, names.index(name)) for alias, name in _ALIASES.items() if name in names]

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> R:
        if kwargs:
            for alias, name, position in aliases:
                if alias in kwargs:
                    if name in kwargs or len(args) > position:
                        raise TypeError(f"{function.__name__} takes {name} or {alias}, got both")
                    kwargs[name] = kwargs.pop(alias)
        return function(*args, **kwargs)

    return wrapped
