"""Record and replay a launcher's allocations and launches, to save host time.

What a launcher allocates and launches depends on the signature of its call: shapes, strides, dtypes, devices and
alignments of tensors, and options; not on values. The second call with a signature is recorded. Later ones allocate and
start the compiled kernels with positional arguments, without planning, dictionaries and specialization, which are most
of the host time of a small loss. Recording takes longer than a plain call, so a signature that occurs once, such as a
batch of a new length, is not recorded.

A launcher that is `replayable` allocates with `torch.empty` and `launch.zeros` only, and passes to kernels only its
arguments and its allocations, each as a pointer (`name_ptr`) or in an operand (tensor, strides, …). A call that passes
or returns another tensor, such as a view of an argument or a tensor made from a number, is never replayed. Launchers
that a launcher calls are part of its recording.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from . import device_errors, launch, tile_configs

#: Number of signatures in the cache; the oldest is evicted.
MAX_RECORDINGS = 1024

#: Signatures that were called once, and those that cannot be replayed.
_SEEN, _NEVER = "seen", "never"

#: Types of options, and of items of sequences, whose equal values are interchangeable.
_PLAIN = {type(None), bool, int, str, torch.dtype}

_recordings: dict[tuple[Any, ...], _Recording | str] = {}
_lock = threading.Lock()  # of changes to `_recordings`


class _View(NamedTuple):
    """A tensor of a call, by its slot: arguments first, then the error buffer, then allocations."""

    slot: int
    shape: tuple[int, ...] | None = None  # None: no view, the tensor itself
    stride: tuple[int, ...] = ()
    offset: int = 0

    def of(self, tensors: Sequence[Any]) -> Any:
        tensor = tensors[self.slot]
        return tensor if self.shape is None else tensor.as_strided(self.shape, self.stride, self.offset)


class _Launch(NamedTuple):
    recorded: launch.Launch  # without arguments
    compiled: Any  # the compiled kernel, None if interpreted
    args: list[Any]  # positional arguments, None in place of tensors and operands
    views: list[tuple[int, _View, tuple[Any, ...] | None]]  # position, tensor, rest of an operand (tensor, strides, …)


class _Recording(NamedTuple):
    device: torch.device
    allocations: list[tuple[tuple[int, ...], torch.dtype]]
    zeroed: set[int]  # which of the allocations
    launches: list[_Launch]
    results: Any  # a view, another object, or a tuple of them

    def replay(self, tensors: list[Any]) -> Any:
        device = self.device
        tensors.append(device_errors.buffer(device))
        for number, (shape, dtype) in enumerate(self.allocations):
            make = torch.zeros if number in self.zeroed else torch.empty
            tensors.append(make(shape, dtype=dtype, device=device))
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._start(tensors)
        else:
            self._start(tensors)
        results = self.results
        return tuple(_result(r, tensors) for r in results) if type(results) is tuple else _result(results, tensors)

    def _start(self, tensors: list[Any]) -> None:
        for recorded, compiled, template, views in self.launches:
            args = template.copy()
            for at, view, rest in views:
                tensor = tensors[view.slot] if view.shape is None else view.of(tensors)
                args[at] = tensor if rest is None else (tensor, *rest)
            if compiled is None or launch.has_hooks():
                names = recorded.kernel.arg_names
                given = {name: arg for name, arg in zip(names, args, strict=True) if name not in recorded.config.tiles}
                launch.run(recorded.kernel, recorded.grid, recorded.config, **given)
            else:
                compiled[recorded.grid](*args)


def _result(result: Any, tensors: Sequence[Any]) -> Any:
    return result.of(tensors) if isinstance(result, _View) else result


def replayable(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Record a launcher's calls, and replay them."""

    @functools.wraps(launcher)
    def call(*args: Any, **options: Any) -> Any:
        if launch.in_dry_run() or launch.is_recording():  # recording: within a replayable launcher
            return launcher(*args, **options)
        tensors: list[Any] = []
        key: list[Any] = [launcher, tile_configs.interpreted()]
        for arg in (*args, *options.values()):
            if isinstance(arg, torch.Tensor):
                tensors.append(arg)
                key += (arg.shape, arg.stride(), arg.dtype, arg.device, arg.data_ptr() % 16)
            elif type(arg) in _PLAIN:
                key += (type(arg), arg)
            elif type(arg) is float:  # −0.0 is not 0.0; NaN matches NaN
                key.append(arg.hex())
            elif isinstance(arg, tuple | list) and all(type(item) in _PLAIN for item in arg):
                key += (type(arg), tuple(arg))
            else:
                return launcher(*args, **options)
        key += options
        signature = tuple(key)
        recording = _recordings.get(signature)
        if isinstance(recording, _Recording):
            return recording.replay(tensors)
        if recording is None:
            _remember(signature, _SEEN)
        if recording is not _SEEN:
            return launcher(*args, **options)
        result, recording = _record(launcher, args, options, tensors)
        _remember(signature, recording)
        return result

    return call


