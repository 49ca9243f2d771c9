"""Thread-local flags, and context managers that set one."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from copy import copy
from types import TracebackType
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from lucid._arguments import check_bool, check_choice

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class ThreadLocalFlag(threading.local, Generic[T]):
    """A flag, or another setting; `enabled` is its initial value in each thread."""

    def __init__(self, enabled: T) -> None:
        self.enabled = enabled


class FlagScope:
    """Context manager and decorator that sets a flag; reentrant and reusable."""

    _flag: ThreadLocalFlag[Any]

    def __init__(self, enabled: bool) -> None:
        self._enabled: Any = check_bool("enabled", enabled)
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before.append(self._flag.enabled)
        self._flag.enabled = self._enabled

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flag.enabled = self._before.pop()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function):  # whose body runs after the call
            name = type(self).__name__
            raise TypeError(f"{name} takes no generator function, got {function.__name__}: write `with {name}()` in it")

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            scope = copy(self)  # calls may overlap, in several threads
            scope._before = []
            with scope:
                return function(*args, **kwargs)

        return wrapped


class FlagSetter:
    """Sets a flag at once, as a function; as a context manager until the end of the block."""

    _flag: ThreadLocalFlag[Any]

    def __init__(self, mode: bool) -> None:
        mode = check_bool("mode", mode)
        self._before, self._flag.enabled = self._flag.enabled, mode

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flag.enabled = self._before


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


_gradient_in_forward = ThreadLocalFlag(True)


class gradient_in_forward(FlagScope):
    """Whether losses of logits compute their gradient with the loss, as a context manager or decorator; per thread.

    On by default: where the gradient is wanted, one launch reads each logit once and writes loss and gradient; backward
    multiplies with the upstream gradient, where that is not 1. Logits are not kept for backward. Switched off, backward
    reads the logits again. float16 logits, whose small gradients need the upstream gradient's scale, graphs of
    `torch.compile`, and calls under `torch.utils.checkpoint` or transforms of `torch.func` always do that.

    Parameters
    ----------
    enabled : bool
        Whether to compute the gradient with the loss inside the block. Default: True.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> logits = lucid.tensor([[0.0, 0.0]], requires_grad=True)
    >>> with lucid.gradient_in_forward(False):
    ...     loss = F.cross_entropy(logits, lucid.tensor([1]))
    >>> loss.backward()
    >>> logits.grad.tolist()
    [[0.5, -0.5]]
    """

    _flag = _gradient_in_forward

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)


def is_gradient_in_forward() -> bool:
    """Return whether losses of this thread compute their gradient in forward."""
    return _gradient_in_forward.enabled


Float32Precision = Literal["highest", "high"]

_float32_precision: Float32Precision = "highest"


def set_float32_matmul_precision(precision: Float32Precision) -> None:
    """Set how products of float32 matrices are computed, in all threads, as torch's function of that name.

    Parameters
    ----------
    precision : {'highest', 'high'}
        ``'highest'``, the default: in float32. ``'high'``: on tensor cores, of operands rounded to tf32, which has 10
        bits after the point; faster, with relative errors of 2⁻¹¹ in each factor. Sums are in float32 in both.

    Raises
    ------
    ValueError
        If it is another word.

    Examples
    --------
    >>> import lucid
    >>> lucid.set_float32_matmul_precision("high")
    >>> lucid.get_float32_matmul_precision()
    'high'
    >>> lucid.set_float32_matmul_precision("highest")
    """
    global _float32_precision
    check_choice("precision", precision, ("highest", "high"))
    _float32_precision = precision


def get_float32_matmul_precision() -> Float32Precision:
    """Return how products of float32 matrices are computed: see `set_float32_matmul_precision`."""
    return _float32_precision
