"""Operators and methods of Tensor: the operations themselves, attached to the class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lucid.ops import arithmetic, extremes, in_place, indexing, joining, memory, reduction, statistics
from lucid.ops.linear import matmul
from lucid.ops.power import pow
from lucid.tensor import Tensor

#: Operations that are methods by their own name, and written in place with the suffix _.
_CHANGING = (
    *("abs", "add", "clamp", "div", "exp", "log", "maximum", "minimum", "mul", "neg", "relu", "rsqrt", "sigmoid"),
    *("sign", "sqrt", "square", "sub", "tanh"),
)

_METHODS: dict[str, Callable[..., Any]] = {
    **{name: getattr(arithmetic, name) for name in (*_CHANGING, "eq", "ne", "lt", "le", "gt", "ge")},
    **{name: getattr(indexing, name) for name in ("flip", "gather")},
    **{name: getattr(joining, name) for name in ("chunk", "masked_fill", "split", "tril", "triu", "unbind")},
    **{name: getattr(memory, name) for name in ("clone", "contiguous", "flatten", "squeeze", "transpose", "unsqueeze")},
    **{name: getattr(in_place, name) for name in ("copy_", "fill_", "zero_")},
    **{f"{name}_": in_place.in_place(getattr(arithmetic, name)) for name in _CHANGING},
    "masked_fill_": in_place.in_place(joining.masked_fill),
    "pow_": in_place.in_place(pow),
    "pow": pow,
    "matmul": matmul,
    **{name: getattr(extremes, name) for name in ("all", "amax", "amin", "any", "argmax", "argmin", "max", "min")},
    **{name: getattr(statistics, name) for name in ("logsumexp", "norm", "prod", "std", "var")},
    "sum": reduction.sum,
    "mean": reduction.mean,
}

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    **{"add": arithmetic.add, "sub": arithmetic.sub, "mul": arithmetic.mul, "truediv": arithmetic.div},
    **{"pow": pow, "matmul": matmul},
    **{"and": arithmetic.bitwise_and, "or": arithmetic.bitwise_or, "xor": arithmetic.bitwise_xor},
}


def _of_sizes(operation: Callable[[Tensor, Any], Tensor]) -> Callable[..., Tensor]:
    """Return a method that takes sizes one by one or as one sequence."""

    def method(self: Tensor, *sizes: Any) -> Tensor:
        return operation(self, sizes)

    method.__name__ = method.__qualname__ = operation.__name__
    method.__doc__ = operation.__doc__
    return method


def _reflected(operation: Callable[[Any, Any], Any]) -> Callable[[Tensor, Any], Any]:
    return lambda self, other: operation(other, self)


def _left_out(symbol: str) -> Callable[[Tensor, Any], Any]:
    def operation(self: Tensor, other: Any) -> Any:
        raise TypeError(f"{symbol} of Tensors is not part of lucid-triton: compute it in NumPy or PyTorch")

    return operation


_ATTRIBUTES: dict[str, Any] = {
    **_METHODS,
    **{f"__{name}__": operation for name, operation in _OPERATORS.items()},
    **{f"__r{name}__": operation for name, operation in _OPERATORS.items()},
    **{f"__r{name}__": _reflected(_OPERATORS[name]) for name in ("sub", "truediv", "pow", "matmul")},
    **{f"__i{name}__": in_place.in_place(operation) for name, operation in _OPERATORS.items() if name != "matmul"},
    **{f"__{name}__": getattr(arithmetic, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "abs")},
    **{f"__{r}{name}__": _left_out(symbol) for name, symbol in (("floordiv", "//"), ("mod", "%")) for r in ("", "r")},
    "__pos__": lambda self: self,
    "__invert__": arithmetic.bitwise_not,
    "__getitem__": indexing.getitem,
    "__setitem__": in_place.setitem,
    "expand": _of_sizes(reduction.expand),
    "permute": _of_sizes(memory.permute),
    "reshape": _of_sizes(memory.reshape),
    "view": _of_sizes(memory.view),
    "T": property(lambda self: memory.permute(self, range(self.ndim)[::-1]), doc="View, dimensions in reverse order."),
    "mT": property(lambda self: memory.transpose(self, -1, -2), doc="View, the last two dimensions exchanged."),
}

for _name, _attribute in _ATTRIBUTES.items():
    setattr(Tensor, _name, _attribute)
