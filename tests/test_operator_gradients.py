"""Gradients of every operation: against finite differences in float64, and against torch at special points."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
from lucid.autograd import grad, gradcheck, gradgradcheck
from tests.values import FLOATS, values_of

INDICES = np.array([[1, 0], [1, 1]])

#: Per operation: the call, and the shapes of its operands, whose values lie in (0.5, 2).
OPERATIONS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "add": (lambda a, b: a + b, [(2, 3), (3,)]),
    "add of a number": (lambda a: 2 + a + 1.5, [(3,)]),
    "sub": (lambda a, b: a - b, [(2, 1), (1, 3)]),
    "sub from a number": (lambda a: 1 - a, [(3,)]),
    "mul": (lambda a, b: a * b, [(2, 3), (1, 3)]),
    "mul by itself": (lambda a: a * a, [(3,)]),
    "mul by a number": (lambda a: a * -0.5, [(3,)]),
    "div": (lambda a, b: a / b, [(2, 2), (2,)]),
    "div of a number": (lambda a: 3 / a / 2, [(3,)]),
    "pow": (lambda a, b: a**b, [(2, 2), (2,)]),
    "pow with a number": (lambda a: a**3 + a**0.5 + a**-1 + a**0 + a**1, [(3,)]),
    "pow of a number": (lambda a: 0.7**a, [(3,)]),
    "pow of negative numbers": (lambda a: (a - 3) ** 3, [(3,)]),
    "neg": (lambda a: -a, [(3,)]),
    "abs": (lambda a: abs(a - 1.25), [(5,)]),
    "exp": (lambda a: a.exp(), [(3,)]),
    "log": (lambda a: a.log(), [(3,)]),
    "sqrt": (lambda a: a.sqrt(), [(3,)]),
    "tanh": (lambda a: a.tanh(), [(3,)]),
    "relu": (lambda a: (a - 1.25).relu(), [(5,)]),
    "where": (lambda a, b: lucid.where(a > 1, a * a, b), [(2, 3), (3,)]),
    "where of a number": (lambda a: lucid.where(lucid.tensor([[True], [False]]), a, 0.5), [(3,)]),
    "reshape": (lambda a: a.T.reshape(2, 3), [(2, 3)]),
    "view": (lambda a: a.view(-1), [(2, 3)]),
    "permute": (lambda a: a.permute(2, 0, 1), [(2, 1, 3)]),
    "transpose": (lambda a: a.transpose(0, -1), [(2, 1, 3)]),
    "expand": (lambda a: a.expand(3, 2, 2), [(2, 1)]),
    "getitem": (lambda a: a[1:, ..., None, ::2], [(2, 3)]),
    "getitem of a number": (lambda a: a[1, -1], [(2, 3)]),
    "iteration": (lambda a: sum(row * i for i, row in enumerate(a)), [(3, 2)]),
    "squeeze": (lambda a: a.squeeze(1), [(2, 1)]),
    "unsqueeze": (lambda a: a.unsqueeze(-1), [(2,)]),
    "clone": (lambda a: a.T.clone(), [(2, 3)]),
    "contiguous": (lambda a: a.T.contiguous(), [(2, 3)]),
    "sum": (lambda a: a.sum(), [(2, 3)]),
    "sum over dimensions": (lambda a: a.sum((0, 2), keepdim=True), [(2, 2, 2)]),
    "mean": (lambda a: a.mean(), [(2, 3)]),
    "mean over a dimension": (lambda a: a.mean(-1), [(2, 3)]),
    "matmul": (lambda a, b: a @ b, [(2, 3), (3, 2)]),
    "matmul of vectors": (lambda a, b: a @ b, [(3,), (3,)]),
    "matmul of batches": (lambda a, b: a @ b, [(2, 1, 2), (2, 2)]),
    "linear": (F.linear, [(2, 3), (2, 3), (2,)]),
    "linear without a bias": (F.linear, [(3,), (2, 3)]),
    "embedding": (lambda a: F.embedding(lucid.tensor(INDICES), a), [(3, 2)]),
    "0-d operands": (lambda a, b: (a * b).tanh() / a, [(), ()]),
    "empty operands": (lambda a, b: (a * b).sum(0), [(0, 2), (1, 2)]),
}


def leaves(name: str) -> list[lucid.Tensor]:
    draw = np.random.default_rng(0)
    return [lucid.tensor(draw.uniform(0.5, 2, shape), requires_grad=True) for shape in OPERATIONS[name][1]]


@pytest.mark.parametrize("name", OPERATIONS)
def test_first_derivatives_match_finite_differences(name: str) -> None:
    assert gradcheck(OPERATIONS[name][0], leaves(name), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", OPERATIONS)
def test_second_derivatives_match_finite_differences(name: str) -> None:
    assert gradgradcheck(OPERATIONS[name][0], leaves(name), atol=1e-7, rtol=1e-6, fast_mode=True)


def test_derivatives_through_another_dtype_come_back() -> None:
    x = lucid.tensor([0.5, 1.5], dtype="float64", requires_grad=True)
    (dx,) = grad((x.float() * 3).double().sum(), x)
    assert (dx.dtype, dx.tolist()) == (lucid.float64, [3.0, 3.0])


@pytest.mark.parametrize(
    ("left", "right"),
    [("float32", "float64"), ("float64", "float16"), ("bfloat16", "float32"), ("float16", "bfloat16")],
)
def test_each_gradient_has_its_operands_dtype(left: str, right: str) -> None:
    a: Any = lucid.tensor([[0.5, 1.5, 2.0]], dtype=left, requires_grad=True)
    b: Any = lucid.tensor([[1.25], [3.0]], dtype=right, requires_grad=True)
    x, y = (torch.tensor(t.tolist(), dtype=torch.float64, requires_grad=True) for t in (a, b))
    for apply in (lambda a, b: a * b - a / b, lambda a, b: a**b + b, lambda a, b: (a - b).exp()):
        a.grad = b.grad = x.grad = y.grad = None
        apply(a, b).sum().backward()
        apply(x, y).sum().backward()
        for ours, theirs in ((a, x), (b, y)):
            assert ours.grad.dtype is ours.dtype
            np.testing.assert_allclose(values_of(ours.grad), theirs.grad, rtol=0.03 if "16" in left + right else 1e-5)
    chosen = lucid.where(a > b, a, b)
    chosen.backward(lucid.ones_like(chosen))
    assert (a.grad.dtype, b.grad.dtype) == (a.dtype, b.dtype)


def test_integer_operands_take_part_without_a_gradient() -> None:
    x: Any = lucid.tensor([2.0, 3.0], requires_grad=True)
    counts = lucid.tensor([4, 5])
    (x * counts / counts + counts - counts**2).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "apply",
    [
        lambda x: abs(x),
        lambda x: x.relu(),
        lambda x: x**2,
        lambda x: x**0,
        lambda x: x**1,
        lambda x: x**3.0,
        lambda x: x.tanh(),
        lambda x: (x * 0 + 2) ** x,
        lambda x: (x * x).sqrt(),
    ],
)
def test_gradients_at_zero_and_infinity_are_torchs(apply: Callable[[Any], Any]) -> None:
    points = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf]
    ours: Any = lucid.tensor(points, dtype="float64", requires_grad=True)
    theirs = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    apply(ours).sum().backward()
    apply(theirs).sum().backward()
    np.testing.assert_array_equal(ours.grad.numpy(), theirs.grad)


def test_powers_of_zero_have_no_nan_in_their_gradients() -> None:
    base: Any = lucid.tensor([0.0, 0.0, 0.0, 2.0], requires_grad=True)
    exponent: Any = lucid.tensor([0.0, 1.0, 2.0, 0.0], requires_grad=True)
    dbase, dexponent = grad((base**exponent).sum(), (base, exponent), create_graph=True)
    assert dbase.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert dexponent.tolist() == pytest.approx([0.0, 0.0, 0.0, math.log(2)])
    (again,) = grad(dbase.sum(), base)
    assert again.tolist() == [0.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("name", FLOATS)
def test_a_broadcast_gradient_is_rounded_once(name: str) -> None:
    x: Any = lucid.zeros(1, dtype=name, requires_grad=True)
    (x + lucid.zeros(3001, dtype=name)).backward(lucid.ones(3001, dtype=name))
    assert x.grad.item() == lucid.tensor(3001.0, dtype=name).item()
