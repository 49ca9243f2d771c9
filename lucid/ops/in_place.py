"""Writes to the memory of tensors: in-place operators and methods, and item assignment, recorded as other operations.

A recorded write gives a tensor a new node. If it is a view, its base gets one: of the base before, with a part of it
replaced. All views of the base get new nodes, which read from the base, when they are next asked for theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lucid._arguments import type_name
from lucid.autograd import enable_grad, is_grad_enabled
from lucid.autograd.function import Function
from lucid.ops.indexing import PutAt, flip, getitem, parse
from lucid.ops.memory import clone, to
from lucid.ops.promotion import rank
from lucid.ops.reduction import expand, sum
from lucid.tensor import Tensor


class _Part(NamedTuple):
    """Where a view lies in its base: both's sizes and strides, and the offset between them."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    base_size: tuple[int, ...]
    base_stride: tuple[int, ...]

    @classmethod
    def of(cls, view: torch.Tensor, base: torch.Tensor) -> _Part:
        offset = int(view.storage_offset() - base.storage_offset())
        return cls(tuple(view.shape), view.stride(), offset, tuple(base.shape), base.stride())

    def of_base(self, base: torch.Tensor) -> torch.Tensor:
        """Return the part of a tensor of the base's size and strides."""
        return base.as_strided(self.size, self.stride, base.storage_offset() + self.offset)

    def arrange(self, tensor: torch.Tensor, copy: bool = False) -> torch.Tensor:
        """Return a tensor of the base's size with the base's strides."""
        if not copy and tensor.stride() == self.base_stride:
            return tensor
        arranged = torch.empty_strided(self.base_size, self.base_stride, dtype=tensor.dtype, device=tensor.device)
        return arranged.copy_(tensor)


