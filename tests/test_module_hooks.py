"""Hooks of modules, with torch.nn as the oracle: when they run, and what forward hooks get and may return."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import lucid
from lucid import nn
from lucid._hooks import RemovableHandle
from tests.two_libraries import Library, X, in_both, with_forward


@pytest.mark.parametrize("requires_grad", [True, False])
@in_both
def test_hooks_of_a_nested_model_run_in_torchs_order(library: Library, requires_grad: bool) -> Any:
    model = library.model()
    for name, module in model.named_modules():
        library.watch(name, module)
    x = library.tensor(X, requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(x).sum().backward()
    assert len(library.events) == 16
    return x.grad, *(parameter.grad for parameter in model.parameters())


@in_both
def test_hooks_change_no_gradient_and_may_run_again_on_a_retained_graph(library: Library) -> Any:
    model = library.model()
    library.watch("middle", model[1])
    x = library.tensor(X, True)
    y = model(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert [event[1] for event in library.events] == ["before", "after"] + ["back", "backed"] * 2
    return x.grad


@in_both
def test_what_forward_hooks_return_replaces_arguments_and_output(library: Library) -> Any:
    module = with_forward(library, lambda x, factor: x * factor)
    module.register_forward_pre_hook(lambda _, args: (args[0] * 2, args[1] + 1))
    module.register_forward_hook(lambda _, args, output: output * args[1])
    module.register_forward_hook(lambda _, args, output: (output, "seen"))
    return module(library.tensor(X), 2)


@in_both
def test_a_pre_hook_may_return_the_only_argument_itself(library: Library) -> Any:
    module = library.nn.Tanh()
    module.register_forward_pre_hook(lambda _, args: args[0] * 2)
    return module(library.tensor(X))


@in_both
def test_hooks_with_kwargs_see_and_replace_them(library: Library) -> Any:
    module = with_forward(library, lambda x, scale=1.0: x * scale)
    module.register_forward_pre_hook(lambda _, args, kwargs: (args, {"scale": kwargs["scale"] + 1}), with_kwargs=True)
    module.register_forward_hook(lambda _, args, kwargs, out: out * kwargs["scale"], with_kwargs=True)
    return module(library.tensor(X), scale=2.0)


@pytest.mark.parametrize("returned", [3, (1,), (1, 2, 3)])
def test_a_pre_hook_with_kwargs_returns_a_pair_or_none(returned: Any) -> None:
    module = nn.Tanh()
    module.register_forward_pre_hook(lambda _, args, kwargs: returned, with_kwargs=True)
    with pytest.raises(RuntimeError, match=r"must return None or a tuple of .new_args, new_kwargs."):
        module(lucid.tensor(X))


@in_both
def test_prepended_hooks_run_first(library: Library) -> Any:
    module = library.nn.Tanh()
    record = library.record
    for name, prepend in (("first", False), ("second", False), ("zeroth", True)):
        module.register_forward_pre_hook(lambda *_, n=name: record(n, "before"), prepend=prepend)
        module.register_forward_hook(lambda *_, n=name: record(n, "after"), prepend=prepend)
        module.register_full_backward_pre_hook(lambda *_, n=name: record(n, "back"), prepend=prepend)
        module.register_full_backward_hook(lambda *_, n=name: record(n, "backed"), prepend=prepend)
    module(library.tensor(X, True)).sum().backward()
    assert [event[0] for event in library.events] == ["zeroth", "first", "second"] * 4


@in_both
def test_without_grad_mode_forward_hooks_alone_run(library: Library) -> Any:
    model = library.model()
    library.watch("model", model)
    with library.package.no_grad():
        out = model(library.tensor(X, True))
    assert not out.requires_grad
    return out


def test_without_grad_mode_forward_gets_the_argument_itself() -> None:
    module = with_forward(Library(lucid), lambda x: (x, 1))
    module.register_full_backward_hook(lambda *_: None)
    x = lucid.tensor([1.0], requires_grad=True)
    with lucid.no_grad():
        assert module(x)[0] is x


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
