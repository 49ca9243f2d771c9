"""Operations that move, copy, convert or reinterpret memory and calculate nothing."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

import triton_kernels as tk
from lucid._arguments import accepts_axis, type_name
from lucid._flags import is_checking
from lucid.autograd.function import Function
from lucid.device import device
from lucid.dtype import dtype
from lucid.tensor import Tensor


class _Reshape(Function):
    makes_view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.shape = x.shape
        return Tensor._wrap(x._buffer.reshape(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Reshape.apply(grad, ctx.shape), None


class _Permute(Function):
    makes_view = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        ctx.dims = dims
        return Tensor._wrap(x._buffer.permute(dims))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inverse = tuple(sorted(range(len(ctx.dims)), key=ctx.dims.__getitem__))
        return _Permute.apply(grad, inverse), None


class _To(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target_device: torch.device, target_dtype: torch.dtype) -> Tensor:
        ctx.device, ctx.dtype = x._buffer.device, x._buffer.dtype
        return Tensor._wrap(x._buffer.to(device=target_device, dtype=target_dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _To.apply(grad, ctx.device, ctx.dtype), None, None


class _Clone(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return Tensor._wrap(x._buffer.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def as_sizes(name: str, given: Sequence[Any]) -> tuple[int, ...]:
    """Return sizes that were given as separate integers or as one sequence.

    Raises
    ------
    TypeError
        If one is not an integer.
    """
    if not isinstance(given, Sequence):  # of a function: one size, as torch takes it
        given = (given,)
    sizes = given[0] if len(given) == 1 and isinstance(given[0], tuple | list | range) else given
    return tuple(as_int(f"{name} must be integers", size) for size in sizes)


def check_is_tensor(x: Any) -> None:
    """Raise TypeError unless x is a Tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a lucid.Tensor, got {type_name(x)}")


def wrap_dim(x: Tensor, dim: int, name: str = "dim", extra: int = 0) -> int:
    """Return `dim` as a non-negative index; a 0-d tensor counts as 1-d.

    Raises
    ------
    TypeError
        If x is no Tensor, or `dim` not an integer.
    IndexError
        If `dim` is out of range.
    """
    check_is_tensor(x)
    number = as_int(f"{name} must be an integer", dim)
    count = max(x.ndim + extra, 1)
    if not -count <= number < count:
        raise IndexError(f"{name} must lie in {-count} to {count - 1} for shape {x.shape}, got {dim}")
    return number % count


def as_int(rule: str, value: Any) -> int:
    """Return an integer; raise a TypeError that starts with `rule` for anything else."""
    # bool is rejected, although it is an int to Python.
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{rule}, got {type_name(value)}")


def reshape(x: Tensor, shape: Sequence[Any]) -> Tensor:
    """Return the elements in another shape; one size may be −1. A view where possible."""
    return _Reshape.apply(x, _fitting("shape", x, shape))


def _fitting(name: str, x: Tensor, shape: Sequence[Any]) -> tuple[int, ...]:
    """Return sizes that hold the elements of x; raise a RuntimeError for others."""
    check_is_tensor(x)
    sizes = as_sizes(name, shape)
    known = math.prod(size for size in sizes if size != -1)
    unknown = sizes.count(-1)
    fits = known == x.numel() if not unknown else known != 0 and x.numel() % known == 0
    if unknown > 1 or any(size < -1 for size in sizes) or not fits:
        raise RuntimeError(f"{name} must hold the {x.numel()} elements of a tensor of shape {x.shape}, got {sizes}")
    return sizes


def view(x: Tensor, shape: Sequence[Any]) -> Tensor:
    """Return a view in another shape; one size may be −1.

    Raises
    ------
    RuntimeError
        If the shape does not hold the elements, or their strides allow no view.
    """
    sizes = _fitting("shape", x, shape)
    try:
        x._buffer.view(sizes)
    except RuntimeError:
        raise RuntimeError(
            f"a tensor of shape {x.shape} and strides {x.stride()} cannot be viewed in shape {sizes}: use reshape, "
            "which copies"
        ) from None
    return _Reshape.apply(x, sizes)


