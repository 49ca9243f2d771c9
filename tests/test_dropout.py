"""Dropout: its mask by Philox, its factor, and derivatives of any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
from lucid import nn
from lucid.autograd import grad
from tests.philox import element_bits
from tests.reference import ROUNDOFF
from tests.values import FLOATS, leaf, torch_of, values_of
from triton_kernels.devtools import trace

SHAPE = (13, 41)


def mask(p: float, seed: int, offset: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """What is kept."""
    return (element_bits(seed, offset, int(np.prod(shape))) >= round(p * 2**32)).reshape(shape)


def strided(values: np.ndarray, dtype: str, layout: str) -> lucid.Tensor:
    """A tensor of these values, transposed or every second column of another."""
    if layout == "transposed":
        return lucid.tensor(values.T.copy(), dtype=dtype).T
    return lucid.tensor(np.repeat(values, 2, axis=1), dtype=dtype)[:, ::2]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("layout", ["transposed", "sliced"])
def test_what_is_kept_is_divided_by_its_probability(tiles: str, dtype: str, p: float, layout: str) -> None:
    x = strided(np.random.default_rng(1).normal(size=SHAPE), dtype, layout)
    lucid.manual_seed(7)
    lucid.rand(10)
    result = F.dropout(x, p)
    truth = np.where(mask(p, 7, 5), values_of(x) / (1 - p), 0)
    roundoff = ROUNDOFF[x._buffer.dtype]
    np.testing.assert_allclose(
        values_of(result), truth, rtol=2.01 * max(roundoff / 2, 2.0**-53) + 2.0**-23 * (dtype != "float64")
    )
    assert result.dtype is x.dtype


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_gradient_has_the_same_mask_however_often_it_is_computed(tiles: str, dtype: str) -> None:
    x = leaf(np.ones(SHAPE), dtype)
    lucid.manual_seed(8)
    y = F.dropout(x, 0.25)
    lucid.rand(3)  # the generator is elsewhere by then
    upstream = strided(np.random.default_rng(2).normal(size=SHAPE), dtype, "transposed")
    first, second = (grad(y, x, upstream, retain_graph=True)[0] for _ in range(2))
    truth = np.where(mask(0.25, 8), values_of(upstream) / 0.75, 0)
    np.testing.assert_allclose(values_of(first), truth, rtol=1.01 * ROUNDOFF[x._buffer.dtype] + 2.0**-23)
    np.testing.assert_array_equal(values_of(first), values_of(second))
    np.testing.assert_array_equal(values_of(y) != 0, values_of(first) != 0)


def test_second_derivatives_are_those_of_a_product_with_the_mask() -> None:
    values = np.random.default_rng(3).normal(size=SHAPE)
    x = leaf(values)
    lucid.manual_seed(9)
    y = F.dropout(x * x * x, 0.4)
    (dx,) = grad(y.sum(), x, create_graph=True)
    (second,) = grad(dx.sum(), x)
    factor = mask(0.4, 9) / 0.6
    np.testing.assert_allclose(values_of(second), 6 * values * factor, rtol=1e-14)


def test_a_second_derivative_goes_through_the_upstream_gradient() -> None:
    x, upstream = leaf(np.ones(SHAPE)), leaf(np.full(SHAPE, 2.0))
    lucid.manual_seed(9)
    (dx,) = grad(F.dropout(x, 0.4), x, upstream, create_graph=True)
    (through,) = grad(dx.sum(), upstream)
    np.testing.assert_allclose(values_of(through), mask(0.4, 9) / 0.6, rtol=1e-15)


def test_the_part_that_is_dropped_is_p() -> None:
    n = 200_000
    for p in (0.1, 0.5, 0.9):
        dropped = (F.dropout(lucid.ones(n), p).numpy() == 0).mean()
        assert abs(dropped - p) < 4 * np.sqrt(p * (1 - p) / n)


def test_a_dropped_element_is_zero_whatever_it_was() -> None:
    x = lucid.full((50,), float("nan"))
    assert set(np.unique(F.dropout(x, 0.5).numpy())) >= {0.0}
    assert not F.dropout(lucid.full((3,), float("inf")), 1.0).numpy().any()


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    x, before = leaf([1.0, 2.0]), lucid.get_rng_state().tolist()
    assert F.dropout(x, 0) is x
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 1, False) is x
    assert lucid.get_rng_state().tolist() == before


def test_all_is_dropped_at_a_probability_of_one() -> None:
    x = leaf([1.0, -2.0])
    y = F.dropout(x, 1.0)
    y.sum().backward()
    assert y.tolist() == x.grad.tolist() == [0.0, 0.0]
    assert not np.signbit(y.numpy()).any()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3)])
def test_any_shape_will_do(shape: tuple[int, ...]) -> None:
    x = leaf(np.ones(shape), "float32")
    y = F.dropout(x, 0.5)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert set(y.numpy().ravel().tolist()) <= {0.0, 2.0}


def test_forward_and_backward_are_one_launch_each_and_keep_no_mask() -> None:
    x = leaf(np.ones(SHAPE, np.float32))
    with trace.launches() as forward:
        y = F.dropout(x, 0.5)
    assert y._node.context._saved == ()
    with trace.launches() as backward:
        grad(y, x, lucid.ones_like(y))
    assert len(forward) == len(backward) == 1


def test_the_module_drops_in_training_only() -> None:
    layer, x = nn.Dropout(0.5), lucid.ones(100)
    assert set(layer(x).tolist()) == {0.0, 2.0}
    assert layer.eval()(x) is x
    assert repr(layer) == "Dropout(p=0.5)"
    lucid.manual_seed(4)
    first = layer.train()(x).tolist()
    assert first != layer(x).tolist(), "each call has a mask of its own"
    lucid.manual_seed(4)
    assert layer(x).tolist() == first


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.dropout(torch.ones(2)), TypeError, r"x must be a lucid.Tensor, got torch.Tensor: pass lucid.from"),
        (lambda: F.dropout(lucid.tensor([1])), TypeError, "x must be float16, .* got lucid.int64"),
        (lambda: F.dropout(lucid.ones(2), -0.1), ValueError, "p must be a number from 0 to 1, got -0.1"),
        (lambda: F.dropout(lucid.ones(2), 1.1, False), ValueError, "got 1.1"),
        (lambda: F.dropout(lucid.ones(2), "half"), TypeError, "p must be a number from 0 to 1, got str"),
        (lambda: F.dropout(lucid.ones(2), 0.5, 1), TypeError, "training must be a bool, got int"),
        (lambda: nn.Dropout(float("nan")), ValueError, "p must be a number from 0 to 1, got nan"),
        (lambda: nn.Dropout(True), TypeError, "p must be a number from 0 to 1, got bool"),
    ],
)
def test_misuse_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_torch_computes_nothing() -> None:
    from tests.test_no_torch_arithmetic import NoArithmetic

    with NoArithmetic():
        x = lucid.randn(3, 4, requires_grad=True)
        F.dropout(x, 0.5).sum().backward()
        lucid.bernoulli(0.5, size=(3,))
        lucid.randint(0, 3, (2,))
        lucid.randperm(4)
        for fill in (nn.init.trunc_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.ones_):
            fill(x)
    assert torch_of(x).dtype is torch.float32
