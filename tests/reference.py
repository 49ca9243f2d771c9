"""NumPy references in float64, and the error budget of comparisons with them."""

from __future__ import annotations

import numpy as np
import torch

#: Unit roundoffs.
ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
#: Smallest positive numbers, or smallest normal ones where subnormal results are flushed.
TINY = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-126, torch.float64: 2.0**-1022}
FLOATS = tuple(ROUNDOFF)


def arithmetic_of(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype in which results of operands of these dtypes are computed."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def exact(tensor: torch.Tensor) -> np.ndarray:
    """Return the values in float64."""
    return tensor.detach().double().cpu().numpy()


def kl_terms(x: np.ndarray, y: np.ndarray, log_target: bool) -> np.ndarray:
    """Return p·(log p − x), 0 where p = 0."""
    with np.errstate(all="ignore"):
        p = np.exp(y) if log_target else y
        terms = p * ((y if log_target else np.log(y)) - x)
    return np.where((p == 0) & ~np.isnan(x), 0.0, terms)


def kl_gradients(x: np.ndarray, y: np.ndarray, dloss: np.ndarray, log_target: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients to x and to y, of the broadcast shape."""
    with np.errstate(all="ignore"):
        p = np.exp(y) if log_target else y
        slope = (y if log_target else np.log(y)) - x + 1
        dy = (p if log_target else 1) * slope * dloss
    zero = (p == 0) & ~np.isnan(x)
    return np.broadcast_to(-p * dloss, dy.shape), np.where(zero, 0.0, dy)


def sum_to(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum over the dimensions along which `shape` was broadcast."""
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    ones = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=ones, keepdims=True)


def assert_within(
    result: torch.Tensor, truth: np.ndarray, condition: np.ndarray | float, arithmetic: torch.dtype, rounds: float = 8
) -> None:
    """Assert that each element is the truth after `rounds` roundings in `arithmetic` and one to the result's dtype.

    Parameters
    ----------
    condition
        Σ|terms| of the sum that gives each element: arithmetic errors are relative to it, the final rounding to the
        truth.
    rounds
        Number of roundings in the arithmetic's dtype.
    """
    got, truth = exact(result), np.asarray(truth)
    assert got.shape == truth.shape, f"shape {got.shape}, expected {truth.shape}"
    np.testing.assert_array_equal(np.isnan(got), np.isnan(truth))
    budget = (
        ROUNDOFF[result.dtype] * np.abs(truth) * 1.001
        + rounds * ROUNDOFF[arithmetic] * np.abs(condition)
        + TINY[result.dtype]
    )
    largest = float(torch.finfo(result.dtype).max)
    finite = np.abs(truth) <= largest
    np.testing.assert_array_equal(got[~finite], np.where(np.isnan(truth), np.nan, np.copysign(np.inf, truth))[~finite])
    excess = np.max(np.abs(got[finite] - truth[finite]) - np.broadcast_to(budget, truth.shape)[finite], initial=-np.inf)
    assert excess <= 0, f"an error exceeds its budget by {excess:.3g}"
