"""Fused losses of buffers that are modified in place, and the memory and traffic of fused losses."""

from __future__ import annotations

import ctypes
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
from tests.allocations import Allocations
from tests.device import DEVICE
from tests.fusing import (
    FORWARD,
    LOGS,
    TEMPERATURES,
    Case,
    assert_fused_equals_eager,
    compare,
    kernels,
    message,
)
from triton_kernels.devtools import trace
from triton_kernels.runtime import backend

# Logits that change


def quietly(do: Callable[[], Any]) -> Callable[[Any], None]:
    """A hook that does something and leaves the gradient alone."""

    def hook(gradient: Any) -> None:
        do()

    return hook


def _torch_alias(x: Any) -> Callable[[], Any]:
    alias = x.to_torch()
    return lambda: alias.add_(1).mul_(2)


def _numpy_alias(x: Any) -> Callable[[], Any]:
    alias = x.cpu().numpy()  # a copy, where the device has memory of its own
    return lambda: np.multiply(alias, 2, out=alias)


def _dlpack_alias(x: Any) -> Callable[[], Any]:
    alias = torch.from_dlpack(x)
    return lambda: alias.zero_()


def _alias_of_a_view(x: Any) -> Callable[[], Any]:
    alias = x.detach().reshape(-1)[1:].to_torch()
    return lambda: alias.neg_()


def _address(x: Any) -> Callable[[], Any]:
    address, size = x.data_ptr(), x.numel() * 8
    if x.device != "cpu":
        return lambda: None
    return lambda: ctypes.memset(address, 0, size)


def _optimizer(kind: str) -> Callable[[Any], Callable[[], Any]]:
    def make(x: Any) -> Callable[[], Any]:
        twin = nn.Parameter(x)  # on the same memory
        optimizer = getattr(lucid.optim, kind)([twin], lr=0.3)

        def step() -> None:
            twin.grad = lucid.ones_like(twin)
            optimizer.step()

        return step

    return make


def _loading(x: Any) -> Callable[[], Any]:
    module = nn.Module()
    module.weight = nn.Parameter(x)
    return lambda: module.load_state_dict({"weight": x * 2 - 1})


def _zeroed_gradient(x: Any) -> Callable[[], Any]:
    module = nn.Module()
    module.weight = nn.Parameter(lucid.zeros_like(x))
    module.weight.grad = x.detach()
    return lambda: module.zero_grad(set_to_none=False)


CHANGES: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "torch": _torch_alias,
    "NumPy": _numpy_alias,
    "DLPack": _dlpack_alias,
    "a view": _alias_of_a_view,
    "an address": _address,
    "SGD": _optimizer("SGD"),
    "Adam": _optimizer("Adam"),
    "nn.init": lambda x: lambda: nn.init.uniform_(x),
    "zeros_": lambda x: lambda: nn.init.zeros_(x.detach()),
    "load_state_dict": _loading,
    "zero_grad": _zeroed_gradient,
}


@pytest.mark.parametrize(("which", "temperature"), [("student", None), ("teacher", None), ("student", 2.5)])
@pytest.mark.parametrize("held", ["before the softmax", "after it"])
@pytest.mark.parametrize("when", ["before the loss", "before backward", "during it", "between nodes", "between two"])
@pytest.mark.parametrize("change", CHANGES)
def test_logits_changed_in_place_leave_their_softmaxes_alone(
    change: str, when: str, held: str, which: str, temperature: float | None
) -> None:
    def run() -> Any:
        case = Case(False, temperature=temperature)
        logits = getattr(case, which)
        do = CHANGES[change](logits) if held == "before the softmax" else None
        case.softmaxes()
        do = do or CHANGES[change](logits)
        if when == "before the loss":
            do()
        loss = case.loss()
        if when == "during it":
            loss.register_hook(quietly(do))
        elif when == "between nodes":  # that of the target runs first
            case.target.register_hook(quietly(do))
        elif when != "before the loss":
            if when == "between two":
                loss.backward(retain_graph=True)
            do()
        loss.backward()
        return case.observables(logits.detach().clone())

    assert_fused_equals_eager(run)


