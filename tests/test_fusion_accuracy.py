"""Fused losses and their gradients against the truth in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
from lucid.autograd import grad
from tests.device import DEVICE
from tests.fusing import FORWARD, IN_FORWARD, LOGS, SCALE, backward_kernel, kernels
from tests.reference import ROUNDOFF, TINY, arithmetic_of, assert_within, exact
from tests.values import torch_of

N, V = 5, 1271


def _logits(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher, in float64."""
    student, teacher = torch.randn(2, N, V, dtype=torch.float64)
    if kind == "nearly equal":
        teacher = student + 1e-3 * torch.randn(N, V, dtype=torch.float64)
    elif kind == "peaked":
        student[torch.arange(N), torch.arange(N)] += 80
        teacher[torch.arange(N), torch.arange(N) * 2 % (N + 1)] += 80
    elif kind == "shifted":
        student, teacher = student + 1e4, teacher - 1e4
    elif kind == "masked":
        masked = torch.rand(N, V) < 0.3
        masked[:, 7] = False
        student[masked], teacher[masked] = -torch.inf, -torch.inf
        teacher[:, 8] = -torch.inf
    elif kind == "constant":
        student, teacher = torch.full((N, V), 3.0).double(), torch.full((N, V), -2.0).double()
    return student, teacher


KINDS = ["ordinary", "nearly equal", "peaked", "shifted", "masked", "constant"]


def _truth(student: torch.Tensor, teacher: torch.Tensor, scale: float) -> tuple[np.ndarray, ...]:
    """The loss and the gradients to both, and what their errors are relative to: those of log p to 1 + |log p|."""
    # More than float64, which is tested, too.
    s, t = (exact(x).astype(np.longdouble) for x in (student, teacher))
    log_q, log_p = (x - x.max(1, keepdims=True) for x in (s, t))
    log_q, log_p = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (log_q, log_p))
    q, p = np.exp(log_q), np.exp(log_p)
    with np.errstate(invalid="ignore"):
        slope = np.where(p == 0, 0.0, log_p - log_q)
        spread_q, spread_p = (np.where(w == 0, 0.0, w * (1 + np.abs(x))) for w, x in ((q, log_q), (p, log_p)))
        size = np.where(p == 0, 0.0, spread_p + p * (1 + np.abs(log_q)))
    kl = (p * slope).sum(1, keepdims=True)
    dt_size = size + spread_p * (np.abs(slope) + size.sum(1, keepdims=True))
    results = (kl.sum(), q - p, p * (slope - kl), size.sum(), spread_q + spread_p, dt_size)
    return tuple(np.asarray(scale * x, np.float64) for x in results)