def permute(x: Tensor, dims: Sequence[Any]) -> Tensor:
    """Return a view with permuted dimensions."""
    check_is_tensor(x)
    order = as_sizes("dims", dims)
    normal = tuple(dim % x.ndim if -x.ndim <= dim < x.ndim else dim for dim in order)
    if sorted(normal) != list(range(x.ndim)):
        raise RuntimeError(f"dims must name each of the {x.ndim} dimensions once, got {order}")
    return _Permute.apply(x, normal)


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Return a view with two dimensions exchanged."""
    order = list(range(x.ndim))
    a, b = wrap_dim(x, dim0, "dim0"), wrap_dim(x, dim1, "dim1")
    if x.ndim:
        order[a], order[b] = order[b], order[a]
    return _Permute.apply(x, tuple(order))


@accepts_axis
def squeeze(x: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Return a view without dimensions of size 1, or without those among `dim`."""
    check_is_tensor(x)
    dims = range(x.ndim) if dim is None else dim if isinstance(dim, tuple | list) else (dim,)
    squeezed = [wrap_dim(x, d) for d in dims]
    return _Reshape.apply(x, tuple(size for d, size in enumerate(x.shape) if size != 1 or d not in squeezed))


@accepts_axis
def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """Return a view with a dimension of size 1 inserted at `dim`."""
    at = wrap_dim(x, dim, extra=1)
    return _Reshape.apply(x, (*x.shape[:at], 1, *x.shape[at:]))


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Return the elements with the dimensions from `start_dim` to `end_dim` merged into one; a view where possible."""
    first, last = wrap_dim(x, start_dim, "start_dim"), wrap_dim(x, end_dim, "end_dim")
    if first > last:
        raise RuntimeError(f"start_dim must not come after end_dim, got {start_dim} and {end_dim}")
    return _Reshape.apply(x, (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


def to(x: Tensor, target_device: device | None, target_dtype: dtype | None) -> Tensor:
    """Return the tensor on a device, with a dtype; itself if nothing changes."""
    like = x._like
    place = like.device if target_device is None or target_device == x.device else target_device.torch
    kind = like.dtype if target_dtype is None else target_dtype.torch
    if place == like.device and kind == like.dtype:
        return x
    return _To.apply(x, place, kind)


def clone(x: Tensor) -> Tensor:
    """Return a contiguous copy."""
    return _Clone.apply(x)


def contiguous(x: Tensor) -> Tensor:
    """Return the tensor itself, or a contiguous copy."""
    return x if x.is_contiguous() else _Clone.apply(x)


def kernel_device() -> str:
    """Return the device of the kernels: cuda, or cpu where the interpreter runs them."""
    return str(tk.backend.default_device())


def raise_device_errors(buffer: torch.Tensor, labels: str = "labels") -> None:
    """Raise pending errors of kernels, if that needs no synchronization or `check_values` asks for one.

    `labels` is the name of the argument with labels, which kernels do not know.
    """
    if _raises_at_once(buffer):
        try:
            tk.raise_pending_errors(buffer.device)
        except IndexError as error:
            raise of_argument(error, labels) from None


def of_argument(error: IndexError, labels: str) -> IndexError:
    """Return an error about labels that has the name of the argument."""
    return IndexError(str(error).replace("labels", labels, 1))


def raise_before_overwriting(logits: torch.Tensor, weights: Callable[[], torch.Tensor] | None) -> None:
    """As `raise_device_errors`, before a launch that overwrites logits.

    `weights` launches what sees the labels; None without labels.
    """
    if _raises_at_once(logits):
        if weights is not None:
            weights()
        raise_device_errors(logits)


def _raises_at_once(buffer: torch.Tensor) -> bool:
    return buffer.device.type == "cpu" or is_checking()


def on_host(buffer: torch.Tensor) -> torch.Tensor:
    """Return the buffer on the CPU. Synchronizes, and raises pending errors of kernels."""
    host = buffer.cpu()
    tk.raise_pending_errors(buffer.device)
    return host
