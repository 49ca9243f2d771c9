"""Conversions of Tensor, and what type checkers know of its operators, which `lucid.ops.methods` attaches."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch

from lucid._docs import missing
from lucid._lazy import realize
from lucid.device import device as Device
from lucid.dtype import dtype as DType

if TYPE_CHECKING:
    from lucid.tensor import Tensor


def lazy_import(name: str) -> Any:
    """Import ``lucid.<name>`` on first use: tensors lie below the operations that their methods call."""
    full = f"lucid.{name}"
    return sys.modules.get(full) or importlib.import_module(full)


class TensorMethods:
    """Conversions, and the types of operators and methods."""

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

    def int(self) -> Tensor:
        """Return the tensor in int32, rounded towards zero."""
        return self.to(DType.of("int32"))

    def long(self) -> Tensor:
        """Return the tensor in int64, rounded towards zero."""
        return self.to(DType.of("int64"))

    def bool(self) -> Tensor:
        """Return whether elements differ from zero."""
        return self.to(DType.of("bool_"))

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

    def softmax(self, *args: Any, **kwargs: Any) -> Tensor:
        """Softmax along `dim`, by default the last."""
        return lazy_import("nn.functional").softmax(self, *args, **kwargs)

    def log_softmax(self, *args: Any, **kwargs: Any) -> Tensor:
        """Log-softmax along `dim`, by default the last."""
        return lazy_import("nn.functional").log_softmax(self, *args, **kwargs)

    __hash__ = object.__hash__

    if TYPE_CHECKING:  # attached by lucid.ops.methods

        def _operator(self, other: Any) -> Tensor: ...

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _operator
        __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __and__ = __rand__ = __or__ = __ror__ = _operator
        __xor__ = __rxor__ = __lt__ = __le__ = __gt__ = __ge__ = _operator
        __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __iand__ = __ior__ = __ixor__ = _operator

        def __eq__(self, other: Any) -> Any: ...
        def __ne__(self, other: Any) -> Any: ...
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    else:

        def __getattr__(self, name: str) -> Any:
            raise missing("Tensor", name, self)


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
