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

    Masked-out elements do not count; an element loaded twice counts twice. Caches are not modelled, and atomic accesses
    do not count. Where the programs of a launch wait for each other's results, none is taken to wait in vain: as the
    interpreter runs one after another, such a launch runs once before, uncounted.

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
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    moved, counting = Traffic(), True
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    execute = GridExecutor.__call__

    def size(pointers: Any, mask: Any) -> int:
        lanes = np.broadcast_to(getattr(mask, "data", mask), pointers.data.shape)
        return int(np.count_nonzero(lanes)) * (pointers.get_element_ty().primitive_bitwidth // 8 or 1)

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        if counting:
            moved.read += size(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if counting:
            moved.written += size(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def executed(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal counting
        if kwargs.get("flags_ptr") is not None:
            counting = False
            try:
                with _flags_set(kwargs):
                    execute(self, *args, **kwargs)
            finally:
                counting = True
        execute(self, *args, **kwargs)

    def count(_: launch.Launch) -> None:
        moved.launches += 1

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = counted_load, counted_store
    GridExecutor.__call__ = executed
    try:
        with launch.launch_hook(count):
            yield moved
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
        GridExecutor.__call__ = execute


@contextmanager
def _flags_set(args: dict[str, Any]) -> Iterator[None]:
    """Restore what a launch within the block writes, except the statistics of chunks and their flags.

    Counters of programs, in the same memory as flags, are larger than 1 after a launch, and are reset.
    """
    kept = ("flags_ptr", "partials_ptr")
    tensors = [launch.tensor_of(value) for name, value in args.items() if name not in kept]
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if t is not None}
    before = [(storage, storage.clone()) for storage in storages.values()]
    yield
    for storage, saved in before:
        storage.copy_(saved)
    flags = args["flags_ptr"]
    flags[flags > 1] = 0
