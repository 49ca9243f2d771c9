"""Initial values: the distributions and bounds of torch.nn.init, on any tensor that a layer may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid import nn
from tests.values import FLOATS, leaf, values_of

SHAPES = [(60, 90), (90, 60), (8, 30, 5, 4), (1, 3000)]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


#: By name: the filling, and the standard deviation of what it draws by fans in and out.
FANS: dict[str, tuple[Callable[[Any], Any], Callable[[int, int], float]]] = {
    "xavier_uniform_": (nn.init.xavier_uniform_, lambda i, o: math.sqrt(2 / (i + o))),
    "xavier_uniform_ with a gain": (lambda x: nn.init.xavier_uniform_(x, 3.0), lambda i, o: 3 * math.sqrt(2 / (i + o))),
    "xavier_normal_": (nn.init.xavier_normal_, lambda i, o: math.sqrt(2 / (i + o))),
    "kaiming_uniform_": (nn.init.kaiming_uniform_, lambda i, o: math.sqrt(2 / i)),
    "kaiming_uniform_ with a slope": (lambda x: nn.init.kaiming_uniform_(x, 2.0), lambda i, o: math.sqrt(0.4 / i)),
    "kaiming_normal_ of fan_out": (lambda x: nn.init.kaiming_normal_(x, mode="fan_out"), lambda i, o: math.sqrt(2 / o)),
    "kaiming_normal_ before tanh": (
        lambda x: nn.init.kaiming_normal_(x, nonlinearity="tanh"),
        lambda i, o: 5 / 3 / math.sqrt(i),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FANS)
def test_the_spread_follows_from_the_fans(name: str, shape: tuple[int, ...]) -> None:
    fill, spread = FANS[name]
    values = values_of(fill(lucid.empty(shape)))
    std = spread(*fans(shape))
    n = values.size
    assert abs(values.mean()) < 4 * std / math.sqrt(n)
    assert abs(values.std() / std - 1) < 4 / math.sqrt(2 * n)
    if "uniform" in name:
        assert 0.97 * std * math.sqrt(3) < np.abs(values).max() <= std * math.sqrt(3) * (1 + 1e-6)
    else:
        assert np.abs(values).max() > 2.9 * std


@pytest.mark.parametrize("shape", SHAPES)
def test_fans_are_torchs(shape: tuple[int, ...]) -> None:
    assert torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape)) == fans(shape)


@pytest.mark.parametrize(
    "args", [("linear",), ("sigmoid",), ("tanh",), ("relu",), ("selu",), ("leaky_relu",), ("leaky_relu", 0.3)]
)
def test_gains_are_torchs(args: tuple[Any, ...]) -> None:
    assert nn.init.calculate_gain(*args) == torch.nn.init.calculate_gain(*args)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("mean", "std", "a", "b"), [(0.0, 0.02, -0.04, 0.04), (1.0, 2.0, -2.0, 2.0), (0, 1, 0, math.inf)]
)
def test_truncated_normal_values_lie_between_the_bounds(
    dtype: str, mean: float, std: float, a: float, b: float
) -> None:
    values = values_of(nn.init.trunc_normal_(lucid.empty(5000, dtype=dtype), mean, std, a, b))
    bounds = values_of(lucid.tensor([a, b], dtype=dtype))
    assert bounds[0] <= values.min()
    assert values.max() <= bounds[1]
    low, high = ((bound - mean) / std for bound in (a, b))
    pdf, cdf = (lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi)), (lambda x: math.erfc(-x / math.sqrt(2)) / 2)
    expected = mean + std * (pdf(low) - pdf(high)) / (cdf(high) - cdf(low))
    assert abs(values.mean() - expected) < 4.5 * std / math.sqrt(5000) + 2e-4 * std
    assert len(np.unique(values)) > 100


FILLS: dict[str, Callable[[Any], Any]] = {
    "uniform_": nn.init.uniform_,
    "normal_": nn.init.normal_,
    "trunc_normal_": nn.init.trunc_normal_,
    "constant_": lambda x: nn.init.constant_(x, 7),
    "ones_": nn.init.ones_,
    "zeros_": nn.init.zeros_,
    "xavier_uniform_": nn.init.xavier_uniform_,
    "xavier_normal_": nn.init.xavier_normal_,
    "kaiming_uniform_": nn.init.kaiming_uniform_,
    "kaiming_normal_": nn.init.kaiming_normal_,
}


@pytest.mark.parametrize("name", FILLS)
def test_a_leaf_that_requires_grad_is_filled_in_place_and_nothing_is_recorded(name: str) -> None:
    x = leaf(np.full((3, 5), 9.0))
    memory = x._buffer.data_ptr()
    assert FILLS[name](x) is x
    assert x.is_leaf
    assert x.requires_grad
    assert x._buffer.data_ptr() == memory
    assert not (values_of(x) == 9.0).any()


@pytest.mark.parametrize("name", FILLS)
def test_backward_notices_a_saved_tensor_that_was_filled(name: str) -> None:
    x = leaf(np.full((3, 5), 9.0))
    y = (x * x).sum()
    FILLS[name](x)
    with pytest.raises(RuntimeError, match="modified in place"):
        y.backward()


@pytest.mark.parametrize("name", FILLS)
def test_a_view_is_filled_and_nothing_beside_it(name: str) -> None:
    whole = lucid.full((6, 8), 9.0)
    FILLS[name](whole[1:4, ::2])
    changed = np.zeros((6, 8), bool)
    changed[1:4, ::2] = True
    np.testing.assert_array_equal(whole.numpy() != 9.0, changed)


def test_a_constant_fills_any_dtype() -> None:
    assert nn.init.constant_(lucid.zeros(2, dtype="int64"), 3).tolist() == [3, 3]
    assert nn.init.ones_(lucid.zeros(2, dtype="bool")).tolist() == [True, True]
    assert nn.init.constant_(lucid.zeros(1), -math.inf).item() == -math.inf


@pytest.mark.parametrize(
    ("fill", "error", "message"),
    [
        (lambda x: nn.init.uniform_(x, math.nan), ValueError, "a must be a finite number, got nan"),
        (lambda x: nn.init.uniform_(x, 0, math.inf), ValueError, "b must be a finite number, got inf"),
        (lambda x: nn.init.normal_(x, "0"), TypeError, "mean must be a finite number, got str"),
        (lambda x: nn.init.normal_(x.expand(4, 2)), RuntimeError, r"expanded one of shape \(4, 2\) .* tensor.clone"),
        (lambda x: nn.init.trunc_normal_(x, a=1, b=1), ValueError, "trunc_normal_ expects .* a=1 and b=1"),
        (lambda x: nn.init.trunc_normal_(x, a=90, b=91), ValueError, "a part of the distribution"),
        (lambda x: nn.init.trunc_normal_(x, std=0), ValueError, "std > 0"),
        (lambda x: nn.init.constant_(x, "1"), TypeError, "val must be a number, got str"),
        (lambda x: nn.init.constant_(x, x), TypeError, "val must be a number, got lucid.Tensor"),
        (lambda x: nn.init.xavier_uniform_(x), ValueError, r"at least two dimensions .* got shape \(2,\)"),
        (lambda x: nn.init.xavier_normal_([x]), TypeError, "tensor must be a lucid.Tensor, got list"),
        (lambda x: nn.init.kaiming_uniform_(x.reshape(1, 2), mode="fan"), ValueError, "mode must be one of .*fan_in"),
        (lambda x: nn.init.kaiming_normal_(x.reshape(1, 2), nonlinearity="gelu"), ValueError, "nonlinearity must be"),
        (lambda x: nn.init.calculate_gain("relu", 0.2), ValueError, "param must be None for 'relu'"),
    ],
)
def test_misuse_is_named_and_changes_nothing(fill: Any, error: type[Exception], message: str) -> None:
    x, state = lucid.full((2,), 5.0), lucid.get_rng_state().tolist()
    with pytest.raises(error, match=message):
        fill(x)
    assert x.tolist() == [5.0, 5.0]
    assert lucid.get_rng_state().tolist() == state
