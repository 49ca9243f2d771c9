"""Derivatives of derivatives, and autograd.grad. The oracle is torch.autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid.autograd import grad
from tests.values import leaf


def test_third_derivatives_are_torchs() -> None:
    def third(x: Any, grad: Any) -> list[Any]:
        results = []
        y = (x**4 * x.exp() / (x * x + 1) + x.tanh() * x.log() + x.sqrt()).sum()
        for _ in range(3):
            (y,) = grad(y, x, create_graph=True)
            results.append(y)
            y = y.sum()
        return results

    ours = third(leaf([0.5, 1.5], "float64"), grad)
    theirs = third(torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True), torch.autograd.grad)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach(), rtol=1e-12)


def test_create_graph_leaves_a_gradient_that_can_be_differentiated() -> None:
    x = leaf([2.0], "float64")
    (x * x * x).sum().backward(create_graph=True)
    assert x.grad.requires_grad
    first, x.grad = x.grad, None
    first.sum().backward()
    assert x.grad.tolist() == [12.0]
    assert not x.grad.requires_grad


def test_without_create_graph_gradients_are_not_recorded() -> None:
    x = leaf([2.0])
    recorded = []
    x.register_hook(lambda grad: recorded.append((grad.requires_grad, lucid.is_grad_enabled())))
    (x * x).sum().backward()
    with lucid.no_grad():
        pass
    assert recorded == [(False, False)]
    assert not x.grad.requires_grad
    assert lucid.is_grad_enabled()


# autograd.grad


def test_grad_returns_a_tuple_and_leaves_grad_alone() -> None:
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    kept = x * 1
    kept.retain_grad()
    found: Any = grad((kept * y).sum(), [y, x])
    assert type(found) is tuple
    assert [g.tolist() for g in found] == [[1.0, 2.0], [3.0, 4.0]]
    assert (x.grad, y.grad, kept.grad) == (None, None, None)


def test_grad_finds_inner_tensors_and_takes_weights_per_output() -> None:
    x = leaf([1.0, 2.0], "float64")
    inner = x * x
    outputs = (inner * 3, inner.sum() * x)
    weights = (lucid.tensor([1.0, 10.0], dtype="float64"), lucid.tensor([1.0, 1.0], dtype="float64"))
    found: Any = grad(outputs, (inner, x, inner), weights)
    assert [g.tolist() for g in found] == [[6.0, 33.0], [17.0, 137.0], [6.0, 33.0]]


def test_grad_gives_none_or_an_error_for_what_is_not_used() -> None:
    x, unused = leaf([1.0]), leaf([2.0])
    y = x * x
    beside = unused * 2
    message = r"^input 1 of autograd.grad is not part of the graph of the outputs; pass allow_unused=True to get None"
    for inputs in ([x, unused], [x, beside], [y, beside]):
        with pytest.raises(RuntimeError, match=message):
            grad(y, inputs)
    (dx, nothing) = grad(y, [x, unused], allow_unused=True)  # the refusals freed nothing
    assert dx is not None
    assert (dx.tolist(), nothing) == ([2.0], None)


def test_grad_refuses_what_it_cannot_differentiate() -> None:
    x, constant = leaf([1.0]), lucid.tensor([1.0])
    for call, error, message in (
        (lambda: grad(x * 2, constant), RuntimeError, "input 0 of autograd.grad does not require grad"),
        (lambda: grad(constant, x), RuntimeError, "a tensor that does not require grad .* has no gradient"),
        (lambda: grad(x * 2, [x, 1.0]), TypeError, "inputs must be lucid.Tensors, got float"),
        (lambda: grad(x * 2, 5), TypeError, "inputs must be a lucid.Tensor or a sequence of them, got int"),
        (lambda: grad([x * 2], x, [None, None]), RuntimeError, "grad_outputs must have an entry for each .*, 1, got 2"),
    ):
        with pytest.raises(error, match=f"^{message}$"):
            call()


def test_grad_runs_only_what_leads_to_its_inputs() -> None:
    x, y = leaf([1.0]), leaf([2.0])
    seen: list[str] = []
    aside, ahead = y * 2, x * 3
    y.register_hook(lambda grad: seen.append("y"))
    aside.register_hook(lambda grad: seen.append("aside"))
    ahead.register_hook(lambda grad: seen.append("ahead"))
    x.register_hook(lambda grad: seen.append("x"))
    total = (aside * ahead).sum()
    grad(total, x, retain_graph=True)
    assert seen == ["ahead", "x"]
    grad(total, ahead)
    assert seen == ["ahead", "x", "ahead"]
    (aside + ahead).sum().backward()  # the graphs behind them have not been freed
    assert (x.grad.tolist(), y.grad.tolist()) == ([3.0], [2.0])
