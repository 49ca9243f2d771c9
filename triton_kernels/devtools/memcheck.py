"""Accesses outside of tensors, found in Triton's interpreter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from triton_kernels.devtools import accesses
from triton_kernels.runtime import backend


@contextmanager
def memcheck(*others: torch.Tensor) -> Iterator[None]:
    """Raise where a kernel within the block loads or stores what is no element of its arguments; interpreter only.

    What lies between the elements of a tensor, such as the padding of rows or the columns beside a slice, is not
    accepted either. Lanes that are masked out access nothing. Atomic accesses are not checked.

    Parameters
    ----------
    others
        Tensors that kernels reach by addresses in a table, as those of optimizers do; without any, these kernels are
        not checked.

    Raises
    ------
    IndexError
        At such an access; names the kernel, the number of lanes and the shapes of its tensors.
    RuntimeError
        If kernels are compiled: compute-sanitizer checks those.

    Examples
    --------
    >>> x = torch.zeros(5)
    >>> with memcheck():  # doctest: +SKIP
    ...     print(triton_kernels.sum(x, [0]).item())
    0.0
    """
    if not backend.INTERPRETED:
        raise RuntimeError("accesses are checked in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts")
    from triton.runtime.errors import InterpreterError

    launched = threading.local()

    def check(what: str, pointers: Any, mask: Any) -> None:
        memory = getattr(launched, "memory", None)
        if memory is None:
            return
        lanes = np.broadcast_to(getattr(mask, "data", mask), pointers.data.shape).astype(bool)
        addresses = pointers.data[lanes].astype(np.int64)
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        outside = np.full(addresses.shape, True)
        for tensor in memory:
            outside &= ~_within(addresses, size, tensor)
        if outside.any():
            count, shapes = np.count_nonzero(outside), ", ".join(str(tuple(tensor.shape)) for tensor in memory)
            raise IndexError(f"{launched.name} {what} {count} elements outside of its tensors: {shapes}")

    def executed(execute: Callable[..., None], executor: Any, *args: Any, **kwargs: Any) -> None:
        unknown = "table_ptr" in kwargs and not others
        tensors = [leaf for leaf in (*tree_leaves((args, kwargs)), *others) if isinstance(leaf, torch.Tensor)]
        launched.name, launched.memory = executor.fn.__name__, None if unknown else tensors
        try:
            execute(executor, *args, **kwargs)
        except InterpreterError as error:  # one for each jit function that it came through
            cause: BaseException | None = error
            while isinstance(cause, InterpreterError):
                cause = cause.__cause__
            if isinstance(cause, IndexError):
                raise cause from None
            raise
        finally:
            launched.memory = None  # which would keep the tensors

    with accesses.observed(check, executed):
        yield


def _within(addresses: np.ndarray[Any, Any], size: int, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Which addresses are those of elements of a tensor that have at least `size` bytes."""
    if not tensor.numel() or size > tensor.itemsize:
        return np.zeros(addresses.shape, bool)
    left = addresses - tensor.data_ptr()
    dims = sorted((stride, n) for stride, n in zip(tensor.stride(), tensor.shape, strict=True) if stride and n > 1)
    extents = accumulate((stride * (n - 1) for stride, n in dims), initial=0)
    if any(stride <= extent for (stride, _), extent in zip(dims, extents, strict=False)):  # they overlap
        offsets = sum(np.arange(n).reshape(-1, *[1] * i) * stride for i, (stride, n) in enumerate(dims))
        return np.isin(left, offsets * tensor.itemsize)
    found = left >= 0
    for stride, n in reversed(dims):
        index, left = np.divmod(left, stride * tensor.itemsize)
        found &= index < n
    return found & (left == 0)
