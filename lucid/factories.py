"""Ways to make tensors."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lucid._arguments import check_dense, type_name
from lucid._lazy import mark_shared
from lucid.device import device as DeviceType
from lucid.device import get_default_device
from lucid.dtype import dtype as DTypeType
from lucid.dtype import float32
from lucid.tensor import Tensor

DType = DTypeType | str | None
Device = DeviceType | str | None


def tensor(data: Any, dtype: DType = None, device: Device = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of `data`: numbers, nested lists, a NumPy array or a Tensor; see `Tensor`.

    Examples
    --------
    >>> import lucid
    >>> lucid.tensor([[1.0, 2.5]])
    tensor([[1., 2.5]])
    >>> lucid.tensor([1, 2], dtype="half")
    tensor([1., 2.], dtype=lucid.float16)
    """
    return Tensor(data, dtype, device, requires_grad)


def from_torch(source: torch.Tensor) -> Tensor:
    """A tensor on the memory of a torch tensor, outside torch's graph. It does not require grad, even where that does.

    Raises
    ------
    TypeError, ValueError
        If it is no dense torch tensor of a supported dtype and device, or if its memory holds the negatives of its
        values (``x.conj().imag``).

    Examples
    --------
    >>> import lucid, torch
    >>> lucid.from_torch(torch.ones(2)).tolist()
    [1.0, 1.0]
    """
    if not isinstance(source, torch.Tensor):
        raise TypeError(f"source must be a torch.Tensor, got {type_name(source)}")
    check_dense("source", source)
    DTypeType.of(source.dtype, "source's dtype")
    DeviceType(source.device)
    _check_positive(source)
    return Tensor._wrap(mark_shared(source).detach())


def _check_positive(source: torch.Tensor) -> None:
    if source.is_neg():
        raise ValueError("source must be its memory's values, but has torch's negative bit: pass source.resolve_neg()")


def from_numpy(source: np.ndarray) -> Tensor:
    """A CPU tensor on the memory of a NumPy array.

    Raises
    ------
    TypeError
        If it is no array of a supported dtype.
    ValueError
        If its memory cannot be shared: it is read-only, its bytes are in another order than the machine's, or it runs
        backwards. `tensor` copies such an array.

    Examples
    --------
    >>> import lucid, numpy as np
    >>> array = np.zeros(2)
    >>> x = lucid.from_numpy(array)
    >>> array[0] = 5
    >>> x.tolist()
    [5.0, 0.0]
    """
    if not isinstance(source, np.ndarray):
        remedy = ": use lucid.from_torch" if isinstance(source, torch.Tensor) else ""
        raise TypeError(f"source must be a NumPy array, got {type_name(source)}{remedy}")
    DTypeType.of(source.dtype, "source's dtype")
    if not source.flags.writeable or not source.dtype.isnative or any(stride < 0 for stride in source.strides):
        raise ValueError(
            "source must be a writable NumPy array of native byte order and positive strides to share its memory; "
            "lucid.tensor copies others"
        )
    return Tensor._wrap(mark_shared(torch.from_numpy(source)))


def from_dlpack(source: Any) -> Tensor:
    """A tensor on the memory of anything that speaks DLPack; it does not require grad.

    Raises
    ------
    TypeError
        If it does not, or has no supported dtype.
    ValueError
        If it is a torch tensor whose memory holds the negatives of its values.

    Examples
    --------
    >>> import lucid, numpy as np
    >>> shared = lucid.from_dlpack(np.ones(2))
    >>> shared.dtype, shared.tolist()
    (lucid.float64, [1.0, 1.0])
    """
    if not hasattr(source, "__dlpack__"):
        raise TypeError(f"source must have __dlpack__, got {type_name(source)}")
    if isinstance(source, torch.Tensor):  # whose negative bit does not travel
        _check_positive(source)
    return from_torch(torch.from_dlpack(source))


