"""Hooks of modules: when they run, what they get, what they may return.

The oracle is torch.nn: a scenario runs in both libraries, and what its hooks record is compared.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid import nn
from lucid._hooks import RemovableHandle

X = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], np.float32)
Pair = namedtuple("Pair", "first second")


def plain(value: Any) -> Any:
    """Tensors of either library as NumPy arrays, in whatever tuples they come."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    return value.numpy() if isinstance(value, lucid.Tensor) else value


class Library:
    """One of the two libraries, and what hooks record in it."""

    def __init__(self, package: Any) -> None:
        self.package = package
        self.nn = package.nn
        self.grad = package.autograd.grad
        self.events: list[tuple[Any, ...]] = []

    def tensor(self, array: Any, requires_grad: bool = False) -> Any:
        return self.package.tensor(np.asarray(array, np.float32), requires_grad=requires_grad)

    def record(self, *event: Any) -> None:
        self.events.append(tuple(plain(part) for part in event))

    def model(self) -> Any:
        model = self.nn.Sequential(self.nn.Linear(2, 3), self.nn.Tanh(), self.nn.Linear(3, 2))
        values = np.random.default_rng(0).normal(size=17).astype(np.float32)
        state = {}
        for name, tensor in model.state_dict().items():
            size = int(np.prod(tuple(tensor.shape)))
            state[name] = self.tensor(values[:size].reshape(tuple(tensor.shape)))
            values = values[size:]
        model.load_state_dict(state)
        return model

    def watch(self, name: str, module: Any) -> None:
        """Record all four kinds of hooks."""
        module.register_forward_pre_hook(lambda _, args: self.record(name, "before", args))
        module.register_forward_hook(lambda _, args, output: self.record(name, "after", args, output))
        module.register_full_backward_pre_hook(lambda _, grads: self.record(name, "back", grads))
        module.register_full_backward_hook(lambda _, inner, outer: self.record(name, "backed", inner, outer))


def in_both(scenario: Callable[[Library], Any]) -> None:
    """Run a scenario in both libraries; what it returns and what was recorded must agree."""
    ours, theirs = Library(lucid), Library(torch)
    results = [plain(scenario(ours)), plain(scenario(theirs))]
    assert [event[:2] for event in ours.events] == [event[:2] for event in theirs.events]
    same(ours.events, theirs.events)
    same(*results)


def same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other)
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    else:
        assert ours == theirs


def with_forward(library: Library, forward: Callable[..., Any]) -> Any:
    base: Any = library.nn.Module

    class Custom(base):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

    return Custom()


@pytest.mark.parametrize("requires_grad", [True, False])
def test_hooks_of_a_nested_model_run_in_torchs_order(requires_grad: bool) -> None:
    def scenario(library: Library) -> Any:
        model = library.model()
        for name, module in model.named_modules():
            library.watch(name, module)
        x = library.tensor(X, requires_grad)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(x).sum().backward()
        assert len(library.events) == 16
        return x.grad, *(parameter.grad for parameter in model.parameters())

    in_both(scenario)


def test_hooks_change_no_gradient_and_may_run_again_on_a_retained_graph() -> None:
    def scenario(library: Library) -> Any:
        model = library.model()
        library.watch("middle", model[1])
        x = library.tensor(X, True)
        y = model(x).sum()
        y.backward(retain_graph=True)
        y.backward()
        assert [event[1] for event in library.events] == ["before", "after"] + ["back", "backed"] * 2
        return x.grad

    in_both(scenario)


def test_what_forward_hooks_return_replaces_arguments_and_output() -> None:
    def scenario(library: Library) -> Any:
        module = with_forward(library, lambda x, factor: x * factor)
        module.register_forward_pre_hook(lambda _, args: (args[0] * 2, args[1] + 1))
        module.register_forward_hook(lambda _, args, output: output * args[1])
        module.register_forward_hook(lambda _, args, output: (output, "seen"))
        return module(library.tensor(X), 2)

    in_both(scenario)


def test_a_pre_hook_may_return_the_only_argument_itself() -> None:
    def scenario(library: Library) -> Any:
        module = library.nn.Tanh()
        module.register_forward_pre_hook(lambda _, args: args[0] * 2)
        return module(library.tensor(X))

    in_both(scenario)


