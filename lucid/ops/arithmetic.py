"""Elementwise operations with broadcasting: a row of a table for each; `promotion` has the rules for dtypes.

A row names the kernel of `triton_kernels.pointwise`, the kind of its result, and for each operand what its gradient
needs and how it follows from that. Gradients are made of rows, too, so that they can be differentiated again.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch

import triton_kernels as tk
from lucid._arguments import check_choice, type_name
from lucid.autograd.function import Function
from lucid.ops.promotion import Operand, floating_dtype, resolve_operands, unwrap_numpy_scalar
from lucid.ops.reduction import sum_to
from lucid.ops.scaled import scale, unscale
from lucid.tensor import Tensor

__all__ = [
    "abs",
    "add",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "clamp",
    "div",
    "eq",
    "exp",
    "ge",
    "gelu",
    "gt",
    "le",
    "log",
    "lt",
    "maximum",
    "minimum",
    "mul",
    "ne",
    "neg",
    "relu",
    "rsqrt",
    "sigmoid",
    "sign",
    "silu",
    "sqrt",
    "square",
    "sub",
    "tanh",
    "where",
]

Unary = Callable[[Tensor], Tensor]
Binary = Callable[[Operand, Operand], Tensor]
Comparison = Callable[[Any, Any], Any]
Row = Callable[..., Tensor]
#: What a gradient needs, of the operands a, b and c and the result y; and the gradient from these and the result's.
Gradient = tuple[str, Callable[..., Tensor]] | None


class Rule(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    name
        Of the operation, in messages.
    gradients
        One per operand; None where there is none.
    kind
        Of the result: 'same' (the promoted dtype), 'number' (the same, but not bool_), 'float' (integers become
        float32), 'bool' (a comparison) or 'integer'.
    kernel
        Name in `triton_kernels.pointwise`.
    """

    name: str
    gradients: tuple[Gradient, ...]
    kind: str
    kernel: str


class _Meta:
    """Shape and dtype of an operand whose values backward does not need."""

    __slots__ = ("dtype", "shape")

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype


def meta(operand: Operand) -> _Meta | None:
    """Return an operand's shape and dtype; None for a number."""
    return _Meta(operand) if isinstance(operand, Tensor) else None


