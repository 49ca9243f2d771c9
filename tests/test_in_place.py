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


def test_an_operator_that_is_recorded_makes_its_tensor_part_of_the_graph() -> None:
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
            lambda x: x.expand(2, 3).__setitem__((0, 0), 1.0),
            RuntimeError,
            r"an expanded .* \(2, 3\) cannot .*: use clone",
        ),
        (lambda x: x.expand(2, 3).zero_(), RuntimeError, r"an expanded tensor of shape \(2, 3\) cannot be changed in"),
        (
            lambda x: x.copy_(lucid.ones(2)),
            RuntimeError,
            r"value must have a shape that broadcasts to shape \(3,\), got",
        ),
        (lambda x: x.exp_(1), TypeError, "positional argument"),
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


# Gradients through writes: the oracle is torch

#: Each changes a tensor y in place, with a second tensor w of two elements; y has shape (3, 4).
WRITES: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda y, w: y.add_(w[0]),
    "mul by what has a gradient": lambda y, w: y.clone().mul_(w[1]),
    "an operator on a view": lambda y, w: operator.iadd(y[1], w[0]),
    "an operator on a view of a view": lambda y, w: operator.isub(y.T[1:3][0], w[1] * 3),
    "an item": lambda y, w: y.__setitem__((0, 1), w[0]),
    "a row": lambda y, w: y.__setitem__(2, w[1] * y[0].clone()),
    "a row to itself": lambda y, w: y.__setitem__(0, y[0]),
    "a number": lambda y, w: y.__setitem__((slice(None), 1), 5.0),
    "overlapping rows": lambda y, w: y.__setitem__(slice(1, None), y[:-1].clone() * w[0]),
    "a strided part": lambda y, w: y[::2, 1::2].mul_(w[0]),
    "a mask": lambda y, w: y.__setitem__(y > 0.5, w[1]),
    "integers": lambda y, w: y.__setitem__(([0, 2, 1], [3, 0, 0]), w[0] * y[0, :3].clone()),
    "integers and a slice": lambda y, w: y.__setitem__((slice(None), [1, 3]), w),
    "copy": lambda y, w: y.copy_(w[0] * y.sum()),
    "copy of a leaf": lambda y, w: y[:, 0:2].copy_(w),
    "fill": lambda y, w: y[1].fill_(2.0),
    "zero": lambda y, w: y.zero_(),
    "masked fill": lambda y, w: y.masked_fill_(y > 0.7, -1.0),
    "twice": lambda y, w: (y[0].add_(w[0]), y[:, 0].mul_(2), y.mul_(y.detach().clone())),
    "a view made before": lambda y, w: (lambda v: (y.mul_(2), v.add_(w[1]), y[1].add_(v)))(y[0]),
    "a reshaped view": lambda y, w: y.view(12)[3:5].add_(w),
    "functions": lambda y, w: y.clamp_(-1, 2).abs_().sub_(3).neg_().exp_(),
    "functions of the values before": lambda y, w: (y.square_(), y.add_(1).log_(), y.maximum(w[0]), y[0].pow_(w[1])),
    "a product and a quotient": lambda y, w: (y[0].mul_(w[0]), y.div_(w[1]), operator.itruediv(y[1], 2)),
}


@pytest.mark.parametrize("name", WRITES)
def test_gradients_through_writes_are_torchs(name: str) -> None:
    draw = np.random.default_rng(1)
    values, w_values, weights = draw.normal(size=(3, 4)), draw.normal(size=2), draw.normal(size=(3, 4))
    results = []
    for tensor in (lambda a: lucid.tensor(a), torch.tensor):
        x: Any = tensor(values).requires_grad_()
        w: Any = tensor(w_values).requires_grad_()
        y = x * 2
        before = y.view(-1)
        WRITES[name](y, w)
        ((y * tensor(weights)).sum() + before.sum()).backward()
        grads = [np.zeros(t.shape) if t.grad is None else np.asarray(t.grad) for t in (x, w)]
        results.append([y.detach().numpy(), *grads])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["a row", "a mask", "an operator on a view", "copy of a leaf", "a reshaped view"])
def test_second_derivatives_through_writes_match_finite_differences(name: str) -> None:
    def function(x: Any, w: Any) -> Any:
        y = x * x
        WRITES[name](y, w * w)
        return y * y

    draw = np.random.default_rng(1)
    leaves = [lucid.tensor(draw.uniform(0.2, 0.9, shape), requires_grad=True) for shape in ((3, 4), (2,))]
    assert lucid.autograd.gradgradcheck(function, leaves, atol=1e-6, fast_mode=True)


def test_a_plain_tensor_that_is_filled_from_the_graph_becomes_part_of_it() -> None:
    w: Any = lucid.tensor([2.0, 3.0], requires_grad=True)
    buffer = lucid.zeros(4)
    view = buffer[1:]
    assert not view.requires_grad
    buffer[1:3] = w * w
    assert buffer.requires_grad
    assert not buffer.is_leaf
    assert view.requires_grad
    (view * lucid.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert w.grad.tolist() == [4.0, 60.0]


def test_a_view_of_a_leaf_that_requires_grad_is_refused_where_operations_are_recorded() -> None:
    x = lucid.ones(3, requires_grad=True)
    for change in (lambda: x[0].add_(1), lambda: x.view(3, 1).zero_(), lambda: operator.imul(x[1:], 2)):
        with pytest.raises(RuntimeError, match="a view of a leaf that requires grad cannot be changed in place"):
            change()
    with lucid.no_grad():
        x[0].add_(1)
        x.data.mul_(2)
    assert x.tolist() == [4.0, 2.0, 2.0]
    x.detach().zero_()
    assert x.tolist() == [0.0, 0.0, 0.0]


def test_a_write_through_a_view_is_seen_by_backward_of_what_was_saved() -> None:
    x, w = lucid.ones(2, 2, requires_grad=True), lucid.ones(2, 2, requires_grad=True)
    y = x * 1
    loss = (y * w).sum()
    y[0].mul_(2)
    with pytest.raises(RuntimeError, match="that backward needs was modified in place"):
        loss.backward()


def test_a_kept_gradient_is_that_of_the_values_after_the_write() -> None:
    x: Any = lucid.ones(2, requires_grad=True)
    y: Any = x * 3
    y.retain_grad()
    y *= 5
    (y * 7).sum().backward()
    assert (y.grad.tolist(), x.grad.tolist()) == ([7.0, 7.0], [105.0, 105.0])


def test_parts_of_a_tensor_with_gaps_in_memory_have_gradients() -> None:
    memory = torch.zeros(4, 6, dtype=torch.float64).to(DEVICE)
    part = lucid.from_torch(memory[::2, 1:5].T)
    w: Any = lucid.tensor([[3.0], [4.0]], dtype="float64", requires_grad=True)
    part[1:3].copy_(w * 2)
    (part * part).sum().backward()
    assert w.grad.tolist() == [[48.0], [64.0]]
    assert memory[0].tolist() == [0.0, 0.0, 6.0, 8.0, 0.0, 0.0]


def test_data_of_a_leaf_can_be_replaced() -> None:
    x: Any = lucid.ones(2, requires_grad=True)
    x.data = lucid.tensor([3.0, 4.0])
    assert (x.tolist(), x.requires_grad, x.is_leaf) == ([3.0, 4.0], True, True)
    with pytest.raises(RuntimeError, match="data must have the tensor's shape"):
        x.data = lucid.ones(3)
    with pytest.raises(RuntimeError, match="data can be assigned to a leaf only"):
        (x * 2).data = lucid.ones(2)
