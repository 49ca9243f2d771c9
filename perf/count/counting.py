"""Counts of what a step does, without a GPU: bytes, launches, allocations, host syncs and Python calls.

Triton kernels are counted in the interpreter, to the byte. An aten operation that does arithmetic, copies or fills
counts as one launch that reads each of its operands once and writes each result once, which is the least it can do on a
GPU; views, allocations and operations with results of no elements move nothing, and launch nothing.
"""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from lucid.torch import eager
from lucid.torch.operators import KERNELS
from perf.results import ROOT
from triton_kernels.devtools import trace
from triton_kernels.devtools.cost import distinct_bytes

#: Aten operations that hand a value to the host, which waits for it.
SYNCS = {"_local_scalar_dense", "equal", "nonzero", "masked_select"}

#: Aten operations that write an operand without reading it, and those that move no bytes, beside views.
_OVERWRITE = {"copy_", "fill_", "zero_", "uniform_", "normal_"}
_MOVE_NOTHING = ("empty", "new_empty", "set_", "_local_scalar_dense")


@dataclass
class Counts:
    """Bytes read and written, launches, bytes allocated, host syncs, and bytes of new storages: alive now, at most."""

    read: int = 0
    written: int = 0
    launches: int = 0
    allocated: int = 0
    syncs: int = 0
    live: int = 0
    peak: int = 0

    def allocate(self, storage: Any) -> None:
        """Count a storage, until it is freed."""
        size = storage.nbytes()
        self.allocated += size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


class _Dispatched(TorchDispatchMode):
    """Counts aten operations, except where it is paused."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts, self.paused = counts, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in KERNELS:  # an operator of ours: what happens within counts
            with self:
                return KERNELS[func](*args)
        result = func(*args, **(kwargs or {}))
        if not self.paused:
            self._count(func, args, kwargs or {}, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name, operands = func.overloadpacket.__name__, _tensors((args, kwargs))
        known = {_storage(tensor) for tensor in operands}
        fresh = [tensor for tensor in _tensors(result) if _storage(tensor) not in known]
        for storage in {_storage(tensor): tensor.untyped_storage() for tensor in fresh}.values():
            self.counts.allocate(storage)
        self.counts.syncs += name in SYNCS
        # the arguments that it writes to
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = (a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
        changed = _tensors([given[name] for name in written if name in given])
        results = any(tensor.numel() for tensor in [*fresh, *changed])
        if name.startswith(_MOVE_NOTHING) or not (results or name in SYNCS):
            return
        overwritten = changed if name in _OVERWRITE or func._overloadname == "out" else []
        read = [tensor for tensor in operands if not any(tensor is other for other in overwritten)]
        self.counts.launches += 1
        self.counts.read += sum(map(distinct_bytes, read))
        self.counts.written += sum(map(distinct_bytes, [*fresh, *changed]))


def _tensors(tree: Any) -> list[torch.Tensor]:
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}.values())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


_is_really_eager = eager.is_eager


def _is_eager(*tensors: torch.Tensor | None) -> bool:
    """What `eager.is_eager` returns where nothing is counted."""
    with _disable_current_modes():
        return _is_really_eager(*tensors)


@contextmanager
def counted(collect: bool = False) -> Iterator[Counts]:
    """Count what is done within, in the interpreter; `collect` frees what it holds in cycles, for an exact peak."""
    from triton.runtime.interpreter import GridExecutor

    counts = Counts()
    dispatched = _Dispatched(counts)

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        counts.launches += 1
        dispatched.paused = True  # the interpreter copies arguments about, which a launch does not
        try:
            execute(self, *args, **kwargs)
            if collect:
                gc.collect()
        finally:
            dispatched.paused = False

    with trace.traffic() as moved:
        execute = GridExecutor.__call__
        is_eager = mock.patch.object(eager, "is_eager", _is_eager)
        with mock.patch.object(GridExecutor, "__call__", launch), is_eager, dispatched:
            yield counts
    counts.read += moved.read
    counts.written += moved.written


_TRITON, _HERE = str(Path(triton.__file__).parent) + os.sep, str(ROOT / "perf") + os.sep


def python_calls(step: Callable[[], Any]) -> int:
    """Python frames that the calling thread enters in a step, without those of Triton's launcher and of `perf`.

    They measure the host's work and do not depend on the machine's speed.
    """
    count = depth = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count, depth
        if event == "call":
            if depth or frame.f_code.co_filename.startswith(_TRITON):
                depth += 1
            elif not frame.f_code.co_filename.startswith(_HERE):
                count += 1
        elif event == "return" and depth:
            depth -= 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        step()
    finally:
        sys.setprofile(before)
    return count
