"""Saving and loading of tensors in structures of plain Python values, in safetensors files.

The tensors are those of the file, under their keys joined by dots. Everything else is JSON in the file's metadata,
under ``"lucid"``: a value is itself, except

    a float that JSON lacks    {"float": "inf"}                 a tensor        {"tensor": name in the file}
    a tuple                    {"tuple": [values]}              a dict          {"dict": [[key, value], ...]}
                                                                an OrderedDict  {"OrderedDict": [[key, value], ...]}
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import safetensors
import safetensors.torch
import torch

from lucid import ops
from lucid._arguments import type_name
from lucid._docs import listing
from lucid.device import device as Device
from lucid.device import get_default_device
from lucid.dtype import dtype as DType
from lucid.tensor import Tensor

__all__ = ["load", "save"]

__dir__ = listing(__all__)

Path = str | os.PathLike[str]

_KEY = "lucid"
_DICTS: dict[str, type[dict[Any, Any]]] = {"dict": dict, "OrderedDict": OrderedDict}


def save(obj: Any, path: Path) -> None:
    """Save a structure of tensors and plain values in a safetensors file.

    The values come back from `load` as they are, types included; no code is stored, and none runs. A state dict of a
    model is a file that other readers of safetensors read, by the same names.

    The file is written under another name, in the same folder, and renamed when it is complete: an error, or the end of
    the process, leaves an older file as it was.

    Parameters
    ----------
    obj
        Tensors, numbers, strings, bools and None, in dicts, OrderedDicts, lists and tuples, nested at will: state dicts
        of models, optimizers and schedulers, and dicts of these. Keys are strings, numbers, bools or None.
    path : str or path object
        The file.

    Raises
    ------
    TypeError
        If there is anything else in `obj`, with its place; if `path` is no path.
    ValueError
        If `obj` contains itself.
    OSError
        If the file cannot be written.

    Notes
    -----
    Tensors that share memory are written each by itself. Whether a tensor requires grad, and its device, are not saved.

    Examples
    --------
    >>> import lucid, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "checkpoint.safetensors")
    >>> lucid.save({"weight": lucid.ones(2), "betas": (0.9, 0.999), 3: None}, path)
    >>> lucid.load(path)
    {'weight': tensor([1., 1.]), 'betas': (0.9, 0.999), 3: None}
    """
    target = os.path.realpath(_as_path(path))
    if os.path.isdir(target):
        raise IsADirectoryError(f"path must be a file, got the directory {os.fspath(path)!r}")
    if not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"the folder of path must exist, got {os.fspath(path)!r}")
    encoder = _Encoder()
    metadata = {_KEY: json.dumps(encoder.encode(obj, "obj", ())), "format": "pt"}
    tensors = _separate(encoder.tensors)
    partial = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{secrets.token_hex(8)}")
    try:
        try:
            with open(partial, "xb") as file:
                mode = os.fstat(file.fileno()).st_mode
            safetensors.torch.save_file(tensors, partial, metadata)
            os.chmod(partial, mode & 0o777)  # since safetensors lets the owner alone read it
        except safetensors.SafetensorError as error:
            raise OSError(f"could not write {os.fspath(path)!r}: {error}") from error
        _sync(partial)
        os.replace(partial, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    _sync(os.path.dirname(target))


def _as_path(path: Path) -> str:
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path must be a str or a path object, got {type_name(path)}")
    return os.fspath(path)


def _sync(path: str) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and os.path.isdir(path):  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDWR if os.path.isfile(path) else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Encoder:
    """Turns a structure into JSON data, and collects its tensors by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._open: set[int] = set()  # containers around the current value

    def encode(self, value: Any, place: str, keys: tuple[Any, ...]) -> Any:
        """Return the JSON data of a value; `place` is an expression for it, `keys` lead to it."""
        if isinstance(value, Tensor):
            name = ".".join(map(str, keys)) if keys else "tensor"
            while name in self.tensors or name == "__metadata__":  # {"a.b": x, "a": {"b": y}}; a reserved name
                name += "_"
            self.tensors[name] = value._buffer
            return {"tensor": name}
        kind = type(value)
        if kind in (dict, OrderedDict, list, tuple):
            if id(value) in self._open:
                raise ValueError(f"{place} must not contain itself")
            self._open.add(id(value))
            data = self._encode_container(value, place, keys)
            self._open.remove(id(value))
            return data
        return _encode_scalar(value, place)

    def _encode_container(self, value: Any, place: str, keys: tuple[Any, ...]) -> Any:
        if isinstance(value, dict):
            pairs = [
                [_encode_scalar(key, f"each key of {place}"), self.encode(item, f"{place}[{key!r}]", (*keys, key))]
                for key, item in value.items()
            ]
            return {type(value).__name__: pairs}
        items = [self.encode(item, f"{place}[{i}]", (*keys, i)) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}


