"""Handles for hooks: what every ``register_*hook`` of tensors and modules gives back."""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["RemovableHandle", "register"]

_ids = itertools.count()


class RemovableHandle:
    """Handle to remove a hook.

    The handle refers to the collection weakly: keeping a handle keeps neither a tensor nor a module alive.

    Parameters
    ----------
    hooks : OrderedDict
        The collection the hook is, or will be, stored in under :attr:`id`.

    Attributes
    ----------
    id : int
        The key of the hook; fresh for every handle and never one that `hooks` already holds.

    Examples
    --------
    >>> from collections import OrderedDict
    >>> hooks = OrderedDict()
    >>> with register(hooks, print) as handle:
    ...     handle.id in hooks
    True
    >>> len(hooks)
    0
    """

    id: int

    def __init__(self, hooks: OrderedDict[int, Any]) -> None:
        self._hooks: weakref.ref[OrderedDict[int, Any]] | None = weakref.ref(hooks)
        # An unpickled collection brings ids of another process, which may still lie ahead in this one.
        self.id = next(number for number in _ids if number not in hooks)

    def remove(self) -> None:
        """Take the hook out; does nothing where it is out already."""
        hooks = self._hooks() if self._hooks is not None else None
        if hooks is not None:
            hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    # A weak reference can be neither pickled nor led to a copied collection; the collection itself can.
    def __getstate__(self) -> tuple[int, OrderedDict[int, Any] | None]:
        return self.id, self._hooks() if self._hooks is not None else None

    def __setstate__(self, state: tuple[int, OrderedDict[int, Any] | None]) -> None:
        self.id, hooks = state
        self._hooks = None if hooks is None else weakref.ref(hooks)


def check_hook(hook: object) -> None:
    """Raise TypeError unless `hook` can be called."""
    if not callable(hook):
        raise TypeError(f"hook must be callable, got {type(hook).__name__}")


def register(hooks: OrderedDict[int, Any], fn: Callable[..., Any], *, prepend: bool = False) -> RemovableHandle:
    """Store `fn` in `hooks` under a fresh id.

    Parameters
    ----------
    hooks : OrderedDict
        The collection of hooks, run in its order.
    fn : callable
        The hook.
    prepend : bool
        Put `fn` before the existing hooks instead of after them.

    Returns
    -------
    RemovableHandle

    Raises
    ------
    TypeError
        If `fn` cannot be called.
    """
    check_hook(fn)
    handle = RemovableHandle(hooks)
    hooks[handle.id] = fn
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle
