"""Operators: values, dtypes, other types. The oracle is torch for dtypes, NumPy in float64 for values."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
from lucid.dtype import dtype as DType
from tests.hardware import DIRECTIONS, worst_case
from tests.values import DTYPES, FLOATS, check, torch_of, values_of
from triton_kernels.runtime import backend

ARITHMETIC = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}
COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}

PAIRS = [
    *((name, name) for name in ("bfloat16", "float32", "float64", "int64", "bool_")),
    *(("int32", "float16"), ("bool_", "int8"), ("float64", "bfloat16"), ("float32", "int64")),
]

A = np.array([[1.0, 0.0, 3.0, 7.0], [2.0, 5.0, 1.0, 4.0]])
B = np.array([[2.0, 1.0, 3.0, 5.0], [1.0, 1.0, 6.0, 4.0]])


def oracle_of(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return the operation that gives the result's dtype: torch does not subtract bools, which are numbers here."""
    return operator.add if apply is operator.sub else apply


# Arithmetic and comparisons of two tensors


@pytest.mark.parametrize("name", [*ARITHMETIC, *COMPARISONS])
def test_two_tensors_of_any_dtypes_give_what_torch_gives(name: str) -> None:
    apply = (ARITHMETIC | COMPARISONS)[name]
    # Every pair is a kernel of its own to compile; what all operations share is tried with one of them.
    for left, right in itertools.product(DTYPES, DTYPES) if name == "add" else PAIRS:
        if name == "sub" and left == right == "bool_":
            continue
        a, b = lucid.tensor(A, dtype=left), lucid.tensor(B, dtype=right)
        x, y = values_of(a), values_of(b)
        expected = oracle_of(apply)(torch_of(a), torch_of(b)).dtype
        truth = apply(x, y)
        if expected is torch.bool and name in ARITHMETIC:
            truth = truth != 0
        check(apply(a, b), truth, abs(x) + abs(y), expected)


@pytest.mark.parametrize("name", FLOATS)
def test_a_float_power_is_rounded_once(name: str) -> None:
    a, b = lucid.tensor(A / 3, dtype=name), lucid.tensor(B - 2.5, dtype=name)
    x, y = values_of(a), values_of(b)
    with np.errstate(divide="ignore"):
        check(a**b, x**y, abs(x**y), a.dtype.torch)
        check(a**3, x**3, x**3, a.dtype.torch)
        check(0.7**b, 0.7**y, 0.7**y, a.dtype.torch)
        check(a.pow(-0.5), x**-0.5, x**-0.5, a.dtype.torch)


@pytest.mark.parametrize(
    ("base", "exponent"),
    [
        *((0.0, 0.0), (0.0, 2.0), (0.0, -1.0), (-2.0, 3.0), (-2.0, -2.0), (-8.0, 1 / 3), (math.inf, 0.0)),
        *((math.nan, 0.0), (1.0, math.nan), (math.nan, 1.0), (2.0, 2000.0), (2.0, -2000.0), (-1.0, 1001.0)),
        *(
            (-math.inf, 3.0),
            (-math.inf, 1.5),
            (-math.inf, -0.5),
            (-0.0, -1.0),
            (-0.0, 0.5),
            (-0.0, 3.0),
            (-1.0, math.inf),
        ),
        *((-2.0, math.inf), (-2.0, math.nan), (0.5, -math.inf), (-3.0, 1e300)),
    ],
)
def test_powers_of_special_numbers_are_torchs(base: float, exponent: float) -> None:
    expected = torch.tensor([base], dtype=torch.float64) ** torch.tensor([exponent], dtype=torch.float64)
    results = [lucid.tensor([base], dtype="float64") ** exponent, base ** lucid.tensor([exponent], dtype="float64")]
    results.append(lucid.tensor([base], dtype="float64") ** lucid.tensor([exponent], dtype="float64"))
    for result in results:
        np.testing.assert_allclose(result.numpy(), expected.numpy(), rtol=1e-13)
        assert expected.isnan() or np.signbit(result.numpy()) == np.signbit(expected.numpy())


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "int64", "bool_"])
def test_integer_powers_are_exact_and_wrap(name: str) -> None:
    x = lucid.tensor([0, 1, -1, 2, 3, -7, 10], dtype=name)
    for exponent in (0, 1, 2, 3, 5, 18):
        result, expected = x**exponent, torch_of(x) ** exponent
        assert result.dtype.torch is expected.dtype
        assert result.tolist() == expected.tolist(), exponent