@pytest.mark.usefixtures("tiles")
@IN_FORWARD
@pytest.mark.parametrize(
    ("student_dtype", "teacher_dtype"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16"),
     ("float64", "float64"), ("float64", "float16")],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_loss_is_the_truth_rounded_once(
    kind: str, student_dtype: str, teacher_dtype: str, in_forward: bool
) -> None:
    values = _logits(kind)
    student, teacher = (
        lucid.tensor(x.numpy(), dtype=dtype, requires_grad=True)
        for x, dtype in zip(values, (student_dtype, teacher_dtype), strict=True)
    )

    losses = []

    def run() -> None:
        losses.append(F.kl_div(F.log_softmax(student), F.softmax(teacher), reduction="batchmean"))
        losses[0].backward()

    with lucid.gradient_in_forward(in_forward):
        used = set(kernels(run))
    assert {FORWARD, backward_kernel(in_forward and "float16" not in (student_dtype, teacher_dtype))} <= used
    loss, dtypes = torch_of(losses[0]), (student.dtype.torch, teacher.dtype.torch)
    arithmetic = arithmetic_of(*dtypes)
    kl, *truths, kl_size, ds_size, dt_size = _truth(torch_of(student), torch_of(teacher), 1 / N)
    assert loss.dtype is torch.promote_types(*dtypes)
    assert_within(loss, kl, kl_size, arithmetic)
    for gradient, truth, size in zip((student.grad, teacher.grad), truths, (ds_size, dt_size), strict=True):
        assert gradient is not None
        assert_within(torch_of(gradient), truth, size, arithmetic)
        # A row's gradient sums to 0, but for the rounding of its elements.
        dtype = gradient.dtype.torch
        rounding = ROUNDOFF[dtype] * np.abs(truth) + 8 * ROUNDOFF[arithmetic] * size + TINY[dtype]
        assert np.all(np.abs(exact(torch_of(gradient)).sum(1)) <= rounding.sum(1))


@IN_FORWARD
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "constant"])
def test_the_errors_of_the_fused_loss_are_on_the_whole_four_roundings_in_float32(kind: str, in_forward: bool) -> None:
    """One number may have had eight, as above."""
    s, t = (x.float() for x in _logits(kind))
    student, teacher = (lucid.tensor(x.numpy(), requires_grad=True) for x in (s, t))
    with lucid.gradient_in_forward(in_forward):
        loss = F.kl_div(F.log_softmax(student), F.softmax(teacher), reduction="batchmean")
    loss.backward()
    truths = _truth(s, t, 1 / N)
    for result, truth, size in zip((loss, student.grad, teacher.grad), truths[:3], truths[3:], strict=True):
        error = np.linalg.norm(exact(torch_of(result)) - truth)
        assert error <= 4 * ROUNDOFF[torch.float32] * np.linalg.norm(size)


FACTORS = [0.0, 1.0, 2.0, 0.3, -1.0, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("kept", [False, True], ids=["freed graph", "retained graph"])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["ordinary", "masked"])
def test_the_gradient_of_the_loss_multiplies_gradients_that_were_computed_with_it(
    kind: str, dtype: str, factor: float, kept: bool
) -> None:
    student, teacher = (lucid.tensor(x.numpy(), dtype=dtype, requires_grad=True) for x in _logits(kind))
    found = []
    for upstream in (1.0, factor):
        loss = F.kl_div(F.log_softmax(student), F.softmax(teacher), reduction="batchmean")
        dloss = lucid.tensor(upstream, dtype=dtype)
        if kept:
            grad(loss, [student, teacher], lucid.tensor(7.0, dtype=dtype), retain_graph=True)

        def backward(loss: lucid.Tensor = loss, dloss: lucid.Tensor = dloss) -> None:
            found.append(grad(loss, [student, teacher], dloss, retain_graph=kept))

        assert kernels(backward) == [SCALE] * 2
    of_one, scaled = ([torch_of(x) for x in gradients] for gradients in found)
    rounded = torch_of(lucid.tensor(factor, dtype=dtype)).to(arithmetic_of(of_one[0].dtype))
    for one, result in zip(of_one, scaled, strict=True):
        expected = (one.to(rounded.dtype) * rounded).to(one.dtype)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float64", "float64")])
@pytest.mark.parametrize("kind", ["ordinary", "peaked", "masked"])
def test_one_launch_and_two_differ_by_a_rounding_for_any_gradient_of_the_loss(
    kind: str, dtypes: tuple[str, str], factor: float
) -> None:
    values = _logits(kind)
    found = []
    for in_forward in (True, False):
        student, teacher = (
            lucid.tensor(x.numpy(), dtype=dtype, requires_grad=True) for x, dtype in zip(values, dtypes, strict=True)
        )
        with lucid.gradient_in_forward(in_forward):
            loss = F.kl_div(F.log_softmax(student), F.softmax(teacher), reduction="batchmean")
        found.append(grad(loss, [student, teacher], lucid.tensor(factor, dtype=loss.dtype)))
    *_, ds_size, dt_size = _truth(torch_of(student), torch_of(teacher), 1 / N)
    arithmetic = arithmetic_of(*(x.dtype.torch for x in (student, teacher)))
    for one, two, size in zip(*found, (ds_size, dt_size), strict=True):
        one, two = torch_of(one), torch_of(two)
        if not np.isfinite(factor):
            torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
            continue
        # One launch rounds twice what two launches round once.
        roundings = 3 if factor == 0.3 else 2
        budget = roundings * ROUNDOFF[one.dtype] * np.abs(exact(two)) + 16 * ROUNDOFF[arithmetic] * abs(factor) * size
        assert np.all(np.abs(exact(one) - exact(two)) <= 1.01 * budget + 2 * TINY[one.dtype])


