"""The single entry point of launches, and hooks that observe, record or replace them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from . import backend, strides, tile_configs


@dataclass(frozen=True, slots=True)
class Launch:
    """Arguments of `run`, as passed to hooks."""

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    config: tile_configs.Config


class _State(threading.local):
    def __init__(self) -> None:
        self.dry_run: Callable[[Launch], None] | None = None  # called instead of launching
        self.records: list[tuple[Launch, Any]] | None = None  # with each launch's compiled kernel
        self.zeros: list[torch.Tensor] = []  # made since records began


_state = _State()

#: Called for launches of all threads: autograd runs backward passes in its own threads.
_hooks: list[Callable[[Launch], None]] = []


@contextmanager
def launch_hook(hook: Callable[[Launch], None]) -> Iterator[None]:
    """Call `hook` with every launch inside the block, of any thread."""
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


@contextmanager
def dry_run(hook: Callable[[Launch], None]) -> Iterator[None]:
    """Pass this thread's launches, with GPU tile sizes, to `hook` instead of executing them."""
    before = _state.dry_run
    _state.dry_run = hook
    try:
        with tile_configs.use_tile_configs(interpreted=False):
            yield
    finally:
        _state.dry_run = before


@contextmanager
def record_launches() -> Iterator[list[tuple[Launch, Any]]]:
    """Collect this thread's launches inside the block, each with its compiled kernel (None if interpreted)."""
    before = _state.records
    records: list[tuple[Launch, Any]] = []
    _state.records, _state.zeros = records, []
    try:
        yield records
    finally:
        _state.records, _state.zeros = before, []


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros that launches change, which a replay makes anew; `torch.zeros` elsewhere is a result of its own."""
    tensor = torch.zeros(shape, dtype=dtype, device=device)
    if _state.records is not None:
        _state.zeros.append(tensor)
    return tensor


def recorded_zeros() -> set[int]:
    """Return the addresses of storages that `zeros` made since this thread began `record_launches`."""
    return {tensor.untyped_storage()._cdata for tensor in _state.zeros}


def in_dry_run() -> bool:
    """Return whether this thread is inside `dry_run`."""
    return _state.dry_run is not None


def is_recording() -> bool:
    """Return whether this thread is inside `record_launches`."""
    return _state.records is not None


def has_hooks() -> bool:
    """Return whether any thread is inside `launch_hook`."""
    return bool(_hooks)


def tensor_of(arg: Any) -> torch.Tensor | None:
    """Return the tensor in a kernel's argument: the argument, or the first element of an operand (tensor, strides, …).

    An operand's strides are a tuple, or None if it has a single element.
    """
    if isinstance(arg, torch.Tensor):
        return arg
    if type(arg) is tuple and len(arg) > 1 and isinstance(arg[0], torch.Tensor):
        return arg[0] if arg[1] is None or type(arg[1]) is tuple else None
    return None


def run(kernel: Any, grid: tuple[int, ...], config: tile_configs.Config, **args: Any) -> None:
    """Launch `kernel` on the device of its tensors, or pass it to `dry_run`; an empty grid launches nothing."""
    if 0 in grid:
        return
    if _state.dry_run is not None:
        _state.dry_run(Launch(kernel, grid, args, config))
        return
    for hook in _hooks:
        hook(Launch(kernel, grid, args, config))
    device = next(found.device for found in map(tensor_of, args.values()) if found is not None)
    backend.check_device(device)
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            compiled = kernel[grid](**args, **config.tiles, **config.options)
    else:
        compiled = kernel[grid](**args, **config.tiles, **config.options)
    if _state.records is not None:
        _state.records.append((Launch(kernel, grid, args, config), compiled))


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the accumulator dtype for floating-point operands: float64 if any is, else float32.

    >>> compute_dtype(torch.bfloat16, torch.float16)
    torch.float32
    """
    return torch.float64 if torch.float64 in dtypes else torch.float32


def index_dtype(max_offset: int) -> tl.dtype:
    """Return the dtype for offsets up to `max_offset`.

    int64 offsets take twice the registers, and their divisions ten times the instructions.
    """
    return tl.int64 if max_offset >= 2**31 else tl.int32


def element_args(coalesced: strides.Coalesced, chunk: int) -> dict[str, Any]:
    """Return what kernels over elements share: inner_sizes, n and INDEX_DTYPE; a program has `chunk` elements."""
    index = index_dtype(coalesced.max_offset(chunk))
    return {"inner_sizes": coalesced.inner_sizes, "n": coalesced.numel, "INDEX_DTYPE": index}


def tl_dtype(dtype: torch.dtype) -> tl.dtype:
    """Return the Triton dtype of a torch dtype."""
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