def test_integers_of_64_bits_stay_exact() -> None:
    big = 2**62 + 1
    x = lucid.tensor([big, 2**53 + 1, -3])
    assert (x + 1).tolist() == [big + 1, 2**53 + 2, -2]
    assert (x - lucid.tensor([big, 2**53, 0])).tolist() == [0, 1, -3]
    assert (lucid.tensor([2**31 + 1]) * (2**31 - 1)).tolist() == [2**62 - 1]
    assert (5 - x).tolist() == [5 - big, 5 - (2**53 + 1), 8]
    assert (x == lucid.tensor([2**62, 2**53, -3])).tolist() == [False, False, True]
    assert (x > 2**53).tolist() == [True, True, False]
    assert (-x).tolist() == [-big, -(2**53 + 1), 3]
    assert abs(x).tolist() == [big, 2**53 + 1, 3]
    assert lucid.where(x > 0, x, -(2**62) - 1).tolist() == [big, 2**53 + 1, -(2**62) - 1]
    assert x.sum().item() == big + 2**53 - 2


def test_sums_and_products_of_truths_are_or_and_and() -> None:
    a, b = lucid.tensor([True, True, False, False]), lucid.tensor([True, False, True, False])
    assert (a + b).tolist() == [True, True, True, False]
    assert (a * b).tolist() == [True, False, False, False]
    assert (a + True).dtype is lucid.bool_
    assert (a + 1).tolist() == [2, 2, 1, 1]
    with pytest.raises(TypeError, match=r"^sub takes at least one operand that is not bool_, got two of bool_$"):
        a - b


# Python numbers


@pytest.mark.parametrize("number", [2, 0.5, True, np.float32(0.5), np.int8(3), np.True_], ids=repr)
@pytest.mark.parametrize("name", [*ARITHMETIC, "pow", *COMPARISONS])
def test_numbers_are_weak_on_either_side(name: str, number: Any) -> None:
    apply = ({"pow": operator.pow} | ARITHMETIC | COMPARISONS)[name]
    for kind in DTYPES if name in ("add", "lt") else ("bfloat16", "float32", "int64"):
        x = lucid.tensor([[1, 2], [0, 1]], dtype=kind)
        plain = number.item() if isinstance(number, np.generic) else number
        integers = not x.dtype.is_floating_point and isinstance(plain, int)
        for flip in (False, True):
            if (name == "pow" and integers and (flip or x.dtype is lucid.bool_)) or (name == "sub" and plain is True):
                continue

            def both(a: Any, b: Any, flip: bool = flip) -> Any:
                return apply(b, a) if flip else apply(a, b)

            with np.errstate(divide="ignore"):
                truth = both(values_of(x), np.float64(plain))
            expected = oracle_of(apply)(torch_of(x), plain).dtype
            if expected is torch.bool:
                truth = truth != 0
            check(both(x, number), truth, np.abs(truth) + 2, expected)


def test_a_number_beside_a_float64_tensor_loses_nothing() -> None:
    x = np.array([1.0, 1 / 3, 1e300])
    t = lucid.tensor(x)
    for ours, numpys in ((t * 0.1, x * 0.1), (0.1 / t, 0.1 / x), (t + 1e-9, x + 1e-9), (0.7 - t, 0.7 - x)):
        np.testing.assert_array_equal(ours.numpy(), numpys)
    assert lucid.where(t > 0, 0.1, t).tolist() == [0.1] * 3


@pytest.mark.parametrize("name", FLOATS)
def test_a_number_equals_an_element_that_was_made_from_it(name: str) -> None:
    x = lucid.tensor([0.1, 0.3], dtype=name)
    assert (x == 0.1).tolist() == (x <= 0.1).tolist() == [True, False]
    assert (x != 0.1).tolist() == (x > 0.1).tolist() == [False, True]


# Functions of one tensor

UNARY = {
    **{name: (getattr(np, name), getattr(lucid, name)) for name in ("exp", "log", "sqrt", "tanh", "abs")},
    "neg": (np.negative, operator.neg),
    "relu": (lambda x: np.maximum(x, 0), F.relu),
}


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_any_dtype_are_rounded_once(name: str) -> None:
    numpys, ours = UNARY[name]
    for kind in DTYPES if name in ("exp", "neg") else ("bfloat16", "float32", "float64", "int64"):
        x = lucid.tensor([[0, 1, 2], [3, 4, 5]], dtype=kind)
        if kind == "bool_" and name in ("neg", "abs", "relu"):
            continue
        with np.errstate(divide="ignore"):
            truth = numpys(values_of(x))
        floating = x.dtype.is_floating_point or name not in ("neg", "abs", "relu")
        expected = torch.float32 if floating and not x.dtype.is_floating_point else x.dtype.torch
        check(ours(x), truth, np.abs(truth), expected)
        if name != "neg":
            assert getattr(x, name)().tolist() == ours(x).tolist()


