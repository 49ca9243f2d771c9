"""The special-function unit at its worst: Triton's interpreter with the errors that NVIDIA documents.

"PTX ISA", ex2.approx, lg2.approx and rsqrt.approx for float32: 2⁻²² relative; 2⁻²² absolute between ½ and 2 and
relative elsewhere; 2⁻²²·⁹ relative. Taken to be exact where the result is 0 or a power of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

#: The signs of the errors: all up, all down, or as a hash of the argument's bits has it.
DIRECTIONS = ("up", "down", "either")


@contextmanager
def worst_case(direction: str) -> Iterator[None]:
    """Give float32 exponentials, logarithms and roots the largest errors they may have on a GPU."""
    from triton.runtime.interpreter import InterpreterBuilder

    def signs(x: np.ndarray) -> np.ndarray:
        hashed = (np.ascontiguousarray(x).view(np.uint32) * np.uint32(2654435761)) >> np.uint32(31)
        return {"up": 1.0, "down": -1.0, "either": hashed * 2.0 - 1.0}[direction] * np.ones(x.shape)

    def with_error(exact: Callable[[np.ndarray], np.ndarray], error: Callable[[np.ndarray], np.ndarray]) -> Any:
        def unary(self: Any, arg: Any) -> Any:
            def calculate(x: np.ndarray) -> np.ndarray:
                if x.dtype != np.float32:
                    return exact(x)
                y = exact(x.astype(np.float64))
                spoilt = np.where(np.frexp(y)[0] == 0.5, y, y + signs(x) * error(y))
                return np.where(np.isfinite(y), spoilt, y).astype(np.float32)

            return self.unary_op(arg, calculate)

        return unary

    errors = {
        "create_exp2": with_error(np.exp2, lambda y: np.abs(y) * 2.0**-22),
        "create_log2": with_error(np.log2, lambda y: np.where(y == 0, 0, np.maximum(np.abs(y), 1) * 2.0**-22)),
        "create_rsqrt": with_error(lambda x: 1 / np.sqrt(x), lambda y: np.abs(y) * 2.0**-22.9),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, method in errors.items():
            patch.setattr(InterpreterBuilder, name, method)
        yield
