"""In-place operators and item assignment change the tensor they are written on."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
from tests.device import DEVICE

OPERATORS = [operator.iadd, operator.isub, operator.imul, operator.itruediv]


@pytest.mark.parametrize("other", [2, 0.5, torch.tensor([[4.0], [8.0]]), torch.tensor(2)], ids=str)
@pytest.mark.parametrize("change", OPERATORS)
def test_an_operator_changes_the_tensor_and_what_shares_its_memory(change: Callable[..., Any], other: Any) -> None:
    expected = torch.arange(6.0).reshape(2, 3)
    x = lucid.from_torch(expected.to(DEVICE, copy=True))
    view, memory = x[1:], x.to_torch()
    ours = lucid.from_torch(other.to(DEVICE)) if isinstance(other, torch.Tensor) else other
    assert change(x, ours) is x
    change(expected, other)
    for tensor, wanted in ((x, expected), (view, expected[1:]), (lucid.from_torch(memory), expected)):
        assert torch.equal(tensor.to_torch().cpu(), wanted)


def test_a_loop_over_parameters_trains_them() -> None:
    model = lucid.nn.Linear(2, 1, bias=False)
    before = model.weight.numpy().copy()
    model(lucid.ones(1, 2)).sum().backward()
    with lucid.no_grad():
        parameter: Any
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
    np.testing.assert_allclose(model.weight.numpy(), before - 0.5, rtol=1e-6)


@pytest.mark.parametrize("change", [*OPERATORS, lambda x, y: x.__setitem__(0, y)])
def test_a_leaf_that_requires_grad_is_refused_where_operations_are_recorded(change: Callable[..., Any]) -> None:
    x = lucid.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"a leaf that requires grad cannot be changed in place, .*: use lucid.no_g"):
        change(x, 2)
    with lucid.no_grad():
        change(x, 2)
    assert x.tolist() != [1.0, 1.0, 1.0]
    assert x.is_leaf
    assert x.requires_grad


def test_an_operator_that_is_recorded_gives_a_tensor_of_the_graph() -> None:
    x = lucid.tensor([1.0, 2.0], requires_grad=True)
    total: Any = 0
    for factor in (1.0, 3.0):
        total += (x * factor).sum()
    total *= 2
    total.backward()
    assert x.grad.tolist() == [8.0, 8.0]
    y = lucid.ones(2)
    y += x
    assert y.requires_grad


def test_a_change_of_what_backward_needs_is_an_error_of_backward() -> None:
    x, y = lucid.ones(2, requires_grad=True), lucid.ones(2)
    for change in (lambda: operator.imul(y, 2), lambda: y.__setitem__(0, 3.0)):
        loss = (x * y).sum()
        change()
        with pytest.raises(RuntimeError, match="that backward needs was modified in place"):
            loss.backward()


def test_deferred_values_are_those_before_the_change() -> None:
    for change in (lambda x: operator.iadd(x, lucid.tensor([0.0, 5.0])), lambda x: x.__setitem__(0, 9.0)):
        x = lucid.zeros(2)
        p = F.softmax(x)
        change(x)
        assert p.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "index", [1, -1, (0, 2), slice(None), (slice(None), 1), (Ellipsis, slice(1, None)), (None, 0), slice(0, 0)], ids=str
)
@pytest.mark.parametrize("name", ["float64", "float16", "int32", "bool_"])
def test_items_are_assigned_as_by_torch(index: Any, name: str) -> None:
    x = lucid.zeros(2, 3, dtype=name)
    expected = x.to_torch().cpu().clone()
    value: Any
    for value in (1, 0.1, True):
        x[index] = value
        expected[index] = value
        assert torch.equal(x.to_torch().cpu(), expected)
    x[index] = lucid.zeros(1)
    assert not x.to_torch().any()
    x[0] += True
    assert x[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: operator.iadd(x, lucid.ones(2, 3)), RuntimeError, r"shape \(3,\), got \(2, 3\)"),
        (lambda x: operator.iadd(x, "a"), TypeError, "add takes lucid.Tensors and numbers, got str"),
        (lambda x: operator.itruediv(x.to("int64"), 2), RuntimeError, "of lucid.int64 .* got lucid.float32"),
        (lambda x: operator.iadd(x > 0, 1), RuntimeError, "of lucid.bool_ .* got lucid.int64"),
        (lambda x: x.__setitem__(0, lucid.ones(2)), RuntimeError, r"shape \(\), got \(2,\)"),
        (lambda x: x.__setitem__(3, 1.0), IndexError, r"index must fit a tensor of shape \(3,\), got 3"),
        (lambda x: x.__setitem__(0, "a"), TypeError, "data must be numbers"),
        (lambda x: x.__setitem__(0, torch.ones(())), TypeError, "data must not be a torch.Tensor"),
        (
            lambda x: (lucid.ones(3, requires_grad=True) * x).__setitem__(0, 1.0),
            RuntimeError,
            "item assignment is not recorded",
        ),
        (
            lambda x: x.__setitem__(0, lucid.ones(1, requires_grad=True)),
            RuntimeError,
            "item assignment is not recorded",
        ),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_changes(
    change: Callable[..., Any], error: type[Exception], message: str
) -> None:
    x = lucid.tensor([1.0, 2.0, 3.0])
    with pytest.raises(error, match=message):
        change(x)
    assert x.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_result_has_the_shape_and_dtype_of_the_tensor_or_is_refused(recorded: bool) -> None:
    def ones(*shape: int, dtype: str = "float32") -> Any:
        return lucid.ones(*shape, dtype=dtype, requires_grad=recorded and dtype != "int64")

    x = ones(3, dtype="float16") * 1
    x += lucid.ones(3)
    assert (x.dtype, x.tolist()) == (lucid.float16, [2, 2, 2])
    x = lucid.ones(3)
    with pytest.raises(RuntimeError, match=r"must keep its shape \(3,\), got \(2, 3\)"):
        x += ones(2, 3)
    x = lucid.ones(3, dtype="int64")
    with pytest.raises(RuntimeError, match="must keep its kind of dtype, got"):
        x += ones(3)