@pytest.mark.parametrize("make", ["from_torch", "from_numpy", "from_dlpack"])
def test_logits_on_memory_of_others_are_not_deferred(make: str) -> None:
    if make == "from_numpy" and not backend.INTERPRETED:
        pytest.skip("compiled kernels do not read NumPy's memory")

    def run() -> Any:
        values = np.random.default_rng(0).standard_normal((3, 5))
        source: Any = torch.from_numpy(values).to(DEVICE) if make != "from_numpy" else values
        student = getattr(lucid, make)(source)
        teacher = lucid.randn(3, 5, dtype="float64")
        log_q, p = F.log_softmax(student), F.softmax(teacher)
        source[:] = 0
        return F.kl_div(log_q, p), log_q

    before = lucid.get_default_device()
    if make == "from_numpy":
        lucid.set_default_device("cpu")
    try:
        assert assert_fused_equals_eager(run) == set()
    finally:
        lucid.set_default_device(before)


def test_a_clone_of_memory_of_others_is_deferred() -> None:
    logits = lucid.from_torch(torch.randn(3, 5).to(DEVICE))
    assert FORWARD in kernels(lambda: F.kl_div(F.log_softmax(logits.clone()), F.softmax(logits.clone())))


def test_printing_and_reading_values_back_do_not_share_memory() -> None:
    student, teacher = lucid.randn(3, 5), lucid.randn(3, 5)
    for look in (repr, lambda x: x.tolist(), lambda x: x.sum().item(), lambda x: x.clone().numpy()):
        look(student)
    assert FORWARD in kernels(lambda: F.kl_div(F.log_softmax(student), F.softmax(teacher)))


def test_a_gradient_of_the_loss_that_others_can_write_to_is_read_at_once() -> None:
    def run() -> Any:
        case = Case(False)
        factor = torch.tensor(2.0, dtype=torch.float64).to(DEVICE)
        loss = case.loss()
        loss.register_hook(lambda gradient: lucid.from_torch(factor))
        case.log_q.register_hook(quietly(factor.zero_))
        loss.backward()
        return case.observables()

    assert assert_fused_equals_eager(run) == {FORWARD}


@pytest.mark.parametrize("temperature", [None, 2.5])
def test_a_gradient_of_the_loss_that_changes_in_place_was_used_as_it_was(temperature: float | None) -> None:
    def run() -> Any:
        case = Case(False, temperature=temperature)
        factor = lucid.tensor(2.0, dtype="float64")
        loss = case.loss()
        case.scaled[1].register_hook(quietly(lambda: nn.init.zeros_(factor)))  # before the student's nodes run
        loss.backward(factor)
        return case.observables()

    assert_fused_equals_eager(run)


def test_an_unnoticed_change_is_an_error_and_not_a_wrong_number() -> None:
    student, teacher = lucid.randn(3, 5), lucid.randn(3, 5)
    log_q, p = F.log_softmax(student), F.softmax(teacher)
    student._buffer.add_(1)
    for use in (log_q.numpy, lambda: F.kl_div(log_q, p)):
        with pytest.raises(
            RuntimeError, match=r"^the source of a deferred tensor of shape \(3, 5\) was modified in place; "
        ):
            use()


def test_logits_that_a_gradient_was_written_into_leave_their_softmaxes_alone() -> None:
    def run() -> Any:
        case = Case(False, (6, 8))
        ones = lucid.ones(6, 8, dtype="float64")
        logits, case.student = case.student, case.student * ones
        loss = case.loss()
        other = F.distillation_loss(case.student, case.teacher.detach(), inplace_gradient=True)
        other.backward(retain_graph=True)
        assert grad(loss, case.teacher, retain_graph=True)[0] is not None
        case.log_q.sum().backward(lucid.tensor(2.0, dtype="float64"))
        return case.log_q, logits.grad, case.teacher.grad, message(lambda: F.log_softmax(case.student))

    fused = run()
    lucid.manual_seed(0)
    with lucid.fusion(False):
        compare(fused, run(), 1e-12)


# Softmaxes that change


