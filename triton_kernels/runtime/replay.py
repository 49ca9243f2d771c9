"""What a launcher does, recorded and repeated for arguments that are laid out the same.

Shapes, strides, dtypes, devices, alignments and options decide what a launcher allocates and launches; values do not.
So its second call with a layout is recorded, and later ones allocate, and start the compiled kernels with the arguments
in their order: no planning, no dictionaries, no specialization, which are most of the host time of a small loss. To
record takes longer than to call, so what comes once, as batches of ever new lengths, is not recorded.

Launchers that are `replayable` allocate with `torch.empty`, and pass to kernels their arguments, what they allocated,
and nothing else, each as a pointer (`name_ptr`) or in an operand (tensor, strides, …). A call that passes or returns
another tensor, as a view of an argument or a number in a tensor, is never repeated. A launcher that calls another is
recorded whole.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from . import device_errors, launch, tile_configs

#: Layouts that are remembered; the oldest makes room.
MOST = 1024

#: Layouts that were seen once, and those whose calls cannot be repeated.
_SEEN, _NEVER = "seen", "never"

#: Types of options whose equal values mean the same; those of sequences, too.
_PLAIN = {type(None), bool, int, str, torch.dtype}

_recordings: dict[tuple[Any, ...], _Recording | str] = {}
_one_at_a_time = threading.Lock()  # changes them


class _View(NamedTuple):
    """A tensor among those of a call: the arguments, then the report buffer, then what is allocated."""

    slot: int
    shape: tuple[int, ...] | None = None  # None: the tensor as it is
    stride: tuple[int, ...] = ()
    offset: int = 0

    def of(self, tensors: Sequence[Any]) -> Any:
        tensor = tensors[self.slot]
        return tensor if self.shape is None else tensor.as_strided(self.shape, self.stride, self.offset)


class _Launch(NamedTuple):
    made: launch.Launch  # its arguments are of the recorded call, and tensors among them are not kept
    compiled: Any  # what the launch returned: a kernel to start on a grid, or None
    args: list[Any]  # in the kernel's order, None where a view goes
    views: list[tuple[int, _View, tuple[Any, ...] | None]]  # with the rest of an operand (tensor, strides, …)


class _Recording(NamedTuple):
    device: torch.device
    allocations: list[tuple[tuple[int, ...], torch.dtype]]
    launches: list[_Launch]
    results: Any  # views, or what is no tensor

    def repeat(self, tensors: list[Any]) -> Any:
        device = self.device
        tensors.append(device_errors.buffer(device))
        for shape, dtype in self.allocations:
            tensors.append(torch.empty(shape, dtype=dtype, device=device))
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._start(tensors)
        else:
            self._start(tensors)
        results = self.results
        return tuple(_result(r, tensors) for r in results) if type(results) is tuple else _result(results, tensors)

    def _start(self, tensors: list[Any]) -> None:
        for made, compiled, template, views in self.launches:
            args = template.copy()
            for at, view, rest in views:
                tensor = tensors[view.slot] if view.shape is None else view.of(tensors)
                args[at] = tensor if rest is None else (tensor, *rest)
            if compiled is None or launch.has_hooks():
                names = made.kernel.arg_names
                given = {name: arg for name, arg in zip(names, args, strict=True) if name not in made.config.tiles}
                launch.run(made.kernel, made.grid, made.config, **given)
            else:
                compiled[made.grid](*args)


def _result(result: Any, tensors: Sequence[Any]) -> Any:
    return result.of(tensors) if isinstance(result, _View) else result


def replayable(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Record a launcher's calls, and repeat them."""

    @functools.wraps(launcher)
    def call(*args: Any, **options: Any) -> Any:
        if launch.in_dry_run() or launch.is_recording():  # the latter in a launcher that calls this one
            return launcher(*args, **options)
        tensors: list[Any] = []
        key: list[Any] = [launcher, tile_configs.interpreted()]
        for arg in (*args, *options.values()):
            if isinstance(arg, torch.Tensor):
                tensors.append(arg)
                key += (arg.shape, arg.stride(), arg.dtype, arg.device, arg.data_ptr() % 16)
            elif type(arg) in _PLAIN:
                key += (type(arg), arg)
            elif type(arg) is float:  # −0.0 is not 0.0, and a NaN is that NaN
                key.append(arg.hex())
            elif isinstance(arg, tuple | list) and all(type(item) in _PLAIN for item in arg):
                key += (type(arg), tuple(arg))
            else:
                return launcher(*args, **options)
        key += options
        known = tuple(key)
        recording = _recordings.get(known)
        if isinstance(recording, _Recording):
            return recording.repeat(tensors)
        if recording is None:
            _keep(known, _SEEN)
        if recording is not _SEEN:
            return launcher(*args, **options)
        result, recording = _record(launcher, args, options, tensors)
        _keep(known, recording)
        return result

    return call


