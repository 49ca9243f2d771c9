"""Thread-local switch for the recording of operations."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from lucid._arguments import check_bool, type_name
from lucid._flags import FlagScope, ThreadLocalFlag

_flag = ThreadLocalFlag(True)


def is_grad_enabled() -> bool:
    """Return whether operations on tensors that require grad are recorded, in this thread."""
    return _flag.enabled


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
        mode = check_bool("mode", mode)
        self._before, _flag.enabled = _flag.enabled, mode

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _flag.enabled = self._before


class _GradScope(FlagScope):
    _flag = _flag

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
