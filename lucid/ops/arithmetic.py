"""Pointwise arithmetic with broadcasting; `promotion` has the rules for dtypes."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch

import triton_kernels as tk
from lucid._arguments import type_name
from lucid.autograd.function import Function
from lucid.ops.promotion import Operand, floating_dtype, resolve_operands, unwrap_numpy_scalar
from lucid.ops.reduction import sum_to
from lucid.ops.scaled import scale, unscale
from lucid.tensor import Tensor


class _Meta:
    """Shape and dtype of an operand whose values backward does not need."""

    __slots__ = ("dtype", "shape")

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype


def meta(operand: Operand) -> _Meta | None:
    """Return an operand's shape and dtype; None for a number."""
    return _Meta(operand) if isinstance(operand, Tensor) else None


def save_operands(ctx: Any, *operands: Operand | None) -> None:
    """Save tensors for backward, and numbers as attributes."""
    ctx.save_for_backward(*(operand if isinstance(operand, Tensor) else None for operand in operands))
    ctx.numbers = tuple(None if isinstance(operand, Tensor) else operand for operand in operands)


def saved_operands(ctx: Any) -> tuple[Any, ...]:
    """Return the operands that `save_operands` saved."""
    return tuple(n if t is None else t for t, n in zip(ctx.saved_tensors, ctx.numbers, strict=True))


def binary(name: str, a: Operand, b: Operand) -> Tensor:
    """Launch the kernel of an operation on two operands of the promoted dtype."""
    buffers, promoted = resolve_operands(name, a, b)
    compute = None
    if name == "div":
        promoted = floating_dtype(promoted)
    elif promoted is torch.bool:
        if name == "sub":
            raise TypeError("sub takes at least one operand that is not bool_, got two of bool_")
        # The sum of truths is "or", their product "and".
        compute = torch.int32
    return Tensor._wrap(tk.pointwise(name, *buffers, dtype=promoted, compute=compute))


def shapes_of(*operands: Operand) -> tuple[tuple[int, ...] | None, ...]:
    """Return the operands' shapes; None for a number."""
    return tuple(operand.shape if isinstance(operand, Tensor) else None for operand in operands)