def test_hooks_with_kwargs_see_and_replace_them() -> None:
    def scenario(library: Library) -> Any:
        module = with_forward(library, lambda x, scale=1.0: x * scale)
        module.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {"scale": kwargs["scale"] + 1}), with_kwargs=True
        )
        module.register_forward_hook(lambda _, args, kwargs, out: out * kwargs["scale"], with_kwargs=True)
        return module(library.tensor(X), scale=2.0)

    in_both(scenario)


@pytest.mark.parametrize("returned", [3, (1,), (1, 2, 3)])
def test_a_pre_hook_with_kwargs_returns_a_pair_or_none(returned: Any) -> None:
    module = nn.Tanh()
    module.register_forward_pre_hook(lambda _, args, kwargs: returned, with_kwargs=True)
    with pytest.raises(RuntimeError, match=r"must return None or a tuple of .new_args, new_kwargs."):
        module(lucid.tensor(X))


def test_prepended_hooks_run_first() -> None:
    def scenario(library: Library) -> Any:
        module = library.nn.Tanh()
        record = library.record
        for name, prepend in (("first", False), ("second", False), ("zeroth", True)):
            module.register_forward_pre_hook(lambda *_, n=name: record(n, "before"), prepend=prepend)
            module.register_forward_hook(lambda *_, n=name: record(n, "after"), prepend=prepend)
            module.register_full_backward_pre_hook(lambda *_, n=name: record(n, "back"), prepend=prepend)
            module.register_full_backward_hook(lambda *_, n=name: record(n, "backed"), prepend=prepend)
        module(library.tensor(X, True)).sum().backward()
        assert [event[0] for event in library.events] == ["zeroth", "first", "second"] * 4

    in_both(scenario)


def test_what_backward_hooks_return_replaces_the_gradients() -> None:
    def scenario(library: Library) -> Any:
        module = with_forward(library, lambda x, y: x * y * 2.0)
        library.watch("module", module)
        module.register_full_backward_pre_hook(lambda _, grads: (grads[0] * 3.0,))
        module.register_full_backward_hook(lambda _, inner, outer: (inner[0] * 5.0, inner[1] + outer[0]))
        module.register_full_backward_hook(lambda _, inner, outer: (inner[0] * 7.0, inner[1]))
        library.watch("again", module)
        x, y = library.tensor(X, True), library.tensor(X + 1, True)
        module(x, y).sum().backward()
        return x.grad, y.grad

    in_both(scenario)


def test_a_single_gradient_may_be_returned_without_its_tuple() -> None:
    module = nn.Tanh()
    module.register_full_backward_pre_hook(lambda _, grads: grads[0] * 2.0)
    module.register_full_backward_hook(lambda _, inner, outer: [inner[0] * 5.0])
    x = lucid.tensor([0.0], requires_grad=True)
    module(x).backward(lucid.tensor([1.0]))
    assert x.grad.tolist() == [10.0]


def test_arguments_and_outputs_without_gradient_are_none_to_the_hooks() -> None:
    def scenario(library: Library) -> Any:
        module = with_forward(library, lambda x, number, y, z=None: (x * number, "text", y * 2.0))
        library.watch("module", module)
        x = library.tensor(X, True)
        out, text, constant = module(x, 3.0, library.tensor(X), z=x)
        assert text == "text"
        assert not constant.requires_grad
        out.sum().backward()
        name, kind, inner, outer = library.events.pop()
        # torch hands out zeros for the third argument, though it requires no gradient.
        library.record(name, kind, inner[:2], outer)
        assert len(inner) == 3
        return x.grad

    in_both(scenario)


def test_an_input_that_is_not_reached_gets_no_gradient() -> None:
    seen = []
    module = with_forward(Library(lucid), lambda x, y: (x * 2.0, y * 3.0))
    module.register_full_backward_hook(lambda _, inner, outer: seen.append((inner, outer)))
    x, y = (lucid.tensor([1.0], requires_grad=True) for _ in range(2))
    module(x, y)[0].backward()
    [((inner_x, inner_y), (outer_x, outer_y))] = seen
    assert (inner_x.tolist(), outer_x.tolist()) == ([2.0], [1.0])
    assert inner_y is outer_y is y.grad is None


