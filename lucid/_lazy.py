"""Lazily computed values, which a fused kernel can do without, and the switch for fusion.

A `Deferred` stands for memory that is not computed yet. Laziness is unobservable except for time and memory. Code that
is about to write to a source of a deferred value calls `realize_dependents` first. Values of memory that is shared with
torch or NumPy, which others can write to without going through lucid, are never deferred.
"""

from __future__ import annotations

import threading
import weakref
from typing import cast

import torch

from lucid._flags import FlagScope, ThreadLocalFlag

_flag = ThreadLocalFlag(True)

#: Held while dependents are registered, moved or iterated over: any thread may be the first to read a value.
_registry_lock = threading.Lock()


class fusion(FlagScope):
    """Fusion of operations, as a context manager (``with lucid.fusion(False):``) or a decorator; per thread.

    The KL divergence of a ``log_softmax`` and a ``softmax``, or of two ``log_softmax`` with ``log_target=True``, over
    the last dimension is computed from the logits in one kernel, also where these are divided or multiplied by a
    number, the temperature. The quotients and softmaxes are computed only if their values are read. Only rounding, time
    and memory differ. Without fusion each operation is computed when it is called. So are operations on memory that is
    shared with torch, NumPy or over DLPack, which could be modified without lucid's knowledge; `Tensor.clone` gives a
    tensor memory of its own.

    Parameters
    ----------
    enabled : bool
        Fuse inside the block. Default: True.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> student, teacher = lucid.tensor([[0.5, 1.0, 0.2]]), lucid.tensor([[0.3, 0.9, 0.4]])
    >>> with lucid.fusion(False):
    ...     loss = F.kl_div(F.log_softmax(student), F.softmax(teacher), reduction="batchmean")
    >>> f"{loss.item():.6f}"
    '0.011704'
    """

    _flag = _flag

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)


def is_fusion_enabled() -> bool:
    """Return whether operations are fused, in this thread."""
    return _flag.enabled


class _Allocation:
    """State of an allocation: whether it is shared outside of lucid, and the deferred values that read it."""

    def __init__(self) -> None:
        self.shared = False
        self.dependents: weakref.WeakSet[Deferred] = weakref.WeakSet()


def _dependents_of(memory: torch.Tensor | Deferred) -> weakref.WeakSet[Deferred]:
    """Return the deferred values that read `memory`."""
    if isinstance(memory, Deferred) and memory.pending:
        return memory.dependents
    return _allocation(realize(memory)).dependents


def _allocation(buffer: torch.Tensor) -> _Allocation:
    # torch keeps a storage's Python object, with its attributes, as long as the memory; all views have the same one.
    return cast(_Allocation, vars(buffer.untyped_storage()).setdefault("_lucid", _Allocation()))


def is_shared(buffer: torch.Tensor) -> bool:
    """Return whether the memory can be written to without going through lucid."""
    return _allocation(buffer).shared


def can_defer(buffer: torch.Tensor) -> bool:
    """Return whether a value of the same size that reads `buffer` may be deferred."""
    if not _flag.enabled or not buffer.numel() or is_shared(buffer):
        return False
    # A small view would keep the whole allocation alive.
    return 2 * buffer.numel() * buffer.itemsize >= buffer.untyped_storage().nbytes()


def realize_dependents(buffer: torch.Tensor) -> torch.Tensor:
    """Compute all deferred values that read the memory of `buffer`, before it is written to; return `buffer`."""
    with _registry_lock:
        dependents = tuple(_allocation(buffer).dependents)
    for deferred in dependents:
        deferred.buffer()
    return buffer


def mark_shared(buffer: torch.Tensor) -> torch.Tensor:
    """Mark the memory of `buffer` as shared outside of lucid, which may write to it from now on; return `buffer`."""
    _allocation(buffer).shared = True
    return realize_dependents(buffer)


class Deferred:
    """Memory that is computed when it is first read, with the values that it would have had at once.

    Subclasses define `compute`.

    Parameters
    ----------
    like
        A buffer of the shape, dtype and device that the memory will have.
    *sources
        The buffers that `compute` reads, not shared, and other deferred memory; released when it has run.
    """

    def __init__(self, like: torch.Tensor, *sources: torch.Tensor | Deferred) -> None:
        self._buffer: torch.Tensor | None = None
        self._like = like
        self._lock = threading.RLock()
        self.dependents: weakref.WeakSet[Deferred] = weakref.WeakSet()
        with _registry_lock:
            self._sources = tuple((source, version_of(source)) for source in sources)
            for source in sources:
                _dependents_of(source).add(self)

    def compute(self) -> torch.Tensor:
        """Return a fresh buffer with the values."""
        raise NotImplementedError

    @property
    def pending(self) -> bool:
        """True until the values are computed."""
        return self._buffer is None

    @property
    def like(self) -> torch.Tensor:
        """Buffer of the same shape, dtype and device, whose values are undefined."""
        return self._like

    def sources(self) -> tuple[torch.Tensor | Deferred, ...]:
        """Return the sources; empty once the values are computed, which another thread may do at any time.

        Raises
        ------
        RuntimeError
            If a source was modified without going through `realize_dependents`.
        """
        sources = self._sources
        if any(version_of(source) != version for source, version in sources):
            raise RuntimeError(
                f"the source of a deferred tensor of shape {tuple(self._like.shape)} was modified in place; "
                "with lucid.fusion(False) nothing is deferred"
            )
        return tuple(source for source, _ in sources)

    def buffer(self) -> torch.Tensor:
        """Return the memory; compute the values first if they are pending."""
        with self._lock:
            if self._buffer is None:
                buffer = self.compute()
                self._first_version = _version_of(buffer)
                with _registry_lock:
                    for source, _ in self._sources:
                        _dependents_of(source).discard(self)
                    _allocation(buffer).dependents.update(self.dependents)
                    self._like = self._buffer = buffer
                    self._sources = ()
            return self._buffer

    @property
    def version(self) -> int:
        """Number of in-place modifications since the values were computed."""
        return 0 if self._buffer is None else _version_of(self._buffer) - self._first_version


def realize(memory: torch.Tensor | Deferred) -> torch.Tensor:
    """Return a buffer, or that of deferred memory, computed."""
    return memory.buffer() if isinstance(memory, Deferred) else memory


def version_of(memory: torch.Tensor | Deferred) -> int:
    """Return the number of in-place modifications of `memory`."""
    return memory.version if isinstance(memory, Deferred) else _version_of(memory)


def _version_of(buffer: torch.Tensor) -> int:
    # torch keeps no count for inference tensors.
    return 0 if buffer.is_inference() else buffer._version
