"""Accesses outside of tensors, found in Triton's interpreter."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

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
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    execute = GridExecutor.__call__
    launched = threading.local()

    def check(what: str, pointers: Any, mask: Any) -> None:
        memory = launched.memory
        if memory is None:
            return
        lanes = np.broadcast_to(getattr(mask, "data", mask), pointers.data.shape).astype(bool)
        addresses = pointers.data[lanes].astype(np.int64)
        outside = ~np.any([_within(addresses, tensor) for tensor in memory], axis=0)
        if outside.any():
            count, shapes = np.count_nonzero(outside), ", ".join(str(tuple(tensor.shape)) for tensor in memory)
            raise IndexError(f"{launched.name} {what} {count} elements outside of its tensors: {shapes}")

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check("loads", pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check("stores", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def executed(self: Any, *args: Any, **kwargs: Any) -> None:
        launched.name, unknown = self.fn.__name__, "table_ptr" in kwargs and not others
        memory = [leaf for leaf in (*tree_leaves((args, kwargs)), *others) if isinstance(leaf, torch.Tensor)]
        launched.memory = None if unknown else memory
        try:
            execute(self, *args, **kwargs)
        except InterpreterError as error:  # which hides the kind of what it wraps
            raise error.__cause__ if isinstance(error.__cause__, IndexError) else error from None

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = checked_load, checked_store
    GridExecutor.__call__ = executed
    try:
        yield
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
        GridExecutor.__call__ = execute


def _within(addresses: np.ndarray[Any, Any], tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Which addresses are those of elements of a tensor whose dimensions do not overlap, but where they repeat."""
    if not tensor.numel():
        return np.zeros(addresses.shape, bool)
    left = addresses - tensor.data_ptr()
    found = left >= 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True), reverse=True):
        if stride and size > 1:
            index, left = np.divmod(left, stride * tensor.itemsize)
            found &= index < size
    return found & (left == 0)
