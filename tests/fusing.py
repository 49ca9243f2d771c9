"""Scenarios of user code that run fused and eagerly, and a comparison of everything observable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from triton_kernels.devtools import trace

#: Names of the fused kernels, which take logits; and of that which scales gradients computed with the loss.
FORWARD, BACKWARD, SCALE = "_divergence_kernel", "_divergence_backward_kernel", "_scale_kernel"

LOGS = pytest.mark.parametrize("log_target", [False, True])
TEMPERATURES = pytest.mark.parametrize("temperature", [None, 2.5])
IN_FORWARD = pytest.mark.parametrize("in_forward", [True, False], ids=["one launch", "two launches"])


class Case:
    """Student and teacher logits, their softmaxes and loss, in float64: fused and eager differ by rounding only."""

    def __init__(
        self,
        log_target: bool,
        shape: tuple[int, ...] = (3, 5),
        teacher_grad: bool = True,
        temperature: float | None = None,
    ) -> None:
        self.log_target = log_target
        self.seen: list[Any] = []
        self.temperature = temperature
        self.student: Any = lucid.randn(*shape, dtype="float64", requires_grad=True)
        self.teacher: Any = lucid.randn(*shape, dtype="float64", requires_grad=teacher_grad)

    def softmaxes(self) -> tuple[Any, Any]:
        """Return the student's log-probabilities and the target."""
        self.scaled: Any = [self.student, self.teacher]
        if self.temperature is not None:
            self.scaled = [logits / self.temperature for logits in self.scaled]
        self.log_q, self.target = F.log_softmax(self.scaled[0], dim=-1), self.target_of(self.scaled[1])
        return self.log_q, self.target

    def target_of(self, logits: Any, dim: int = -1) -> Any:
        """Return the softmax or, with log_target, the log-softmax of logits."""
        return (F.log_softmax if self.log_target else F.softmax)(logits, dim)

    def loss(self, reduction: str = "batchmean") -> Any:
        """Return the loss, of new softmaxes unless there are some."""
        if not hasattr(self, "log_q"):
            self.softmaxes()
        self.made = nn.KLDivLoss(reduction, self.log_target)(self.log_q, self.target)
        return self.made

    def backward(self) -> list[Any]:
        """Run loss and backward; return the observables."""
        self.loss().backward()
        return self.observables()

    def note(self, gradient: Any) -> None:
        """Record a gradient; a hook that is among the observables."""
        self.seen.append(gradient.numpy().copy())

    def observables(self, *more: Any) -> list[Any]:
        """Return everything that a user could compare."""
        gradients = [self.student.grad, self.teacher.grad, self.log_q.grad]
        return [*more, *self.seen, self.made, *gradients, self.log_q, self.target]


def backward_kernel(in_forward: bool) -> str:
    """Return the name of the kernel that gives logits their gradients in backward."""
    return SCALE if in_forward else BACKWARD


class Scenario(NamedTuple):
    """A function of a `Case`, and the fused kernels that it must launch: with gradients in forward, and without."""

    run: Callable[[Case], Any]
    one_launch: set[str]
    two_launches: set[str]

    def check(self, case: Callable[[], Case], in_forward: bool) -> None:
        """Compare fused and eager, and the kernels launched."""
        used = assert_fused_equals_eager(lambda: self.run(case()), in_forward=in_forward)
        assert used == (self.one_launch if in_forward else self.two_launches)


class ScenarioRegistry:
    """Scenarios by name."""

    def __init__(self) -> None:
        self.all: dict[str, Scenario] = {}

    def __call__(
        self, *two_launches: str, one_launch: set[str] | None = None
    ) -> Callable[[Callable[[Case], Any]], Callable[[Case], Any]]:
        """Register a function; with gradients in forward BACKWARD becomes SCALE unless `one_launch` says otherwise."""

        def register(function: Callable[[Case], Any]) -> Callable[[Case], Any]:
            self.add(function.__name__, function, *two_launches, one_launch=one_launch)
            return function

        return register

    def add(
        self, name: str, function: Callable[[Case], Any], *two_launches: str, one_launch: set[str] | None = None
    ) -> None:
        """Register a function by another name."""
        if one_launch is None:
            one_launch = {SCALE if kernel == BACKWARD else kernel for kernel in two_launches}
        self.all[name] = Scenario(function, one_launch, set(two_launches))


def kernels(run: Callable[[], Any]) -> list[str]:
    """Run a function; return the names of the kernels it launched."""
    with trace.launches() as made:
        run()
    return [launched.kernel.__name__ for launched in made]


def message(run: Callable[[], Any]) -> str:
    """Run a function; return type and message of its exception."""
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"


def assert_fused_equals_eager(code: Callable[[], Any], rtol: float = 1e-12, in_forward: bool = True) -> set[str]:
    """Run code fused and eagerly; compare values up to rounding, all else exactly. Return the fused kernels used.

    `in_forward`: whether fused losses compute gradients to logits in forward.
    """
    results: list[Any] = []
    used: list[list[str]] = []
    for enabled in (False, True):
        lucid.manual_seed(0)

        def run(enabled: bool = enabled) -> None:
            with lucid.fusion(enabled), lucid.gradient_in_forward(in_forward):
                results.append(code())

        used.append(kernels(run))
    assert not {FORWARD, BACKWARD, SCALE} & set(used[0])
    compare(results[1], results[0], rtol)
    return {FORWARD, BACKWARD, SCALE} & set(used[1])


def compare(got: Any, expected: Any, rtol: float) -> None:
    """Compare tensors and arrays in dtype, shape and, within a tolerance, values; containers recursively."""
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        for name in expected:
            compare(got[name], expected[name], rtol)
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            compare(one, other, rtol)
    elif isinstance(expected, lucid.Tensor):
        seen = [(t.dtype, t.shape, t.device, t.requires_grad, t.is_leaf, repr(t.grad_fn)) for t in (got, expected)]
        assert seen[0] == seen[1]
        compare(got.detach().numpy(), expected.detach().numpy(), rtol)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol)
    elif isinstance(expected, float):
        assert got == expected or abs(got - expected) <= rtol * (1 + abs(expected))
    else:
        assert got == expected
