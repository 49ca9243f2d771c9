"""Switches that hold for a thread, and blocks of code in which one is on or off."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from copy import copy
from types import TracebackType
from typing import ClassVar, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Mode(threading.local):
    """A switch; each thread has its own, first as given."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled


class Block:
    """A context manager and decorator that holds a switch at one value; may be nested and reused."""

    _mode: ClassVar[Mode]

    def __init__(self, enabled: bool) -> None:
        self._enabled = bool(enabled)
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(self._mode.enabled)
        self._mode.enabled = self._enabled

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mode.enabled = self._before.pop()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            block = copy(self)  # as calls may overlap, in several threads
            block._before = []
            with block:
                return function(*args, **kwargs)

        return wrapped


_checking = Mode(False)


class check_values(Block):
    """Wait for each kernel that looks at values, as a context manager (``with lucid.check_values():``) or a decorator.

    A label or an index out of range, or a normalizer in device memory that is not positive, is found by the kernel that
    meets it. On a GPU nobody waits for that: the result is NaN, and the error comes when values are next read back.
    Within, it comes from the call itself. Where kernels run on the CPU it always does. Per thread.

    Parameters
    ----------
    enabled : bool
        Whether to wait within. Nobody does, unless said otherwise.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> with lucid.check_values():
    ...     F.cross_entropy(lucid.tensor([[0.0, 1.0]]), lucid.tensor([2]))
    Traceback (most recent call last):
    IndexError: labels must lie in 0 to 1, the columns of the logits, or be ignore_index, got 2
    """

    _mode = _checking

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)


def is_checking() -> bool:
    """Whether this thread waits for what kernels find wrong."""
    return _checking.enabled
