"""Reductions over any dimensions, against NumPy in float64 for values and torch for dtypes and special numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import triton_kernels as tk
from lucid.autograd import grad, gradcheck, gradgradcheck
from tests.device import DEVICE
from tests.reference import FLOATS, arithmetic_of, assert_within, exact
from tests.values import DTYPES, check, leaf, torch_of, values_of
from triton_kernels.runtime import backend
from triton_kernels.runtime.launch import Launch

NAN, INF = math.nan, math.inf
DIMS: list[Any] = [None, 0, -1, (0, 2), (2, 0, 1), 1]

Reference = Callable[..., np.ndarray]


def _logsumexp(x: np.ndarray, **how: Any) -> np.ndarray:
    largest = x.max(**{**how, "keepdims": True})
    total = np.log(np.exp(x - largest).sum(**how))
    return np.asarray(total + largest.reshape(total.shape))


#: By name: what NumPy computes, and Σ|terms| that errors are relative to.
FLOATING: dict[str, tuple[Reference, Reference]] = {
    "sum": (np.sum, lambda x, **how: np.abs(x).sum(**how)),
    "mean": (np.mean, lambda x, **how: np.abs(x).mean(**how)),
    "prod": (np.prod, lambda x, **how: 64 * np.abs(x).prod(**how)),
    "max": (np.max, lambda x, **how: np.zeros(())),
    "min": (np.min, lambda x, **how: np.zeros(())),
    "amax": (np.max, lambda x, **how: np.zeros(())),
    "amin": (np.min, lambda x, **how: np.zeros(())),
    "var": (lambda x, **how: x.var(ddof=1, **how), lambda x, **how: (x * x).mean(**how)),
    "std": (lambda x, **how: x.std(ddof=1, **how), lambda x, **how: np.sqrt((x * x).mean(**how))),
    "logsumexp": (_logsumexp, lambda x, **how: 2 + np.abs(_logsumexp(x, **how))),
    "norm": (lambda x, **how: np.sqrt((x * x).sum(**how)), lambda x, **how: np.sqrt((x * x).sum(**how))),
}


def _strided(dtype: str) -> lucid.Tensor:
    """(7, 3, 9) whose memory has the order 1, 2, 0 and steps."""
    x = torch.randn(3, 18, 7, dtype=torch.float64)
    x[0, 0, 0], x[0, 2, 0] = 1.5, 1.5
    return lucid.from_torch(x.to(DEVICE, lucid.tensor(0, dtype=dtype).dtype.torch)[:, ::2].permute(2, 0, 1))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dim", DIMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("name", FLOATING)
def test_reductions_of_strided_tensors_are_numpys(name: str, dtype: str, dim: Any) -> None:
    x = _strided(dtype)
    function, condition = FLOATING[name]
    values = values_of(x)
    for keepdim in (False, True):
        how = {"axis": dim, "keepdims": keepdim}
        truth = function(values, **how)
        got = getattr(lucid, name)(x, dim=dim, keepdim=keepdim)
        check(got, truth, np.broadcast_to(condition(values, **how), np.shape(truth)), x.dtype.torch)


@pytest.mark.parametrize("dim", DIMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[4:])
@pytest.mark.parametrize("name", ["sum", "prod", "max", "min"])
def test_reductions_of_integers_are_exact(name: str, dtype: str, dim: Any) -> None:
    x = lucid.tensor(np.random.default_rng(0).integers(-3, 4, (4, 3, 5)), dtype=dtype).permute(2, 0, 1)
    got, values = getattr(lucid, name)(x, dim), torch_of(x).numpy()
    exactly = values if name in ("max", "min") else values.astype(np.int64)
    assert got.dtype is (x.dtype if name in ("max", "min") else lucid.int64)
    np.testing.assert_array_equal(got.numpy(), getattr(np, name)(exactly, axis=dim))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["any", "all"])
def test_any_and_all_are_numpys(name: str, dtype: str) -> None:
    x = lucid.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=dtype)
    for dim in (None, 0, 1, (0, 1)):
        got = getattr(lucid, name)(x, dim)
        assert got.dtype is lucid.bool_
        np.testing.assert_array_equal(got.numpy(), getattr(np, name)(values_of(x) != 0, axis=dim))
    assert (lucid.any(x[:0], 0).tolist(), lucid.all(x[:0], 0).tolist()) == ([False] * 3, [True] * 3)
    assert lucid.any(lucid.tensor([0.0, NAN])).item()


def test_means_and_other_statistics_of_integers_are_float32() -> None:
    x = lucid.tensor([[1, 2], [3, 5]])
    for name in ("mean", "var", "std", "norm", "logsumexp"):
        got = getattr(lucid, name)(x, 1)
        assert got.dtype is lucid.float32
        np.testing.assert_allclose(got.numpy(), getattr(lucid, name)(x.double(), 1).numpy(), rtol=1e-6)


# Maxima, minima and their indices


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_an_index_is_that_of_the_first_extreme_in_the_order_of_dimensions(name: str, dtype: str) -> None:
    """Also where memory has another order; small integers are equal often."""
    x = lucid.tensor(np.random.default_rng(0).integers(-2, 3, (9, 4, 150)), dtype=dtype).permute(1, 2, 0)
    values = values_of(x)
    for dim in (None, 0, 1, -1):
        got = getattr(lucid, name)(x, dim)
        assert got.dtype is lucid.int64
        np.testing.assert_array_equal(got.numpy(), getattr(np, name)(values, axis=dim))
    assert getattr(lucid, name)(x, 1, True).shape == (4, 1, 9)
    assert getattr(lucid, name)(x, keepdim=True).shape == (1, 1, 1)


def test_the_extremes_of_long_rows_come_from_their_chunks_in_order() -> None:
    x = torch.randint(-50, 50, (3, 70_000)).to(DEVICE, torch.float32)
    x[1, 69_999] = x[1, 0] = 90.0
    x[2, 40_000] = x[2, 69_000] = NAN
    values = exact(x)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        for smallest, function, index in ((False, np.max, np.argmax), (True, np.min, np.argmin)):
            np.testing.assert_array_equal(exact(tk.extreme(x, [1], smallest=smallest)), function(values, axis=1))
            got = tk.extreme_index(x, [1], smallest=smallest)
            np.testing.assert_array_equal(exact(got), index(values, axis=1))
            assert tk.extreme_index(x[:2], [0, 1], smallest=smallest).item() == index(values[:2])


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64", "float16", "bfloat16"])
def test_the_least_and_the_largest_numbers_have_their_place(dtype: str) -> None:
    kind = lucid.tensor(0, dtype=dtype).dtype.torch
    ends = (torch.finfo if kind.is_floating_point else torch.iinfo)(kind)
    numbers = [ends.max, ends.min, 0, *((INF, -INF) if kind.is_floating_point else ())]
    for least in (False, True):
        end = min(numbers) if least else max(numbers)
        x = torch.tensor([end], dtype=kind).to(DEVICE)
        assert tk.extreme(x.expand(5), [0], smallest=not least).item() == end
        assert tk.extreme_index(x.expand(5), [0], smallest=not least).item() == 0
        x = torch.tensor(numbers, dtype=kind).to(DEVICE)
        assert tk.extreme(x, [0], smallest=least).item() == end
        assert tk.extreme_index(x, [0], smallest=least).item() == numbers.index(end)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_is_the_extreme_and_the_zeros_are_equal(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, NAN, -INF, NAN], [-0.0, 0.0, -0.0, 0.0], [0.0, -0.0, INF, -INF]]).to(DEVICE, dtype)
    for smallest, name in ((False, "amax"), (True, "amin")):
        expected = getattr(x, name)(1)
        np.testing.assert_array_equal(exact(tk.extreme(x, [1], smallest=smallest)), exact(expected))
    assert tk.extreme_index(x, [1]).tolist() == [1, 0, 2]
    assert tk.extreme_index(x, [1], smallest=True).tolist() == [1, 0, 3]


def test_a_gradient_is_divided_among_equal_extremes() -> None:
    values = [[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [5.0, 1.0, 0.0, 0.0]]
    for name in ("amax", "amin"):
        for dim in (1, 0, (0, 1)):
            x, y = leaf(values), torch.tensor(values, requires_grad=True)
            getattr(lucid, name)(x, dim).sum().backward()
            getattr(y, name)(dim).sum().backward()
            assert y.grad is not None
            np.testing.assert_array_equal(x.grad.numpy(), y.grad.numpy())


def test_a_gradient_to_more_equal_elements_than_float16_counts_is_divided_by_their_number() -> None:
    x = leaf(np.zeros(70_000), "float16")
    lucid.max(x).backward(lucid.tensor(60_000.0, dtype="float16"))
    np.testing.assert_allclose(values_of(x.grad), 6 / 7, rtol=1e-3)


# Accuracy, long rows and special numbers


def test_a_variance_far_from_0_is_accurate() -> None:
    x = torch.randn(4, 1000).to(DEVICE) + 10_000
    np.testing.assert_allclose(lucid.var(lucid.from_torch(x), 1).numpy(), exact(x).var(1, ddof=1), rtol=1e-4)


def test_the_gradient_of_a_variance_in_half_precision_has_an_accurate_mean() -> None:
    x = leaf(np.random.default_rng(0).normal(size=300) + 30, "bfloat16")
    lucid.var(x).backward()
    values = values_of(x)
    np.testing.assert_allclose(values_of(x.grad), 2 / 299 * (values - values.mean()), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("name", ["prod", "var", "logsumexp", "norm"])
def test_long_rows_are_reduced_in_chunks_and_a_rows_bits_do_not_depend_on_others(name: str) -> None:
    x = torch.randn(3, 70_001).to(DEVICE) * 0.001 + 1
    with tk.tile_configs.use_tile_configs(interpreted=False):
        many = getattr(lucid, name)(lucid.from_torch(x), dim=1)
        alone = getattr(lucid, name)(lucid.from_torch(x[1:2]), dim=1)
    assert alone.tolist() == many[1:2].tolist()
    np.testing.assert_allclose(many.numpy(), FLOATING[name][0](exact(x), axis=1), rtol=2e-4)


def test_sums_of_exponentials_do_not_overflow_and_infinities_are_torchs() -> None:
    rows = [[1000.0, 999.0], [-1000.0, -1000.0], [-INF, -INF], [-INF, 1.0], [INF, 1.0], [INF, -INF], [NAN, -INF]]
    for dtype in ("float32", "float64"):
        x = leaf(rows, dtype)
        y = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
        np.testing.assert_allclose(lucid.logsumexp(x, 1).numpy(), y.logsumexp(1).detach().numpy(), rtol=1e-6)
        lucid.logsumexp(x, 1).backward(lucid.ones(7, dtype=dtype))
        y.logsumexp(1).sum().backward()
        assert y.grad is not None
        finite = [0, 1, 2, 3, 6]
        np.testing.assert_allclose(x.grad.numpy()[finite], y.grad.numpy()[finite], rtol=1e-6)


@pytest.mark.parametrize("p", [1, 2, 2.5, 3, INF, np.float64(2)], ids=repr)
def test_norms_are_torchs(p: float) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5))
    values[1] = 0
    x, y = leaf(values), torch.tensor(values, requires_grad=True)
    norms, expected = lucid.norm(x, p, 1), torch.linalg.vector_norm(y, float(p), 1)
    np.testing.assert_allclose(norms.numpy(), expected.detach().numpy(), rtol=1e-13)
    norms.sum().backward()
    expected.sum().backward()
    assert y.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-12, atol=1e-300)


def test_a_norm_of_float16_does_not_overflow_on_the_way() -> None:
    assert lucid.norm(lucid.full((4,), 1000.0, dtype="float16")).item() == 2000
    assert lucid.norm(lucid.full((4,), 100.0, dtype="float16"), 4).item() == 141.375


def test_the_gradient_of_a_deviation_of_equal_elements_is_0() -> None:
    x = leaf([[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]])
    y = torch.tensor(x.tolist(), requires_grad=True)
    lucid.std(x, 1).sum().backward()
    y.std(1).sum().backward()
    assert y.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-6)


def test_a_reduction_of_nothing_is_its_neutral_element_or_an_error() -> None:
    x = lucid.zeros(2, 0)
    values = {
        name: getattr(lucid, name)(x, dim=1).tolist() for name in ("sum", "prod", "mean", "var", "logsumexp", "norm")
    }
    expected = {"sum": 0.0, "prod": 1.0, "mean": NAN, "var": NAN, "logsumexp": -INF, "norm": 0.0}
    assert repr(values) == repr({name: [value] * 2 for name, value in expected.items()})
    for name in ("max", "min", "argmax", "argmin"):
        with pytest.raises(
            RuntimeError, match=rf"^{name} takes at least one element .*, got shape \(2, 0\) and dim 1$"
        ):
            getattr(lucid, name)(x, 1)
        assert getattr(lucid, name)(x, 0).shape == (0,)


def test_too_few_elements_have_no_variance() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for values, correction in (([1.0], 1), ([1.0, 2.0], 3), ([1.0, 2.0], 2), ([4.0], 0)):
            expected = torch.tensor(values).var(correction=correction).item()
            assert repr(lucid.var(lucid.tensor(values), correction=correction).item()) == repr(expected)


# Gradients

CALLS: dict[str, Callable[[Any], Any]] = {
    "prod": lambda x: lucid.prod(x),
    "prod over dims": lambda x: lucid.prod(x, (2, 0), True),
    "max": lambda x: lucid.max(x, 1) * lucid.min(x, (0, 1)),
    "var": lambda x: lucid.var(x, (0, 2)),
    "std": lambda x: lucid.std(x, 1, keepdim=True, correction=0),
    "logsumexp": lambda x: lucid.logsumexp(x, 1),
    "logsumexp over dims": lambda x: lucid.logsumexp(x, (2, 0)),
    "norm": lambda x: lucid.norm(x, dim=1),
    "1-norm": lambda x: lucid.norm(x, 1, 1) ** 2,
    "3-norm": lambda x: lucid.norm(x, 3),
    "inf-norm": lambda x: lucid.norm(x, INF, 0) ** 2,
}


@pytest.mark.parametrize("order", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("name", CALLS)
def test_derivatives_match_finite_differences(name: str, order: Callable[..., bool]) -> None:
    x = leaf(np.random.default_rng(0).permutation(np.linspace(-2, 2, 12)).reshape(2, 3, 2))
    assert order(CALLS[name], (x,), atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("zeros", [1, 2, 3])
def test_derivatives_of_a_product_with_zeros_are_torchs(zeros: int) -> None:
    values = np.array([[2.0, 3.0, 5.0, 7.0, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0]])
    values[0, :zeros] = 0
    x, y = leaf(values), torch.tensor(values, requires_grad=True)
    (first,) = grad(lucid.prod(x, 1).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(y.prod(1).sum(), y, create_graph=True)
    np.testing.assert_allclose(first.numpy(), expected.detach().numpy(), rtol=1e-13)
    (second,) = grad((first * first.detach()).sum() + first.sum(), x)
    (expected2,) = torch.autograd.grad((expected * expected.detach()).sum() + expected.sum(), y)
    np.testing.assert_allclose(second.numpy(), expected2.numpy(), rtol=1e-13)


# Arguments


def test_a_variance_may_be_biased_and_sums_have_the_dtype_asked_for() -> None:
    x = lucid.tensor([[1.0, 2.0], [4.0, 8.0]])
    for name in ("var", "std"):
        function = getattr(lucid, name)
        assert function(x, 1, unbiased=False).tolist() == function(x, 1, correction=0).tolist()
        assert function(x, 1, unbiased=True).tolist() == function(x, 1).tolist()
        with pytest.raises(TypeError, match=f"^{name} takes correction or unbiased, got both$"):
            function(x, 1, unbiased=True, correction=1)
        with pytest.raises(TypeError, match="unbiased must be a bool, got int"):
            function(x, 1, unbiased=0)
        with pytest.raises(TypeError, match="positional"):  # PyTorch's second one is not keepdim
            function(x, 1, False)
    half = lucid.full((4096,), 100.0, dtype="float16")
    assert (half.sum(dtype="float32").item(), half.mean(dtype=lucid.float64).item()) == (409600, 100)
    assert lucid.tensor([1, 2]).sum(dtype="float64").dtype is lucid.float64


def test_axis_and_keepdims_are_other_names() -> None:
    x = lucid.tensor([[1.0, 2.0], [3.0, 5.0]])
    for name in (
        "sum",
        "mean",
        "prod",
        "max",
        "min",
        "argmax",
        "argmin",
        "var",
        "std",
        "logsumexp",
        "norm",
        "any",
        "all",
    ):
        function = getattr(lucid, name)
        expected = function(x, dim=1, keepdim=True)
        got = function(x, axis=1, keepdims=True)
        assert (got.shape, got.tolist()) == ((2, 1), expected.tolist())
        with pytest.raises(TypeError, match=rf"^{name} takes dim or axis, got both$"):
            function(x, dim=1, axis=1)
        with pytest.raises(TypeError, match=rf"^{name} takes keepdim or keepdims, got both$"):
            function(x, keepdim=True, keepdims=True)
    with pytest.raises(TypeError, match=r"^sum takes dim or axis, got both$"):
        lucid.sum(x, 1, axis=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: lucid.prod(x, 2), IndexError, r"dim must lie in -2 to 1 for shape \(2, 3\), got 2"),
        (lambda x: lucid.var(x, (0, 0)), RuntimeError, r"dim must name each dimension once, got \(0, 0\)"),
        (lambda x: lucid.max(x, 1.0), TypeError, "dim must be an integer, got float"),
        (lambda x: lucid.max(x, 0, 1), TypeError, "keepdim must be a bool, got int"),
        (lambda x: lucid.argmax(x, (0, 1)), TypeError, r"dim of argmax must be an integer or None, got \(0, 1\)"),
        (lambda x: lucid.var(x, correction=0.5), TypeError, "correction must be an int, got float"),
        (lambda x: lucid.norm(x, 0.5), ValueError, "p must be at least 1, got 0.5"),
        (lambda x: lucid.norm(x, "fro"), TypeError, "p must be a number of at least 1, got str"),
        (lambda x: lucid.norm(x[:, :0], INF), RuntimeError, "norm takes at least one element to reduce, got shape"),
        (lambda x: lucid.sum(x.numpy()), TypeError, "sum takes a lucid.Tensor, got numpy.ndarray"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call(lucid.ones(2, 3))


def test_a_reduction_makes_no_copy_of_a_strided_tensor() -> None:
    launched: list[Launch] = []
    x = torch.randn(6, 5, 4).to(DEVICE).permute(2, 0, 1)[:, ::2]
    with tk.launch.launch_hook(launched.append):
        for function in (tk.sum, tk.prod, tk.extreme, tk.extreme_index):
            function(x, [0, 2])
    assert [made.args["x"][0].data_ptr() for made in launched] == [x.data_ptr()] * 4


def test_reductions_do_no_arithmetic_in_torch() -> None:
    from tests.test_no_torch_arithmetic import NoArithmetic

    with NoArithmetic():
        x = lucid.rand(3, 4, requires_grad=True)
        for name in ("prod", "max", "min", "var", "std", "logsumexp", "norm"):
            for dim in (None, 0):
                (dx,) = grad(getattr(lucid, name)(x, dim=dim).sum(), x, create_graph=True)
                if dx.requires_grad:
                    grad(dx.sum(), x, allow_unused=True)
        for name in ("argmax", "argmin", "any", "all"):
            getattr(lucid, name)(x, 1)
        lucid.matmul(x.reshape(3, 2, 2), x.reshape(3, 2, 2)).sum().backward()


@pytest.mark.skipif(backend.INTERPRETED, reason="the interpreter has no order of its own")
def test_reductions_are_bitwise_the_same_from_run_to_run() -> None:
    x = torch.randn(100, 70_001).to(DEVICE)
    for dims in ([0], [1], [0, 1]):
        assert torch.equal(tk.prod(x, dims), tk.prod(x, dims))
        assert_within(tk.sum(x, dims), exact(x).sum(tuple(dims)), 1e9, arithmetic_of(x.dtype))
