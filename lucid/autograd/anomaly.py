"""Anomaly mode: the operation that made the first NaN is named, forward and backward."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lucid._flags import FlagScope, FlagSetter, ThreadLocalFlag
from lucid.tensor import Tensor

_flag = ThreadLocalFlag(False)

_PACKAGE = str(Path(__file__).parent.parent)
#: Frames of the stack that an error shows.
_FRAMES = 8


class detect_anomaly(FlagScope):
    """Raise at the operation that makes the first NaN, as a context manager or a decorator; per thread.

    Results of operations are checked as they are computed, and gradients in backward; an error in backward shows where
    the operation was called. Every operation waits for its result, and nothing is deferred: for debugging only.

    Parameters
    ----------
    enabled : bool
        Check inside the block. Default: True.

    Raises
    ------
    RuntimeError
        Within the block, by the operation or by backward. Inputs that hold NaN are no error.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0, -1.0], requires_grad=True)
    >>> with lucid.autograd.detect_anomaly():
    ...     x.sqrt()
    Traceback (most recent call last):
        ...
    RuntimeError: Sqrt made the first NaN: output 0 of shape (2,) has NaN, its inputs have none
    """

    _flag = _flag

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)


class set_detect_anomaly(FlagSetter):
    """Switch anomaly mode on or off: at once as a function, until the end of the block as a context manager.

    Parameters
    ----------
    mode : bool
        Whether to check, as `detect_anomaly` does.

    Examples
    --------
    >>> import lucid
    >>> with lucid.autograd.set_detect_anomaly(True):
    ...     lucid.autograd.is_anomaly_enabled()
    True
    """

    _flag = _flag


def is_anomaly_enabled() -> bool:
    """Return whether anomaly mode is on, in this thread."""
    return _flag.enabled


def check_forward(name: str, args: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Raise a RuntimeError if an output has NaN, but no argument has."""
    _check(f"{name} made the first NaN: output", args, outputs, "its inputs have")


def check_backward(name: str, given: Sequence[Any], results: Sequence[Any], called: str) -> None:
    """Raise a RuntimeError if an input's gradient has NaN, and what it was made of none; `called` shows the call."""
    _check(f"{name} made the first NaN: the gradient of input", given, results, "what it was computed from has", called)


def _check(rule: str, before: Sequence[Any], after: Sequence[Any], others: str, called: str = "") -> None:
    bad = next((number for number, value in enumerate(after) if _has_nan(value)), None)
    if bad is not None and not any(map(_has_nan, before)):
        where = f"\nThe operation was called here:\n{called}" if called else ""
        raise RuntimeError(f"{rule} {bad} of shape {after[bad].shape} has NaN, {others} none{where}")


def _has_nan(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        return False
    return bool(np.isnan(value._numpy_compatible().numpy()).any())


def where_called() -> str:
    """Return the innermost frames of the stack that are not of this package."""
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(_PACKAGE)]
    return "".join(traceback.format_list(frames[-_FRAMES:]))
