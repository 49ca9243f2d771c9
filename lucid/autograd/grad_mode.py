"""Whether operations are recorded, per thread."""

from __future__ import annotations

from types import TracebackType

from lucid._flags import Block, Mode

_mode = Mode(True)


def is_grad_enabled() -> bool:
    """Whether operations on tensors that require grad are recorded now, in this thread."""
    return _mode.enabled


class set_grad_enabled:
    """Switch recording on or off: at once as a function, until the end of the block as a context manager.

    Parameters
    ----------
    mode : bool
        Whether to record.

    Examples
    --------
    >>> import lucid
    >>> with lucid.set_grad_enabled(False):
    ...     lucid.is_grad_enabled()
    False
    >>> lucid.is_grad_enabled()
    True
    """

    def __init__(self, mode: bool) -> None:
        self._before = _mode.enabled
        _mode.enabled = bool(mode)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _mode.enabled = self._before


class no_grad(Block):
    """Record nothing within, as a context manager (``with lucid.no_grad():``) or a decorator (``@lucid.no_grad()``).

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> with lucid.no_grad():
    ...     (x * 2).requires_grad
    False
    """

    _mode = _mode

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(Block):
    """Record within, also inside `no_grad`.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> with lucid.no_grad(), lucid.enable_grad():
    ...     (x * 2).requires_grad
    True
    """

    _mode = _mode

    def __init__(self) -> None:
        super().__init__(True)