class _View(Function):
    """The part of a base that a view is."""

    makes_view = True

    @staticmethod
    def forward(ctx: Any, base: Tensor, part: _Part) -> Tensor:
        ctx.part = part
        return Tensor._wrap(part.of_base(part.arrange(base._buffer)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        part = ctx.part
        repeated = tuple(d for d, (n, s) in enumerate(zip(part.size, part.stride, strict=True)) if n > 1 and not s)
        if repeated:
            part = part._replace(size=tuple(1 if d in repeated else n for d, n in enumerate(part.size)))
            grad = sum(grad, repeated, True)
        return _Scatter.apply(grad, part), None


class _Scatter(Function):
    """Zeros of a base, with a tensor in the part of it that a view is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: _Part) -> Tensor:
        ctx.part = part
        buffer = x._buffer
        whole = torch.empty_strided(part.base_size, part.base_stride, dtype=buffer.dtype, device=buffer.device).zero_()
        part.of_base(whole).copy_(buffer)
        return Tensor._wrap(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _View.apply(grad, ctx.part), None


class _Write(Function):
    """A base whose part was replaced by a value."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, value: Tensor, part: _Part) -> Tensor:
        ctx.part = part
        return Tensor._wrap(base._buffer)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_base, need_value, _ = ctx.needs_input_grad
        to_base = _Cut.apply(grad, ctx.part) if need_base else None
        return to_base, _View.apply(grad, ctx.part) if need_value else None, None


class _Cut(Function):
    """A tensor with zeros in the part of it that a view is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: _Part) -> Tensor:
        ctx.part = part
        whole = part.arrange(x._buffer, copy=True)
        part.of_base(whole).zero_()
        return Tensor._wrap(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Cut.apply(grad, ctx.part), None


def reconnect(view: Tensor) -> None:
    """Give a view, whose base has been written to, a node that reads from the base."""
    base = view._base
    assert base is not None
    view._base_writes = base._writes
    if base.requires_grad:
        with enable_grad():
            fresh = _View.apply(base, _Part.of(view._buffer, base._buffer))
        view._node, view._output_nr = fresh._node, fresh._output_nr


def write_result(x: Tensor, result: Tensor) -> Tensor:
    """Write the result of an operation on x, converted to x's dtype, over x; return x.

    Raises
    ------
    RuntimeError
        If x is a leaf that requires grad, or a view of one, and operations are recorded; if the result has another
        shape, or is of a kind that x cannot hold; if elements of x share memory.
    """
    check_writable(x)
    if result.shape != x.shape:
        raise RuntimeError(f"a tensor changed in place must keep its shape {x.shape}, got {result.shape}")
    if rank(result._like.dtype) > rank(x._like.dtype):
        raise RuntimeError(f"a tensor of {x.dtype} changed in place must keep its kind of dtype, got {result.dtype}")
    new = to(result, None, x.dtype)
    x._buffer_for_write().copy_(new._buffer)
    return _record(x, new)


def _record(x: Tensor, new: Tensor) -> Tensor:
    """Give x the node of what was written over it, where operations are recorded."""
    if not is_grad_enabled() or not (x.requires_grad or new.requires_grad):
        return x
    base = x if x._base is None else x._base
    if base is not x or new._node is None:
        new = _Write.apply(base, new, _Part.of(x._buffer, base._buffer))
    if base._node is not None:
        base._node.pass_retained(base, new)
    base._node, base._output_nr = new._node, new._output_nr
    base._writes += 1
    return x


def check_writable(x: Tensor) -> None:
    """Raise a RuntimeError if x cannot be changed in place."""
    if any(stride == 0 for size, stride in zip(x.shape, x._buffer.stride(), strict=True) if size > 1):
        raise RuntimeError(f"an expanded tensor of shape {x.shape} cannot be changed in place: use clone()")
    base = x if x._base is None else x._base
    if is_grad_enabled() and base._node is None and base.requires_grad:
        what = "a leaf" if base is x else "a view of a leaf"
        raise RuntimeError(
            f"{what} that requires grad cannot be changed in place, where operations are recorded: use lucid.no_grad()"
        )


#: For whose gradient backward needs the values before the write: that of the tensor, or that of the other operand.
_NEEDS_VALUES_FOR = {"mul": "other", "div": "other"}
_NEEDS_VALUES_FOR |= dict.fromkeys(("abs", "clamp", "log", "maximum", "minimum", "pow", "square"), "any")


def in_place(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the method that writes the result of an operation over its first operand."""
    name = operation.__name__

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_writable(self)
        before = self
        if name in _NEEDS_VALUES_FOR and is_grad_enabled():
            others = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
            if others or (self.requires_grad and _NEEDS_VALUES_FOR[name] == "any"):
                before = clone(self)
        return write_result(self, operation(before, *args, **kwargs))

    method.__name__ = method.__qualname__ = f"{name}_"
    method.__doc__ = f"`{name}`, written over the tensor; returns the tensor."
    return method


def copy_(x: Tensor, source: Tensor) -> Tensor:
    """Write a Tensor that broadcasts to x, converted to x's dtype and device, over x; return x."""
    if not isinstance(source, Tensor):
        raise TypeError(f"copy_ takes a lucid.Tensor, got {type_name(source)}: fill_ takes a number")
    check_writable(x)
    return _write(x, source)


def fill_(x: Tensor, value: Any) -> Tensor:
    """Write a number, or a 0-d Tensor, over each element of x; return x."""
    check_writable(x)
    return _write(x, value if isinstance(value, Tensor) else Tensor(value, x.dtype, x.device))


def zero_(x: Tensor) -> Tensor:
    """Write zeros over x; return x."""
    return fill_(x, 0)


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """Write a Tensor, converted to x's dtype, or what `lucid.tensor` takes over part of x.

    Raises
    ------
    TypeError, IndexError, ValueError
        If it is something else; if the index does not fit.
    RuntimeError
        If x cannot be changed in place; if the value does not broadcast to the part.
    """
    check_writable(x)
    view, flipped, tensors = parse(x, index)
    new = value if isinstance(value, Tensor) else Tensor(value, x.dtype, x.device)
    part = getitem(x, view)
    if not tensors:
        _write(part, new, flipped)
        return
    target = flip(part, flipped) if flipped else part
    values = _broadcast(to(new, x.device, x.dtype), tuple(target._buffer[tensors].shape))
    _record(target, PutAt.apply(target, values, tensors))
    if flipped:
        _write(part, target, flipped)


def _write(x: Tensor, source: Tensor, flipped: tuple[int, ...] = ()) -> Tensor:
    """Write what broadcasts to x over x, in reverse along some dimensions."""
    if not flipped and _same_memory(source._buffer, x._buffer):
        return x  # x[i] += y writes twice
    values = _broadcast(to(source, x.device, x.dtype), x.shape)
    if flipped:
        values = flip(values, flipped)
    if values._buffer.untyped_storage().data_ptr() == x._buffer.untyped_storage().data_ptr():
        values = values.clone()  # the two may overlap
    x._buffer_for_write().copy_(values._buffer)
    return _record(x, values)


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype is b.dtype


def _broadcast(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a value expanded to a shape; leading dimensions of size 1 may be too many."""
    got = value.shape
    while value.ndim > len(shape) and value.shape[0] == 1:
        value = getitem(value, 0)
    try:
        return value if value.shape == shape else expand(value, shape)
    except RuntimeError:
        raise RuntimeError(f"value must have a shape that broadcasts to shape {shape}, got {got}") from None
