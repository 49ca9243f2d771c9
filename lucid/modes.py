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
