"""Graphs around a fused loss: everything that a user could observe is as without fusion."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid.autograd import backward, grad
from tests.fusing import (
    BACKWARD,
    FORWARD,
    IN_FORWARD,
    LOGS,
    SCALE,
    TEMPERATURES,
    Case,
    ScenarioRegistry,
    message,
)
from tests.values import Identity

scenario = ScenarioRegistry()


@scenario(FORWARD)
def forward_only(case: Case) -> Any:
    return case.loss(), case.log_q, case.target


@scenario(FORWARD, BACKWARD)
def forward_and_backward(case: Case) -> Any:
    case.loss("mean").backward()
    return case.observables()


@scenario(FORWARD, BACKWARD)
def to_the_student_alone(case: Case) -> Any:
    case.teacher.requires_grad_(False)
    case.loss("sum").backward(lucid.tensor(-2.5, dtype="float64"))
    return case.observables()


@scenario(FORWARD, BACKWARD)
def to_the_teacher_alone(case: Case) -> Any:
    case.student.requires_grad_(False)
    return case.backward()


@scenario(FORWARD, BACKWARD)
def under_no_grad_but_for_the_student(case: Case) -> Any:
    with lucid.no_grad():
        case.softmaxes()
    case.log_q = F.log_softmax(case.student)
    return case.backward()


@scenario(FORWARD)
def under_no_grad(case: Case) -> Any:
    with lucid.no_grad():
        return case.loss(), case.loss().requires_grad, message(case.loss().backward)


@scenario(FORWARD, BACKWARD)
def of_a_detached_target(case: Case) -> Any:
    case.softmaxes()
    case.target = case.target.detach()
    return case.backward()


@scenario(FORWARD)
def of_detached_log_probabilities(case: Case) -> Any:
    case.softmaxes()
    case.log_q, case.target = case.log_q.detach(), case.target.detach()
    return case.loss(), message(case.made.backward)


@scenario(FORWARD)
def of_softmaxes_that_are_leaves(case: Case) -> Any:
    case.softmaxes()
    case.log_q, case.target = (t.detach().requires_grad_() for t in (case.log_q, case.target))
    case.loss().backward()
    return case.observables(case.target.grad)


@scenario(FORWARD, BACKWARD)
def often_through_a_retained_graph(case: Case) -> Any:
    logits = [case.student, case.teacher]
    factors = [lucid.tensor(value, dtype="float64") for value in (1.0, 0.0, 2.0, 0.3, -1.0, float("nan"), 1.0)]
    case.loss()
    found = [grad(case.made, logits, factor, retain_graph=True) for factor in factors]
    return found, [grad(case.made, x, factors[3], retain_graph=True) for x in logits], grad(case.made, logits)


@scenario(FORWARD)
def recorded_then_not(case: Case) -> Any:
    case.loss().backward(create_graph=True)
    case.made.backward()
    return case.observables()


@scenario(FORWARD, BACKWARD)
def twice_through_a_retained_graph_then_freed(case: Case) -> Any:
    loss = case.loss()
    loss.backward(retain_graph=True)
    loss.backward()
    again = message(loss.backward)
    return case.observables(again, message(lambda: grad(loss, case.log_q)), message(case.log_q.sum().backward))


@scenario(FORWARD)
def hooks_made_before_the_loss(case: Case) -> Any:
    for tensor in case.softmaxes():
        tensor.register_hook(case.note)
    return case.backward()


def _zero_in_place(case: Case, gradient: Any) -> None:
    nn.init.zeros_(gradient[0])


#: Hooks that both softmaxes get after the loss.
HOOKS: dict[str, Callable[[Case, Any], Any]] = {
    "hooks_made_after_the_loss": Case.note,
    "hooks_that_replace_the_gradient": lambda case, gradient: gradient * 3 + 1,
    "hooks_that_change_the_gradient_in_place": _zero_in_place,
}


def _hooked(name: str, case: Case) -> Any:
    loss = case.loss()
    for tensor in (case.log_q, case.target):
        tensor.register_hook(functools.partial(HOOKS[name], case))
    loss.backward()
    return case.observables()


for name in HOOKS:
    scenario.add(name, functools.partial(_hooked, name), FORWARD)


@scenario(FORWARD, BACKWARD)
def hooks_on_loss_and_logits(case: Case) -> Any:
    loss = case.loss()
    loss.register_hook(lambda g: g * 2)
    case.student.register_hook(case.note)
    case.teacher.register_hook(lambda g: g * 5)
    loss.backward()
    return case.observables()


@scenario(FORWARD, BACKWARD)
def gradients_retained_before_the_loss(case: Case) -> Any:
    for tensor in case.softmaxes():
        tensor.retain_grad()
    case.loss().backward()
    return case.observables(case.target.grad)


@scenario(FORWARD, BACKWARD)
def gradients_retained_after_the_loss(case: Case) -> Any:
    loss = case.loss()
    case.target.retain_grad()
    case.log_q.retain_grad()
    loss.retain_grad()
    loss.backward(retain_graph=True)
    loss.backward()
    return case.observables(case.target.grad, loss.grad)


@scenario(FORWARD)
def gradients_to_the_softmaxes(case: Case) -> Any:
    loss = case.loss()
    found = grad(loss, [case.log_q, case.target], retain_graph=True)
    return grad(loss, case.log_q, retain_graph=True), found, case.observables()


@scenario(FORWARD, BACKWARD)
def gradients_to_everything_at_once(case: Case) -> Any:
    return grad(case.loss(), [case.student, case.log_q, case.teacher, case.target, case.made]), case.observables()


@scenario(FORWARD)
def a_gradient_to_a_softmax_sent_on_by_hand(case: Case) -> Any:
    (found,) = grad(case.loss(), case.log_q, retain_graph=True)
    case.log_q.backward(found)
    return case.observables(found)


@scenario(FORWARD, BACKWARD, one_launch={FORWARD, BACKWARD, SCALE})  # BACKWARD where SCALE has overwritten a gradient
def gradients_of_two_passes_sent_on(case: Case) -> Any:
    loss = case.loss()
    (first,) = grad(loss, case.log_q, retain_graph=True)
    (second,) = grad(loss, case.log_q, lucid.tensor(2.0, dtype="float64"))
    return [grad(case.log_q, case.student, found, retain_graph=True) for found in (second, first, second)]


@scenario(FORWARD)
def a_gradient_to_a_softmax_sent_on_and_recorded(case: Case) -> Any:
    (found,) = grad(case.loss(), case.log_q, retain_graph=True)
    (ds,) = grad(case.log_q, case.student, found, create_graph=True)
    return ds, grad((ds * ds).sum(), case.student)


@scenario(FORWARD)
def a_gradient_to_a_softmax_sent_on_to_another(case: Case) -> Any:
    (found,) = grad(case.loss(), case.log_q, retain_graph=True)
    other = lucid.randn(3, 5, dtype="float64", requires_grad=True)
    return grad(F.log_softmax(other), other, found)


@scenario(FORWARD)
def second_derivatives(case: Case) -> Any:
    logits = [case.student, case.teacher]
    first = grad(case.loss(), logits, create_graph=True)
    ds, dt = first
    second = grad((ds * ds).sum() + (dt * ds).sum(), logits, create_graph=True)
    return first, second, grad(second[0].sum() + (second[1] * second[1]).sum(), logits)


@scenario(FORWARD)
def second_derivatives_through_backward(case: Case) -> Any:
    case.loss().backward(create_graph=True)
    ds = case.student.grad
    case.student.grad = case.teacher.grad = None
    (ds * ds).sum().backward()
    return case.observables(ds)


@scenario(FORWARD)
def log_probabilities_used_elsewhere_too(case: Case) -> Any:
    loss = case.loss()
    (loss + (case.log_q.exp() * case.log_q).sum() + case.target.mean()).backward()
    return case.observables()


@scenario()
def log_probabilities_used_elsewhere_before(case: Case) -> Any:
    case.softmaxes()
    entropy = (case.log_q.exp() * case.log_q).sum()
    (case.loss() + entropy).backward()
    return case.observables()


@scenario(FORWARD)
def log_probabilities_shown_after_the_loss(case: Case) -> Any:
    loss = case.loss()
    shown = repr(case.log_q), case.target.tolist()
    loss.backward()
    return case.observables(*shown)


@scenario(FORWARD, BACKWARD)  # only to the teacher
def two_losses_of_the_same_log_probabilities(case: Case) -> Any:
    other = F.softmax(lucid.randn(3, 5, dtype="float64"))
    (case.loss() * 2 + F.kl_div(case.log_q, other, reduction="sum")).backward()
    return case.observables()


@scenario(FORWARD, BACKWARD)
def a_student_used_elsewhere_too(case: Case) -> Any:
    (case.loss() + (case.student * case.student).sum()).backward()
    return case.observables()


@scenario(FORWARD, BACKWARD)
def two_losses_backward_at_once(case: Case) -> Any:
    first = case.loss()
    del case.log_q
    backward([first, case.loss("sum")], [lucid.tensor(2.0, dtype="float64"), None])
    return case.observables()


@scenario(FORWARD, BACKWARD)
def a_teacher_that_is_its_own_student(case: Case) -> Any:
    case.teacher = case.student
    return case.backward()


@scenario(FORWARD)
def log_probabilities_that_are_their_own_target(case: Case) -> Any:
    case.log_target = True
    case.softmaxes()
    case.target = case.log_q
    return case.backward()


@scenario(FORWARD, BACKWARD)
def functions_that_hand_through(case: Case) -> Any:
    case.softmaxes()
    case.log_q, case.target = Identity.apply(case.log_q), Identity.apply(case.target)
    case.log_q.retain_grad()
    return case.backward()


@scenario(FORWARD, BACKWARD)
def modules_with_backward_hooks_that_do_not_look(case: Case) -> Any:
    module = nn.LogSoftmax(dim=-1)
    module.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    case.softmaxes()
    case.log_q = module(case.student)
    return case.backward()


@scenario(FORWARD, BACKWARD)  # only to the teacher
def modules_with_backward_hooks_that_look(case: Case) -> Any:
    seen: list[Any] = []
    module = nn.LogSoftmax(dim=-1)
    module.register_full_backward_hook(lambda module, grad_input, grad_output: seen.extend([*grad_output, *grad_input]))
    module.register_full_backward_pre_hook(lambda module, grad_output: tuple(g * 2 for g in grad_output))
    case.softmaxes()
    case.log_q = module(case.student)
    case.loss().backward()
    return case.observables(seen)


@LOGS
@TEMPERATURES
@IN_FORWARD
@pytest.mark.parametrize("name", scenario.all)
def test_fused_is_unfused_but_for_rounding(
    name: str, in_forward: bool, temperature: float | None, log_target: bool
) -> None:
    scenario.all[name].check(lambda: Case(log_target, temperature=temperature), in_forward)
