"""Backward hooks of modules, with torch.nn as the oracle: what they get, and what they may return."""

from __future__ import annotations

import gc
import weakref
from collections import namedtuple
from typing import Any

import numpy as np
import pytest

import lucid
from lucid import nn
from tests.two_libraries import Library, X, in_both, plain, with_forward

Pair = namedtuple("Pair", "first second")


@in_both
def test_what_backward_hooks_return_replaces_the_gradients(library: Library) -> Any:
    module = with_forward(library, lambda x, y: x * y * 2.0)
    library.watch("module", module)
    module.register_full_backward_pre_hook(lambda _, grads: (grads[0] * 3.0,))
    module.register_full_backward_hook(lambda _, inner, outer: (inner[0] * 5.0, inner[1] + outer[0]))
    module.register_full_backward_hook(lambda _, inner, outer: (inner[0] * 7.0, inner[1]))
    library.watch("again", module)
    x, y = library.tensor(X, True), library.tensor(X + 1, True)
    module(x, y).sum().backward()
    return x.grad, y.grad


def test_a_single_gradient_may_be_returned_without_its_tuple() -> None:
    module = nn.Tanh()
    module.register_full_backward_pre_hook(lambda _, grads: grads[0] * 2.0)
    module.register_full_backward_hook(lambda _, inner, outer: [inner[0] * 5.0])
    x = lucid.tensor([0.0], requires_grad=True)
    module(x).backward(lucid.tensor([1.0]))
    assert x.grad.tolist() == [10.0]


@in_both
def test_arguments_and_outputs_without_gradient_are_none_to_the_hooks(library: Library) -> Any:
    module = with_forward(library, lambda x, number, y, z=None: (x * number, "text", y * 2.0))
    library.watch("module", module)
    x = library.tensor(X, True)
    out, text, constant = module(x, 3.0, library.tensor(X), z=x)
    assert text == "text"
    assert not constant.requires_grad
    out.sum().backward()
    name, kind, inner, outer = library.events.pop()
    # torch passes zeros for the third argument, which requires no gradient.
    library.record(name, kind, inner[:2], outer)
    assert len(inner) == 3
    return x.grad


def test_an_input_that_is_not_reached_gets_no_gradient() -> None:
    seen = []
    module = with_forward(Library(lucid), lambda x, y: (x * 2.0, y * 3.0))
    module.register_full_backward_hook(lambda _, inner, outer: seen.append((inner, outer)))
    x, y = (lucid.tensor([1.0], requires_grad=True) for _ in range(2))
    module(x, y)[0].backward()
    [((inner_x, inner_y), (outer_x, outer_y))] = seen
    assert (inner_x.tolist(), outer_x.tolist()) == ([2.0], [1.0])
    assert inner_y is outer_y is y.grad is None


@in_both
def test_a_named_tuple_stays_one(library: Library) -> Any:
    module = with_forward(library, lambda x: Pair(x * 2.0, x * 3.0))
    library.watch("module", module)
    x = library.tensor(X, True)
    out = module(x)
    assert type(out) is Pair
    (out.first * out.second).sum().backward()
    return x.grad


def test_an_output_that_is_no_tensor_is_passed_on_with_a_warning() -> None:
    module = with_forward(Library(lucid), lambda x: {"out": x * 2.0})
    module.register_full_backward_hook(lambda *_: pytest.fail("must not run"))
    x = lucid.tensor([1.0], requires_grad=True)
    with pytest.warns(UserWarning, match="should be a Tensor or a tuple of Tensors, got dict") as caught:
        out = module(x)
    assert caught[0].filename == __file__
    out["out"].backward()
    assert x.grad.tolist() == [2.0]


@in_both
def test_hooks_take_part_in_double_backward(library: Library) -> Any:
    module = with_forward(library, lambda x, y: x * x * y)
    library.watch("module", module)
    module.register_full_backward_pre_hook(lambda _, grads: (grads[0] * 3.0,))
    module.register_full_backward_hook(lambda _, inner, outer: (inner[0] * inner[0], inner[1]))
    x, y = library.tensor(X, True), library.tensor(X + 2, True)
    dx, dy = library.grad(module(x, y).sum(), (x, y), create_graph=True)
    second = library.grad(dx.sum() + (dy * dy).sum(), (x, y))
    assert len(library.events) == 4
    return dx, dy, *second


@in_both
def test_hooks_of_a_model_take_part_in_double_backward(library: Library) -> Any:
    model = library.model()
    for name, module in model.named_modules():
        library.watch(name, module)
    x = library.tensor(X, True)
    (dx,) = library.grad(model(x).sum(), x, create_graph=True)
    (dx * dx).sum().backward()
    return x.grad, model[0].weight.grad, model[2].weight.grad


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (3.0, TypeError, "must return None, a Tensor or a tuple of Tensors or None, got float"),
        (("x",), TypeError, r"got str at grad_(in|out)put\[0\]"),
        ((None, None), RuntimeError, "returned an invalid number of grad_(in|out)put, got 2, but expected 1"),
        ((), RuntimeError, "got 0, but expected 1"),
        (lucid.zeros(5), RuntimeError, r"grad_(in|out)put\[0\] of shape \(5,\), but expected shape \(1,\)"),
    ],
)
@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_that_returns_something_else_is_told(
    kind: str, returned: Any, error: type[Exception], message: str
) -> None:
    module = nn.Tanh()
    getattr(module, kind)(lambda *_: returned)
    x = lucid.tensor([1.0], requires_grad=True)
    with pytest.raises(error, match=rf"^backward (pre-)?hook of Tanh .*{message}"):
        module(x).backward()


def test_where_no_input_requires_grad_a_hook_returns_none() -> None:
    layer = nn.Linear(2, 1)
    seen = []

    def note(_: nn.Module, inner: Any, outer: Any) -> tuple[None]:
        seen.append((inner, plain(outer)))
        return (None,)

    layer.register_full_backward_hook(note)
    layer(lucid.tensor(X)).sum().backward()
    assert [inner for inner, _ in seen] == [(None,)]
    np.testing.assert_array_equal(seen[0][1][0], np.ones((3, 1), np.float32))
    layer.register_full_backward_hook(lambda _, inner, outer: outer)
    with pytest.raises(RuntimeError, match="must return None, or None for every grad_input"):
        layer(lucid.tensor(X)).sum().backward()


def test_a_hook_that_raises_leaves_nothing_for_the_next_pass() -> None:
    module, seen = nn.Tanh(), []

    def hook(_: Any, inner: Any, outer: Any) -> None:
        seen.append(outer[0].tolist())
        if len(seen) == 1:
            raise ValueError("once")

    module.register_full_backward_hook(hook)
    x = lucid.tensor([0.0], requires_grad=True)
    y = module(x)
    with pytest.raises(ValueError, match="once"):
        y.backward(lucid.tensor([2.0]), retain_graph=True)
    y.backward(lucid.tensor([3.0]))
    assert seen == [[2.0], [3.0]]
    assert x.grad.tolist() == [3.0]


def test_the_graph_keeps_no_argument_that_needs_no_gradient() -> None:
    class Constant:
        pass

    module = with_forward(Library(lucid), lambda x, constant: x * 2.0)
    module.register_full_backward_hook(lambda *_: None)
    constant = Constant()
    alive = weakref.ref(constant)
    out = module(lucid.tensor([1.0], requires_grad=True), constant)
    del constant
    gc.collect()
    assert alive() is None
    assert out.requires_grad