def _keep(key: tuple[Any, ...], recording: _Recording | str) -> None:
    with _one_at_a_time:
        _recordings[key] = recording
        if len(_recordings) > MOST:
            del _recordings[next(iter(_recordings))]


def clear() -> None:
    """Forget all recordings; for who changes the tables of `launch`."""
    with _one_at_a_time:
        _recordings.clear()


def _has_tensor(arg: Any) -> bool:
    return any(map(_has_tensor, arg)) if isinstance(arg, tuple) else isinstance(arg, torch.Tensor)


def _strides_of_empty(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides that `torch.empty` gives."""
    return tuple(math.prod(max(size, 1) for size in shape[dim + 1 :]) for dim in range(len(shape)))


def _record(
    launcher: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], given: Sequence[torch.Tensor]
) -> tuple[Any, _Recording | str]:
    """The result of a call, and how to repeat it, or _NEVER."""
    # Aliases tell two arguments apart that are one tensor.
    tensors = [tensor.detach() for tensor in given]
    aliases = iter(tensors)
    args = [next(aliases) if isinstance(arg, torch.Tensor) else arg for arg in args]
    options = {k: next(aliases) if isinstance(arg, torch.Tensor) else arg for k, arg in options.items()}
    with launch.record_launches() as made:
        results = launcher(*args, **options)
    device = tensors[0].device
    slots: dict[int, int] = {id(tensor): slot for slot, tensor in enumerate([*tensors, device_errors.buffer(device)])}
    known = {tensor.untyped_storage()._cdata for tensor in [*tensors, device_errors.buffer(device)]}
    storages: dict[int, int] = {}
    allocations: list[tuple[tuple[int, ...], torch.dtype]] = []

    def view(tensor: torch.Tensor) -> _View | None:
        if id(tensor) in slots:
            return _View(slots[id(tensor)])
        storage = tensor.untyped_storage()
        if storage._cdata in known:
            return None
        if storage._cdata not in storages:
            storages[storage._cdata] = len(slots) + len(allocations)
            whole = tensor.is_contiguous() and tensor.numel() * tensor.itemsize == storage.nbytes()
            shape = tuple(tensor.shape) if whole else (storage.nbytes() // tensor.itemsize,)
            allocations.append((shape, tensor.dtype))
        slot = storages[storage._cdata]
        same = allocations[slot - len(slots)] == (tuple(tensor.shape), tensor.dtype)
        if same and tensor.stride() == _strides_of_empty(tensor.shape):  # contiguous, also where a size is 1
            return _View(slot)
        return _View(slot, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    launches, repeatable = [], True
    for done, compiled in made:
        named = {**done.args, **done.config.tiles}
        template: list[Any] = []
        views: list[tuple[int, _View, tuple[Any, ...] | None]] = []
        for at, name in enumerate(done.kernel.arg_names):
            value = named[name]
            tensor = launch.tensor_of(value)
            if tensor is not None:
                rest = value[1:] if tensor is not value else None
                # A tensor that is passed as a number was calculated, not allocated.
                found = view(tensor) if rest is not None or name.endswith("_ptr") else None
                repeatable &= found is not None and not _has_tensor(rest)
                if found is not None:
                    views.append((at, found, rest))
                value = None
            elif _has_tensor(value):
                repeatable, value = False, None
            template.append(value)
        grid = (*done.grid, 1, 1)[:3]
        kept = launch.Launch(done.kernel, done.grid if compiled is None else grid, {}, done.config)
        launches.append(_Launch(kept, compiled, template, views))

    def handed(found: _View | None, value: Any) -> Any:
        """A result that is an argument is the caller's, not its alias."""
        return given[found.slot] if isinstance(found, _View) and found.slot < len(given) else value

    launched = len(allocations)
    several = results if isinstance(results, tuple) else (results,)
    where = tuple(view(r) if isinstance(r, torch.Tensor) else r for r in several)
    # Nor is what no launch wrote, or a view of an argument.
    repeatable &= len(allocations) == launched
    repeatable &= all(w is not None or r is None for w, r in zip(where, several, strict=True))
    back = tuple(map(handed, where, several))
    single = not isinstance(results, tuple)
    recording = _Recording(device, allocations, launches, where[0] if single else where)
    return back[0] if single else back, recording if repeatable else _NEVER
