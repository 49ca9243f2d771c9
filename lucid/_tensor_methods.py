"""Operators and methods of Tensor that call operations, which lie above tensors in the import order."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from lucid._lazy import realize
from lucid.device import device as Device
from lucid.dtype import dtype as DType

if TYPE_CHECKING:
    from lucid.tensor import Tensor


def lazy_import(name: str) -> Any:
    """Import ``lucid.<name>`` on first use: tensors lie below the operations that their methods call."""
    return importlib.import_module(f"lucid.{name}")


class TensorMethods:
    """Conversions, arithmetic, comparisons, reductions and views."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the tensor with another dtype, or on another device; itself if nothing changes.

        Parameters
        ----------
        *args
            A device, a dtype, both, or a Tensor whose device and dtype to use; also as ``device=`` and ``dtype=``.
        """
        target_device, target_dtype = parse_to(*args, **kwargs)
        return lazy_import("ops").to(self, target_device, target_dtype)

    def float(self) -> Tensor:
        """Return the tensor in float32."""
        return self.to(DType.of("float32"))

    def double(self) -> Tensor:
        """Return the tensor in float64."""
        return self.to(DType.of("float64"))

    def half(self) -> Tensor:
        """Return the tensor in float16."""
        return self.to(DType.of("float16"))

    def bfloat16(self) -> Tensor:
        """Return the tensor in bfloat16."""
        return self.to(DType.of("bfloat16"))

    def cpu(self) -> Tensor:
        """Return the tensor on the CPU."""
        return self.to("cpu")

    def cuda(self) -> Tensor:
        """Return the tensor on the GPU."""
        return self.to("cuda")

    def eval(self: Any) -> Tensor:
        """Compute the values if they are deferred; return the tensor."""
        realize(self._memory)
        return self

    def clone(self) -> Tensor:
        """Return a differentiable copy."""
        return lazy_import("ops").clone(self)

    # Operations

    def __add__(self, other: Any) -> Tensor:
        return lazy_import("ops").add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return lazy_import("ops").sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return lazy_import("ops").sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return lazy_import("ops").mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return lazy_import("ops").div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return lazy_import("ops").div(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return lazy_import("ops").pow(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return lazy_import("ops").pow(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return lazy_import("ops").matmul(self, other)

    def __neg__(self) -> Tensor:
        return lazy_import("ops").neg(self)

    def __abs__(self) -> Tensor:
        return lazy_import("ops").abs(self)

    def __iadd__(self, other: Any) -> Tensor:
        return lazy_import("ops").write_result(self, self + other)

    def __isub__(self, other: Any) -> Tensor:
        return lazy_import("ops").write_result(self, self - other)

    def __imul__(self, other: Any) -> Tensor:
        return lazy_import("ops").write_result(self, self * other)

    def __itruediv__(self, other: Any) -> Tensor:
        return lazy_import("ops").write_result(self, self / other)

    def __eq__(self, other: Any) -> Any:
        return lazy_import("ops").compare("eq", self, other)

    def __ne__(self, other: Any) -> Any:
        return lazy_import("ops").compare("ne", self, other)

    def __lt__(self, other: Any) -> Tensor:
        return lazy_import("ops").compare("lt", self, other)

    def __le__(self, other: Any) -> Tensor:
        return lazy_import("ops").compare("le", self, other)

    def __gt__(self, other: Any) -> Tensor:
        return lazy_import("ops").compare("gt", self, other)

    def __ge__(self, other: Any) -> Tensor:
        return lazy_import("ops").compare("ge", self, other)

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> Tensor:
        return lazy_import("ops").getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        lazy_import("ops").setitem(self, index, value)

    def exp(self) -> Tensor:
        """exp x."""
        return lazy_import("ops").exp(self)

    def log(self) -> Tensor:
        """The natural logarithm."""
        return lazy_import("ops").log(self)

    def sqrt(self) -> Tensor:
        """The square root."""
        return lazy_import("ops").sqrt(self)

    def abs(self) -> Tensor:
        """The absolute value."""
        return lazy_import("ops").abs(self)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent."""
        return lazy_import("ops").tanh(self)

    def relu(self) -> Tensor:
        """max(x, 0)."""
        return lazy_import("ops").relu(self)

    def pow(self, exponent: Any) -> Tensor:
        """x to the power of `exponent`."""
        return lazy_import("ops").pow(self, exponent)

    def softmax(self, dim: int | None = None) -> Tensor:
        """Softmax along `dim`, by default the last."""
        return lazy_import("nn.functional").softmax(self, dim)

    def log_softmax(self, dim: int | None = None) -> Tensor:
        """Log-softmax along `dim`, by default the last."""
        return lazy_import("nn.functional").log_softmax(self, dim)

    def sum(self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
        """The sum over some dimensions, by default all."""
        return lazy_import("ops").sum(self, dim, keepdim)

    def mean(self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
        """The mean over some dimensions, by default all."""
        return lazy_import("ops").mean(self, dim, keepdim)

    def reshape(self, *shape: Any) -> Tensor:
        """Return the elements in another shape; one size may be −1. A view where possible."""
        return lazy_import("ops").reshape(self, shape)

    view = reshape

    def permute(self, *dims: Any) -> Tensor:
        """Return a view with permuted dimensions."""
        return lazy_import("ops").permute(self, dims)

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        """Return a view with two dimensions exchanged."""
        return lazy_import("ops").transpose(self, dim0, dim1)

    @property
    def T(self: Any) -> Tensor:
        """View with the dimensions in reverse order."""
        return lazy_import("ops").permute(self, tuple(reversed(range(self.ndim))))

    def expand(self, *shape: Any) -> Tensor:
        """Return a view with dimensions of size 1 broadcast to a larger size."""
        return lazy_import("ops").expand(self, shape)

    def squeeze(self, dim: int | None = None) -> Tensor:
        """Return a view without dimensions of size 1."""
        return lazy_import("ops").squeeze(self, dim)

    def unsqueeze(self, dim: int) -> Tensor:
        """Return a view with a dimension of size 1 inserted at `dim`."""
        return lazy_import("ops").unsqueeze(self, dim)

    def contiguous(self) -> Tensor:
        """Return the tensor itself, or a contiguous copy."""
        return lazy_import("ops").contiguous(self)


def parse_to(*args: Any, **kwargs: Any) -> tuple[Device | None, DType | None]:
    """Return the device and dtype given by the arguments of `Tensor.to`.

    Raises
    ------
    TypeError
        If an argument is neither, or there are two of a kind.
    """
    unknown = set(kwargs) - {"device", "dtype"}
    if unknown:
        raise TypeError(f"to() takes device and dtype, got {', '.join(sorted(unknown))}")
    devices = [] if kwargs.get("device") is None else [Device(kwargs["device"])]
    dtypes = [] if kwargs.get("dtype") is None else [DType.of(kwargs["dtype"])]
    for arg in args:
        if isinstance(arg, lazy_import("tensor").Tensor):
            devices.append(arg.device)
            dtypes.append(arg.dtype)
        elif isinstance(arg, Device | torch.device) or (isinstance(arg, str) and arg.startswith(("cpu", "cuda"))):
            devices.append(Device(arg))
        elif arg is not None:
            dtypes.append(_dtype_argument(arg))
    for name, given in (("device", devices), ("dtype", dtypes)):
        if len(given) > 1:
            raise TypeError(f"to() takes one {name}, got two")
    return next(iter(devices), None), next(iter(dtypes), None)


def _dtype_argument(arg: object) -> DType:
    try:
        return DType.of(arg)
    except TypeError:
        raise TypeError(f"to() takes a device, a dtype or a Tensor, got {arg!r}") from None
