"""Launch tracing and memory-traffic counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from triton_kernels.devtools import accesses
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
    moved, counting = Traffic(), True

    def access(what: str, pointers: Any, mask: Any) -> None:
        if not counting:
            return
        lanes = np.broadcast_to(getattr(mask, "data", mask), pointers.data.shape)
        size = int(np.count_nonzero(lanes)) * (pointers.get_element_ty().primitive_bitwidth // 8 or 1)
        if what == "loads":
            moved.read += size
        else:
            moved.written += size

    def executed(execute: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        nonlocal counting
        if kwargs.get("flags_ptr") is not None:
            counting = False
            try:
                with _flags_set(kwargs):
                    execute(*args, **kwargs)
            finally:
                counting = True
        execute(*args, **kwargs)

    def count(_: launch.Launch) -> None:
        moved.launches += 1

    with accesses.observed(access, executed), launch.launch_hook(count):
        yield moved


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
