"""In-place operators and item assignment."""

from __future__ import annotations

from typing import Any

from lucid.autograd import is_grad_enabled, no_grad
from lucid.ops.memory import getitem, to
from lucid.ops.promotion import rank
from lucid.tensor import Tensor


def write_result(x: Tensor, result: Tensor) -> Tensor:
    """Write the result of an operation on x over x; return x, or a recorded result in x's dtype, a tensor of its own.

    Raises
    ------
    RuntimeError
        If x is a leaf that requires grad and operations are recorded; if the result has another shape, or is of a kind
        that x cannot hold.
    """
    if is_grad_enabled():
        _check_no_leaf(x)
    if result.shape != x.shape:
        raise RuntimeError(f"a tensor changed in place must keep its shape {x.shape}, got {result.shape}")
    if rank(result._like.dtype) > rank(x._like.dtype):
        raise RuntimeError(f"a tensor of {x.dtype} changed in place must keep its kind of dtype, got {result.dtype}")
    if result.requires_grad:
        return to(result, None, x.dtype)
    x._buffer_for_write().copy_(result._buffer)
    return x


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """Write a Tensor, converted to x's dtype, or what `lucid.tensor` takes over part of x.

    Raises
    ------
    TypeError, IndexError, ValueError
        If it is something else; if the index does not fit.
    RuntimeError
        If x or the value requires grad and operations are recorded; if the value does not broadcast to the part.
    """
    if is_grad_enabled():
        _check_no_leaf(x)
        if x.requires_grad or (isinstance(value, Tensor) and value.requires_grad):
            raise RuntimeError("item assignment is not recorded for autograd: use lucid.no_grad(), or lucid.where")
    with no_grad():
        part = getitem(x, index)
        new = to(value, x.device, x.dtype) if isinstance(value, Tensor) else Tensor(value, x.dtype, x.device)
    values = new._buffer
    while values.dim() > part.ndim and values.shape[0] == 1:
        values = values[0]
    try:
        values = values.expand(part.shape)
    except RuntimeError:
        raise RuntimeError(f"value must have a shape that broadcasts to shape {part.shape}, got {new.shape}") from None
    part._buffer_for_write().copy_(values)


def _check_no_leaf(x: Tensor) -> None:
    if x.is_leaf and x.requires_grad:
        raise RuntimeError(
            "a leaf that requires grad cannot be changed in place, where operations are recorded: use lucid.no_grad()"
        )
