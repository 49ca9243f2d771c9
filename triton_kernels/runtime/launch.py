"""The single entry point of launches, and the hooks that observe, record or replace them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from . import backend, tile_configs


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch as an observer sees it: the kernel, its grid, its arguments by name, its configuration."""

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    config: tile_configs.Config


class _State(threading.local):
    """What holds for a thread alone."""

    def __init__(self) -> None:
        self.plan: Callable[[Launch], None] | None = None  # observer of launches that are planned and not executed
        self.record: list[tuple[Launch, Any]] | None = None  # launches of this thread, with what Triton returned


_state = _State()

#: Are shown launches of all threads: a backward pass has threads of its own.
_observers: list[Callable[[Launch], None]] = []


@contextmanager
def observed(observer: Callable[[Launch], None]) -> Iterator[None]:
    """Call `observer` with every launch made within, by any thread."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextmanager
def planned(observer: Callable[[Launch], None]) -> Iterator[None]:
    """Show launches as a GPU would get them to `observer`, and to nobody else; execute none. Per thread."""
    before = _state.plan
    _state.plan = observer
    try:
        with tile_configs.tables(interpreted=False):
            yield
    finally:
        _state.plan = before


@contextmanager
def recorded() -> Iterator[list[tuple[Launch, Any]]]:
    """A list of the launches made within by this thread, each with the compiled kernel (None: interpreted)."""
    before = _state.record
    made: list[tuple[Launch, Any]] = []
    _state.record = made
    try:
        yield made
    finally:
        _state.record = before


def planning() -> bool:
    """Whether this thread's launches are `planned`."""
    return _state.plan is not None


def recording() -> bool:
    """Whether this thread's launches are `recorded`."""
    return _state.record is not None


def watched() -> bool:
    """Whether there are observers of launches."""
    return bool(_observers)


def tensor_of(arg: Any) -> torch.Tensor | None:
    """Return the tensor of a kernel's argument: the argument, or the first element of an operand (tensor, strides, …).

    An operand's strides are a tuple, or None where it has a single element.
    """
    if isinstance(arg, torch.Tensor):
        return arg
    if type(arg) is tuple and len(arg) > 1 and isinstance(arg[0], torch.Tensor):
        return arg[0] if arg[1] is None or type(arg[1]) is tuple else None
    return None


def run(kernel: Any, grid: tuple[int, ...], config: tile_configs.Config, **args: Any) -> None:
    """Launch `kernel` on the device of its tensors, or note it; an empty grid is no launch."""
    if 0 in grid:
        return
    if _state.plan is not None:
        _state.plan(Launch(kernel, grid, args, config))
        return
    for observer in _observers:
        observer(Launch(kernel, grid, args, config))
    device = next(found.device for found in map(tensor_of, args.values()) if found is not None)
    backend.check_device(device)
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            compiled = kernel[grid](**args, **config.tiles, num_warps=config.num_warps)
    else:
        compiled = kernel[grid](**args, **config.tiles, num_warps=config.num_warps)
    if _state.record is not None:
        _state.record.append((Launch(kernel, grid, args, config), compiled))


def arithmetic(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype kernels calculate in for floating-point operands: float64 if any is, else float32.

    >>> arithmetic(torch.bfloat16, torch.float16)
    torch.float32
    """
    return torch.float64 if torch.float64 in dtypes else torch.float32


def tl_dtype(dtype: torch.dtype) -> tl.dtype:
    """The triton dtype of a torch dtype."""
    return _TL_DTYPES[dtype]


_TL_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.int8: tl.int8,
    torch.int16: tl.int16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
    torch.uint8: tl.uint8,
    torch.bool: tl.int1,
}