def test_a_named_tuple_stays_one() -> None:
    def scenario(library: Library) -> Any:
        module = with_forward(library, lambda x: Pair(x * 2.0, x * 3.0))
        library.watch("module", module)
        x = library.tensor(X, True)
        out = module(x)
        assert type(out) is Pair
        (out.first * out.second).sum().backward()
        return x.grad

    in_both(scenario)


def test_an_output_that_is_no_tensor_is_passed_on_with_a_warning() -> None:
    module = with_forward(Library(lucid), lambda x: {"out": x * 2.0})
    module.register_full_backward_hook(lambda *_: pytest.fail("must not run"))
    x = lucid.tensor([1.0], requires_grad=True)
    with pytest.warns(UserWarning, match="should be a Tensor or a tuple of Tensors, got dict") as caught:
        out = module(x)
    assert caught[0].filename == __file__
    out["out"].backward()
    assert x.grad.tolist() == [2.0]


def test_without_grad_mode_forward_hooks_alone_run() -> None:
    def scenario(library: Library) -> Any:
        model = library.model()
        library.watch("model", model)
        with library.package.no_grad():
            out = model(library.tensor(X, True))
        assert not out.requires_grad
        return out

    in_both(scenario)


def test_without_grad_mode_forward_gets_the_argument_itself() -> None:
    module = with_forward(Library(lucid), lambda x: (x, 1))
    module.register_full_backward_hook(lambda *_: None)
    x = lucid.tensor([1.0], requires_grad=True)
    with lucid.no_grad():
        assert module(x)[0] is x


def test_hooks_take_part_in_double_backward() -> None:
    def scenario(library: Library) -> Any:
        module = with_forward(library, lambda x, y: x * x * y)
        library.watch("module", module)
        module.register_full_backward_pre_hook(lambda _, grads: (grads[0] * 3.0,))
        module.register_full_backward_hook(lambda _, inner, outer: (inner[0] * inner[0], inner[1]))
        x, y = library.tensor(X, True), library.tensor(X + 2, True)
        dx, dy = library.grad(module(x, y).sum(), (x, y), create_graph=True)
        second = library.grad(dx.sum() + (dy * dy).sum(), (x, y))
        assert len(library.events) == 4
        return dx, dy, *second

    in_both(scenario)


def test_hooks_of_a_model_take_part_in_double_backward() -> None:
    def scenario(library: Library) -> Any:
        model = library.model()
        for name, module in model.named_modules():
            library.watch(name, module)
        x = library.tensor(X, True)
        (dx,) = library.grad(model(x).sum(), x, create_graph=True)
        (dx * dx).sum().backward()
        return x.grad, model[0].weight.grad, model[2].weight.grad

    in_both(scenario)


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


KINDS = [
    "register_forward_pre_hook",
    "register_forward_hook",
    "register_full_backward_pre_hook",
    "register_full_backward_hook",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_hook_runs_no_more(kind: str) -> None:
    module, count = nn.Tanh(), []
    x = lucid.tensor([1.0], requires_grad=True)
    handle = getattr(module, kind)(lambda *_: count.append(1))
    assert isinstance(handle, RemovableHandle)
    module(x).backward()
    handle.remove()
    handle.remove()
    module(x).backward()
    assert len(count) == 1
    with getattr(module, kind)(lambda *_: count.append(1)):
        module(x).backward()
    module(x).backward()
    assert len(count) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", [None, 3, "hook"])
def test_a_hook_that_cannot_be_called_is_a_type_error(kind: str, hook: Any) -> None:
    with pytest.raises(TypeError, match=f"hook must be callable, got {type(hook).__name__}"):
        getattr(nn.Tanh(), kind)(hook)


def test_a_hook_may_remove_itself() -> None:
    module, count = nn.Tanh(), []

    def once(*_: Any) -> None:
        count.append(1)
        handle.remove()

    handle = module.register_forward_hook(once)
    module.register_forward_hook(lambda *_: count.append(2))
    module(lucid.tensor(X))
    module(lucid.tensor(X))
    assert count == [1, 2, 2]


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