def _encode_scalar(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):  # numpy.float64 is one
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    others = "" if place.startswith("each key") else "lucid.Tensor, or a dict, OrderedDict, list or tuple of such, "
    raise TypeError(f"{place} must be a {others}str, int, float, bool or None, got {type_name(value)}")


def _decode(data: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(data, list):
        return [_decode(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    if tag in _DICTS:
        return _DICTS[tag]((_decode(key, tensors), _decode(value, tensors)) for key, value in content)
    if tag == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return float(content) if tag == "float" else tensors[content]


def _separate(buffers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return contiguous tensors in CPU memory that share none, as safetensors asks."""
    result: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, buffer in buffers.items():
        host = ops.on_host(buffer.detach()).contiguous()
        if host.untyped_storage().data_ptr() in seen:
            host = host.clone()
        seen.add(host.untyped_storage().data_ptr())
        result[name] = host
    return result


def load(path: Path, *, map_location: Device | str | None = None) -> Any:
    """Load what `save` saved, or the tensors of any safetensors file, in a dict by name.

    Parameters
    ----------
    path : str or path object
        The file.
    map_location : device or str, optional
        Where the tensors are put; the default device if None.

    Returns
    -------
    object
        As it was saved; tensors have memory of their own and do not require grad.

    Raises
    ------
    TypeError
        If `path` is no path; if a tensor has a dtype that lucid lacks.
    FileNotFoundError, IsADirectoryError
        If there is no such file.
    ValueError
        If it is no safetensors file, or not a whole one.

    Examples
    --------
    >>> import lucid, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> model = lucid.nn.Linear(3, 2)
    >>> lucid.save(model.state_dict(), path)
    >>> model.load_state_dict(lucid.load(path))
    <All keys matched successfully>
    """
    name = _as_path(path)
    place = (get_default_device() if map_location is None else Device(map_location)).torch
    if os.path.isdir(name):
        raise IsADirectoryError(f"path must be a file, got the directory {name!r}")
    if not os.path.exists(name):
        raise FileNotFoundError(f"path must be a file, and there is none at {name!r}")
    try:
        with safetensors.safe_open(name, framework="pt") as file:
            structure = (file.metadata() or {}).get(_KEY)
            names = file.keys()
            tensors = {key: _own(file.get_tensor(key), place, f"the dtype of {key!r} in {name!r}") for key in names}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"path must be a whole safetensors file, but {name!r} is not: {error}{_remedy(name)}"
        ) from None
    if structure is None:
        return tensors
    try:
        return _decode(json.loads(structure), tensors)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name!r} has metadata that lucid.save does not write: {error!r}") from None


def _own(buffer: torch.Tensor, place: torch.device, what: str) -> Tensor:
    DType.of(buffer.dtype, what)
    return Tensor._wrap(buffer.to(place, copy=True))  # of the file's memory


def _remedy(name: str) -> str:
    with open(name, "rb") as file:
        is_torchs = file.read(2) in (b"PK", b"\x80\x02")  # a zip archive, or a pickle
    return "; for a file of torch.save, use torch.load and lucid.from_torch" if is_torchs else ""
