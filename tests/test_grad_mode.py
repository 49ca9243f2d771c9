"""When operations are recorded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import lucid
import lucid.torch
from lucid.autograd import Function
from tests.values import Identity, leaf


def test_nothing_is_recorded_under_no_grad() -> None:
    x = leaf([1.0])
    with lucid.no_grad():
        y = x * 2
        assert not lucid.is_grad_enabled()
        with lucid.enable_grad():
            z = x * 2
            assert lucid.is_grad_enabled()
        assert not lucid.is_grad_enabled()
        assert lucid.tensor([1.0], requires_grad=True).requires_grad
    assert lucid.is_grad_enabled()
    assert (y.requires_grad, y.is_leaf, z.requires_grad) == (False, True, True)


def test_modes_decorate_and_can_be_used_again() -> None:
    @lucid.no_grad()
    def quiet(depth: int) -> bool:
        return lucid.is_grad_enabled() or (depth > 0 and quiet(depth - 1))

    @lucid.enable_grad()
    def loud() -> bool:
        return lucid.is_grad_enabled()

    assert not quiet(3)
    assert lucid.is_grad_enabled()
    assert quiet.__name__ == "quiet"
    with lucid.no_grad():
        assert loud()
        assert not lucid.is_grad_enabled()
    block = lucid.no_grad()
    with block, block:
        assert not lucid.is_grad_enabled()
    assert lucid.is_grad_enabled()


@pytest.mark.parametrize(
    ("switch", "name"),
    [
        (lucid.fusion, "enabled"),
        (lucid.check_values, "enabled"),
        (lucid.set_grad_enabled, "mode"),
        (lucid.ones(1).requires_grad_, "requires_grad"),
        (lambda flag: lucid.ones(1, requires_grad=flag), "requires_grad"),
        (lambda flag: lucid.ones(1).sum(0, flag), "keepdim"),
        (lambda flag: lucid.ones(1).mean(keepdim=flag), "keepdim"),
        (lambda flag: lucid.nn.Linear(1, 1).zero_grad(flag), "set_to_none"),
        (lambda flag: lucid.nn.Linear(1, 1).load_state_dict({}, flag), "strict"),
        (lambda flag: lucid.optim.Adam([leaf([1.0])]).zero_grad(flag), "set_to_none"),
        (lambda flag: lucid.optim.SGD([leaf([1.0])], momentum=0.9, nesterov=flag), "nesterov"),
    ],
)
@pytest.mark.parametrize("value", ["x", 1, None, lambda: 0])
def test_a_switch_takes_bools_alone(switch: Any, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a bool, got {type(value).__name__}$"):
        switch(value)
    assert lucid.is_grad_enabled()


@pytest.mark.interpreter_only
def test_kernels_on_cpu_takes_bools_alone() -> None:
    with pytest.raises(TypeError, match="enabled must be a bool, got str"):
        lucid.torch.kernels_on_cpu("x")


@pytest.mark.parametrize(("decorator", "recorded"), [(lucid.no_grad, False), (lucid.enable_grad, True)])
def test_modes_decorate_without_parentheses(decorator: Any, recorded: bool) -> None:
    @decorator
    def mode(extra: int) -> tuple[bool, int]:
        return lucid.is_grad_enabled(), extra

    with lucid.set_grad_enabled(not recorded):
        assert mode(3) == (recorded, 3)
    assert mode.__name__ == "mode"


def test_set_grad_enabled_is_a_switch_and_a_block() -> None:
    lucid.set_grad_enabled(False)
    assert not lucid.is_grad_enabled()
    lucid.set_grad_enabled(True)
    with lucid.set_grad_enabled(False):
        assert not lucid.is_grad_enabled()
        with lucid.set_grad_enabled(True):
            assert lucid.is_grad_enabled()
        assert not lucid.is_grad_enabled()
    assert lucid.is_grad_enabled()


def test_an_error_puts_the_mode_back() -> None:
    class Fails(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            raise KeyError

    class FailsInBackward(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            raise KeyError

    for mode in (lucid.no_grad(), lucid.set_grad_enabled(False)):
        with pytest.raises(KeyError), mode:
            raise KeyError
        lucid.set_grad_enabled(True)
    for failing in (lambda: Fails.apply(leaf(1.0)), lambda: FailsInBackward.apply(leaf(1.0)).backward()):
        with pytest.raises(KeyError):
            failing()
        assert lucid.is_grad_enabled()


def test_each_thread_has_its_own_mode() -> None:
    with lucid.no_grad(), ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: (leaf(1.0) * 2).requires_grad).result()


def test_threads_can_run_backward_side_by_side() -> None:
    def work(number: int) -> list[float]:
        x = leaf([1.0, 2.0])
        y = x
        for _ in range(1000):
            y = Identity.apply(y)
        y.backward(lucid.tensor([3.0, number]))
        return x.grad.tolist()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [[3.0, n] for n in range(4)]


def test_backward_runs_inside_no_grad_and_inside_backward() -> None:
    x = leaf([3.0])
    y = (x * x).sum()
    with lucid.no_grad():
        y.backward()
    assert x.grad.tolist() == [6.0]
    inner = leaf([5.0])

    def run_another(grad: Any) -> None:
        with lucid.enable_grad():
            (inner * inner).sum().backward()

    z = x * 2
    z.register_hook(run_another)
    z.sum().backward()
    assert inner.grad.tolist() == [10.0]
    assert x.grad.tolist() == [8.0]


@pytest.mark.parametrize("argument", [False, 1, "off"])
def test_no_grad_takes_nothing_but_a_function_to_decorate(argument: Any) -> None:
    with pytest.raises(TypeError, match="no_grad takes no argument, or a function to decorate, got"):
        lucid.no_grad(argument)


def test_a_generator_function_is_not_decorated_as_its_body_runs_later() -> None:
    def numbers() -> Any:
        yield lucid.is_grad_enabled()

    for decorator, name in ((lucid.no_grad, "no_grad"), (lucid.no_grad(), "no_grad"), (lucid.fusion(False), "fusion")):
        with pytest.raises(TypeError, match=rf"^{name} takes no generator function, got numbers: write `with {name}\("):
            decorator(numbers)
