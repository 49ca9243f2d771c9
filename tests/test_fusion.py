"""Which losses are fused, and that values, shapes and errors are those without fusion."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid.autograd import grad, gradcheck, gradgradcheck
from tests.fusing import (
    BACKWARD,
    FORWARD,
    IN_FORWARD,
    LOGS,
    SCALE,
    TEMPERATURES,
    Case,
    ScenarioRegistry,
    assert_fused_equals_eager,
    backward_kernel,
    kernels,
    message,
)

scenario = ScenarioRegistry()


@scenario()
def without_reduction(case: Case) -> Any:
    case.loss("none").backward(lucid.randn(3, 5, dtype="float64"))
    return case.observables()


@scenario(FORWARD, BACKWARD)
def logits_of_a_model(case: Case) -> Any:
    model = nn.Linear(4, 5, dtype="float64")
    case.student = model(lucid.randn(3, 4, dtype="float64"))
    case.student.retain_grad()
    case.loss().backward()
    return case.observables(model.weight.grad, model.bias.grad)


@scenario(FORWARD, BACKWARD)
def strided_logits(case: Case) -> Any:
    case.student = lucid.randn(4, 4, 6, dtype="float64", requires_grad=True)
    case.teacher = lucid.randn(5, 4, 5, dtype="float64", requires_grad=True)
    case.log_q = F.log_softmax(case.student[:, 1:, 1:], dim=-1)
    teacher = case.teacher.permute(2, 1, 0)[1:, :3]
    case.target = case.target_of(teacher, 2)
    return case.backward()


@scenario(FORWARD, BACKWARD)
def broadcast_logits(case: Case) -> Any:
    case.student = lucid.randn(1, 5, dtype="float64", requires_grad=True)
    case.log_q = F.log_softmax(case.student.expand(3, 5))
    case.target = case.target_of(case.teacher)
    return case.backward()


@scenario(FORWARD)
def copies_and_pickles(case: Case) -> Any:
    with lucid.no_grad():
        case.softmaxes()
    twins = [copy.deepcopy(case.log_q), pickle.loads(pickle.dumps(case.target)), copy.copy(case.log_q)]
    refused = F.log_softmax(case.student)
    with lucid.no_grad():
        case.log_q = F.log_softmax(case.student)
        case.target = case.target_of(case.teacher)
        return case.loss(), twins, message(lambda: copy.deepcopy(refused)), nn.Parameter(twins[0])


@scenario()
def shapes_that_broadcast(case: Case) -> Any:
    case.teacher = lucid.randn(1, 5, dtype="float64", requires_grad=True)
    return case.backward()


@scenario()
def another_dimension(case: Case) -> Any:
    case.log_q = F.log_softmax(case.student, dim=0)
    case.target = case.target_of(case.teacher, 0)
    return case.backward()


@scenario()
def a_target_of_the_other_kind(case: Case) -> Any:
    case.softmaxes()
    case.log_target = not case.log_target
    return case.backward()


@scenario()
def probabilities_where_logarithms_belong(case: Case) -> Any:
    case.softmaxes()
    case.log_q = F.softmax(case.student)
    return case.backward()


@scenario()
def a_target_that_is_no_softmax(case: Case) -> Any:
    case.softmaxes()
    case.target = case.target * 1
    return case.backward()


@scenario()
def errors(case: Case) -> Any:
    log_q, target = case.softmaxes()
    number = lucid.tensor(1.0)
    return [
        message(lambda: F.kl_div(log_q, target, reduction="x")),
        message(lambda: F.kl_div(log_q, F.softmax(lucid.randn(4, 5)))),
        message(lambda: F.kl_div(log_q, None)),
        message(lambda: F.kl_div(F.log_softmax(number), F.softmax(number), reduction="batchmean")),
        message(log_q.backward),
        message(lambda: log_q.backward(lucid.ones(3, 5))),
        message(lambda: log_q.requires_grad_(False)),
        message(lambda: float(log_q)),
        message(lambda: log_q.to("mps")),
        message(lambda: grad(log_q.sum(), target)),
        message(lambda: lucid.Tensor(log_q, dtype="x")),
    ]


@scenario()
def all_a_softmax_can_be_asked(case: Case) -> Any:
    def asked() -> Any:
        return F.log_softmax(case.student)

    views = [asked().T, asked().reshape(15), asked()[1], asked().expand(2, 3, 5), asked().unsqueeze(0)]
    same = asked()
    seen = [same.to("float64") is same, same.contiguous() is same, hash(same) == hash(same), len(same), same.size()]
    seen += [same.stride(), same.is_contiguous(), same.numel(), same.ndim, same.dim(), same.shape, same.dtype]
    seen += [same.device, same.is_leaf, same.requires_grad, repr(same.grad_fn), same.grad]
    values = [asked().numpy(), asked().tolist(), np.asarray(asked()), asked()[0, 0].item(), repr(asked())]
    values += [np.from_dlpack(asked().cpu()), asked().to_torch().cpu().numpy(), list(asked()), asked() < -1]
    return seen, views, values, lucid.Tensor(asked()), asked().float(), asked().cpu(), asked().clone()


@LOGS
@TEMPERATURES
@IN_FORWARD
@pytest.mark.parametrize("name", scenario.all)
def test_fused_is_unfused_but_for_rounding(
    name: str, in_forward: bool, temperature: float | None, log_target: bool
) -> None:
    scenario.all[name].check(lambda: Case(log_target, temperature=temperature), in_forward)


@LOGS
@IN_FORWARD
@pytest.mark.parametrize("reduction", F.REDUCTIONS)
@pytest.mark.parametrize("shape", [(7,), (1, 1), (2, 3, 4), (4, 1), (41, 1271), (0, 3), (3, 0), ()])
def test_every_shape_and_reduction(shape: tuple[int, ...], reduction: str, in_forward: bool, log_target: bool) -> None:
    def run() -> Any:
        case = Case(log_target, shape)
        error = message(lambda: case.loss(reduction))
        if error != "nothing raised":
            return error
        case.made.backward(lucid.ones_like(case.made))
        return case.observables()

    fused = assert_fused_equals_eager(run, in_forward=in_forward)
    expected = {FORWARD, backward_kernel(in_forward)} if np.prod(shape) and shape and reduction != "none" else set()
    assert fused == expected


INF, NAN = np.inf, np.nan
ORDINARY = [1.0, -2.0, 0.5]


@LOGS
@TEMPERATURES
@IN_FORWARD
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([-INF] * 3, ORDINARY),
        (ORDINARY, [-INF] * 3),
        ([-INF] * 3, [-INF] * 3),
        ([1.0, NAN, 2.0], ORDINARY),
        ([1.0, NAN, 2.0], [0.0, -INF, 3.0]),
        (ORDINARY, [1.0, NAN, 2.0]),
        ([1.0, INF, 2.0], ORDINARY),
        (ORDINARY, [1.0, INF, 2.0]),
        ([1.0, -INF, 2.0], ORDINARY),
        (ORDINARY, [1.0, -INF, 2.0]),
        ([1.0, -INF, 2.0], [0.0, -INF, 3.0]),
        ([1.0, -INF, 2.0], [-INF, 1.0, 3.0]),
        ([1.0, -INF, 2.0], [0.0, -6e4, 3.0]),
        ([1.0, -6e4, 2.0], [0.0, -6e4, 3.0]),
        ([-1e4] * 3, [1e4] * 3),
    ],
    ids=str,
)
def test_special_rows_are_special_in_the_same_way(
    student: list[float],
    teacher: list[float],
    dtype: str,
    in_forward: bool,
    temperature: float | None,
    log_target: bool,
) -> None:
    def run() -> Any:
        case = Case(log_target, temperature=temperature)
        case.student = lucid.tensor([student, ORDINARY], dtype=dtype, requires_grad=True)
        case.teacher = lucid.tensor([teacher, ORDINARY], dtype=dtype, requires_grad=True)
        case.loss("sum").backward()
        return case.observables()

    roundings = {"float16": 1e-2, "bfloat16": 1e-1, "float32": 1e-5, "float64": 1e-12}
    used = assert_fused_equals_eager(run, roundings[dtype], in_forward)
    assert used == {FORWARD, backward_kernel(in_forward and dtype != "float16")}


@LOGS
@IN_FORWARD
def test_derivatives_agree_with_finite_differences(in_forward: bool, log_target: bool) -> None:
    case = Case(log_target, (2, 3))

    def loss(student: Any, teacher: Any) -> Any:
        case.student, case.teacher = student, teacher
        case.softmaxes()
        return case.loss()

    with lucid.gradient_in_forward(in_forward):
        assert gradcheck(loss, (case.student, case.teacher), fast_mode=True)
        assert gradgradcheck(loss, (case.student, case.teacher), fast_mode=True)


def test_fusion_is_a_block_and_a_decorator() -> None:
    def loss() -> Any:
        return F.kl_div(F.log_softmax(lucid.randn(3, 5)), F.softmax(lucid.randn(3, 5)))

    def fused(run: Callable[[], Any]) -> bool:
        return FORWARD in kernels(run)

    @lucid.fusion(False)
    def plain(depth: int = 0) -> Any:
        return loss() if depth == 0 else plain(depth - 1)

    assert fused(loss)
    assert not fused(plain)
    assert not fused(lambda: plain(3))
    assert plain.__name__ == "plain"
    assert fused(loss)
    off = lucid.fusion(False)
    with off, off:
        assert not fused(loss)
        assert fused(lucid.fusion(True)(loss))
        with lucid.fusion():
            assert fused(loss)
        assert not fused(loss)
    with pytest.raises(KeyError), off:
        raise KeyError
    assert fused(loss)


def test_what_was_deferred_outside_is_calculated_inside_a_block_without_fusion() -> None:
    case = Case(False)
    case.softmaxes()
    with lucid.fusion(False):
        assert FORWARD not in kernels(case.loss)
    fused = Case(False)
    loss = fused.loss()
    with lucid.fusion(False):
        assert not {BACKWARD, SCALE} & set(kernels(loss.backward))


def test_gradients_in_forward_are_a_block_and_a_decorator_around_the_loss() -> None:
    def loss() -> Any:
        return Case(False).loss()

    def backward_of(made: Any) -> list[str]:
        return kernels(made.backward)

    @lucid.gradient_in_forward(False)
    def apart() -> Any:
        return loss()

    decorated = lucid.gradient_in_forward(False)(Case(False).loss)
    assert kernels(Case(False).loss) == kernels(decorated) == [FORWARD, "_sum_kernel"]
    assert backward_of(loss()) == [SCALE] * 2
    assert backward_of(apart()) == [BACKWARD]
    before = loss()
    with lucid.gradient_in_forward(False):
        assert backward_of(before) == [SCALE] * 2
        within = loss()
        with lucid.gradient_in_forward():
            assert backward_of(loss()) == [SCALE] * 2
    assert backward_of(within) == [BACKWARD]
