"""Thread-local switch for the recording of operations."""

from __future__ import annotations

from typing import Any

from lucid._arguments import type_name
from lucid._flags import FlagScope, FlagSetter, ThreadLocalFlag

#: Whether operations are recorded.
flag = ThreadLocalFlag(True)


def is_grad_enabled() -> bool:
    """Return whether operations on tensors that require grad are recorded, in this thread."""
    return flag.enabled


class set_grad_enabled(FlagSetter):
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

    _flag = flag


class _GradScope(FlagScope):
    _flag = flag

    def __new__(cls, function: Any = None) -> Any:
        """Return a scope, or a decorated function where the class itself decorates."""
        if function is None:
            return super().__new__(cls)
        if not callable(function):
            raise TypeError(f"{cls.__name__} takes no argument, or a function to decorate, got {type_name(function)}")
        return cls()(function)


class no_grad(_GradScope):
    """Record nothing within, as a context manager (``with lucid.no_grad():``) or a decorator (``@lucid.no_grad``).

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> with lucid.no_grad():
    ...     (x * 2).requires_grad
    False
    """

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(_GradScope):
    """Record within, also inside `no_grad`.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> with lucid.no_grad(), lucid.enable_grad():
    ...     (x * 2).requires_grad
    True
    """

    def __init__(self) -> None:
        super().__init__(True)
