"""Whether operations are recorded, per thread."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class _Mode(threading.local):
    enabled = True


_mode = _Mode()


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


class _Block:
    """A context manager and decorator that holds the mode at one value; may be nested and reused."""

    _value: bool

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(_mode.enabled)
        _mode.enabled = self._value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _mode.enabled = self._before.pop()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            with type(self)():
                return function(*args, **kwargs)

        return wrapped


class no_grad(_Block):
    """Record nothing within, as a context manager (``with lucid.no_grad():``) or a decorator (``@lucid.no_grad()``).

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> with lucid.no_grad():
    ...     (x * 2).requires_grad
    False
    """

    _value = False


class enable_grad(_Block):
    """Record within, also inside `no_grad`.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> with lucid.no_grad(), lucid.enable_grad():
    ...     (x * 2).requires_grad
    True
    """

    _value = True
