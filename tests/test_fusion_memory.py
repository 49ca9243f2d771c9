"""Fused losses of buffers that are modified in place, and the memory and traffic of fused losses."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid.autograd import grad
from lucid.ops import kl_div_fused
from tests.allocations import Allocations
from tests.device import DEVICE
from tests.fusing import (
    BACKWARD,
    FORWARD,
    IN_FORWARD,
    LOGS,
    SCALE,
    TEMPERATURES,
    Case,
    assert_fused_equals_eager,
    compare,
    kernels,
    message,
)
from triton_kernels.devtools import trace
from triton_kernels.runtime import backend, launch

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


@IN_FORWARD
@pytest.mark.parametrize(("which", "temperature"), [("student", None), ("teacher", None), ("student", 2.5)])
@pytest.mark.parametrize("held", ["before the softmax", "after it"])
@pytest.mark.parametrize("when", ["before the loss", "before backward", "during it", "between nodes", "between two"])
@pytest.mark.parametrize("change", CHANGES)
def test_logits_changed_in_place_leave_their_softmaxes_alone(
    change: str, when: str, held: str, which: str, temperature: float | None, in_forward: bool
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

    assert_fused_equals_eager(run, in_forward=in_forward)


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


@TEMPERATURES
@IN_FORWARD
def test_a_gradient_of_the_loss_that_changes_in_place_was_used_as_it_was(
    in_forward: bool, temperature: float | None
) -> None:
    def run() -> Any:
        case = Case(False, temperature=temperature)
        factor = lucid.tensor(2.0, dtype="float64")
        loss = case.loss()
        case.scaled[1].register_hook(quietly(lambda: nn.init.zeros_(factor)))  # before the student's nodes run
        loss.backward(factor)
        return case.observables()

    assert_fused_equals_eager(run, in_forward=in_forward)


def test_an_unnoticed_change_is_an_error_and_not_a_wrong_number() -> None:
    student, teacher = lucid.randn(3, 5), lucid.randn(3, 5)
    log_q, p = F.log_softmax(student), F.softmax(teacher)
    student._buffer.add_(1)
    for use in (log_q.numpy, lambda: F.kl_div(log_q, p)):
        with pytest.raises(
            RuntimeError, match=r"^the source of a deferred tensor of shape \(3, 5\) was modified in place; "
        ):
            use()


@IN_FORWARD
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_an_unnoticed_change_after_the_loss_is_an_error_of_backward(which: str, in_forward: bool) -> None:
    case = Case(False)
    with lucid.gradient_in_forward(in_forward):
        loss = case.loss()
    getattr(case, which)._buffer.add_(1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^the source of a deferred tensor .* was modified in place; "):
            loss.backward()


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
def test_two_reads_forward_and_two_reads_and_a_write_for_each_gradient_in_two_launches(
    shape: tuple[int, int], gradients: tuple[str, ...], dtype: str, temperature: float | None
) -> None:
    case, all_logits = _case_of(shape, gradients, dtype, temperature)
    with lucid.gradient_in_forward(False), Allocations() as forward, _counted() as (moved, made):
        loss = case.loss()
    few = _few(case, made[0])
    assert 2 * all_logits <= moved.read <= 2 * all_logits + few
    assert moved.written <= few
    assert not forward.above(all_logits / 2)
    with Allocations() as back, _counted() as (moved, made):
        loss.backward()
    assert 2 * all_logits <= moved.read <= 2 * all_logits + few
    assert moved.written == len(gradients) * all_logits
    assert back.above(all_logits / 2) == [all_logits] * len(gradients)
    assert [launched.kernel.__name__ for launched in made] == [BACKWARD]


@pytest.mark.interpreter_only
@TEMPERATURES
@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("upstream", ["left out", "1", "3"])
@pytest.mark.parametrize("retain", [False, True], ids=["freed", "retained"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("gradients", [("student",), ("teacher",), ("student", "teacher")])
@pytest.mark.parametrize("shape", [(11, 1271), (2, 10001)])
def test_two_reads_and_a_write_for_each_gradient_in_all(
    shape: tuple[int, int],
    gradients: tuple[str, ...],
    dtype: str,
    retain: bool,
    upstream: str,
    temperature: float | None,
) -> None:
    case, all_logits = _case_of(shape, gradients, dtype, temperature)
    with Allocations() as forward, _counted() as (moved, made):
        loss = case.loss()
    few = _few(case, made[0])
    assert 2 * all_logits <= moved.read <= 2 * all_logits + few
    assert len(gradients) * all_logits <= moved.written <= len(gradients) * all_logits + few
    assert forward.above(all_logits / 2) == [all_logits] * len(gradients)
    dloss = None if upstream == "left out" else lucid.tensor(float(upstream), dtype=dtype)
    with Allocations() as back, _counted() as (moved, made):
        loss.backward(dloss, retain_graph=retain)
    # Only a factor other than 1, or another pass that may follow, makes backward move gradients.
    scaled = len(gradients) * all_logits if retain or upstream == "3" else 0
    assert scaled <= moved.read <= scaled + few
    assert moved.written == scaled
    assert back.above(all_logits / 2) == [all_logits] * (len(gradients) if retain else 0)
    assert [launched.kernel.__name__ for launched in made] == [SCALE] * len(gradients)


def _case_of(
    shape: tuple[int, int], gradients: tuple[str, ...], dtype: str, temperature: float | None = None
) -> tuple[Case, int]:
    """A case, and the bytes of the logits of one side."""
    case = Case(dtype == "float32", temperature=temperature)
    for name in ("student", "teacher"):
        setattr(case, name, lucid.randn(*shape, dtype=dtype, requires_grad=name in gradients))
    return case, int(np.prod(shape)) * lucid.Tensor(0, dtype).to_torch().itemsize


@contextmanager
def _counted() -> Iterator[tuple[trace.Traffic, list[launch.Launch]]]:
    with trace.traffic() as moved, trace.launches() as made:
        yield moved, made


def _few(case: Case, launched: launch.Launch) -> int:
    """A bound on the bytes of numbers that are not one for each logit: some of rows, and of chunks of rows.

    Five statistics of each chunk are read by the programs of all chunks of the row.
    """
    chunks = launched.args["chunks"]
    itemsize = launch.compute_dtype(case.student.dtype.torch).itemsize
    return itemsize * case.student.shape[0] * (20 + 20 * chunks + 5 * chunks**2)


def _of_no_grad(case: Case) -> Any:
    case.softmaxes()
    with lucid.no_grad():
        return case.loss()


def _of_frozen_logits(case: Case) -> Any:
    case.student.requires_grad_(False)
    case.teacher.requires_grad_(False)
    return case.loss()


def _of_softmaxes_that_are_leaves(case: Case) -> Any:
    case.softmaxes()
    case.log_q, case.target = (t.detach().requires_grad_() for t in (case.log_q, case.target))
    return case.loss()


@pytest.mark.interpreter_only
@pytest.mark.parametrize("loss", [_of_no_grad, _of_frozen_logits, _of_softmaxes_that_are_leaves])
def test_no_gradient_is_computed_with_the_loss_where_logits_want_none(loss: Callable[[Case], Any]) -> None:
    case, all_logits = _case_of((11, 1271), ("student", "teacher"), "float64")
    with Allocations() as forward, _counted() as (moved, made):
        loss(case)
    few = _few(case, made[0])
    assert 2 * all_logits <= moved.read <= 2 * all_logits + few
    assert moved.written <= few
    assert not forward.above(all_logits / 2)


@pytest.fixture
def computed_with_the_loss(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[torch.Tensor]]:
    """The memory of gradients that fused losses compute in forward."""
    made: list[weakref.ref[torch.Tensor]] = []
    empty = kl_div_fused.empty_as

    def recorded(logits: torch.Tensor) -> torch.Tensor:
        gradient = empty(logits)
        made.append(weakref.ref(gradient))
        return gradient

    monkeypatch.setattr(kl_div_fused, "empty_as", recorded)
    return made


@TEMPERATURES
@pytest.mark.parametrize("upstream", [1.0, 3.0])
def test_a_gradient_that_was_computed_with_the_loss_is_the_gradient_of_the_logits(
    upstream: float, temperature: float | None, computed_with_the_loss: list[weakref.ref[torch.Tensor]]
) -> None:
    case = Case(False, temperature=temperature)
    case.loss().backward(lucid.tensor(upstream, dtype="float64"))
    assert [made() for made in computed_with_the_loss] == [case.student.grad._buffer, case.teacher.grad._buffer]


def _without_fusion(case: Case) -> None:
    with lucid.fusion(False):
        case.made.backward()


def _retained_first(case: Case) -> None:
    case.made.backward(retain_graph=True)
    case.made.backward()


def _looked_at_by_hooks(case: Case) -> None:
    case.log_q.register_hook(case.note)
    case.target.register_hook(case.note)
    case.made.backward()


def _looked_at_before(case: Case) -> None:
    repr(case.log_q)
    case.made.backward()


def _used_twice(case: Case) -> None:
    (case.made + F.kl_div(case.log_q, case.target, reduction="sum", log_target=case.log_target)).backward()


def _of_a_shared_gradient(case: Case) -> None:
    case.made.backward(lucid.from_torch(torch.tensor(2.0, dtype=torch.float64).to(DEVICE)))


def _of_softmaxes(case: Case) -> None:
    for gradient in grad(case.made, [case.log_q, case.target]):
        gradient.numpy()


#: Backward passes, the last of which frees the graph of `made`.
PASSES = [
    lambda case: case.made.backward(),
    _retained_first,
    _without_fusion,
    _looked_at_by_hooks,
    _looked_at_before,
    _used_twice,
    _of_a_shared_gradient,
    _of_softmaxes,
]


@LOGS
@TEMPERATURES
@pytest.mark.parametrize("run", PASSES, ids=lambda run: run.__name__.strip("_<>"))
def test_no_gradient_that_was_computed_with_the_loss_outlives_backward(
    run: Callable[[Case], None],
    temperature: float | None,
    log_target: bool,
    computed_with_the_loss: list[weakref.ref[torch.Tensor]],
    no_collector: None,
) -> None:
    case = Case(log_target, temperature=temperature)
    case.loss()
    assert all(made() is not None for made in computed_with_the_loss)
    run(case)
    assert len(computed_with_the_loss) >= 2
    case.student.grad = case.teacher.grad = None
    assert {made() for made in computed_with_the_loss} == {None}


@pytest.mark.parametrize("scaled", [False, True], ids=["of softmaxes", "of scaled logits"])
def test_a_gradient_that_a_hook_looks_at_releases_that_computed_with_the_loss_at_once(
    scaled: bool, computed_with_the_loss: list[weakref.ref[torch.Tensor]], no_collector: None
) -> None:
    case = Case(False, temperature=2.5)
    loss = case.loss()
    alive = []

    def look(gradient: Any) -> None:
        gradient.numpy()
        alive.append([made() is not None for made in computed_with_the_loss])

    for tensor in case.scaled if scaled else (case.log_q, case.target):
        tensor.register_hook(look)
    loss.backward()
    assert alive == [[True, False], [False, False]]  # the teacher's nodes run first


@IN_FORWARD
def test_backward_releases_the_logits(in_forward: bool, no_collector: None) -> None:
    case = Case(False)
    student = case.student * 1
    buffer = weakref.ref(student._buffer)
    with lucid.gradient_in_forward(in_forward):
        loss = F.kl_div(F.log_softmax(student), F.softmax(case.teacher), reduction="sum")
    del student
    assert buffer() is not None
    loss.backward()
    assert buffer() is None


@IN_FORWARD
@pytest.mark.parametrize("how", ["never run", "backward", "retained", "hooked", "grad", "looked at"])
def test_a_fused_graph_is_collected_without_the_cycle_collector(how: str, in_forward: bool, no_collector: None) -> None:
    case = Case(False)
    case.student, case.teacher = case.student * 1, case.teacher * 1
    buffers = [weakref.ref(logits._buffer) for logits in (case.student, case.teacher)]
    with lucid.gradient_in_forward(in_forward):
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
    x = lucid.randn(3, 5, requires_grad=True)
    assert kernels(lambda: F.softmax(x).detach()) == []
