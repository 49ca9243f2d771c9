"""The Tensor: a buffer on a device, and its node in the autograd graph."""

from __future__ import annotations

import builtins
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lucid._arguments import check_bool, type_name
from lucid._clobbered import check_valid
from lucid._hooks import RemovableHandle, register
from lucid._lazy import Deferred, mark_shared, realize, realize_dependents
from lucid._tensor_methods import TensorMethods, lazy_import
from lucid.device import device as Device
from lucid.device import get_default_device
from lucid.dtype import dtype as DType


class Tensor(TensorMethods):
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
        Record operations on it for autograd (floating dtypes only).

    Attributes
    ----------
    grad : Tensor or None
        The gradient accumulated by `backward`; of the tensor's shape, dtype and device.

    Notes
    -----
    ``x += y``, ``x[i] = y`` and methods whose names end in _ write over the memory of x, and are recorded as other
    operations are. Where operations are recorded, a leaf that requires grad cannot be changed so.

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
    _grad_fn: Any
    _output_nr: int
    #: Of a view, the tensor that it is a view of, and that tensor's `_writes` when the view's node was made.
    _base: Tensor | None
    _base_writes: int
    #: Number of recorded writes to the tensor or its views, each of which gave it a new node.
    _writes: int
    _hooks: OrderedDict[int, Callable[[Tensor], Tensor | None]] | None
    _grad: Tensor | None

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
        self._grad_fn = None
        self._output_nr = 0
        self._base = None
        self._base_writes = self._writes = 0
        self._hooks = None
        self._grad = None

    @classmethod
    def _wrap(cls, memory: torch.Tensor | Deferred) -> Tensor:
        """Return a tensor on `memory`, without a copy."""
        tensor = Tensor.__new__(Tensor)
        tensor._attach(memory)
        return tensor

    @property
    def _buffer(self) -> torch.Tensor:
        """The memory, computed if it was deferred; a RuntimeError if it was overwritten in place by a gradient."""
        return check_valid(realize(self._memory))

    @_buffer.setter
    def _buffer(self, buffer: torch.Tensor) -> None:
        self._memory = buffer

    @property
    def _like(self) -> torch.Tensor:
        """A buffer of the same shape, dtype and device, of undefined values and strides."""
        return self._memory.like if isinstance(self._memory, Deferred) else self._memory

    @property
    def _node(self) -> Any:
        """The node that computed the tensor; of a view whose base was written to, one that reads from the base."""
        if self._base is not None and self._base_writes != self._base._writes:
            lazy_import("ops").reconnect(self)
        return self._grad_fn

    @_node.setter
    def _node(self, node: Any) -> None:
        self._grad_fn = node

    def _buffer_for_write(self) -> torch.Tensor:
        """Return the buffer for in-place writes; deferred values that read it are computed first."""
        return realize_dependents(self._buffer)

    # Metadata

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""
        return tuple(self._like.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._like.dim()

    @property
    def dtype(self) -> DType:
        """Type of the elements."""
        return DType.of(self._like.dtype)

    @property
    def device(self) -> Device:
        """Device of the memory."""
        return Device(self._like.device)

    def size(self, dim: int | None = None) -> tuple[int, ...] | int:
        """Return the shape, or the size of one dimension."""
        shape = self.shape
        if dim is None:
            return shape
        if not -len(shape) <= dim < len(shape):
            raise IndexError(f"dim must name one of the {len(shape)} dimensions of shape {shape}, got {dim}")
        return shape[dim]

    def numel(self) -> int:
        """Return the number of elements."""
        return self._like.numel()

    def dim(self) -> int:
        """Number of dimensions."""
        return self._like.dim()

    def stride(self) -> tuple[int, ...]:
        """Return the strides in elements, per dimension."""
        return tuple(self._buffer.stride())

    def is_contiguous(self) -> bool:
        """Return whether the memory is contiguous in row-major order."""
        return self._buffer.is_contiguous()

    def data_ptr(self) -> int:
        """Return the address of the first element."""
        return mark_shared(self._buffer).data_ptr()

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
            raise RuntimeError(
                f"the truth value of a tensor of shape {self.shape} is ambiguous: it must have one element"
            )
        return bool(self.item())

    def __float__(self) -> builtins.float:
        return builtins.float(self.item())

    def __int__(self) -> builtins.int:
        return builtins.int(self.item())

    def __index__(self) -> builtins.int:
        if self.ndim or self.dtype.is_floating_point:
            raise TypeError(f"only a 0-d tensor of integers is an index, got {self.dtype} of shape {self.shape}")
        return builtins.int(self.item())

    def __repr__(self) -> str:
        return lazy_import("printing").tensor_repr(self)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec or not self.ndim else str(self)

    # Values on the host

    def _host(self) -> torch.Tensor:
        """Return the buffer on the CPU; raises pending errors of kernels on the device."""
        return lazy_import("ops").on_host(self._buffer)

    def _numpy_compatible(self) -> torch.Tensor:
        host = self._host()
        return host.float() if host.dtype is torch.bfloat16 else host

    def numpy(self) -> np.ndarray:
        """Return the values as a NumPy array; shares memory on the CPU. bfloat16 is converted to float32."""
        return mark_shared(self._numpy_compatible()).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False and (self.device != "cpu" or self.dtype.name == "bfloat16"):
            raise ValueError(f"copy must not be False for a tensor of {self.dtype} on {self.device}")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> Any:
        """Return the only element as a Python number.

        Raises
        ------
        RuntimeError
            If the number of elements is not one.
        """
        if self.numel() != 1:
            raise RuntimeError(f"only one-element tensors can be converted to Python scalars, got shape {self.shape}")
        return self._host().item()

    def tolist(self) -> Any:
        """Return the values as nested lists."""
        return self._host().tolist()

    # Sharing memory

    def to_torch(self) -> torch.Tensor:
        """Return a torch tensor on the same memory, detached from the graph; it does not require grad."""
        return mark_shared(self._buffer).detach()

    def __dlpack__(self, **kwargs: Any) -> Any:
        return mark_shared(self._buffer).__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self._like.__dlpack_device__()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Operators of a NumPy number or array and a Tensor are the Tensor's; other functions of NumPy are refused."""
        if ufunc in _OPERATORS and method == "__call__" and not kwargs:
            # NumPy has made an array of the number in a comparison.
            operands = (x[()] if isinstance(x, np.ndarray) and not x.ndim else x for x in inputs)
            return getattr(lazy_import("ops"), _OPERATORS[ufunc])(*operands)
        name = {"absolute": "abs", "negative": "neg"}.get(ufunc.__name__, ufunc.__name__)
        ours = f"lucid.{name}(x)" if hasattr(lazy_import("ops"), name) else "a function of lucid"
        raise TypeError(f"np.{ufunc.__name__} takes NumPy arrays, got a lucid.Tensor: use {ours}, or pass x.numpy()")

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Functions of NumPy, but ufuncs, are refused."""
        name = function.__name__
        ours = f"lucid.{name}(x)" if hasattr(lazy_import("ops"), name) else "a function of lucid"
        raise TypeError(f"np.{name} takes NumPy arrays, got a lucid.Tensor: use {ours}, or pass x.numpy()")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles; hooks are not copied.

        Raises
        ------
        RuntimeError
            If the tensor is not a leaf.
        """
        if self._node is not None:
            raise RuntimeError("only a leaf can be copied or pickled; use detach() on the result of an operation")
        return {**self.__dict__, "_memory": self._buffer, "_hooks": None, "_base": None}

    # Gradients

    @property
    def requires_grad(self) -> bool:
        """Whether operations on the tensor are recorded for autograd."""
        return self._requires_grad or self._node is not None

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        self.requires_grad_(flag)

    def requires_grad_(self, flag: bool = True) -> Tensor:
        """Set `requires_grad` of a leaf of a floating dtype; return the tensor."""
        flag = check_bool("requires_grad", flag)
        if flag and not self.dtype.is_floating_point:
            raise RuntimeError(f"only tensors of a floating dtype can require gradients, got {self.dtype}")
        if self._node is None:
            self._requires_grad = flag
        elif not flag:
            raise RuntimeError("requires_grad can be switched off for leaves only; use detach()")
        return self

    @property
    def grad(self) -> Tensor | None:
        """The gradient accumulated by `backward`, if any."""
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f"grad must be a lucid.Tensor or None, got {type_name(value)}")
            check_like("grad must have the tensor's", value, self)
        self._grad = value

    @property
    def is_leaf(self) -> bool:
        """True unless the tensor is the result of a recorded operation."""
        return self._node is None

    @property
    def grad_fn(self) -> Any:
        """Node that computed the tensor, None for a leaf."""
        return self._node

    def backward(self, gradient: Tensor | None = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Accumulate the gradients of this tensor into the ``.grad`` of the leaves it was made from.

        Parameters
        ----------
        gradient
            Of this tensor's shape; may be left out for a single element.
        retain_graph
            Keep what backward needs, for another backward pass through the same graph.
        create_graph
            Record the computation of the gradients, so that they can be differentiated.

        Raises
        ------
        TypeError
            If `gradient` is not a lucid.Tensor.
        RuntimeError
            If it does not require grad, `gradient` is missing or does not fit, or the graph has been freed.
        """
        lazy_import("autograd").backward([self], [gradient], retain_graph=retain_graph, create_graph=create_graph)

    def detach(self) -> Tensor:
        """Return a tensor on the same memory, detached from the graph."""
        return Tensor._wrap(self._memory)

    @property
    def data(self) -> Tensor:
        """Tensor on the same memory, detached from the graph; assigned, it replaces the memory of a leaf."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"data must be a lucid.Tensor, got {type_name(value)}")
        if self._node is not None:
            raise RuntimeError("data can be assigned to a leaf only: use copy_")
        check_like("data must have the tensor's", value, self)
        self._memory = value._buffer

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


#: Operations that Python's operators of a NumPy array or number and a Tensor ask NumPy for.
_OPERATORS: dict[Any, str] = {
    **{np.add: "add", np.subtract: "sub", np.multiply: "mul", np.true_divide: "div", np.power: "pow"},
    **{np.matmul: "matmul", np.equal: "eq", np.not_equal: "ne", np.less: "lt", np.less_equal: "le"},
    **{np.greater: "gt", np.greater_equal: "ge"},
    **{np.bitwise_and: "bitwise_and", np.bitwise_or: "bitwise_or", np.bitwise_xor: "bitwise_xor"},
}


def eval(*tensors: Tensor) -> Any:
    """Compute deferred values; return the tensor, or a tuple of several. Without it they are computed when needed.

    Raises
    ------
    TypeError
        If one is no Tensor.

    Examples
    --------
    >>> import lucid
    >>> lucid.eval(lucid.ones(2).softmax())
    tensor([0.5, 0.5])
    """
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors must be lucid.Tensors, got {type_name(tensor)}")
        tensor.eval()
    return tensors[0] if len(tensors) == 1 else tensors


def check_like(rule: str, tensor: Tensor, model: Tensor) -> None:
    """Raise a RuntimeError that starts with `rule` unless a tensor has the shape, device and dtype of another."""
    for name in ("shape", "device", "dtype"):
        got, wanted = getattr(tensor, name), getattr(model, name)
        if got != wanted:
            raise RuntimeError(f"{rule} {name} {wanted}, got {got}")


def to_buffer(data: Any, target_dtype: DType | str | None, target_device: Device | str | None) -> torch.Tensor:
    """Return a fresh buffer with the values of Python numbers, a NumPy array or a Tensor.

    Raises
    ------
    TypeError, ValueError
        If `data` is something else, lists of unequal lengths, or numbers that the dtype does not have.
    """
    wanted = None if target_dtype is None else DType.of(target_dtype)
    if isinstance(data, Tensor):
        place = data._like.device if target_device is None else Device(target_device).torch
        return data._buffer.to(device=place, dtype=wanted.torch if wanted else data._like.dtype, copy=True)
    if isinstance(data, torch.Tensor):
        raise TypeError("data must not be a torch.Tensor: use lucid.from_torch to share its memory")
    if isinstance(data, list | tuple) and any(isinstance(part, Tensor) for part in data):
        data = [part.numpy() if isinstance(part, Tensor) else part for part in data]
    try:
        array = np.asarray(data)
    except ValueError:
        raise ValueError("data must be nested lists of equal lengths, got unequal ones") from None
    if array.dtype.kind not in "fiub":
        got = f"{type(data).__name__} of {array.dtype}"
        raise TypeError(f"data must be numbers, nested lists of numbers, a NumPy array or a lucid.Tensor, got {got}")
    if wanted is None:
        of_numpy = _is_of_numpy(data)
        python = {"f": "float32", "i": "int64", "b": "bool_"}.get(array.dtype.kind, array.dtype)
        wanted = DType.of(array.dtype if of_numpy else "float32" if not array.size else python, "data's dtype")
    wanted.check_range(array)
    place = (get_default_device() if target_device is None else Device(target_device)).torch
    native = array.astype(array.dtype.newbyteorder("="), order="C")  # a copy
    return torch.from_numpy(native).to(device=place, dtype=wanted.torch)


def _is_of_numpy(data: Any) -> bool:
    """Return whether data is an array or number of NumPy, or nested lists of arrays, which keep their dtype."""
    if isinstance(data, np.generic):
        return True
    while isinstance(data, list | tuple) and data:
        data = data[0]
    return isinstance(data, np.ndarray)