def _remember(key: tuple[Any, ...], recording: _Recording | str) -> None:
    with _lock:
        _recordings[key] = recording
        if len(_recordings) > MAX_RECORDINGS:
            del _recordings[next(iter(_recordings))]


def clear() -> None:
    """Drop all recordings; needed after a change of tile sizes."""
    with _lock:
        _recordings.clear()


def _has_tensor(arg: Any) -> bool:
    return any(map(_has_tensor, arg)) if isinstance(arg, tuple) else isinstance(arg, torch.Tensor)


def _strides_of_empty(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of `torch.empty(shape)`."""
    return tuple(math.prod(max(size, 1) for size in shape[dim + 1 :]) for dim in range(len(shape)))


def _record(
    launcher: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], given: Sequence[torch.Tensor]
) -> tuple[Any, _Recording | str]:
    """Return the result of a call, and its recording, or _NEVER."""
    # An alias per argument, so that one tensor passed twice has two slots.
    tensors = [tensor.detach() for tensor in given]
    aliases = iter(tensors)
    args = [next(aliases) if isinstance(arg, torch.Tensor) else arg for arg in args]
    options = {k: next(aliases) if isinstance(arg, torch.Tensor) else arg for k, arg in options.items()}
    with launch.record_launches() as records:
        results = launcher(*args, **options)
        zeros = launch.recorded_zeros()
    device = tensors[0].device
    slots: dict[int, int] = {id(tensor): slot for slot, tensor in enumerate([*tensors, device_errors.buffer(device)])}
    argument_storages = {tensor.untyped_storage()._cdata for tensor in [*tensors, device_errors.buffer(device)]}
    storages: dict[int, int] = {}
    allocations: list[tuple[tuple[int, ...], torch.dtype]] = []
    zeroed: set[int] = set()

    def view(tensor: torch.Tensor) -> _View | None:
        if id(tensor) in slots:
            return _View(slots[id(tensor)])
        storage = tensor.untyped_storage()
        if storage._cdata in argument_storages:
            return None
        if storage._cdata not in storages:
            storages[storage._cdata] = len(slots) + len(allocations)
            if storage._cdata in zeros:
                zeroed.add(len(allocations))
            whole = tensor.is_contiguous() and tensor.numel() * tensor.itemsize == storage.nbytes()
            shape = tuple(tensor.shape) if whole else (storage.nbytes() // tensor.itemsize,)
            allocations.append((shape, tensor.dtype))
        slot = storages[storage._cdata]
        same = allocations[slot - len(slots)] == (tuple(tensor.shape), tensor.dtype)
        if same and tensor.stride() == _strides_of_empty(tensor.shape):  # contiguous, also where a size is 1
            return _View(slot)
        return _View(slot, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    launches, can_replay = [], True
    for launched, compiled in records:
        named = {**launched.args, **launched.config.tiles}
        template: list[Any] = []
        views: list[tuple[int, _View, tuple[Any, ...] | None]] = []
        for at, name in enumerate(launched.kernel.arg_names):
            value = named[name]
            tensor = launch.tensor_of(value)
            if tensor is not None:
                rest = value[1:] if tensor is not value else None
                # A tensor passed under another name stands for a number that the launcher computed.
                found = view(tensor) if rest is not None or name.endswith("_ptr") else None
                can_replay &= found is not None and not _has_tensor(rest)
                if found is not None:
                    views.append((at, found, rest))
                value = None
            elif _has_tensor(value):
                can_replay, value = False, None
            template.append(value)
        grid = launched.grid if compiled is None else (*launched.grid, 1, 1)[:3]
        recorded = launch.Launch(launched.kernel, grid, {}, launched.config)
        launches.append(_Launch(recorded, compiled, template, views))

    def unaliased(found: _View | None, value: Any) -> Any:
        """Replace the alias of an argument by the argument."""
        return given[found.slot] if isinstance(found, _View) and found.slot < len(given) else value

    written = len(allocations)
    several = results if isinstance(results, tuple) else (results,)
    views_of_results = tuple(view(r) if isinstance(r, torch.Tensor) else r for r in several)
    # Results that no launch wrote, and views of arguments, cannot be replayed.
    can_replay &= len(allocations) == written
    can_replay &= all(v is not None or r is None for v, r in zip(views_of_results, several, strict=True))
    returned = tuple(map(unaliased, views_of_results, several))
    single = not isinstance(results, tuple)
    recording = _Recording(device, allocations, zeroed, launches, views_of_results[0] if single else views_of_results)
    return returned[0] if single else returned, recording if can_replay else _NEVER
