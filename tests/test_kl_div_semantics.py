"""Semantics of kl_div: special values, errors, determinism, derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid.autograd import grad, gradcheck, gradgradcheck
from tests.device import DEVICE
from tests.reference import FLOATS

pytestmark = pytest.mark.usefixtures("launchers")

INF, NAN = math.inf, math.nan


def _leaves(x: Any, y: Any, dtype: str = "float32") -> tuple[lucid.Tensor, lucid.Tensor]:
    return lucid.tensor(x, dtype=dtype, requires_grad=True), lucid.tensor(y, dtype=dtype, requires_grad=True)


def _loss_and_gradients(x: Any, y: Any, log_target: bool, dtype: str = "float32") -> tuple[list[float], ...]:
    x, y = _leaves(x, y, dtype)
    loss = F.kl_div(x, y, reduction="none", log_target=log_target)
    loss.backward(lucid.ones_like(loss))
    return loss.tolist(), x.grad.tolist(), y.grad.tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("x", [-1.0, -INF, 0.0, INF], ids=str)
@pytest.mark.parametrize(("zero", "log_target"), [(0.0, False), (-0.0, False), (-INF, True)])
def test_a_zero_target_adds_exactly_zero_to_loss_and_gradients(
    zero: float, log_target: bool, x: float, dtype: str
) -> None:
    assert _loss_and_gradients([x], [zero], log_target, dtype) == ([0.0], [0.0], [0.0])


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize(("x", "p"), [(NAN, 0.5), (NAN, 0.0), (-1.0, NAN), (NAN, NAN)])
def test_nan_comes_out_as_nan(x: float, p: float, log_target: bool) -> None:
    y = p if not log_target else -INF if p == 0 else math.log(p) if p == p else NAN
    loss, _, dy = _loss_and_gradients([x], [y], log_target)
    assert math.isnan(loss[0])
    assert math.isnan(dy[0])
    total = F.kl_div(lucid.tensor([x, -1.0]), lucid.tensor([y, y if p == p else -1.0]), log_target=log_target)
    assert math.isnan(total.item())


def test_a_negative_probability_gives_nan() -> None:
    assert math.isnan(_loss_and_gradients([-1.0], [-0.5], False)[0][0])


@pytest.mark.parametrize("log_target", [False, True])
def test_a_probability_that_the_prediction_excludes_gives_infinity(log_target: bool) -> None:
    y = math.log(0.5) if log_target else 0.5
    loss, dx, dy = _loss_and_gradients([-INF], [y], log_target)
    assert loss == [INF]
    assert dx == [pytest.approx(-0.5)]
    assert dy == [INF]


@pytest.mark.parametrize("p", [1e-45, 1e-40, 1.1754944e-38, 1e-30])
def test_subnormal_targets_are_not_lost(p: float) -> None:
    p = float(np.float32(p))
    loss, dx, _ = _loss_and_gradients([-1.0], [p], False)
    assert loss[0] == pytest.approx(p * (math.log(p) + 1), rel=1e-6, abs=2e-45)
    assert dx == [-p]


def test_a_loss_near_zero_keeps_its_relative_accuracy_near_p_of_one() -> None:
    p = np.float32(1) - np.float32(2.0**-20)
    loss = _loss_and_gradients([0.0], [p], False)[0][0]
    assert loss == pytest.approx(float(p) * math.log(float(p)), rel=1e-6)


@pytest.mark.parametrize(("reduction", "expected"), [("mean", NAN), ("batchmean", NAN), ("sum", 0.0)])
def test_the_loss_over_nothing_is_that_of_torch(reduction: str, expected: float) -> None:
    x, y = _leaves(np.zeros((0, 3)), np.zeros((0, 3)))
    loss = F.kl_div(x, y, reduction=reduction)
    np.testing.assert_equal(loss.item(), expected)
    loss.backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 3)


def test_batchmean_over_rows_without_columns_is_zero() -> None:
    x = lucid.zeros(4, 0)
    assert F.kl_div(x, x, reduction="batchmean").item() == 0.0


def test_batchmean_divides_by_the_rows_of_x_even_where_the_target_has_more() -> None:
    x, y = lucid.tensor([[-1.0, -2.0]]), lucid.tensor([[0.5, 0.5]] * 3)
    total = F.kl_div(x, y, reduction="sum").item()
    assert F.kl_div(x, y, reduction="batchmean").item() == pytest.approx(total)


def test_attributes_are_read_at_the_call() -> None:
    criterion = nn.KLDivLoss()
    x, y = lucid.tensor([-1.0, -2.0]), lucid.tensor([0.5, 0.5])
    mean = criterion(x, y).item()
    criterion.reduction = "sum"
    assert criterion(x, y).item() == pytest.approx(2 * mean)
    criterion.reduction, criterion.log_target = "none", True
    assert repr(criterion) == "KLDivLoss(reduction='none', log_target=True)"
    assert criterion.extra_repr() == "reduction='none', log_target=True"


def test_size_average_is_third_and_has_no_effect() -> None:
    x, y = lucid.tensor([-1.0, -2.0]), lucid.tensor([0.5, 0.5])
    assert F.kl_div(x, y, False).item() == F.kl_div(x, y, True, "mean", False).item() == F.kl_div(x, y).item()


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", F.REDUCTIONS)
@pytest.mark.parametrize(
    ("x_shape", "y_shape"), [((2, 2), (2, 2)), ((2, 2), (1, 2)), ((2,), (2, 2)), ((2, 1), (1, 2))], ids=str
)
def test_first_and_second_derivatives_agree_with_finite_differences(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], reduction: str, log_target: bool
) -> None:
    x = lucid.tensor(np.log(np.random.uniform(0.1, 0.9, x_shape)), requires_grad=True)
    p = np.random.uniform(0.1, 0.9, y_shape)
    y = lucid.tensor(np.log(p) if log_target else p, requires_grad=True)

    def loss(x: lucid.Tensor, y: lucid.Tensor) -> lucid.Tensor:
        return F.kl_div(x, y, reduction=reduction, log_target=log_target)

    assert gradcheck(loss, (x, y), fast_mode=True)
    assert gradgradcheck(loss, (x, y), fast_mode=True)


@pytest.mark.parametrize("log_target", [False, True])
def test_second_derivatives_at_a_zero_target_are_finite(log_target: bool) -> None:
    x, y = _leaves([-INF, -1.0], [-INF, -1.0] if log_target else [0.0, 0.5])
    dx, dy = grad(F.kl_div(x, y, reduction="sum", log_target=log_target), (x, y), create_graph=True)
    seconds = grad((dx.sum() + dy.sum()), (x, y))
    assert all(np.isfinite(second.numpy()).all() for second in seconds)
    assert seconds[0].tolist()[0] == 0.0


@pytest.mark.parametrize("log_target", [False, True])
def test_gradients_made_for_differentiation_are_the_same_bits(log_target: bool) -> None:
    x, y = _leaves(np.random.randn(5, 7) - 3, -np.random.rand(5, 7) if log_target else np.random.rand(5, 7))

    def gradients(create_graph: bool) -> list[np.ndarray]:
        loss = F.kl_div(x, y, log_target=log_target)
        return [g.numpy() for g in grad(loss, (x, y), create_graph=create_graph)]

    for plain, recorded in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_array_equal(plain, recorded)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", F.REDUCTIONS)
def test_results_are_bitwise_the_same_from_run_to_run(reduction: str, dtype: torch.dtype) -> None:
    values = torch.randn(2, 41, 671, dtype=torch.float64).log_softmax(-1).to(DEVICE, dtype)

    def run() -> list[bytes]:
        x, y = (lucid.from_torch(t).requires_grad_() for t in values)
        loss = F.kl_div(x, y, reduction=reduction, log_target=True)
        loss.backward(lucid.ones_like(loss))
        return [t.to_torch().cpu().view(torch.uint8).numpy().tobytes() for t in (loss.reshape(-1), x.grad, y.grad)]

    assert run() == run()


X, P = lucid.tensor([-1.0, -2.0]), lucid.tensor([0.5, 0.5])
_BAD: dict[str, tuple[Any, ...]] = {
    "x a list": (([1.0], P), {}, TypeError, r"^x must be a lucid.Tensor, got list$"),
    "x of torch": (
        (torch.zeros(2), P),
        {},
        TypeError,
        r"^x must be a lucid.Tensor, got torch.Tensor: pass lucid.from_torch\(x\)$",
    ),
    "target None": ((X, None), {}, TypeError, r"^target must be a lucid.Tensor, got NoneType$"),
    "target of integers": (
        (X, lucid.tensor([1, 0])),
        {},
        TypeError,
        r"^target must be float16, bfloat16, float32 or float64, got lucid.int64$",
    ),
    "x of bool": ((X > 0, P), {}, TypeError, r"^x must be float16.*got lucid.bool_$"),
    "shapes": (
        (lucid.zeros(2, 3), lucid.zeros(3, 2)),
        {},
        RuntimeError,
        r"^x and target must have shapes that broadcast, got x \(2, 3\) and target \(3, 2\)$",
    ),
    "reduction": (
        (X, P),
        {"reduction": "x"},
        ValueError,
        r"^reduction must be one of \('none', 'mean', 'sum', 'batchmean'\), got 'x'$",
    ),
    "reduction None": ((X, P), {"reduction": None}, ValueError, r"got None$"),
    "batchmean of 0-d": (
        (lucid.tensor(-1.0), lucid.tensor(0.5)),
        {"reduction": "batchmean"},
        RuntimeError,
        r"^reduction 'batchmean' divides by x.shape\[0\], so x must have a dimension, got shape \(\)$",
    ),
}


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_gets_one_clear_error(case: str) -> None:
    args, kwargs, kind, message = _BAD[case]
    with pytest.raises(kind, match=message) as caught:
        F.kl_div(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_tensors_on_different_devices_are_named() -> None:
    elsewhere = lucid.Tensor._wrap(torch.zeros(2, device="meta"))
    with pytest.raises((RuntimeError, ValueError), match="device"):
        F.kl_div(X, elsewhere)


def test_complex_numbers_are_refused_where_they_would_enter() -> None:
    with pytest.raises(TypeError, match="complex64"):
        lucid.from_torch(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="complex"):
        lucid.tensor(np.zeros(2, dtype=np.complex64))