def _place(dtype: DType, device: Device) -> dict[str, Any]:
    kind = float32 if dtype is None else DTypeType.of(dtype)
    place = get_default_device() if device is None else DeviceType(device)
    return {"dtype": kind.torch, "device": place.torch}


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    for size in sizes:
        if isinstance(size, bool) or not hasattr(size, "__index__") or size < 0:
            raise ValueError(f"shape must be non-negative integers, got {sizes}")
    return tuple(int(size) for size in sizes)


def _made(buffer: torch.Tensor, requires_grad: bool) -> Tensor:
    return Tensor._wrap(buffer).requires_grad_(requires_grad)


def empty(*shape: Any, dtype: DType = None, device: Device = None, requires_grad: bool = False) -> Tensor:
    """A tensor whose values are whatever was in memory; of float32 unless said otherwise.

    Parameters
    ----------
    *shape
        Sizes, one by one or as one sequence.

    Raises
    ------
    ValueError
        If a size is no non-negative integer.

    Examples
    --------
    >>> import lucid
    >>> lucid.empty(2, 3).shape
    (2, 3)
    """
    return _made(torch.empty(_shape(shape), **_place(dtype, device)), requires_grad)


def zeros(*shape: Any, dtype: DType = None, device: Device = None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros; parameters as for `empty`.

    Examples
    --------
    >>> import lucid
    >>> lucid.zeros(2, 1)
    tensor([[0.],
            [0.]])
    """
    return _made(torch.zeros(_shape(shape), **_place(dtype, device)), requires_grad)


def ones(*shape: Any, dtype: DType = None, device: Device = None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones; parameters as for `empty`.

    Examples
    --------
    >>> import lucid
    >>> lucid.ones((2,), dtype="int64")
    tensor([1, 1], dtype=lucid.int64)
    """
    return _made(torch.ones(_shape(shape), **_place(dtype, device)), requires_grad)


def full(
    shape: int | Sequence[int],
    value: float,
    *,
    dtype: DType = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor that holds `value` everywhere; by default of the dtype `tensor` gives it.

    Examples
    --------
    >>> import lucid
    >>> lucid.full((2,), 0.5)
    tensor([0.5, 0.5])
    """
    if not isinstance(value, numbers.Real):
        raise TypeError(f"value must be a number, got {type_name(value)}")
    kind = Tensor(value, device="cpu").dtype if dtype is None else dtype
    return _made(torch.full(_shape((shape,)), value, **_place(kind, device)), requires_grad)


def _checked(other: Tensor) -> Tensor:
    if not isinstance(other, Tensor):
        raise TypeError(f"other must be a lucid.Tensor, got {type_name(other)}")
    return other


def empty_like(other: Tensor) -> Tensor:
    """As `empty`, with the shape, dtype and device of another tensor."""
    return empty(_checked(other).shape, dtype=other.dtype, device=other.device)


def zeros_like(other: Tensor) -> Tensor:
    """As `zeros`, with the shape, dtype and device of another tensor."""
    return zeros(_checked(other).shape, dtype=other.dtype, device=other.device)


def ones_like(other: Tensor) -> Tensor:
    """As `ones`, with the shape, dtype and device of another tensor."""
    return ones(_checked(other).shape, dtype=other.dtype, device=other.device)


def full_like(other: Tensor, value: float) -> Tensor:
    """As `full`, with the shape, dtype and device of another tensor."""
    return full(_checked(other).shape, value, dtype=other.dtype, device=other.device)


def arange(
    start: float, end: float | None = None, step: float = 1, *, dtype: DType = None, device: Device = None
) -> Tensor:
    """Numbers from `start` (0 if only one is given) up to but not including `end`; int64, or float32 if one is a float.

    Raises
    ------
    TypeError
        If one is no number.
    ValueError
        If one is not finite, or `step` is 0.

    Examples
    --------
    >>> import lucid
    >>> lucid.arange(3)
    tensor([0, 1, 2], dtype=lucid.int64)
    """
    first, last = (0, start) if end is None else (start, end)
    for name, value in (("start", first), ("end", last), ("step", step)):
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {type_name(value)}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    if step == 0:
        raise ValueError("step must not be 0")
    values = np.arange(first, last, step)
    return Tensor(values, dtype or ("float32" if values.dtype.kind == "f" else "int64"), device)
