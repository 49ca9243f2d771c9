"""Cross-entropy with class probabilities against the definition and torch's in float64; zeros, infinities, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
import triton_kernels as tk
from tests.device import DEVICE
from tests.reference import FLOATS, arithmetic_of, assert_within, exact
from triton_kernels.devtools import trace

pytestmark = pytest.mark.usefixtures("launchers")


def _draw(shape: tuple[int, ...], x: torch.dtype, y: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and probabilities of which some are 0."""
    dim = min(len(shape) - 1, 1)
    logits, others = (3 * torch.randn(shape, dtype=torch.float64) for _ in range(2))
    return logits.to(DEVICE, x), torch.where(others > 6, 0.0, others.softmax(dim)).to(DEVICE, y)


def _check(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> None:
    """Compare the loss and both gradients, with a random dloss, with the definition, and that with torch's.

    Also the gradient to the logits alone, which may be computed with the loss.
    """
    leaves = [lucid.from_torch(tensor).requires_grad_() for tensor in (x, y)]
    given = {"reduction": reduction, "label_smoothing": label_smoothing}
    loss = F.cross_entropy(*leaves, None if weight is None else lucid.from_torch(weight), **given)
    assert loss.dtype.torch == torch.promote_types(x.dtype, y.dtype)
    # Powers of two scale a rounded gradient exactly.
    dloss = torch.ldexp(torch.randn(loss.shape, dtype=torch.float64).sign(), torch.randint(-3, 4, loss.shape))
    dloss = dloss.to(loss.dtype.torch)
    loss.backward(lucid.from_torch(dloss.to(DEVICE)))
    alone = lucid.from_torch(x).requires_grad_()
    loss_alone = F.cross_entropy(
        alone, lucid.from_torch(y), None if weight is None else lucid.from_torch(weight), **given
    )
    loss_alone.backward(lucid.from_torch(dloss.to(DEVICE)))
    dx, dy = (leaf.grad.to_torch() for leaf in leaves)
    assert (dx.dtype, dy.dtype) == (x.dtype, y.dtype)

    dim = min(x.dim() - 1, 1)
    classes = x.shape[dim]
    logits, p = (np.moveaxis(exact(tensor), dim, -1).astype(np.longdouble) for tensor in (x, y))
    c = np.ones(classes) if weight is None else exact(weight)
    w = c * ((1 - label_smoothing) * p + label_smoothing / classes)
    z = logits - logits.max(-1, keepdims=True)
    log_d = np.log(np.exp(z).sum(-1, keepdims=True))
    nll = log_d - z
    q = np.exp(-nll)
    total = w.sum(-1, keepdims=True)
    rows = 1 if reduction != "mean" else math.prod(total.shape)
    losses = (w * nll).sum(-1) / rows
    outer = exact(dloss)[..., None] / rows
    to_y = outer * (1 - label_smoothing) * c
    arithmetic = arithmetic_of(x.dtype, y.dtype)
    rounds = 16 + math.log2(classes)
    # What is added up or subtracted: to each −log q, log d and z; and the exponent of each q.
    sizes = (w * (log_d + np.abs(z) + 1)).sum(-1) / rows
    dx_sizes = np.abs(outer) * (total * q * (np.abs(z) + 1) + w)
    dy_sizes = np.abs(to_y) * (log_d + np.abs(z) + 1)

    def placed(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.asarray(values, np.float64), -1, dim)

    truth = losses if reduction == "none" else losses.sum()
    size = sizes if reduction == "none" else sizes.sum()
    true_dx, true_dy = placed(outer * (total * q - w)), placed(to_y * nll)
    for got in (loss, loss_alone):
        assert_within(got.to_torch(), np.asarray(truth, np.float64), np.asarray(size, np.float64), arithmetic, rounds)
    for gradient in (dx, alone.grad.to_torch()):
        assert_within(gradient, true_dx, placed(dx_sizes), arithmetic, rounds)
    assert_within(dy, true_dy, placed(dy_sizes), arithmetic, rounds)

    wide = [tensor.detach().cpu().double().requires_grad_() for tensor in (x, y)]
    torchs = torch.nn.functional.cross_entropy(*wide, None if weight is None else weight.cpu().double(), **given)
    np.testing.assert_allclose(exact(torchs), np.asarray(truth, np.float64), rtol=1e-9, atol=1e-12)
    grads = torch.autograd.grad(torchs, wide, dloss.double())
    for grad, true in zip(grads, (true_dx, true_dy), strict=True):
        np.testing.assert_allclose(exact(grad), true, rtol=1e-7, atol=1e-11 * max(1, np.abs(true).max()))


@pytest.mark.usefixtures("tiles", "forms")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("y", FLOATS, ids=str)
@pytest.mark.parametrize("x", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(5,), (4, 5), (7, 1271), (3, 5, 4), (2, 5, 3, 4), (1, 1), (3, 40, 70)], ids=str)
def test_loss_and_both_gradients_are_those_of_the_definition_and_of_torch(
    shape: tuple[int, ...], x: torch.dtype, y: torch.dtype, reduction: str, smoothing: float, weighted: bool
) -> None:
    weight = torch.rand(shape[min(len(shape) - 1, 1)]).to(DEVICE) if weighted else None
    _check(*_draw(shape, x, y), weight, reduction, smoothing)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_long_rows_are_true_with_the_tiles_of_a_gpu(dtype: torch.dtype, smoothing: float, weighted: bool) -> None:
    weight = torch.rand(20000).to(DEVICE) if weighted else None
    with tk.tile_configs.use_tile_configs(interpreted=False):
        _check(*_draw((2, 20000), dtype, dtype), weight, label_smoothing=smoothing)


