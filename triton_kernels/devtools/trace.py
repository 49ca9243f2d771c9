"""Launch tracing and memory-traffic counters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from triton_kernels.runtime import backend, launch


@contextmanager
def launches() -> Iterator[list[launch.Launch]]:
    """Collect the launches inside the block, of all threads.

    Examples
    --------
    >>> x = torch.zeros(8).to(DEVICE)
    >>> with launches() as traced:
    ...     _ = triton_kernels.sum(x, [0])
    >>> [launched.kernel.__name__ for launched in traced]
    ['_sum_kernel']
    """
    traced: list[launch.Launch] = []
    with launch.launch_hook(traced.append):
        yield traced


@dataclass
class Traffic:
    """Bytes that kernels read from and write to global memory, and the number of launches."""

    read: int = 0
    written: int = 0
    launches: int = 0


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count the bytes of global memory traffic of launches inside the block; in the interpreter only.

    Masked-out elements do not count; an element loaded twice counts twice. Caches are not modelled.

    Raises
    ------
    RuntimeError
        If kernels are compiled.

    Examples
    --------
    >>> x = torch.zeros(8, dtype=torch.float32)
    >>> with traffic() as moved:  # doctest: +SKIP
    ...     _ = triton_kernels.sum(x, [0])
    >>> moved  # doctest: +SKIP
    Traffic(read=32, written=4, launches=1)
    """
    if not backend.INTERPRETED:
        raise RuntimeError("traffic is counted in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts")
    from triton.runtime.interpreter import InterpreterBuilder

    moved = Traffic()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def size(pointers: Any, mask: Any) -> int:
        lanes = np.broadcast_to(getattr(mask, "data", mask), pointers.data.shape)
        return int(np.count_nonzero(lanes)) * (pointers.get_element_ty().primitive_bitwidth // 8 or 1)

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        moved.read += size(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        moved.written += size(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def count(_: launch.Launch) -> None:
        moved.launches += 1

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = counted_load, counted_store
    try:
        with launch.launch_hook(count):
            yield moved
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
