"""What launches were made, and what they moved: for tests and measurements, on any machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

import triton_kernels
from triton_kernels.runtime import backend, launch


@contextmanager
def launches() -> Iterator[list[launch.Launch]]:
    """Collect the launches made within.

    Examples
    --------
    >>> x = torch.zeros(8).to(DEVICE)
    >>> with launches() as made:
    ...     _ = triton_kernels.sum(x, [0])
    >>> [launched.kernel.__name__ for launched in made]
    ['_sum_kernel']
    """
    made: list[launch.Launch] = []
    with launch.observed(made.append):
        yield made


@contextmanager
def planned(observer: Callable[[launch.Launch], None]) -> Iterator[None]:
    """Show `observer` the launches that every launcher called within would make on a GPU.

    Each public launcher is called first with the GPU's tile sizes and without executing kernels, then as usual:
    launchers look at shapes, strides and dtypes but never at values.
    """

    def first_planned(launcher: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(launcher)
        def call(*args: Any, **kwargs: Any) -> Any:
            with launch.planned(observer):
                launcher(*args, **kwargs)
            return launcher(*args, **kwargs)

        call.unplanned = launcher  # type: ignore[attr-defined]
        return call

    names = [name for name in triton_kernels.__all__ if callable(getattr(triton_kernels, name))]
    originals = {name: getattr(triton_kernels, name) for name in names if name != "check_indices"}
    try:
        for name, launcher in originals.items():
            setattr(triton_kernels, name, first_planned(launcher))
        yield
    finally:
        for name, launcher in originals.items():
            setattr(triton_kernels, name, launcher)


@dataclass
class Traffic:
    """Bytes of global memory that kernels read and wrote, and how many launches it took."""

    read: int = 0
    written: int = 0
    launches: int = 0


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count the global memory traffic of what is launched within, to the byte; in the interpreter only.

    A masked-out element counts nothing, an element read twice counts twice. There are no caches.

    Raises
    ------
    RuntimeError
        If kernels are compiled here.

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
        with launch.observed(count):
            yield moved
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
