"""Helpers of the facade's tests: leaves, a function without a kernel, comparisons with float64 references."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import lucid
import lucid.nn.functional as F
from lucid.autograd import Function
from lucid.typing import Reduction
from tests.device import DEVICE
from tests.reference import arithmetic_of, assert_within, exact, kl_gradients, kl_terms, sum_to

DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "bool_")
FLOATS = DTYPES[:4]


def torch_of(tensor: lucid.Tensor) -> torch.Tensor:
    """Return the values in a torch tensor on the CPU."""
    return tensor.to_torch().cpu()


def values_of(tensor: lucid.Tensor) -> np.ndarray:
    """Return the values in float64."""
    return torch_of(tensor).double().numpy()


def leaf(values: Any, dtype: str | None = None) -> Any:
    """Return a tensor that requires grad; typed Any, as its ``.grad`` may be None to type checkers."""
    return lucid.tensor(values, dtype=dtype, requires_grad=True)


class Identity(Function):
    """The identity, without a kernel launch."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad


def check(result: lucid.Tensor, truth: np.ndarray, condition: Any, dtype: torch.dtype) -> None:
    """Assert that a result is the truth after a few roundings in the arithmetic and one to its dtype; integers exactly.

    Parameters
    ----------
    condition
        Σ|terms|, which the arithmetic's errors are relative to.
    dtype
        Dtype of the result.
    """
    assert result.dtype.torch is dtype
    if dtype.is_floating_point:
        arithmetic = arithmetic_of(dtype)
        assert_within(torch_of(result), np.asarray(truth, np.float64), condition, arithmetic)
    else:
        np.testing.assert_array_equal(result.numpy(), truth)


@np.errstate(all="ignore")
def check_kl_div(x: torch.Tensor, y: torch.Tensor, log_target: bool, reduction: Reduction) -> None:
    """Run kl_div forward and backward with a random dloss, and compare loss, gradients and dtypes with the truth."""
    x_leaf, y_leaf = (lucid.from_torch(t).requires_grad_() for t in (x, y))
    loss = F.kl_div(x_leaf, y_leaf, reduction=reduction, log_target=log_target)
    dtype = torch.promote_types(x.dtype, y.dtype)
    assert loss.dtype.torch == dtype
    dloss = torch.randn(loss.shape, dtype=torch.float64).to(DEVICE, dtype)
    loss.backward(lucid.from_torch(dloss))

    values, target = exact(x), exact(y)
    arithmetic = arithmetic_of(x.dtype, y.dtype)
    terms = kl_terms(values, target, log_target)
    count = {"mean": terms.size, "batchmean": x.shape[0] if x.dim() else 1}.get(reduction, 1)
    # The relative condition of exp at y is |y|; log p and x cancel.
    factor = _finite(np.exp(target)) * (1 + _finite(target)) if log_target else _finite(target)
    spread = _finite(target if log_target else np.log(target)) + _finite(values)
    condition = np.broadcast_to(factor * spread, terms.shape)
    truth = terms if reduction == "none" else np.divide(terms.sum(), count)
    outer = exact(dloss) / max(count, 1)
    dx, dy = kl_gradients(values, target, outer, log_target)
    dy_condition = (factor if log_target else 1) * (spread + 1) * np.abs(outer)
    size = condition if reduction == "none" else condition.sum() / max(count, 1)
    assert_within(loss.to_torch(), truth, size, arithmetic)
    for leaf, gradient, sizes in ((x_leaf, dx, np.abs(factor * outer)), (y_leaf, dy, dy_condition)):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        truth, condition = sum_to(gradient, leaf.shape), sum_to(np.broadcast_to(sizes, terms.shape), leaf.shape)
        assert_within(leaf.grad.to_torch(), truth, condition, arithmetic)


def _finite(values: np.ndarray) -> np.ndarray:
    """Return magnitudes, 0 for infinities and NaNs."""
    return np.abs(np.where(np.isfinite(values), values, 0))