def sum_to_shapes(shapes: tuple[Any, ...], *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Reduce gradients of the broadcast shape to the operands' shapes."""
    return tuple(None if grad is None else sum_to(grad, shape) for grad, shape in zip(grads, shapes, strict=True))


class Elementwise(Function):
    """An operation of the table, by its rule; a subclass for each."""

    rule: ClassVar[Rule]
    #: By which operands need a gradient: which of the operands and the result are kept for backward.
    kept: ClassVar[dict[tuple[bool, ...], tuple[bool, ...]]]

    @classmethod
    def forward(cls, ctx: Any, *operands: Operand) -> Tensor:
        rule, name = cls.rule, cls.rule.name
        y = scale(ctx, name, *operands) if name in ("mul", "div") else None
        if y is None:
            buffers, promoted = resolve_operands(name, *operands)
            dtype, compute, buffers = _dtypes(rule, promoted, buffers)
            y = Tensor._wrap(tk.pointwise(rule.kernel, *buffers, dtype=dtype, compute=compute))
        needs = ctx.needs_input_grad
        if True in needs:
            values = (*operands, y)
            if needs not in cls.kept:
                cls.kept[needs] = _kept(rule.gradients, needs)
            tensors = [isinstance(value, Tensor) for value in values]
            ctx.shapes = [operand.shape if isinstance(operand, Tensor) else None for operand in operands]
            ctx.numbers = [None if is_tensor else v for v, is_tensor in zip(values, tensors, strict=True)]
            keep = zip(values, tensors, cls.kept[needs], strict=True)
            ctx.save_for_backward(*(v if is_tensor and kept else None for v, is_tensor, kept in keep))
        return y

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unscaled = unscale(ctx, grad)
        if unscaled is not None:
            return unscaled, None
        values = [n if t is None else t for t, n in zip(ctx.saved_tensors, ctx.numbers, strict=True)]
        grads = (
            row[1](*(values[_PLACES[letter]] for letter in row[0]), grad) if need and row else None
            for row, need in zip(cls.rule.gradients, ctx.needs_input_grad, strict=True)
        )
        return sum_to_shapes(ctx.shapes, *grads)


#: Where operands and the result are among both.
_PLACES = {"a": 0, "b": 1, "c": 2, "y": -1}


def _kept(gradients: tuple[Gradient, ...], needs: tuple[bool, ...]) -> tuple[bool, ...]:
    wanted = "".join(row[0] for row, need in zip(gradients, needs, strict=True) if need and row)
    return (*(letter in wanted for letter in "abc"[: len(needs)]), "y" in wanted)


def _dtypes(rule: Rule, promoted: torch.dtype, buffers: list[Any]) -> tuple[torch.dtype, torch.dtype | None, list[Any]]:
    """Return the dtype of the result, that of the arithmetic (None: the usual), and the operands."""
    of_bools = promoted is torch.bool
    if rule.kind == "bool":
        if not promoted.is_floating_point:
            return torch.bool, torch.int64, buffers
        # A weak number is what it would be as an element: 0.1 equals a bfloat16 that was made from it.
        rounded = [v if isinstance(v, torch.Tensor) else _rounded(v, promoted) for v in buffers]
        return torch.bool, tk.launch.compute_dtype(promoted), rounded
    if rule.kind == "float":
        return floating_dtype(promoted), None, buffers
    if rule.kind == "number" and of_bools:
        raise TypeError(f"{rule.name} takes numbers, got a Tensor of lucid.bool_")
    if rule.kind == "integer" and promoted.is_floating_point:
        raise TypeError(f"{rule.name} takes integers or bool_, got lucid.{str(promoted).removeprefix('torch.')}")
    if rule.name == "sub" and of_bools:
        raise TypeError("sub takes at least one operand that is not bool_, got two of bool_")
    # The sum of truths is "or", their product "and".
    return promoted, torch.int32 if of_bools and rule.name != "where" else None, buffers


def _rounded(number: float, kind: torch.dtype) -> float:
    return torch.tensor(float(number), dtype=torch.float64).to(kind).item()


def _row(name: str, *gradients: Gradient, kind: str = "same", kernel: str | None = None) -> Callable[..., Tensor]:
    """Return the operation of a new row of the table."""
    rule = Rule(name, gradients, kind, kernel or name)
    title = "".join(part.capitalize() for part in name.split("_"))
    made: type[Elementwise] = type(title, (Elementwise,), {"rule": rule, "kept": {}, "__module__": __name__})
    return made.apply


def _binary(name: str, doc: str, *gradients: Gradient, kind: str = "same") -> Binary:
    apply = _row(name, *gradients, kind=kind)

    def function(a: Operand, b: Operand) -> Tensor:
        return apply(a, b)

    return _named(function, name, doc)


def _compare(name: str, doc: str) -> Comparison:
    apply = _row(name, None, None, kind="bool")

    def function(a: Tensor, b: Any) -> Any:
        if name in ("eq", "ne") and not isinstance(b, Tensor | numbers.Real) and not hasattr(b, "__array__"):
            return NotImplemented
        return apply(a, b)

    return _named(function, name, doc)


def _unary(name: str, doc: str, example: str, gradient: Gradient, kind: str = "float") -> Unary:
    """Return a function of one tensor; `example` is its argument, an arrow, and what is printed."""
    apply = _row(name, gradient, kind=kind)

    def function(x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} takes a lucid.Tensor, got {type_name(x)}")
        return apply(x)

    argument, printed = example.split(" → ")
    space = "lucid" if name not in ("relu", "silu") else "lucid.nn.functional"
    lines = (
        f"{doc}\n",
        "Parameters\n----------\nx : Tensor",
        f"    Of any shape and strides{'; integers become float32' if kind == 'float' else ', not bool_'}.\n",
        f"Examples\n--------\n>>> import lucid\n>>> {space}.{name}(lucid.tensor({argument}))\n{printed}\n",
    )
    return _named(function, name, "\n".join(lines))


def _named(function: Any, name: str, doc: str) -> Any:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


def _minus_one(exponent: Any) -> Any:
    """One less, but 0 for 0: its power is multiplied by 0, and must be finite then."""
    if isinstance(exponent, Tensor):
        return where(eq(exponent, 0), 0, sub(exponent, 1))
    return exponent - 1 if exponent else 0


def _log_or_zero(base: Any) -> Any:
    """The logarithm, but 0 for 0: it is multiplied by a power that is 0 then."""
    if isinstance(base, Tensor):
        return log(where(eq(base, 0), 1, base))
    return math.log(base) if base > 0 else 0.0 if base == 0 else math.nan


# Two operands

_same: Gradient = "", lambda g: g

add: Binary = _binary("add", "a + b; of two bool_, whether either holds.", _same, _same)
sub: Binary = _binary("sub", "a − b.", _same, ("", lambda g: neg(g)))
mul: Binary = _binary(
    "mul", "a · b; of two bool_, whether both hold.", ("b", lambda b, g: mul(g, b)), ("a", lambda a, g: mul(g, a))
)
div: Binary = _binary(
    "div",
    "a / b; integers become float32.",
    ("b", lambda b, g: div(g, b)),
    ("ab", lambda a, b, g: neg(mul(div(g, b), div(a, b)))),
    kind="float",
)
#: a^b of floating numbers: b·a^(b − 1), which is 0 where b = 0, and a^b·log a, 0 where a = 0.
float_power: Row = _row(
    "pow",
    ("ab", lambda a, b, g: mul(g, mul(float_power(a, _minus_one(b)), b))),
    ("ab", lambda a, b, g: mul(g, mul(float_power(a, b), _log_or_zero(a)))),
)
maximum: Binary = _binary(
    "maximum",
    "The larger of a and b; NaN if either is. Equal ones have half of the gradient each.",
    ("ab", lambda a, b, g: _maximum_grad(a, b, g)),
    ("ab", lambda a, b, g: _maximum_grad(b, a, g)),
)
minimum: Binary = _binary(
    "minimum",
    "The smaller of a and b; NaN if either is. Equal ones have half of the gradient each.",
    ("ab", lambda a, b, g: _minimum_grad(a, b, g)),
    ("ab", lambda a, b, g: _minimum_grad(b, a, g)),
)
_maximum_grad: Row = _row("maximum_grad", None, None, ("ab", lambda a, b, g: _maximum_grad(a, b, g)))
_minimum_grad: Row = _row("minimum_grad", None, None, ("ab", lambda a, b, g: _minimum_grad(a, b, g)))
_at_least: Row = _row(
    "clamp",
    ("ab", lambda a, b, g: where(ge(a, b), g, 0)),
    ("ab", lambda a, b, g: where(lt(a, b), g, 0)),
    kernel="maximum",
)
_at_most: Row = _row(
    "clamp",
    ("ab", lambda a, b, g: where(le(a, b), g, 0)),
    ("ab", lambda a, b, g: where(gt(a, b), g, 0)),
    kernel="minimum",
)
bitwise_and: Binary = _binary("bitwise_and", "a & b of integers or bool_.", None, None, kind="integer")
bitwise_or: Binary = _binary("bitwise_or", "a | b of integers or bool_.", None, None, kind="integer")
bitwise_xor: Binary = _binary("bitwise_xor", "a ^ b of integers or bool_.", None, None, kind="integer")
eq: Comparison = _compare(
    "eq", "a = b, a bool_ tensor; NotImplemented for what has no elements: Python then asks whether the two are one."
)
ne: Comparison = _compare("ne", "a ≠ b, a bool_ tensor; NotImplemented for what has no elements, as `eq`.")
lt: Comparison = _compare("lt", "a < b, a bool_ tensor.")
le: Comparison = _compare("le", "a ≤ b, a bool_ tensor.")
gt: Comparison = _compare("gt", "a > b, a bool_ tensor.")
ge: Comparison = _compare("ge", "a ≥ b, a bool_ tensor.")

# One operand

neg: Unary = _unary("neg", "−x.", "[1.0, -2.0] → tensor([-1., 2.])", ("", lambda g: neg(g)), "number")
abs: Unary = _unary(
    "abs",
    "The absolute value of x.",
    "[-2, 3] → tensor([2, 3], dtype=lucid.int64)",
    ("a", lambda x, g: mul(g, sign(x))),
    "number",
)
sign: Unary = _unary(
    "sign", "−1, 0 or 1; its gradient is 0.", "[-2.5, 0.0] → tensor([-1., 0.])", ("", lambda g: mul(g, 0)), "number"
)
square: Unary = _unary(
    "square", "x².", "[-2.0, 3.0] → tensor([4., 9.])", ("a", lambda x, g: mul(mul(g, x), 2)), "number"
)
exp: Unary = _unary("exp", "The exponential of x.", "[0.0, 1.0] → tensor([1., 2.7183])", ("y", lambda y, g: mul(g, y)))
log: Unary = _unary(
    "log",
    "The natural logarithm of x: −inf of 0, NaN below.",
    "[1.0, 0.0] → tensor([0., -inf])",
    ("a", lambda x, g: div(g, x)),
)
sqrt: Unary = _unary(
    "sqrt",
    "The square root of x, NaN below 0.",
    "[4, 2] → tensor([2., 1.4142])",
    ("y", lambda y, g: div(mul(g, 0.5), y)),
)
rsqrt: Unary = _unary("rsqrt", "1/√x.", "[4.0, 0.25] → tensor([0.5, 2.])", ("y", lambda y, g: _rsqrt_grad(y, g)))
tanh: Unary = _unary(
    "tanh", "The hyperbolic tangent of x.", "[0.0, 1.0] → tensor([0., 0.7616])", ("y", lambda y, g: _tanh_grad(y, g))
)
sigmoid: Unary = _unary(
    "sigmoid", "1/(1 + exp(−x)).", "[0.0, 2.0] → tensor([0.5, 0.8808])", ("y", lambda y, g: _sigmoid_grad(y, g))
)
relu: Unary = _unary(
    "relu",
    "max(x, 0); NaN stays NaN.",
    "[-1.0, 2.0] → tensor([0., 2.])",
    ("y", lambda y, g: _relu_grad(y, g)),
    "number",
)
silu: Unary = _unary(
    "silu",
    "x·sigmoid(x) (S. Elfwing, E. Uchibe and K. Doya, 2018).",
    "[0.0, 2.0] → tensor([0., 1.7616])",
    ("a", lambda x, g: _silu_grad(x, g)),
)
_gelu: Row = _row("gelu", ("a", lambda x, g: _gelu_grad(x, g)), kind="float")
_gelu_tanh: Row = _row("gelu", ("a", lambda x, g: _gelu_tanh_grad(x, g)), kind="float", kernel="gelu_tanh")

# Gradients of one operand in one launch: of what was saved, and the result's gradient

_rsqrt_grad: Row = _row(
    "rsqrt_grad", ("ab", lambda y, g, o: mul(mul(o, mul(g, square(y))), -1.5)), ("a", lambda y, o: _rsqrt_grad(y, o))
)
_tanh_grad: Row = _row(
    "tanh_grad", ("ab", lambda y, g, o: mul(mul(o, mul(g, y)), -2)), ("a", lambda y, o: _tanh_grad(y, o))
)
_sigmoid_grad: Row = _row(
    "sigmoid_grad", ("ab", lambda y, g, o: mul(mul(o, g), sub(1, mul(y, 2)))), ("a", lambda y, o: _sigmoid_grad(y, o))
)
_relu_grad: Row = _row("relu_grad", None, ("a", lambda y, o: _relu_grad(y, o)))
_silu_grad: Row = _row(
    "silu_grad", ("ab", lambda x, g, o: mul(mul(o, g), _silu_curvature(x))), ("a", lambda x, o: _silu_grad(x, o))
)
_gelu_grad: Row = _row(
    "gelu_grad", ("ab", lambda x, g, o: mul(mul(o, g), _gelu_curvature(x))), ("a", lambda x, o: _gelu_grad(x, o))
)
_gelu_tanh_grad: Row = _row(
    "gelu_tanh_grad",
    ("ab", lambda x, g, o: mul(mul(o, g), _gelu_tanh_curvature(x))),
    ("a", lambda x, o: _gelu_tanh_grad(x, o)),
)


def _silu_curvature(x: Tensor) -> Tensor:
    """The second derivative, s·(1 − s)·(2 + x·(1 − 2s)) with s = sigmoid(x)."""
    s = sigmoid(x)
    return mul(mul(s, sub(1, s)), add(mul(x, sub(1, mul(s, 2))), 2))


def _gelu_curvature(x: Tensor) -> Tensor:
    """The second derivative, (2 − x²)·φ(x) with the density φ of the normal distribution."""
    return mul(sub(2, square(x)), mul(exp(mul(square(x), -0.5)), 1 / math.sqrt(2 * math.pi)))


def _gelu_tanh_curvature(x: Tensor) -> Tensor:
    """The second derivative of x·s with s = sigmoid(w), w = √(8/π)·(x + c·x³).

    s·(1 − s)·(2w′ + x·(1 − 2s)·w′² + x·w″)
    """
    k, c = math.sqrt(8 / math.pi), 0.044715
    s = sigmoid(mul(add(x, mul(mul(square(x), x), c)), k))
    slope = mul(add(mul(square(x), 3 * c), 1), k)
    terms = add(add(mul(slope, 2), mul(mul(x, sub(1, mul(s, 2))), square(slope))), mul(square(x), 6 * c * k))
    return mul(mul(s, sub(1, s)), terms)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x·Φ(x), with the distribution function Φ of the normal distribution (D. Hendrycks and K. Gimpel, 2016).

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32.
    approximate : {'none', 'tanh'}
        'tanh': x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).

    Raises
    ------
    ValueError
        If `approximate` is another word.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.functional.gelu(lucid.tensor([0.0, 2.0]))
    tensor([0., 1.9545])
    """
    check_choice("approximate", approximate, ("none", "tanh"))
    if not isinstance(x, Tensor):
        raise TypeError(f"gelu takes a lucid.Tensor, got {type_name(x)}")
    return (_gelu if approximate == "none" else _gelu_tanh)(x)


def bitwise_not(x: Tensor) -> Tensor:
    """The complement of each bit of an integer; of bool_, whether it does not hold."""
    if not isinstance(x, Tensor):
        raise TypeError(f"bitwise_not takes a lucid.Tensor, got {type_name(x)}")
    return bitwise_xor(x, True if x._like.dtype is torch.bool else -1)


def clamp(x: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """x, but `min` where it is below, and `max` where it is above; NaN stays NaN.

    Parameters
    ----------
    x : Tensor
    min, max : Tensor or number, optional
        Where min is above max, the result is max. The gradient goes to the one of the three that is the result; to x
        where it equals a bound.

    Raises
    ------
    ValueError
        If neither is given.

    Examples
    --------
    >>> import lucid
    >>> lucid.clamp(lucid.tensor([-2.0, 0.5, 3.0]), -1, 1)
    tensor([-1., 0.5, 1.])
    """
    if min is None and max is None:
        raise ValueError("clamp takes min, max or both, got neither")
    if not isinstance(x, Tensor):
        raise TypeError(f"clamp takes a lucid.Tensor, got {type_name(x)}")
    x = x if min is None else _at_least(x, min)
    return x if max is None else _at_most(x, max)


_where: Row = _row(
    "where",
    None,
    ("a", lambda condition, g: where(condition, g, 0)),
    ("a", lambda condition, g: where(condition, 0, g)),
)


def where(condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """a where the condition holds, else b; the three broadcast.

    Parameters
    ----------
    condition : Tensor
        Of bool_.
    a, b : Tensor or number

    Raises
    ------
    TypeError
        If the condition is no Tensor of bool_, or a or b neither Tensor nor number.
    RuntimeError
        If they are on different devices or do not broadcast.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([-1.0, 2.0])
    >>> lucid.where(x > 0, x, 0)
    tensor([0., 2.])
    """
    if not isinstance(condition, Tensor) or condition._like.dtype is not torch.bool:
        got = condition.dtype if isinstance(condition, Tensor) else type_name(condition)
        raise TypeError(f"condition must be a lucid.Tensor of bool_, got {got}")
    a, b = unwrap_numpy_scalar(a), unwrap_numpy_scalar(b)
    if isinstance(a, numbers.Real) and isinstance(b, numbers.Real):
        a = Tensor(a, device=condition.device)  # of two numbers, kernels take one
    return _where(condition, a, b)
