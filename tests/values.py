"""Helpers of the facade's tests: leaves, a function without a kernel, comparison with float64 truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import lucid
from lucid.autograd import Function
from tests.reference import arithmetic_of, assert_within

DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "bool_")
FLOATS = DTYPES[:4]


def torch_of(tensor: lucid.Tensor) -> torch.Tensor:
    """Return the values in a torch tensor on the CPU."""
    return tensor.to_torch().cpu()


def values_of(tensor: lucid.Tensor) -> np.ndarray:
    """Return the values in float64."""
    return torch_of(tensor).double().numpy()


def leaf(values: Any, dtype: str | None = None) -> Any:
    """A tensor that requires grad; of any type to type checkers, as its ``.grad`` may be None to them."""
    return lucid.tensor(values, dtype=dtype, requires_grad=True)


class Identity(Function):
    """Costs no kernel launch."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad


def check(result: lucid.Tensor, truth: np.ndarray, condition: Any, dtype: torch.dtype) -> None:
    """The result is the truth after at most a few roundings of the arithmetic and one of its dtype; integers are exact.

    Parameters
    ----------
    condition
        The magnitude of what was added up, which the arithmetic's errors are relative to.
    dtype
        Of the result.
    """
    assert result.dtype.torch is dtype
    if dtype.is_floating_point:
        arithmetic = arithmetic_of(dtype)
        assert_within(torch_of(result), np.asarray(truth, np.float64), condition, arithmetic)
    else:
        np.testing.assert_array_equal(result.numpy(), truth)
