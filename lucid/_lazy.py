"""Values that are calculated when somebody looks at them, so that a fused kernel can do without; and the switch.

A `Deferred` stands for memory that is not filled yet. Nobody can tell, but by the time and memory it saves: whoever is
about to write to what it will be calculated from calls `settle` first, and of memory that others can write to unseen,
because it was handed out to torch or NumPy or came from there, nothing is deferred.
"""

from __future__ import annotations

import threading
import weakref
from typing import cast

import torch

from lucid._flags import Block, Mode

_mode = Mode(True)

#: Held while what waits for memory is noted, moved or gone through: any thread may be the first to look.
_noting = threading.Lock()


class fusion(Block):
    """Whether operations are fused, as a context manager (``with lucid.fusion(False):``) or a decorator; per thread.

    The KL divergence of a ``log_softmax`` and a ``softmax``, or of two ``log_softmax`` with ``log_target=True``, over
    the last dimension is calculated straight from the logits, also where these are divided or multiplied by a number,
    the temperature. The quotients and softmaxes themselves are calculated if something else asks for their values. Only
    rounding, time and memory differ. Without fusion everything is calculated where it is called. So is what is made
    from memory that is shared with torch, NumPy or over DLPack, as it could change unseen; `Tensor.clone` gives a
    tensor memory of its own.

    Parameters
    ----------
    enabled : bool
        Whether to fuse within. It is, unless said otherwise.

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

    _mode = _mode

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)


def is_fusion_enabled() -> bool:
    """Whether operations are fused now, in this thread."""
    return _mode.enabled


class _Allocation:
    """What is known of a piece of memory: whether others can write to it, and what is yet to be calculated from it."""

    def __init__(self) -> None:
        self.shared = False
        self.waiting: weakref.WeakSet[Deferred] = weakref.WeakSet()


def _waiting(memory: torch.Tensor | Deferred) -> weakref.WeakSet[Deferred]:
    """What is to be calculated from it."""
    if isinstance(memory, Deferred) and memory.pending:
        return memory.waiting
    return _allocation(filled(memory)).waiting


def _allocation(buffer: torch.Tensor) -> _Allocation:
    # torch keeps a storage's Python object, with its attributes, as long as the memory: views meet here.
    return cast(_Allocation, vars(buffer.untyped_storage()).setdefault("_lucid", _Allocation()))


def is_shared(buffer: torch.Tensor) -> bool:
    """Whether others can write to its memory unseen."""
    return _allocation(buffer).shared


def is_source(buffer: torch.Tensor) -> bool:
    """Whether what is calculated from it, and as large, may be deferred."""
    if not _mode.enabled or not buffer.numel() or is_shared(buffer):
        return False
    # A small part would keep the whole alive.
    return 2 * buffer.numel() * buffer.itemsize >= buffer.untyped_storage().nbytes()


def settle(buffer: torch.Tensor) -> torch.Tensor:
    """The buffer, about to be written to: what is to be calculated from its memory is calculated first."""
    with _noting:
        waiting = tuple(_allocation(buffer).waiting)
    for deferred in waiting:
        deferred.buffer()
    return buffer


def hand_out(buffer: torch.Tensor) -> torch.Tensor:
    """The buffer, about to be shared with others, who may write to it at any time from now on."""
    _allocation(buffer).shared = True
    return settle(buffer)


class Deferred:
    """Memory that is filled when it is looked at, with what it would hold had it been filled at once.

    Subclasses define `calculate`.

    Parameters
    ----------
    like
        A buffer of the shape, dtype and device that the memory will have.
    *sources
        The buffers that `calculate` reads, not shared, and other deferred memory. They are kept until it has.
    """

    def __init__(self, like: torch.Tensor, *sources: torch.Tensor | Deferred) -> None:
        self._buffer: torch.Tensor | None = None
        self._like = like
        self._lock = threading.RLock()
        self.waiting: weakref.WeakSet[Deferred] = weakref.WeakSet()
        with _noting:
            self._sources = tuple((source, version_of(source)) for source in sources)
            for source in sources:
                _waiting(source).add(self)

    def calculate(self) -> torch.Tensor:
        """A fresh buffer with the values."""
        raise NotImplementedError

    @property
    def pending(self) -> bool:
        """Whether nobody has looked yet."""
        return self._buffer is None

    @property
    def like(self) -> torch.Tensor:
        """A buffer of its shape, dtype and device."""
        return self._like

    def sources(self) -> tuple[torch.Tensor | Deferred, ...]:
        """What it is to be calculated from; nothing once it has been, which another thread may see to at any time.

        Raises
        ------
        RuntimeError
            If that has changed, behind the back of `settle`.
        """
        sources = self._sources
        if any(version_of(source) != version for source, version in sources):
            raise RuntimeError(
                f"what a deferred tensor of shape {tuple(self._like.shape)} is calculated from was changed in place "
                "unseen; lucid.fusion(False) calculates everything at once"
            )
        return tuple(source for source, _ in sources)

    def buffer(self) -> torch.Tensor:
        """The memory, filled."""
        with self._lock:
            if self._buffer is None:
                buffer = self.calculate()
                self._first_version = _version_of(buffer)
                with _noting:
                    for source, _ in self._sources:
                        _waiting(source).discard(self)
                    _allocation(buffer).waiting.update(self.waiting)
                    self._like = self._buffer = buffer
                    self._sources = ()
            return self._buffer

    @property
    def version(self) -> int:
        """How often it was changed in place since it was filled."""
        return 0 if self._buffer is None else _version_of(self._buffer) - self._first_version


def filled(memory: torch.Tensor | Deferred) -> torch.Tensor:
    """A buffer, or that of deferred memory."""
    return memory.buffer() if isinstance(memory, Deferred) else memory


def version_of(memory: torch.Tensor | Deferred) -> int:
    """How often memory was changed in place."""
    return memory.version if isinstance(memory, Deferred) else _version_of(memory)


def _version_of(buffer: torch.Tensor) -> int:
    # torch counts, but not for inference tensors.
    return 0 if buffer.is_inference() else buffer._version