@LOGS
@pytest.mark.parametrize("which", ["log_q", "target"])
@pytest.mark.parametrize("when", ["before the loss", "before backward", "between two"])
@pytest.mark.parametrize("teacher_grad", [True, False])
def test_softmaxes_changed_in_place_are_noticed_by_the_same_words(
    when: str, which: str, log_target: bool, teacher_grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # to poison a fresh buffer is to change it in place, once more than a user would see

    def run() -> Any:
        case = Case(log_target, teacher_grad=teacher_grad)
        case.softmaxes()
        if when == "before the loss":
            getattr(case, which).to_torch().mul_(0.5)
        loss = case.loss()
        if when == "between two":
            loss.backward(retain_graph=True)
        if when != "before the loss":
            getattr(case, which).to_torch().mul_(0.5)
        to_softmax = message(lambda: grad(loss, case.log_q, retain_graph=True))
        return case.observables(
            to_softmax, message(lambda: grad(loss, case.log_q, retain_graph=True)), message(loss.backward)
        )

    assert_fused_equals_eager(run)


def test_a_gradient_kept_from_one_pass_does_not_change_when_the_logits_do() -> None:
    def run() -> Any:
        case = Case(False)
        (kept,) = grad(case.loss(), case.log_q, retain_graph=True)
        nn.init.zeros_(case.teacher)
        nn.init.zeros_(case.student)
        return kept, case.observables()

    assert_fused_equals_eager(run)


# How much of it


@pytest.mark.interpreter_only
@TEMPERATURES
@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("gradients", [("student",), ("teacher",), ("student", "teacher")])
@pytest.mark.parametrize("shape", [(11, 1271), (2, 10001)])
def test_two_reads_forward_and_two_reads_and_a_write_for_each_gradient(
    shape: tuple[int, int], gradients: tuple[str, ...], dtype: str, temperature: float | None
) -> None:
    case = Case(dtype == "float32", temperature=temperature)
    for name in ("student", "teacher"):
        setattr(case, name, lucid.randn(*shape, dtype=dtype, requires_grad=name in gradients))
    all_logits = np.prod(shape) * lucid.Tensor(0, dtype).to_torch().itemsize
    # Of each row and chunk there are a few numbers.
    few = 40 * 8 * shape[0] * (1 + shape[1] // 1024)
    with Allocations() as forward, trace.traffic() as moved:
        loss = case.loss()
    assert 2 * all_logits <= moved.read <= 2 * all_logits + few
    assert moved.written <= few
    assert not forward.above(all_logits / 2)
    with Allocations() as back, trace.traffic() as moved:
        loss.backward()
    assert 2 * all_logits <= moved.read <= 2 * all_logits + few
    assert moved.written == len(gradients) * all_logits
    assert back.above(all_logits / 2) == [all_logits] * len(gradients)
    assert moved.launches == 1


def test_backward_releases_the_logits(no_collector: None) -> None:
    case = Case(False)
    student = case.student * 1
    buffer = weakref.ref(student._buffer)
    loss = F.kl_div(F.log_softmax(student), F.softmax(case.teacher), reduction="sum")
    del student
    assert buffer() is not None
    loss.backward()
    assert buffer() is None


@pytest.mark.parametrize("how", ["never run", "backward", "retained", "hooked", "grad", "looked at"])
def test_a_fused_graph_is_collected_without_the_cycle_collector(how: str, no_collector: None) -> None:
    case = Case(False)
    case.student, case.teacher = case.student * 1, case.teacher * 1
    buffers = [weakref.ref(logits._buffer) for logits in (case.student, case.teacher)]
    loss = case.loss()
    if how == "hooked":
        case.log_q.register_hook(lambda gradient: None)
    if how == "looked at":
        repr(case.target)
    if how == "grad":
        kept = grad(loss, [case.log_q, case.target])
        kept[0].numpy()
        del kept
    elif how != "never run":
        loss.backward(retain_graph=how == "retained")
    del loss, case
    assert [buffer() for buffer in buffers] == [None, None]


def test_a_softmax_that_was_looked_at_keeps_its_logits_no_longer(no_collector: None) -> None:
    logits = lucid.randn(3, 5) * 1
    buffer = weakref.ref(logits._buffer)
    y = F.softmax(logits)
    del logits
    assert buffer() is not None
    y.sum()
    assert buffer() is None


def test_a_small_part_is_read_at_once_as_it_would_keep_the_whole_alive() -> None:
    logits = lucid.randn(4, 3, 5)
    assert kernels(lambda: F.softmax(logits[:, -1])) == ["_softmax_kernel"]
    assert kernels(lambda: logits[:, 0] / 2) == ["_pointwise_kernel"]
    assert FORWARD in kernels(lambda: F.kl_div(F.log_softmax(logits[:, 1:]), F.softmax(logits[:, :-1])))


def test_a_softmax_that_is_not_used_is_never_computed() -> None:
    assert kernels(lambda: F.softmax(lucid.randn(3, 5, requires_grad=True)).detach()) == []
