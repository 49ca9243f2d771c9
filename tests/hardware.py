"""Worst-case compiled float32 arithmetic: Triton's interpreter with the maximal errors that NVIDIA documents.

Sources: "PTX ISA", "CUDA C++ Programming Guide". Operation, instruction, maximal error:

    a / b       div.full              2 ulp
    tl.sqrt     sqrt.approx.ftz       2⁻²³ relative; subnormal arguments are flushed
    tl.exp      ex2.approx(x·log₂e)   2⁻²² relative, after the product was rounded to float32
    tl.exp2     ex2.approx            2⁻²² relative
    tl.log      libdevice's logf      1 ulp
    tl.log2     lg2.approx            2⁻²² absolute between ½ and 2, relative elsewhere (`math.fast_log2`)
    tl.rsqrt    rsqrt.approx          2⁻²²·⁹ relative

Exact are results that are 0 or a power of two, quotients by a power of two, and correctly rounded operations
(`tl.div_rn`, `tl.sqrt_rn`). x/x need not be 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

#: Signs of the errors: all up, all down, or by a hash of the bits of the argument or result.
DIRECTIONS = ("up", "down", "either")


def _ulp(y: np.ndarray) -> np.ndarray:
    return np.spacing(np.abs(y).astype(np.float32)).astype(np.float64)


def _is_power_of_2(y: np.ndarray) -> np.ndarray:
    return np.abs(np.frexp(y)[0]) == 0.5


def _flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.float32(2.0**-126), np.float32(0) * x, x)


@contextmanager
def worst_case(direction: str) -> Iterator[None]:
    """Give float32 quotients, exponentials, logarithms and roots their maximal error on a GPU inside the block."""
    from triton.runtime.interpreter import InterpreterBuilder

    def signs(x: np.ndarray) -> np.ndarray:
        hashed = (np.ascontiguousarray(x).view(np.uint32) * np.uint32(2654435761)) >> np.uint32(31)
        return {"up": 1.0, "down": -1.0, "either": hashed * 2.0 - 1.0}[direction] * np.ones(x.shape)

    def with_error(
        exact: Callable[[np.ndarray], np.ndarray],
        error: Callable[[np.ndarray], np.ndarray],
        first: Callable[[np.ndarray], np.ndarray] = lambda x: x,
        double: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Any:
        """Apply `first` in float32, then `exact` in float64, and perturb; `double` is for float64 arguments."""

        def unary(self: Any, arg: Any) -> Any:
            def calculate(x: np.ndarray) -> np.ndarray:
                if x.dtype != np.float32:
                    return (double or exact)(x)
                x = first(x)
                y = exact(x.astype(np.float64))
                perturbed = np.where(_is_power_of_2(y), y, y + signs(x) * error(y))
                return np.where(np.isfinite(y), perturbed, y).astype(np.float32)

            return self.unary_op(arg, calculate)

        return unary

    def quotient(self: Any, lhs: Any, rhs: Any) -> Any:
        def calculate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            if a.dtype != np.float32:
                return np.divide(a, b)
            with np.errstate(all="ignore"):
                y, b = np.broadcast_arrays(np.asarray(a.astype(np.float64) / b), b)
                exact = _is_power_of_2(b) | (y == 0) | ~np.isfinite(y)
                off = signs(y.astype(np.float32)) * 2 * _ulp(np.where(exact, 1, y))
                return np.where(exact, y, y + off).astype(np.float32)

        return self.binary_op(lhs, rhs, calculate)

    def to_base_2(x: np.ndarray) -> np.ndarray:
        return x * np.float32(1.4426950408889634)

    errors = {
        "create_fdiv": quotient,
        "create_sqrt": with_error(np.sqrt, lambda y: np.abs(y) * 2.0**-23, _flushed),
        "create_exp": with_error(np.exp2, lambda y: np.abs(y) * 2.0**-22, to_base_2, np.exp),
        "create_exp2": with_error(np.exp2, lambda y: np.abs(y) * 2.0**-22),
        "create_log": with_error(np.log, _ulp),
        "create_log2": with_error(np.log2, lambda y: np.where(y == 0, 0, np.maximum(np.abs(y), 1) * 2.0**-22)),
        "create_rsqrt": with_error(lambda x: 1 / np.sqrt(x), lambda y: np.abs(y) * 2.0**-22.9),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, method in errors.items():
            patch.setattr(InterpreterBuilder, name, method)
        yield
