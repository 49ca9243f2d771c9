"""Checks of arguments, for tensors of lucid and of torch: each raises one error that names the argument."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

#: What kernels calculate with, and what they take as labels.
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True, slots=True)
class Tensors:
    """Checks of tensors of one kind.

    Attributes
    ----------
    kind
        Their class.
    name
        What errors call one of them.
    like
        One as a torch tensor of its shape, dtype, device and strides, without looking at values.
    wrap
        One over the memory of a torch tensor.
    others
        Kinds of array that come in their place, and what makes one of those, with {} for the argument's name.
    """

    kind: type[Any]
    name: str
    like: Callable[[Any], torch.Tensor]
    wrap: Callable[[torch.Tensor], Any]
    others: dict[type[Any], str]

    def check(self, name: str, value: Any) -> None:
        """A tensor of the kind."""
        if not isinstance(value, self.kind):
            remedy = next(
                (f": pass {how.format(name)}" for kind, how in self.others.items() if isinstance(value, kind)), ""
            )
            raise TypeError(f"{name} must be {self.name}, got {type_name(value)}{remedy}")

    def check_floating(self, name: str, value: Any) -> None:
        """A tensor of a floating dtype."""
        self.check(name, value)
        if self.like(value).dtype not in FLOATING:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")

    def check_device(self, name: str, value: Any, other_name: str, other: Any) -> None:
        """On the device of another tensor."""
        places = self.like(value).device, self.like(other).device
        if places[0] != places[1]:
            raise RuntimeError(
                f"{name} and {other_name} must be on one device, got {name} on {places[0]} and {other_name} on "
                f"{places[1]}"
            )

    def check_tokens(self, name: str, value: Any, logits: Any, accepted: str, dtypes: tuple[torch.dtype, ...]) -> None:
        """None, or something for each row of logits, of one of some dtypes, without a gradient."""
        if value is None:
            return
        self.check(name, value)
        if self.like(value).dtype not in dtypes:
            raise TypeError(f"{name} must be {accepted}, got {value.dtype}")
        shape = tuple(logits.shape[:-1])
        if not same(value.shape, shape):
            raise RuntimeError(f"{name} must have shape {shape}, one for each row of logits, got {tuple(value.shape)}")
        self.check_device(name, value, "logits", logits)
        self.check_constant(name, value)

    def check_constant(self, name: str, value: Any) -> None:
        """Without a gradient."""
        if value.requires_grad:
            raise RuntimeError(f"{name} must not require grad, as it gets no gradient: pass {name}.detach()")


def same(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether shapes are equal; of sizes that depend on data torch's compiler learns that only when the graph runs."""
    if not torch.compiler.is_compiling():
        return tuple(shape) == tuple(other)
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # which takes a second to import

    if len(shape) != len(other) or not all(guard_or_true(m == n) for m, n in zip(shape, other, strict=True)):
        return False
    for m, n in zip(shape, other, strict=True):
        torch._check(m == n)
    return True


def type_name(value: Any) -> str:
    """The name of a value's type, of whose library where others have one of that name."""
    name, library = type(value).__name__, type(value).__module__.partition(".")[0]
    full = {"Tensor": "{}.Tensor", "Parameter": "{}.nn.Parameter", "ndarray": "{}.ndarray"}
    return full.get(name, name).format(library)


def check_dense(name: str, value: torch.Tensor) -> None:
    """A torch tensor whose elements lie in memory by strides."""
    if value.is_nested:
        remedy = f"torch.cat({name}.unbind())" if value.layout is torch.strided else f"{name}.values()"
        raise TypeError(f"{name} must be no nested tensor: pass {remedy}, the elements of all its parts")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got layout {value.layout}: pass {name}.to_dense()")


def number(name: str, value: Any, accepted: str, fits: Callable[[Any], bool]) -> float:
    """A real number that fits, as a float; `accepted` says which do."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {accepted}, got {type_name(value)}")
    result = float(value)
    # Compared with infinity, since the compiler of torch may know a number only as a symbol; NaN compares false.
    if not (abs(result) < math.inf and fits(value)):
        raise ValueError(f"{name} must be {accepted}, got {value}")
    return result


def boolean(name: str, value: Any) -> bool:
    """A bool, NumPy's included; other values are mix-ups of arguments, whatever their truth."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a bool, got {type_name(value)}")
    return bool(value)


def integer(name: str, value: Any) -> int:
    """An integer of 64 bits; a bool is a mix-up of arguments."""
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


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """One of some words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