def sum_to_shapes(shapes: tuple[Any, ...], *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Reduce gradients of the broadcast shape to the operands' shapes."""
    return tuple(None if grad is None else sum_to(grad, shape) for grad, shape in zip(grads, shapes, strict=True))


class _Add(Function):
    @staticmethod
    def forward(ctx: Any, a: Operand, b: Operand) -> Tensor:
        ctx.shapes = shapes_of(a, b)
        return binary("add", a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        return sum_to_shapes(ctx.shapes, grad if need_a else None, grad if need_b else None)


class _Sub(Function):
    @staticmethod
    def forward(ctx: Any, a: Operand, b: Operand) -> Tensor:
        ctx.shapes = shapes_of(a, b)
        return binary("sub", a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_a, need_b = ctx.needs_input_grad
        return sum_to_shapes(ctx.shapes, grad if need_a else None, neg(grad) if need_b else None)


class _Mul(Function):
    @staticmethod
    def forward(ctx: Any, a: Operand, b: Operand) -> Tensor:
        need_a, need_b = ctx.needs_input_grad
        ctx.shapes = shapes_of(a, b)
        save_operands(ctx, a if need_b else None, b if need_a else None)
        scaled = scale(ctx, "mul", a, b)
        return binary("mul", a, b) if scaled is None else scaled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unscaled = unscale(ctx, grad)
        if unscaled is not None:
            return unscaled, None
        a, b = saved_operands(ctx)
        need_a, need_b = ctx.needs_input_grad
        return sum_to_shapes(ctx.shapes, mul(grad, b) if need_a else None, mul(grad, a) if need_b else None)


class _Div(Function):
    @staticmethod
    def forward(ctx: Any, a: Operand, b: Operand) -> Tensor:
        ctx.shapes = shapes_of(a, b)
        save_operands(ctx, a if ctx.needs_input_grad[1] else None, b)
        scaled = scale(ctx, "div", a, b)
        return binary("div", a, b) if scaled is None else scaled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unscaled = unscale(ctx, grad)
        if unscaled is not None:
            return unscaled, None
        a, b = saved_operands(ctx)
        need_a, need_b = ctx.needs_input_grad
        da = div(grad, b)
        return sum_to_shapes(ctx.shapes, da if need_a else None, neg(mul(da, div(a, b))) if need_b else None)


class _Unary(Function):
    """An operation by its name in `_UNARY`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} takes a lucid.Tensor, got {type_name(x)}")
        floating, saves, _ = _UNARY[name]
        kind = floating_dtype(x._buffer.dtype) if floating else x._buffer.dtype
        if kind is torch.bool:
            raise TypeError(f"{name} takes numbers, got a Tensor of {x.dtype}")
        y = Tensor._wrap(tk.pointwise(name, x._buffer, dtype=kind))
        ctx.name = name
        ctx.save_for_backward({"x": x, "y": y, "": None}[saves])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        return _UNARY[ctx.name][2](saved, grad), None


class _Gradient(Function):
    """The gradient of tanh or relu from its result, in one launch."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grad: Tensor, name: str) -> Tensor:
        ctx.name = name
        ctx.save_for_backward(y, grad)
        return Tensor._wrap(tk.pointwise(name, y._buffer, grad._buffer, dtype=y._buffer.dtype))

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        y, grad = ctx.saved_tensors
        dy = mul(mul(outer, mul(grad, y)), -2) if ctx.name == "tanh_grad" else None
        return dy, _Gradient.apply(y, outer, ctx.name), None


#: Per operation: whether integers become float32; what backward needs, x or y = f(x); the gradient from that.
_UNARY: dict[str, tuple[bool, str, Callable[[Any, Tensor], Tensor]]] = {
    "neg": (False, "", lambda _, grad: neg(grad)),
    "abs": (False, "x", lambda x, grad: mul(grad, _sign(x))),
    "exp": (True, "y", lambda y, grad: mul(grad, y)),
    "log": (True, "x", lambda x, grad: div(grad, x)),
    "sqrt": (True, "y", lambda y, grad: div(mul(grad, 0.5), y)),
    "tanh": (True, "y", lambda y, grad: _Gradient.apply(y, grad, "tanh_grad")),
    "relu": (False, "y", lambda y, grad: _Gradient.apply(y, grad, "relu_grad")),
}


def _sign(x: Tensor) -> Tensor:
    """−1, 0 or 1; the gradient is 0, so it is not recorded."""
    return Tensor._wrap(tk.pointwise("sign", x._buffer, dtype=x._buffer.dtype))


class _Where(Function):
    @staticmethod
    def forward(ctx: Any, condition: Tensor, a: Operand, b: Operand) -> Tensor:
        ctx.shapes = shapes_of(condition, a, b)
        ctx.save_for_backward(condition)
        buffers, promoted = resolve_operands("where", condition, a, b)
        return Tensor._wrap(tk.pointwise("where", *buffers, dtype=promoted))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (condition,) = ctx.saved_tensors
        _, need_a, need_b = ctx.needs_input_grad
        da = where(condition, grad, 0) if need_a else None
        return sum_to_shapes(ctx.shapes, None, da, where(condition, 0, grad) if need_b else None)


def add(a: Operand, b: Operand) -> Tensor:
    """a + b; of two bool_, whether either holds."""
    return _Add.apply(a, b)


def sub(a: Operand, b: Operand) -> Tensor:
    """a − b."""
    return _Sub.apply(a, b)


def mul(a: Operand, b: Operand) -> Tensor:
    """a · b; of two bool_, whether both hold."""
    return _Mul.apply(a, b)


def div(a: Operand, b: Operand) -> Tensor:
    """a / b; integers become float32."""
    return _Div.apply(a, b)


def neg(x: Tensor) -> Tensor:
    """−x."""
    return _Unary.apply(x, "neg")


def exp(x: Tensor) -> Tensor:
    """The exponential of x; integers become float32.

    Examples
    --------
    >>> import lucid
    >>> lucid.exp(lucid.tensor([0.0, 1.0]))
    tensor([1., 2.7183])
    """
    return _Unary.apply(x, "exp")


def log(x: Tensor) -> Tensor:
    """The natural logarithm of x: −inf of 0, NaN below; integers become float32.

    Examples
    --------
    >>> import lucid
    >>> lucid.log(lucid.tensor([1.0, 0.0]))
    tensor([0., -inf])
    """
    return _Unary.apply(x, "log")


def sqrt(x: Tensor) -> Tensor:
    """The square root of x, NaN below 0; integers become float32.

    Examples
    --------
    >>> import lucid
    >>> lucid.sqrt(lucid.tensor([4, 2]))
    tensor([2., 1.4142])
    """
    return _Unary.apply(x, "sqrt")


def abs(x: Tensor) -> Tensor:
    """The absolute value of x.

    Examples
    --------
    >>> import lucid
    >>> lucid.abs(lucid.tensor([-2, 3]))
    tensor([2, 3], dtype=lucid.int64)
    """
    return _Unary.apply(x, "abs")


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent of x; integers become float32.

    Examples
    --------
    >>> import lucid
    >>> lucid.tanh(lucid.tensor([0.0, 1.0]))
    tensor([0., 0.7616])
    """
    return _Unary.apply(x, "tanh")


def relu(x: Tensor) -> Tensor:
    """max(x, 0); NaN stays NaN."""
    return _Unary.apply(x, "relu")


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
    if not isinstance(condition, Tensor) or condition._buffer.dtype is not torch.bool:
        got = condition.dtype if isinstance(condition, Tensor) else type_name(condition)
        raise TypeError(f"condition must be a lucid.Tensor of bool_, got {got}")
    a, b = unwrap_numpy_scalar(a), unwrap_numpy_scalar(b)
    if isinstance(a, numbers.Real) and isinstance(b, numbers.Real):
        a = Tensor(a, device=condition.device)  # of two numbers, kernels take one
    return _Where.apply(condition, a, b)


def compare(name: str, a: Tensor, b: Any) -> Any:
    """A bool_ tensor of a comparison: eq, ne, lt, le, gt or ge.

    NotImplemented for eq and ne with what has no elements to compare: Python then asks whether the two are one.
    """
    if name in ("eq", "ne") and not isinstance(b, Tensor | numbers.Real) and not hasattr(b, "__array__"):
        return NotImplemented
    buffers, promoted = resolve_operands(name, a, b)
    compute = torch.int64
    if promoted.is_floating_point:
        compute = tk.launch.compute_dtype(promoted)
        # A weak number is what it would be as an element: 0.1 equals a bfloat16 that was made from it.
        buffers = [v if isinstance(v, torch.Tensor) else _rounded(v, promoted) for v in buffers]
    return Tensor._wrap(tk.pointwise(name, *buffers, dtype=torch.bool, compute=compute))


def _rounded(number: float, kind: torch.dtype) -> float:
    return torch.tensor(float(number), dtype=torch.float64).to(kind).item()