def test_strided_and_expanded_logits_probabilities_and_weights_are_read_in_place() -> None:
    x, y = _draw((20, 14), torch.float32, torch.float32)
    weight = torch.rand(36).to(DEVICE)[::2]
    _check(x.t()[::2, 1:-1], y[:7, :1].expand(7, 18), weight, label_smoothing=0.1)
    _check(x[:1].expand(6, 14), y.t()[::2, :14][:6])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("classes", [6, 9000])
def test_a_masked_class_adds_exactly_0_unless_it_is_probable(classes: int) -> None:
    """Against the same without the masked classes, which fill whole chunks of a long row."""
    few = classes // 3
    x, y = _draw((2, classes), torch.float32, torch.float32)
    x[:, few:] = -math.inf
    y[:, few:] = 0
    y[1, -1] = 0.5
    leaves = [lucid.from_torch(tensor).requires_grad_() for tensor in (x, y)]
    losses = F.cross_entropy(*leaves, reduction="none")
    kept = [lucid.from_torch(tensor[:1, :few].contiguous()).requires_grad_() for tensor in (x, y)]
    expected = F.cross_entropy(*kept, reduction="none")
    assert losses.tolist() == [pytest.approx(expected.item(), rel=1e-6), math.inf]
    losses.backward(lucid.tensor([1.0, 0.0]))
    expected.backward(lucid.tensor([1.0]))
    for leaf, part in zip(leaves, kept, strict=True):
        np.testing.assert_allclose(leaf.grad.numpy()[:1, :few], part.grad.numpy(), rtol=1e-5, atol=1e-7)
        assert not leaf.grad.numpy()[1].any()
    dx, dy = (leaf.grad.numpy()[0, few:] for leaf in leaves)
    assert not dx.any()
    assert (dy == math.inf).all()


def test_a_class_of_weight_0_is_left_out_whatever_its_probability() -> None:
    x, y = lucid.tensor([[1.0, -math.inf, 2.0]], requires_grad=True), lucid.tensor([[0.5, 0.25, 0.25]])
    y.requires_grad_()
    weight = lucid.tensor([1.0, 0.0, 1.0])
    loss = F.cross_entropy(x, y, weight)
    loss.backward()
    nll = np.log1p(np.exp([1.0, -1.0]))
    q = np.exp(-nll[0])
    assert loss.item() == pytest.approx(0.5 * nll[0] + 0.25 * nll[1], rel=1e-6)
    np.testing.assert_allclose(y.grad.numpy(), [[nll[0], 0, nll[1]]], rtol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), [[0.75 * q - 0.5, 0, 0.5 - 0.75 * q]], rtol=1e-6)


@pytest.mark.parametrize("place", ["logits", "probabilities"])
def test_nan_comes_out_in_its_own_row_alone(place: str) -> None:
    x, y = _draw((3, 7), torch.float32, torch.float32)
    (x if place == "logits" else y)[1, 2] = math.nan
    leaves = [lucid.from_torch(tensor).requires_grad_() for tensor in (x, y)]
    losses = F.cross_entropy(*leaves, reduction="none")
    losses.backward(lucid.ones_like(losses))
    assert [math.isnan(loss) for loss in losses.tolist()] == [False, True, False]
    dx, dy = (np.isnan(leaf.grad.numpy()) for leaf in leaves)
    assert dx.all(axis=1).tolist() == [False, True, False]
    assert not dx[[0, 2]].any()
    # The gradient to probabilities does not depend on them.
    assert dy.any(axis=1).tolist() == [False, place == "logits", False]


@pytest.mark.parametrize(("reduction", "expected"), [("none", []), ("sum", 0.0), ("mean", 0.0)])
def test_without_rows_the_loss_is_zero(reduction: str, expected: Any) -> None:
    leaves = [lucid.zeros(0, 4, requires_grad=True) for _ in range(2)]
    loss = F.cross_entropy(*leaves, reduction=reduction)
    loss.backward(lucid.ones_like(loss))
    assert loss.tolist() == expected
    assert [leaf.grad.shape for leaf in leaves] == [(0, 4)] * 2


X, Y = lucid.zeros(4, 6), lucid.zeros(4, 6)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "shape": (
        {"target": lucid.zeros(4, 5)},
        RuntimeError,
        r"must have x's shape \(4, 6\), got \(4, 5\) of lucid.float32",
    ),
    "floating labels": ({"target": lucid.zeros(4)}, RuntimeError, r"got \(4,\) .*: labels must be int32 or int64"),
    "integers": (
        {"target": lucid.tensor(np.zeros((4, 6), "int64"))},
        TypeError,
        "target of x's shape is class probabilities, which must be floating, got lucid.int64",
    ),
    "bool": (
        {"target": lucid.tensor(np.zeros((4, 6), "bool"))},
        TypeError,
        "target must be labels, int32 or int64, or class probabilities, float16, .* got lucid.bool",
    ),
    "ignore_index": ({"ignore_index": 2}, ValueError, "ignore_index is of labels alone, got 2 .*: leave it out"),
    "negative ignore_index": ({"ignore_index": -1}, ValueError, "ignore_index is of labels alone, got -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error_before_any_launch(case: str) -> None:
    given, error, message = BAD[case]
    with trace.launches() as made, pytest.raises(error, match=message):
        F.cross_entropy(**{"x": X, "target": Y, **given})
    assert not made
