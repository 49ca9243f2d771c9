"""Thread-local flags, and context managers that set one."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from copy import copy
from types import TracebackType
from typing import ClassVar, ParamSpec, TypeVar

from lucid._arguments import check_bool

P = ParamSpec("P")
R = TypeVar("R")


class ThreadLocalFlag(threading.local):
    """A flag; `enabled` is its initial value in each thread."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled


class FlagScope:
    """Context manager and decorator that sets a flag; reentrant and reusable."""

    _flag: ClassVar[ThreadLocalFlag]

    def __init__(self, enabled: bool) -> None:
        self._enabled = check_bool("enabled", enabled)
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(self._flag.enabled)
        self._flag.enabled = self._enabled

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flag.enabled = self._before.pop()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            scope = copy(self)  # calls may overlap, in several threads
            scope._before = []
            with scope:
                return function(*args, **kwargs)

        return wrapped


_checking = ThreadLocalFlag(False)


class check_values(FlagScope):
    """Synchronous checks of values, as a context manager (``with lucid.check_values():``) or decorator; per thread.

    A kernel finds a label or an index out of range, or a normalizer in device memory that is not positive. On a GPU
    such errors are asynchronous: the result is NaN, and the error is raised when values are next copied to the host.
    Within this context the call itself synchronizes and raises. Kernels on the CPU are always synchronous.

    Parameters
    ----------
    enabled : bool
        Synchronize inside the block. Default: True.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> with lucid.check_values():
    ...     F.cross_entropy(lucid.tensor([[0.0, 1.0]]), lucid.tensor([2]))
    Traceback (most recent call last):
    IndexError: target must lie in 0 to 1, the columns of the logits, or be ignore_index, got 2
    """

    _flag = _checking

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)


def is_checking() -> bool:
    """Return whether calls of this thread synchronize to raise errors of kernels."""
    return _checking.enabled