@pytest.mark.parametrize("dtypes", [("float16", "float16"), ("float16", "float32"), ("float32", "float16")])
def test_the_gradient_of_the_loss_keeps_gradients_in_float16_from_vanishing(dtypes: tuple[str, str]) -> None:
    student, teacher = (
        lucid.tensor(x.numpy(), dtype=dtype, requires_grad=True)
        for x, dtype in zip(_logits("ordinary"), dtypes, strict=True)
    )
    loss = F.kl_div(F.log_softmax(student), F.softmax(teacher), reduction="mean")
    loss.backward(lucid.tensor(2.0**14, dtype=loss.dtype))
    _, *truths, _, ds_size, dt_size = _truth(torch_of(student), torch_of(teacher), 2.0**14 / (N * V))
    for gradient, truth, size in zip((student.grad, teacher.grad), truths, (ds_size, dt_size), strict=True):
        assert np.median(np.abs(truth)) < 2.0**14 * np.finfo(np.float16).smallest_normal
        assert_within(torch_of(gradient), truth, size, torch.float32)


def test_a_side_in_float16_that_wants_no_gradient_leaves_that_of_the_other_in_one_launch() -> None:
    student, teacher = lucid.randn(3, 5, requires_grad=True), lucid.randn(3, 5, dtype="float16")
    loss = F.kl_div(F.log_softmax(student), F.softmax(teacher), reduction="sum")
    assert kernels(loss.backward) == [SCALE]


@LOGS
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["ordinary", "nearly equal", "shifted"])
def test_fused_losses_are_nearer_to_the_truth_than_those_of_rounded_log_probabilities(
    kind: str, dtype: str, log_target: bool
) -> None:
    values = [x / 4 if kind == "shifted" else x for x in _logits(kind)]
    errors = []
    for enabled in (True, False):
        with lucid.fusion(enabled):
            student, teacher = (lucid.tensor(x.numpy(), dtype=dtype, requires_grad=True) for x in values)
            target = F.log_softmax(teacher) if log_target else F.softmax(teacher)
            loss = F.kl_div(F.log_softmax(student), target, reduction="batchmean", log_target=log_target)
            loss.backward()
        assert student.grad is not None
        truth = _truth(torch_of(student), torch_of(teacher), 1 / N)
        errors.append([np.abs(loss.item() - truth[0]), np.linalg.norm(exact(torch_of(student.grad)) - truth[1])])
    assert errors[0][0] <= errors[1][0] + ROUNDOFF[torch.float32] * truth[3], errors
    assert errors[0][1] <= errors[1][1], errors


@pytest.mark.usefixtures("tiles")
@IN_FORWARD
def test_a_fused_result_is_repeatable_and_a_gradient_does_not_depend_on_the_batch(in_forward: bool) -> None:
    values = torch.randn(2, N, V, dtype=torch.float32).to(DEVICE)

    def run(rows: slice) -> list[np.ndarray]:
        student, teacher = (lucid.from_torch(x[rows]).clone().requires_grad_() for x in values)
        with lucid.gradient_in_forward(in_forward):
            loss = F.kl_div(F.log_softmax(student), F.softmax(teacher), reduction="sum")
        loss.backward()
        assert student.grad is not None
        return [loss.numpy(), student.grad.numpy()]

    whole, again, part = run(slice(None)), run(slice(None)), run(slice(5, 8))
    np.testing.assert_array_equal(whole[0], again[0])
    np.testing.assert_array_equal(whole[1], again[1])
    np.testing.assert_array_equal(part[1], whole[1][5:8])
