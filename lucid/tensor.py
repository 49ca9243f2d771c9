"""The Tensor: a buffer on a device, and its place in the graph."""

from __future__ import annotations

import builtins
import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lucid._arguments import type_name
from lucid._clobbered import check_unspent
from lucid._hooks import RemovableHandle, register
from lucid._lazy import Deferred, filled, hand_out, settle
from lucid.device import device as Device
from lucid.device import get_default_device
from lucid.dtype import dtype as DType


def room(name: str) -> Any:
    """The module ``lucid.<name>``, imported when first needed: tensors lie below what their operators call."""
    return importlib.import_module(f"lucid.{name}")


class Tensor:
    """A multi-dimensional array on a device, with gradients.

    Parameters
    ----------
    data
        A number, nested lists of numbers, a NumPy array, or a Tensor; copied.
    dtype
        By default that of an array or Tensor; float32, int64 or bool for Python numbers.
    device
        By default `lucid.get_default_device()`.
    requires_grad
        Record what is done with it (floating dtypes only).

    Attributes
    ----------
    grad : Tensor or None
        The gradient accumulated by `backward`; of the tensor's shape, dtype and device.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.Tensor([1.0, 2.5], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad.tolist()
    [2.0, 5.0]
    """

    _memory: torch.Tensor | Deferred
    _requires_grad: bool
    _node: Any
    _output_nr: int
    _hooks: OrderedDict[int, Callable[[Tensor], Tensor | None]] | None
    _grad: Tensor | None

    #: Operators of a NumPy array and a Tensor are the Tensor's.
    __array_ufunc__ = None

    def __init__(
        self,
        data: Any,
        dtype: DType | str | None = None,
        device: Device | str | None = None,
        requires_grad: bool = False,
    ) -> None:
        self._attach(to_buffer(data, dtype, device))
        self.requires_grad_(requires_grad)

    def _attach(self, memory: torch.Tensor | Deferred) -> None:
        self._memory = memory
        self._requires_grad = False
        self._node = None
        self._output_nr = 0
        self._hooks = None
        self._grad = None

    @classmethod
    def _wrap(cls, memory: torch.Tensor | Deferred) -> Tensor:
        """A tensor on `memory` itself."""
        tensor = Tensor.__new__(Tensor)
        tensor._attach(memory)
        return tensor

    @property
    def _buffer(self) -> torch.Tensor:
        """Its memory, filled: to look at this calculates what was deferred, and is an error where values are gone."""
        return check_unspent(filled(self._memory))

    @_buffer.setter
    def _buffer(self, buffer: torch.Tensor) -> None:
        self._memory = buffer

    @property
    def _like(self) -> torch.Tensor:
        """A buffer of its shape, dtype and device, whatever its values and strides."""
        return self._memory.like if isinstance(self._memory, Deferred) else self._memory

    def _writable(self) -> torch.Tensor:
        """Its buffer, to be written to: what was deferred keeps the values it would have had."""
        return settle(self._buffer)

    # What it is

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""
        return tuple(self._like.shape)

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return self._like.dim()

    @property
    def dtype(self) -> DType:
        """The type of its elements."""
        return DType.of(self._like.dtype)

    @property
    def device(self) -> Device:
        """Where its memory is."""
        return Device(self._like.device)

    def size(self, dim: int | None = None) -> tuple[int, ...] | int:
        """Its shape, or the size of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """How many elements it has."""
        return self._like.numel()

    def dim(self) -> int:
        """How many dimensions it has."""
        return self._like.dim()

    def stride(self) -> tuple[int, ...]:
        """Elements from one index to the next, per dimension."""
        return tuple(self._buffer.stride())

    def is_contiguous(self) -> bool:
        """Whether its elements lie in memory without gaps, the last dimension fastest."""
        return self._buffer.is_contiguous()

    def data_ptr(self) -> int:
        """The address of its first element."""
        return hand_out(self._buffer).data_ptr()

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a 0-d tensor has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise TypeError("a 0-d tensor cannot be iterated over")
        return (self[i] for i in range(self.shape[0]))

    def __bool__(self) -> bool:
        if self.numel() != 1:
            raise RuntimeError(f"only a tensor of one element is true or false, got shape {self.shape}")
        return bool(self.item())

    def __float__(self) -> builtins.float:
        return builtins.float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __repr__(self) -> str:
        return room("printing").tensor_repr(self)

    # Values on the host

    def _host(self) -> torch.Tensor:
        """Its buffer on the CPU; on the way, reports what went wrong on the device."""
        return room("ops").on_host(self._buffer)

    def _host_in_numpys_dtype(self) -> torch.Tensor:
        host = self._host()
        return host.float() if host.dtype is torch.bfloat16 else host

    def numpy(self) -> np.ndarray:
        """Its values as a NumPy array, from any device; shares memory on the CPU. bfloat16 comes as float32."""
        return hand_out(self._host_in_numpys_dtype()).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False and (self.device != "cpu" or self.dtype.name == "bfloat16"):
            raise ValueError(f"copy must not be False for a tensor of {self.dtype} on {self.device}")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> Any:
        """The only element as a Python number.

        Raises
        ------
        RuntimeError
            If there are more or none.
        """
        if self.numel() != 1:
            raise RuntimeError(f"only a tensor of one element is a Python number, got shape {self.shape}")
        return self._host().item()

    def tolist(self) -> Any:
        """Its values as nested lists."""
        return self._host().tolist()

    # Sharing memory

    def to_torch(self) -> torch.Tensor:
        """A torch tensor on the same memory, without gradients."""
        return hand_out(self._buffer).detach()

    def __dlpack__(self, **kwargs: Any) -> Any:
        return hand_out(self._buffer).__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self._like.__dlpack_device__()

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of; hooks stay behind.

        Raises
        ------
        RuntimeError
            If it is no leaf.
        """
        if self._node is not None:
            raise RuntimeError("only a leaf can be copied or pickled; use detach() on the result of an operation")
        return {**self.__dict__, "_memory": self._buffer, "_hooks": None}

    # Gradients

    @property
    def requires_grad(self) -> bool:
        """Whether what is done with it is recorded."""
        return self._requires_grad or self._node is not None

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        self.requires_grad_(flag)

    def requires_grad_(self, flag: bool = True) -> Tensor:
        """Switch recording on or off; leaves of a floating dtype only. Returns itself."""
        if flag and not self.dtype.is_floating_point:
            raise RuntimeError(f"only tensors of a floating dtype can require gradients, got {self.dtype}")
        if self._node is not None:
            if flag:
                return self
            raise RuntimeError("requires_grad can be switched off for leaves only; use detach()")
        self._requires_grad = bool(flag)
        return self

    @property
    def grad(self) -> Tensor | None:
        """The gradient accumulated by `backward`, if any."""
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f"grad must be a lucid Tensor or None, got {type_name(value)}")
            check_like("grad must have the tensor's", value, self)
        self._grad = value

    @property
    def is_leaf(self) -> bool:
        """Whether it is no result of a recorded operation."""
        return self._node is None

    @property
    def grad_fn(self) -> Any:
        """The node that it came from, None for a leaf."""
        return self._node

    def backward(self, gradient: Tensor | None = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Accumulate the gradients of this tensor into the ``.grad`` of the leaves it was made from.

        Parameters
        ----------
        gradient
            Of this tensor's shape; may be left out for a single element.
        retain_graph
            Keep what backward needs, for another time through the same graph.
        create_graph
            Record the computation of the gradients, so that they can be differentiated.

        Raises
        ------
        TypeError
            If `gradient` is no Tensor.
        RuntimeError
            If it does not require grad, `gradient` is missing or does not fit, or the graph has been freed.
        """
        room("autograd").backward([self], [gradient], retain_graph=retain_graph, create_graph=create_graph)

    def detach(self) -> Tensor:
        """The same memory, outside the graph."""
        return Tensor._wrap(self._memory)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `hook` with this tensor's gradient when it is complete; a Tensor it returns replaces the gradient.

        Raises
        ------
        RuntimeError
            If it does not require grad.
        """
        if not self.requires_grad:
            raise RuntimeError("a hook can be registered only on a tensor that requires grad")
        if self._node is not None:
            return register(self._node.hooks.setdefault(self._output_nr, OrderedDict()), hook)
        if self._hooks is None:
            self._hooks = OrderedDict()
        return register(self._hooks, hook)

    def retain_grad(self) -> None:
        """Keep the gradient of this non-leaf in ``.grad``, as a leaf does.

        Raises
        ------
        RuntimeError
            If it does not require grad.
        """
        if not self.requires_grad:
            raise RuntimeError("retain_grad can be called only on a tensor that requires grad")
        if self._node is not None:
            self._node.retain(self)

    # Conversions

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """This tensor with another dtype, or on another device; itself where nothing changes.

        Parameters
        ----------
        *args
            A device, a dtype, both, or a Tensor to take both from; also by the names ``device`` and ``dtype``.
        """
        target_device, target_dtype = parse_to(*args, **kwargs)
        return room("ops").to(self, target_device, target_dtype)

    def float(self) -> Tensor:
        """This tensor in float32."""
        return self.to(DType.of("float32"))

    def double(self) -> Tensor:
        """This tensor in float64."""
        return self.to(DType.of("float64"))

    def half(self) -> Tensor:
        """This tensor in float16."""
        return self.to(DType.of("float16"))

    def bfloat16(self) -> Tensor:
        """This tensor in bfloat16."""
        return self.to(DType.of("bfloat16"))

    def cpu(self) -> Tensor:
        """This tensor on the CPU."""
        return self.to("cpu")

    def cuda(self) -> Tensor:
        """This tensor on the GPU."""
        return self.to("cuda")

    def clone(self) -> Tensor:
        """A copy, in the graph."""
        return room("ops").clone(self)

    # Operations

    def __add__(self, other: Any) -> Tensor:
        return room("ops").add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return room("ops").sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return room("ops").sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return room("ops").mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return room("ops").div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return room("ops").div(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return room("ops").pow(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return room("ops").pow(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return room("ops").matmul(self, other)

    def __neg__(self) -> Tensor:
        return room("ops").neg(self)

    def __abs__(self) -> Tensor:
        return room("ops").abs(self)

    def __eq__(self, other: Any) -> Any:
        return room("ops").compare("eq", self, other)

    def __ne__(self, other: Any) -> Any:
        return room("ops").compare("ne", self, other)

    def __lt__(self, other: Any) -> Tensor:
        return room("ops").compare("lt", self, other)

    def __le__(self, other: Any) -> Tensor:
        return room("ops").compare("le", self, other)

    def __gt__(self, other: Any) -> Tensor:
        return room("ops").compare("gt", self, other)

    def __ge__(self, other: Any) -> Tensor:
        return room("ops").compare("ge", self, other)

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> Tensor:
        return room("ops").getitem(self, index)

    def exp(self) -> Tensor:
        """exp x."""
        return room("ops").exp(self)

    def log(self) -> Tensor:
        """The natural logarithm."""
        return room("ops").log(self)

    def sqrt(self) -> Tensor:
        """The square root."""
        return room("ops").sqrt(self)

    def abs(self) -> Tensor:
        """The absolute value."""
        return room("ops").abs(self)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent."""
        return room("ops").tanh(self)

    def relu(self) -> Tensor:
        """max(x, 0)."""
        return room("ops").relu(self)

    def pow(self, exponent: Any) -> Tensor:
        """x to the power of `exponent`."""
        return room("ops").pow(self, exponent)

    def softmax(self, dim: int | None = None) -> Tensor:
        """Softmax along `dim`, by default the last."""
        return room("nn.functional").softmax(self, dim)

    def log_softmax(self, dim: int | None = None) -> Tensor:
        """Log-softmax along `dim`, by default the last."""
        return room("nn.functional").log_softmax(self, dim)

    def sum(self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
        """The sum over some dimensions, by default all."""
        return room("ops").sum(self, dim, keepdim)

    def mean(self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
        """The mean over some dimensions, by default all."""
        return room("ops").mean(self, dim, keepdim)

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape; one size may be −1. Shares memory where possible."""
        return room("ops").reshape(self, shape)

    view = reshape

    def permute(self, *dims: Any) -> Tensor:
        """Its dimensions in another order; shares memory."""
        return room("ops").permute(self, dims)

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        """Two dimensions exchanged; shares memory."""
        return room("ops").transpose(self, dim0, dim1)

    @property
    def T(self) -> Tensor:
        """Its dimensions in reverse order; shares memory."""
        return room("ops").permute(self, tuple(reversed(range(self.ndim))))

    def expand(self, *shape: Any) -> Tensor:
        """Dimensions of size 1 repeated, without copying."""
        return room("ops").expand(self, shape)

    def squeeze(self, dim: int | None = None) -> Tensor:
        """Without dimensions of size 1; shares memory."""
        return room("ops").squeeze(self, dim)

    def unsqueeze(self, dim: int) -> Tensor:
        """With a dimension of size 1 put in at `dim`; shares memory."""
        return room("ops").unsqueeze(self, dim)

    def contiguous(self) -> Tensor:
        """Itself, or a copy without gaps."""
        return room("ops").contiguous(self)


def check_like(rule: str, tensor: Tensor, model: Tensor) -> None:
    """Raise a RuntimeError that starts with `rule` unless a tensor has the shape, device and dtype of another."""
    for name in ("shape", "device", "dtype"):
        got, wanted = getattr(tensor, name), getattr(model, name)
        if got != wanted:
            raise RuntimeError(f"{rule} {name} {wanted}, got {got}")


def to_buffer(data: Any, target_dtype: DType | str | None, target_device: Device | str | None) -> torch.Tensor:
    """A fresh buffer with the values of Python numbers, a NumPy array or a Tensor.

    Raises
    ------
    TypeError, ValueError
        If `data` is something else, or lists of unequal lengths.
    """
    wanted = None if target_dtype is None else DType.of(target_dtype)
    if isinstance(data, Tensor):
        place = data._like.device if target_device is None else Device(target_device).torch
        return data._buffer.to(device=place, dtype=wanted.torch if wanted else data._like.dtype, copy=True)
    if isinstance(data, torch.Tensor):
        raise TypeError("data must not be a torch.Tensor: use lucid.from_torch to share its memory")
    try:
        array = np.asarray(data)
    except ValueError:
        raise ValueError("data must be nested lists of equal lengths, got unequal ones") from None
    if array.dtype.kind not in "fiub":
        got = f"{type(data).__name__} of {array.dtype}"
        raise TypeError(f"data must be numbers, nested lists of numbers, a NumPy array or a lucid Tensor, got {got}")
    if wanted is None:
        of_numpy = isinstance(data, np.ndarray | np.generic)
        python = {"f": "float32", "i": "int64", "b": "bool_"}.get(array.dtype.kind, array.dtype)
        wanted = DType.of(array.dtype if of_numpy else "float32" if not array.size else python, "data's dtype")
    place = (get_default_device() if target_device is None else Device(target_device)).torch
    native = array.astype(array.dtype.newbyteorder("="), order="C")  # a copy
    return torch.from_numpy(native).to(device=place, dtype=wanted.torch)


def parse_to(*args: Any, **kwargs: Any) -> tuple[Device | None, DType | None]:
    """The device and dtype meant by the arguments of `Tensor.to`.

    Raises
    ------
    TypeError
        If an argument is neither.
    """
    unknown = set(kwargs) - {"device", "dtype"}
    if unknown:
        raise TypeError(f"to() takes device and dtype, got {', '.join(sorted(unknown))}")
    target_device = None if kwargs.get("device") is None else Device(kwargs["device"])
    target_dtype = None if kwargs.get("dtype") is None else DType.of(kwargs["dtype"])
    for arg in args:
        if isinstance(arg, Tensor):
            target_device, target_dtype = arg.device, arg.dtype
        elif isinstance(arg, Device | torch.device) or (isinstance(arg, str) and arg.startswith(("cpu", "cuda"))):
            target_device = Device(arg)
        elif arg is not None:
            target_dtype = _dtype_argument(arg)
    return target_device, target_dtype


def _dtype_argument(arg: object) -> DType:
    try:
        return DType.of(arg)
    except TypeError:
        raise TypeError(f"to() takes a device, a dtype or a Tensor, got {arg!r}") from None