@pytest.fixture(params=["exact arithmetic", *DIRECTIONS])
def worst(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test as the interpreter calculates, and with the largest errors of compiled code."""
    if request.param == "exact arithmetic":
        yield
        return
    if not backend.INTERPRETED:
        pytest.skip("compiled code has its own errors")
    with worst_case(request.param):
        yield


# The exponential unit's 2⁻²² are four roundings. Of tanh they are half, and logf's ulp is two more, up to 1.5 times.
@pytest.mark.parametrize(("name", "roundings"), [("exp", 6), ("log", 4), ("tanh", 10), ("sqrt", 2)])
@pytest.mark.usefixtures("worst")
def test_functions_are_accurate_in_float32(name: str, roundings: float) -> None:
    draw = np.random.default_rng(0)
    spread = 10.0 ** draw.uniform(-37, 1.9, 20_000) * draw.choice([-1, 1], 20_000)
    near_zero = np.linspace(-2e-6, 2e-6, 1001)
    near_one = np.linspace(0.9, 1.1, 1001)
    x = np.concatenate([spread, near_zero, near_one, np.linspace(-20, 20, 20_001)]).astype(np.float32)
    if name in ("log", "sqrt"):
        x = np.abs(x[x != 0])
    truth = UNARY[name][0](x.astype(np.float64))
    error = np.abs(UNARY[name][1](lucid.tensor(x)).numpy() - truth)
    # Below the smallest normal number there are fewer digits.
    assert np.max(error / (np.abs(truth) * 2.0**-24 + 2.0**-149)) <= roundings


@pytest.mark.usefixtures("worst")
def test_a_quotient_in_float32_is_rounded_correctly() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 10_000), np.float32)
    np.testing.assert_array_equal((lucid.tensor(a) / lucid.tensor(b)).numpy(), a / b)
    assert ((lucid.tensor(a) / lucid.tensor(a)).numpy() == 1).all()


def test_functions_of_special_numbers() -> None:
    x = lucid.tensor([-math.inf, -1.0, 0.0, math.inf, math.nan])
    inf, nan = math.inf, math.nan
    for result, expected in (
        (x.exp(), [0.0, math.exp(-1), 1.0, inf, nan]),
        (x.log(), [nan, nan, -inf, inf, nan]),
        (x.sqrt(), [nan, nan, 0.0, inf, nan]),
        (x.tanh(), [-1.0, math.tanh(-1), 0.0, 1.0, nan]),
        (x.relu(), [0.0, 0.0, 0.0, inf, nan]),
        (abs(x), [inf, 1.0, 0.0, inf, nan]),
    ):
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)
    for comparison in COMPARISONS.values():
        assert comparison(x, x).tolist() == comparison(torch_of(x), torch_of(x)).tolist()
        assert comparison(x, 0).tolist() == comparison(torch_of(x), 0).tolist()
        assert comparison(x, math.nan).tolist() == comparison(torch_of(x), math.nan).tolist()


# Other types, and errors


def test_equality_with_what_has_no_elements_is_identity() -> None:
    x = lucid.tensor([1.0])
    for other in (None, "a", (1.0,), [1.0], object()):
        assert (x == other) is False
        assert (other == x) is False
        assert (x != other) is True
    assert x in [lucid.tensor([2.0]), x]


@pytest.mark.parametrize(
    "other", [np.ones(2), torch.ones(2), [1.0, 2.0], "a", None, 1j], ids=lambda o: type(o).__name__
)
@pytest.mark.parametrize("name", [*ARITHMETIC, "pow", *COMPARISONS])
def test_other_types_are_no_operands_on_either_side(name: str, other: Any) -> None:
    apply = ({"pow": operator.pow} | ARITHMETIC | COMPARISONS)[name]
    if name in ("eq", "ne") and not hasattr(other, "__array__"):
        return
    x = lucid.tensor([1.0, 2.0])
    kind = f"{type(other).__module__}.{type(other).__name__}".removeprefix("builtins.")
    for call in (lambda: apply(x, other), lambda: apply(other, x)):
        with pytest.raises(TypeError, match=f"^[a-z]+ takes lucid.Tensors and numbers, got {kind}$"):
            call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU beside the CPU")
@pytest.mark.parametrize("name", ["add", "eq", "matmul", "where"])
def test_operands_on_two_devices_are_refused(name: str) -> None:
    a, b = lucid.ones(2, device="cpu"), lucid.ones(2, device="cuda")
    call = {"where": lambda: lucid.where(lucid.tensor([True, False], device="cpu"), b, b), "matmul": lambda: a @ b}.get(
        name, lambda: getattr(operator, name)(a, b)
    )
    with pytest.raises(RuntimeError, match=r"must (be on|have) one device, got cpu and cuda:0"):
        call()


def test_0d_tensors_are_not_weak_as_they_are_in_torch() -> None:
    for a, b in (("float32", "float64"), ("int32", "int64"), ("bool_", "float16")):
        assert (lucid.ones(2, dtype=a) * lucid.ones((), dtype=b)).dtype is DType.of(b)
        assert (lucid.ones((), dtype=b) * lucid.ones(2, dtype=a)).dtype is DType.of(b)
