"""Each elementwise operation: values against float64, gradients against torch, one row of a table for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional

import lucid
import lucid.nn.functional as F
from lucid.autograd import gradcheck, gradgradcheck
from tests.values import FLOATS, check, values_of


class Row(NamedTuple):
    """An operation here and in torch, whether it is also a method, and the interval of its arguments."""

    ours: Callable[..., Any]
    theirs: Callable[..., torch.Tensor]
    low: float = -4.0
    high: float = 4.0
    method: bool = True


#: A row for each operation on one operand.
UNARY = {
    "abs": Row(lucid.abs, torch.abs),
    "neg": Row(lucid.neg, torch.neg),
    "sign": Row(lucid.sign, torch.sign),
    "square": Row(lucid.square, torch.square),
    "exp": Row(lucid.exp, torch.exp),
    "log": Row(lucid.log, torch.log, 0.1),
    "sqrt": Row(lucid.sqrt, torch.sqrt, 0.1),
    "rsqrt": Row(lucid.rsqrt, torch.rsqrt, 0.1),
    "tanh": Row(lucid.tanh, torch.tanh),
    "sigmoid": Row(lucid.sigmoid, torch.sigmoid),
    "relu": Row(lucid.relu, torch.relu),
    "silu": Row(F.silu, functional.silu, method=False),
    "gelu": Row(F.gelu, functional.gelu, method=False),
    "gelu, tanh": Row(
        lambda x: F.gelu(x, approximate="tanh"), lambda x: functional.gelu(x, approximate="tanh"), method=False
    ),
    "clamp": Row(lambda x: lucid.clamp(x, -1.5, 0.75), lambda x: x.clamp(-1.5, 0.75), method=False),
    "clamp below": Row(lambda x: lucid.clamp(x, min=-1), lambda x: x.clamp(min=-1), method=False),
    "clamp above": Row(lambda x: lucid.clamp(x, max=1), lambda x: x.clamp(max=1), method=False),
    "maximum of a number": Row(lambda x: lucid.maximum(x, 0.5), lambda x: x.clamp(min=0.5), method=False),
}

#: A row for each operation on two operands, beside those of `test_operators`.
BINARY = {
    "maximum": Row(lucid.maximum, torch.maximum),
    "minimum": Row(lucid.minimum, torch.minimum),
    "clamp below tensors": Row(lambda x, y: lucid.clamp(x, max=y), lambda x, y: x.clamp(max=y), method=False),
    "clamp above tensors": Row(lambda x, y: lucid.clamp(x, min=y), lambda x, y: x.clamp(min=y), method=False),
    "clamp between tensors": Row(
        lambda x, y: lucid.clamp(x, y, y + 1.5), lambda x, y: x.clamp(y, y + 1.5), method=False
    ),
}


def points(name: str, count: int = 501) -> np.ndarray:
    row = UNARY[name]
    return np.linspace(row.low, row.high, count)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_values_are_rounded_once(name: str, dtype: str) -> None:
    x = lucid.tensor(points(name).reshape(3, 167).T.copy(), dtype=dtype).T
    exact = values_of(x)
    truth = UNARY[name].theirs(torch.from_numpy(exact)).numpy()
    # An activation is x times a factor whose error is absolute.
    condition = np.abs(truth) + (np.abs(exact) if "lu" in name else 0)
    check(UNARY[name].ours(x), truth, condition, x.dtype.torch)
    if UNARY[name].method:
        assert getattr(x, name)().tolist() == UNARY[name].ours(x).tolist()
        changed = x.clone()
        assert getattr(changed, f"{name}_")() is changed
        assert changed.tolist() == UNARY[name].ours(x).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_gradients_are_those_of_torch_in_float64(name: str, dtype: str) -> None:
    x: Any = lucid.tensor(points(name), dtype=dtype, requires_grad=True)
    y = UNARY[name].ours(x)
    weights = lucid.tensor(np.random.default_rng(0).normal(size=x.shape), dtype=dtype)
    y.backward(weights)
    theirs = torch.tensor(values_of(x), requires_grad=True)
    UNARY[name].theirs(theirs).backward(torch.from_numpy(values_of(weights)))
    # A gradient that follows from the rounded result, or takes two operations, has three more roundings.
    bound = 4 * {"float64": 2.0**-52, "float32": 2.0**-23}.get(dtype, torch.finfo(x.dtype.torch).eps)
    assert theirs.grad is not None
    scale = np.abs(values_of(weights)) * (1 + np.abs(theirs.grad.numpy() / values_of(weights)))
    assert np.max(np.abs(values_of(x.grad) - theirs.grad.numpy()) / scale) <= bound * (8 if "lu" in name else 1)


@pytest.mark.parametrize("name", UNARY)
def test_derivatives_match_finite_differences_twice(name: str) -> None:
    x = lucid.tensor(points(name, 6) + 0.03, requires_grad=True)
    assert gradcheck(UNARY[name].ours, x, atol=1e-7, fast_mode=True)
    assert gradgradcheck(UNARY[name].ours, x, atol=1e-6, fast_mode=True)


def test_third_derivatives_are_torchs() -> None:
    for name in ("silu", "gelu", "gelu, tanh", "rsqrt", "sigmoid", "tanh"):
        results = []
        for tensor, apply, grad in (
            (lucid.tensor, UNARY[name].ours, lucid.autograd.grad),
            (torch.tensor, UNARY[name].theirs, torch.autograd.grad),
        ):
            x: Any = tensor([0.4, 1.3, 2.1], dtype=lucid.float64 if tensor is lucid.tensor else torch.float64)
            y = apply(x.requires_grad_())
            for _ in range(3):
                (y,) = grad(y.sum(), x, create_graph=True)
            results.append(y.tolist())
        np.testing.assert_allclose(results[0], results[1], rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", UNARY)
def test_special_numbers_are_torchs(name: str) -> None:
    values = [0.0, -0.0, 1.0, -1.0, 1e30, -1e30, math.inf, -math.inf, math.nan]
    with np.errstate(all="ignore"):
        expected = UNARY[name].theirs(torch.tensor(values, dtype=torch.float64)).numpy()
        for dtype in ("float64", "float32"):
            result = UNARY[name].ours(lucid.tensor(values, dtype=dtype)).double().numpy()
            with np.errstate(over="ignore"):
                np.testing.assert_allclose(result, expected.astype(dtype), rtol=1e-6)


@pytest.mark.parametrize("name", BINARY)
def test_operations_on_two_operands_are_torchs_also_at_ties_and_nan(name: str) -> None:
    a, b = [1.0, 2.0, -3.0, math.nan, 1.0, math.inf], [[1.0], [math.nan], [-4.0], [2.5]]
    weights = np.random.default_rng(0).normal(size=(4, 6))
    results = []
    for tensor, row in ((lambda v: lucid.tensor(v, dtype="float64"), "ours"), (torch.tensor, "theirs")):
        x: Any = tensor(np.array(a)).requires_grad_()
        y: Any = tensor(np.array(b)).requires_grad_()
        out = getattr(BINARY[name], row)(x, y)
        out.backward(tensor(weights))
        results.append([out.detach().numpy(), x.grad.numpy(), y.grad.numpy()])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
    if BINARY[name].method:
        one, two = lucid.tensor([1, 5]), lucid.tensor([3, 2])
        assert getattr(one, name)(two).tolist() == BINARY[name].ours(one, two).tolist()
        assert one.dtype is getattr(one, name)(two).dtype


def test_zeros_have_the_signs_of_numpys() -> None:
    zeros = np.array([0.0, -0.0])
    x = lucid.tensor(zeros)
    for ours, expected in ((-x, -zeros), (x * -0.0, zeros * -0.0), (x * -2.0, zeros * -2.0), (x - 0.0, zeros - 0.0)):
        np.testing.assert_array_equal(np.signbit(ours.numpy()), np.signbit(expected))


def test_relu_passes_the_gradient_on_at_nan() -> None:
    x = lucid.tensor([math.nan, 1.0, 0.0], requires_grad=True)
    F.relu(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0]


def test_maximum_has_second_derivatives() -> None:
    draw = np.random.default_rng(0)
    leaves = [lucid.tensor(draw.normal(size=shape), requires_grad=True) for shape in ((3, 2), (2,))]
    assert gradgradcheck(lambda a, b: lucid.maximum(a * a, b) * lucid.minimum(a, b * b), leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "bool_"])
def test_bits_are_combined_as_by_numpy(dtype: str) -> None:
    a, b = np.array([0, 1, 6, 100]), np.array([[1], [3], [0]])
    x, y = lucid.tensor(a, dtype=dtype), lucid.tensor(b, dtype=dtype)
    p, q = x.numpy(), y.numpy()
    for ours, expected in ((x & y, p & q), (x | y, p | q), (x ^ y, p ^ q), (~x, ~p), (x & x[1], p & p[1])):
        assert ours.numpy().dtype == expected.dtype
        np.testing.assert_array_equal(ours.numpy(), expected)
    x &= y[0]
    np.testing.assert_array_equal(x.numpy(), p & q[0])
    assert (True & lucid.tensor([True, False])).tolist() == [True, False]


def test_bytes_are_numbers_that_wrap() -> None:
    x = lucid.tensor([250, 10], dtype=lucid.uint8)
    assert (x + x).tolist() == [244, 20]
    assert (x.dtype, (x + 1).dtype, (x * 0.5).dtype) == (lucid.uint8, lucid.uint8, lucid.float32)
    assert (x > 200).tolist() == [True, False]
    assert x.long().tolist() == [250, 10]
