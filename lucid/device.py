"""Devices, and which one new tensors are made on."""

from __future__ import annotations

import torch

_TYPES = ("cpu", "cuda")


class device:
    """Device of a tensor's memory: ``'cpu'``, ``'cuda'`` or ``'cuda:1'`` (ROCm devices are called cuda, too).

    Raises
    ------
    ValueError
        If there is no such device type.

    Examples
    --------
    >>> import lucid
    >>> lucid.device("cuda:1")
    device(type='cuda', index=1)
    >>> lucid.device("cpu") == "cpu"
    True
    """

    __slots__ = ("index", "type")

    type: str
    index: int | None

    def __init__(self, spec: str | device | torch.device) -> None:
        if isinstance(spec, device):
            self.type, self.index = spec.type, spec.index
            return
        kind, _, index = str(spec).partition(":") if isinstance(spec, str | torch.device) else ("", "", "")
        if kind not in _TYPES or (":" in str(spec) and not index.isdecimal()):
            raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:<index>', got {spec!r}")
        self.type = kind
        self.index = int(index) if index else None

    @property
    def torch(self) -> torch.device:
        """The same device for torch.

        Raises
        ------
        RuntimeError
            If it is a GPU and there is none.
        """
        if self.type == "cuda" and not _HAS_GPU:
            raise RuntimeError(f"device '{self}' needs a GPU, and there is none here")
        return torch.device(str(self))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type='{self.type}'{index})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            try:
                other = device(other)
            except ValueError:
                return False
        if not isinstance(other, device):
            return NotImplemented
        return (self.type, self.index or 0) == (other.type, other.index or 0)

    def __hash__(self) -> int:
        return hash((self.type, self.index or 0))


_HAS_GPU = torch.cuda.is_available()
_default = device("cuda" if _HAS_GPU else "cpu")


def get_default_device() -> device:
    """The device of new tensors: where kernels run (cuda if there is one), or what `set_default_device` said."""
    return _default


def set_default_device(spec: str | device) -> None:
    """Make new tensors on this device.

    Raises
    ------
    ValueError
        If there is no such device type.
    RuntimeError
        If it is a GPU and there is none.
    """
    global _default
    _default = device(device(spec).torch)  # which raises where there is no GPU
