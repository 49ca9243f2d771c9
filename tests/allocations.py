"""Bytes of the storages that torch allocates, counted operator by operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

from lucid.torch.operators import KERNELS


class Allocations(TorchDispatchMode):
    """Count the bytes of each new storage among operators' results, also inside lucid's operators, once."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self._alive = list(known)  # keeps addresses from being reused
        self._known = {t.untyped_storage().data_ptr() for t in known}
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in KERNELS:
            with self:
                return KERNELS[func](*args)
        # Triton's interpreter passes storages, too.
        given = {arg.data_ptr() for arg in args if isinstance(arg, UntypedStorage)}
        given |= {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given | self._known:
                self._alive.append(result)
                self._known.add(result.untyped_storage().data_ptr())
                self.bytes.append(result.untyped_storage().nbytes())
        return results

    def above(self, size: float) -> list[int]:
        """Return the allocations of more than `size` bytes."""
        return [nbytes for nbytes in self.bytes if nbytes > size]
