"""A temperature written as a division of the logits, or a product, is part of what is fused."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid.autograd import grad
from tests.device import DEVICE
from tests.fusing import (
    BACKWARD,
    FORWARD,
    IN_FORWARD,
    LOGS,
    SCALE,
    Case,
    ScenarioRegistry,
    assert_fused_equals_eager,
    kernels,
)
from tests.values import Identity

scenario = ScenarioRegistry()


def targets(case: Case, student: Any, teacher: Any) -> Any:
    """The loss of logits that were scaled somehow."""
    case.scaled = [student, teacher]
    case.log_q = F.log_softmax(student)
    case.target = case.target_of(teacher)
    return case.loss()


#: Logits scaled in ways that are part of what is fused.
SCALINGS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "products": lambda s, t: (s * 0.4, 0.4 * t),
    "a_product_and_a_quotient": lambda s, t: (s * 0.5, t / np.float32(2)),
    "an_integer": lambda s, t: (s / 3, t / 3),
    "a_temperature_of_one": lambda s, t: (s / 1.0, t),
    "different_temperatures": lambda s, t: (s / 2, t / 3),
    "only_one_side": lambda s, t: (s / 2, t),
    "one_temperature_after_another": lambda s, t: (s / 2 / 3, t / 6),
    "numbers_that_are_no_temperatures": lambda s, t: (s * -2, t / 2e6),
    "truths": lambda s, t: (s * True, t),
    "functions_that_hand_through": lambda s, t: (Identity.apply(s / 2), Identity.apply(t / 2).detach()),
}


def _scenario_of(scale: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Case], Any]:
    def run(case: Case) -> Any:
        targets(case, *scale(case.student, case.teacher)).backward()
        return case.observables()

    return run


for name, scale in SCALINGS.items():
    scenario.add(name, _scenario_of(scale), FORWARD, BACKWARD)


@scenario(FORWARD, BACKWARD)
def one_softmax_in_losses_with_and_without(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    other = F.kl_div(case.log_q, F.softmax(lucid.randn(3, 5, dtype="float64")))
    (loss + other).backward(retain_graph=True)
    loss.backward()
    return case.observables()


@scenario(FORWARD, BACKWARD)
def a_temperature_that_is_learned(case: Case) -> Any:
    temperature = lucid.tensor(2.0, dtype="float64", requires_grad=True)
    targets(case, case.student / temperature, case.teacher / temperature).backward()
    return case.observables(temperature.grad)


@scenario(FORWARD, BACKWARD)
def other_dtypes(case: Case) -> Any:
    case.student = lucid.randn(3, 5, dtype="float32", requires_grad=True)
    targets(case, case.student / np.float64(2), case.teacher / 2).backward()
    return [case.made.dtype, case.student.grad.dtype, case.scaled[0].dtype]


@scenario(FORWARD, BACKWARD, one_launch={FORWARD, BACKWARD})
def hooks_on_what_was_scaled(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    case.scaled[0].register_hook(case.note)
    case.scaled[1].register_hook(lambda g: g * 3)
    loss.backward()
    return case.observables()


@scenario(FORWARD, BACKWARD)
def hooks_on_one_softmax_alone(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    case.target.register_hook(lambda g: g * 3)
    loss.backward()
    return case.observables()


@scenario(FORWARD, BACKWARD)
def softmaxes_looked_at_between_their_nodes(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)

    def look(gradient: Any) -> None:
        repr(case.log_q)

    case.teacher.register_hook(look)
    loss.backward()
    return case.observables()


@scenario(FORWARD, BACKWARD, one_launch={FORWARD, BACKWARD, SCALE})
def gradients_retained_on_what_was_scaled(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    for logits in case.scaled:
        logits.retain_grad()
    loss.backward()
    return case.observables(*(logits.grad for logits in case.scaled))


@scenario(FORWARD, BACKWARD, one_launch={FORWARD, BACKWARD, SCALE})
def gradients_to_what_was_scaled(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    found = grad(loss, case.scaled, retain_graph=True)
    both = grad(loss, [case.scaled[0], case.student], retain_graph=True)
    other = lucid.randn(3, 5, dtype="float64", requires_grad=True)
    sent_on = grad(case.scaled[0], case.student, found[0], retain_graph=True)
    recorded = grad(case.scaled[0], case.student, grad(loss, case.scaled[0])[0], create_graph=True)
    return found, both, sent_on, recorded, grad(other / 7, other, found[0])


@scenario(FORWARD, BACKWARD)
def a_gradient_sent_on_twice(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    (found,) = grad(loss, case.log_q)
    first, second = (grad(case.log_q, case.scaled[0], found, retain_graph=True)[0] for _ in range(2))
    del second
    return grad(case.scaled[0], case.student, first)


@scenario(FORWARD, BACKWARD, one_launch={FORWARD, BACKWARD, SCALE})  # SCALE to the teacher
def what_was_scaled_used_elsewhere_too(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    (loss + (case.scaled[0] * case.scaled[0]).sum()).backward()
    return case.observables(case.scaled)


@scenario(FORWARD, BACKWARD)
def what_was_scaled_used_elsewhere_before(case: Case) -> Any:
    scaled = case.student / 2
    before = (scaled * scaled).sum()
    (targets(case, scaled, case.teacher / 2) + before).backward()
    return case.observables(case.scaled)


@scenario(FORWARD, BACKWARD)
def the_same_logits_at_two_temperatures(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    (loss + targets(case, case.student / 3, case.teacher / 3)).backward()
    return case.observables()


@scenario()
def what_was_scaled_changed_in_place_before_the_loss(case: Case) -> Any:
    student, teacher = case.student / 2, case.teacher / 2
    log_q = F.log_softmax(student)
    nn.init.zeros_(student)
    case.log_q, case.target = log_q, case.target_of(teacher)
    case.loss().backward()
    return case.observables(student)


@scenario(FORWARD)
def what_was_scaled_changed_in_place_after_the_loss(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    case.scaled[0].to_torch().mul_(3)
    nn.init.zeros_(case.scaled[1])
    loss.backward()
    return case.observables(case.scaled)


@scenario()
def logits_changed_in_place_before_the_softmax(case: Case) -> Any:
    student, teacher = case.student / 2, case.teacher / 2
    nn.init.zeros_(case.student)
    case.teacher.to_torch().mul_(5)
    return student, teacher, student.detach(), F.softmax(student)


@scenario(FORWARD)
def third_derivatives(case: Case) -> Any:
    loss = targets(case, case.student / 2, case.teacher / 2)
    (ds,) = grad(loss, case.student, create_graph=True)
    (dds,) = grad((ds * ds).sum(), case.student, create_graph=True)
    return ds, dds, grad((dds * dds).sum(), [case.student, case.teacher])


@LOGS
@IN_FORWARD
@pytest.mark.parametrize("name", scenario.all)
def test_fused_is_unfused_but_for_rounding(name: str, in_forward: bool, log_target: bool) -> None:
    scenario.all[name].check(lambda: Case(log_target), in_forward)


@pytest.mark.parametrize("operation", [lambda x: x / 2, lambda x: x * 2, lambda x: 3 * x], ids=["/", "*", "reversed"])
def test_a_quotient_is_calculated_when_looked_at_and_from_what_was_there(operation: Any) -> None:
    def run() -> Any:
        x = lucid.randn(3, 5, dtype="float64", requires_grad=True)
        y = operation(x)
        nn.init.zeros_(x)
        (y * y).sum().backward()
        return y, repr(y), x.grad, y.shape, y.dtype, y.stride()

    assert assert_fused_equals_eager(run) == set()
    x = lucid.randn(3, 5)
    assert kernels(lambda: operation(x)) == []


def test_quotients_of_memory_of_others_numbers_and_integers_are_calculated_at_once() -> None:
    for x in (lucid.from_torch(torch.ones(3).to(DEVICE)), lucid.tensor(1.0), lucid.tensor([1, 2])):
        assert kernels(lambda: x / 2) == ["_pointwise_kernel"]  # noqa: B023


def test_what_was_scaled_lives_no_longer_than_unfused(no_collector: None) -> None:
    logits = lucid.randn(3, 5) * lucid.ones(3, 5)
    buffers = [weakref.ref(logits._buffer)]
    scaled = logits / 2
    y = F.softmax(scaled)
    del logits
    buffers.append(weakref.ref(scaled._buffer))
    del scaled
    assert buffers[0]() is None or buffers[1]() is not None
    y.sum()
    assert [buffer() for buffer in buffers] == [None, None]
