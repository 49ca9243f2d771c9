"""Cross-entropy with labels against torch's in float64: layouts, dtypes, weights, smoothing, reductions; and errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
import triton_kernels as tk
from tests.device import DEVICE
from tests.reference import FLOATS, arithmetic_of, assert_within, exact
from triton_kernels.devtools import trace

pytestmark = pytest.mark.usefixtures("launchers")


def _truth(
    x: torch.Tensor,
    labels: torch.Tensor,
    dloss: torch.Tensor,
    weight: torch.Tensor | None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> tuple[np.ndarray, np.ndarray]:
    """The loss and its gradient times dloss, by the definition: w[y]·(1 − ε)·(−log q[y]) + ε/C·Σ w·(−log q)."""
    dim = min(x.dim() - 1, 1)
    logits = np.moveaxis(exact(x), dim, -1).astype(np.longdouble)
    classes = logits.shape[-1]
    w = np.ones(classes) if weight is None else exact(weight)
    kept = exact(labels) != ignore_index
    y = np.where(kept, labels.numpy(), 0)[..., None]
    log_q = logits - logits.max(-1, keepdims=True, initial=-np.inf)
    log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
    w_y = np.where(kept, w[y[..., 0]], 0)
    # Of each class, what −log q is multiplied with.
    factors = label_smoothing / classes * w * np.where(kept, 1, 0)[..., None]
    factors = factors + (1 - label_smoothing) * w_y[..., None] * (np.arange(classes) == y)
    with np.errstate(invalid="ignore"):
        losses = np.where(factors == 0, 0, -factors * log_q).sum(-1)
    shares = {"none": 1, "sum": 1, "mean": w_y.sum()}[reduction]
    loss = losses if reduction == "none" else losses.sum() / shares
    outer = (exact(dloss) / shares)[..., None] if reduction == "none" else exact(dloss) / shares
    dx = outer * (np.exp(log_q) * factors.sum(-1, keepdims=True) - factors)
    return np.asarray(loss, np.float64), np.moveaxis(np.asarray(dx, np.float64), -1, dim)


def _check(x: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None = None, **options: Any) -> None:
    """Compare the loss and its gradient, with a random dloss, with torch's in float64."""
    leaf = lucid.from_torch(x).requires_grad_()
    loss = F.cross_entropy(
        leaf, lucid.from_torch(labels), None if weight is None else lucid.from_torch(weight), **options
    )
    assert loss.dtype.torch == x.dtype
    # Powers of two scale a rounded gradient exactly.
    dloss = torch.ldexp(torch.randn(loss.shape, dtype=torch.float64).sign(), torch.randint(-3, 4, loss.shape)).to(
        x.dtype
    )
    loss.backward(lucid.from_torch(dloss.to(DEVICE)))

    wide = x.detach().cpu().double().requires_grad_()
    given = {"weight": None if weight is None else weight.cpu().double(), **options}
    torchs = torch.nn.functional.cross_entropy(wide, labels.cpu().long(), **given)
    truth, dx = _truth(wide.detach(), labels.cpu().long(), dloss, **given)
    # Torch's sums have another order on every processor; what it means is what counts.
    np.testing.assert_allclose(exact(torchs), truth, rtol=1e-9)
    torchs_dx = exact(torch.autograd.grad(torchs, wide, dloss.double())[0])
    np.testing.assert_allclose(torchs_dx, dx, rtol=1e-7, atol=1e-12 * np.abs(exact(dloss)).max())
    arithmetic = arithmetic_of(x.dtype)
    classes = x.shape[min(x.dim() - 1, 1)]
    rounds = 16 + math.log2(classes)
    spread = float(wide.detach().abs().max()) * 2 + 10
    scale = 1.0 if weight is None else float(weight.max())
    assert_within(loss.to_torch(), truth, truth + spread * scale, arithmetic, rounds)
    assert leaf.grad is not None
    assert leaf.grad.dtype == leaf.dtype
    # Of every element the magnitude of what is subtracted: q times and 1 times the largest factor.
    # With one class q is 1, and what is 0 in truth is a difference of ones.
    largest = float(np.abs(dx if classes > 1 else exact(dloss)).max())
    assert_within(leaf.grad.to_torch(), dx, np.full(tuple(x.shape), largest * spread / 4), arithmetic, rounds)


def _draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(shape, dtype=torch.float64)).to(DEVICE, dtype)


def _labels(shape: tuple[int, ...], classes: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    labels = torch.randint(0, classes, shape, dtype=dtype)
    if labels.numel() > 2:
        labels.view(-1)[1] = -100
    return labels.to(DEVICE)


@pytest.mark.usefixtures("tiles", "forms")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_are_those_of_torch_in_float64(weighted: bool, smoothing: float, reduction: str) -> None:
    for classes in (10, 1271):
        weight = torch.rand(classes).to(DEVICE) if weighted else None
        x, labels = _draw((7, classes)), _labels((7,), classes)
        _check(x, labels, weight, reduction=reduction, label_smoothing=smoothing)


@pytest.mark.parametrize(("dtype", "labels"), list(itertools.product(FLOATS, [torch.int32, torch.int64])), ids=str)
def test_every_dtype_of_logits_and_labels_is_taken(dtype: torch.dtype, labels: torch.dtype) -> None:
    _check(_draw((7, 50), dtype), _labels((7,), 50, labels), label_smoothing=0.2)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 5, 4), (2, 5, 3, 4), (1, 1), (3, 40, 70)], ids=str)
def test_classes_are_the_second_dimension_or_the_only_one(shape: tuple[int, ...]) -> None:
    classes = min(len(shape) - 1, 1)
    lead = tuple(size for dim, size in enumerate(shape) if dim != classes)
    for reduction in ("none", "mean"):
        _check(_draw(shape), _labels(lead, shape[classes]), reduction=reduction)


def test_strided_logits_labels_and_weights_are_read_in_place() -> None:
    x, labels = _draw((20, 14)).t()[::2, 1:-1], _labels((14,), 18)[::2]
    weight = torch.rand(36).to(DEVICE)[::2]
    _check(x, labels, weight, label_smoothing=0.1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_long_rows_are_true_with_the_tiles_of_a_gpu(dtype: torch.dtype, smoothing: float, weighted: bool) -> None:
    weight = torch.rand(20000).to(DEVICE) if weighted else None
    with tk.tile_configs.use_tile_configs(interpreted=False):
        _check(_draw((2, 20000), dtype), _labels((2,), 20000), weight, label_smoothing=smoothing)


@pytest.mark.parametrize("mask", [-1e10, -1e30])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_long_rows_may_be_masked_for_whole_chunks(smoothing: float, mask: float) -> None:
    x = _draw((2, 20000))
    x[:, 3000:17000] = mask
    with tk.tile_configs.use_tile_configs(interpreted=False):
        _check(x, _labels((2,), 3000), label_smoothing=smoothing)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_a_shift_of_all_logits_costs_no_accuracy(shift: float) -> None:
    x = torch.randn(4, 1000) + shift
    for target in (torch.randint(0, 1000, (4,)), torch.randn(4, 1000).softmax(-1)):
        loss = F.cross_entropy(lucid.from_torch(x.to(DEVICE)), lucid.from_torch(target.to(DEVICE)))
        truth = torch.nn.functional.cross_entropy(x.double(), target.double() if target.is_floating_point() else target)
        assert loss.item() == pytest.approx(truth.item(), rel=5e-7)


def test_masked_classes_are_fine_unless_one_is_the_label() -> None:
    x = lucid.tensor([[1.0, -math.inf, 2.0], [1.0, -math.inf, 2.0]], requires_grad=True)
    losses = F.cross_entropy(x, lucid.tensor([2, 1]), reduction="none")
    assert losses.tolist() == [pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6), math.inf]
    losses.backward(lucid.tensor([1.0, 0.0]))
    np.testing.assert_allclose(x.grad.numpy()[0], [0.26894143, 0, -0.26894143], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_ignored_rows_may_hold_anything_and_without_others_the_loss_is_zero(reduction: str) -> None:
    x = lucid.tensor(np.full((2, 5), np.nan, "float32"), requires_grad=True)
    loss = F.cross_entropy(x, lucid.tensor([7, 7]), ignore_index=7, reduction=reduction)
    loss.backward(lucid.ones_like(loss))
    assert not loss.numpy().any()
    assert not x.grad.numpy().any()


def test_an_ignore_index_may_be_a_class() -> None:
    x, labels = _draw((5, 4)), torch.tensor([0, 1, 2, 1, 3]).to(DEVICE)
    _check(x, labels, ignore_index=1)


def test_the_module_is_the_function_and_keeps_its_weights_as_a_buffer() -> None:
    x, labels, weight = lucid.randn(3, 4), lucid.tensor([1, 2, 3]), lucid.rand(4)
    module = nn.CrossEntropyLoss(weight, label_smoothing=0.1, reduction="sum", ignore_index=2)
    expected = F.cross_entropy(x, labels, weight, label_smoothing=0.1, reduction="sum", ignore_index=2)
    assert module(x, labels).item() == expected.item()
    module, y = nn.CrossEntropyLoss(weight, label_smoothing=0.1), lucid.rand(3, 4)
    assert module(x, y).item() == F.cross_entropy(x, y, weight, label_smoothing=0.1).item()
    assert list(module.state_dict()) == ["weight"]


X, Y = lucid.zeros(4, 6), lucid.tensor([0, 1, 2, 3])
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "reduction": ({"reduction": "batchmean"}, ValueError, r"reduction must be one of \('none', 'mean', 'sum'\)"),
    "smoothing": ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be a number from 0 to 1, got 1.5"),
    "x": ({"x": [1.0]}, TypeError, "x must be a lucid.Tensor, got list"),
    "integers": ({"x": lucid.tensor([[1, 2]])}, TypeError, "x must be float16, .* got lucid.int64"),
    "0-d": ({"x": lucid.tensor(1.0)}, RuntimeError, "x must have a dimension of classes"),
    "no classes": ({"x": lucid.zeros(4, 0)}, RuntimeError, "x must have at least one class"),
    "target": ({"target": None}, TypeError, "target must be a lucid.Tensor, got NoneType"),
    "target bool": ({"target": Y > 0}, TypeError, "target must be labels, int32 or int64, or class .* got lucid.bool"),
    "target shape": ({"target": lucid.tensor([1])}, RuntimeError, r"target must have shape \(4,\), .* got \(1,\)"),
    "target device": (
        {"target": lucid.Tensor._wrap(torch.zeros(4, dtype=torch.int64, device="meta"))},
        RuntimeError,
        "target and x must be on one device, got target on meta",
    ),
    "classes last": (
        {"x": lucid.zeros(2, 3, 50), "target": lucid.zeros(2, 3, dtype="int64")},
        RuntimeError,
        r"target must have shape \(2, 50\), that of x \(2, 3, 50\) without dimension 1, the classes, got \(2, 3\): "
        r"where the classes are last pass x.permute\(0, 2, 1\)$",
    ),
    "weight shape": ({"weight": lucid.ones(4)}, RuntimeError, r"weight must have shape \(6,\), .* got \(4,\)"),
    "weight grad": ({"weight": lucid.ones(6, requires_grad=True)}, RuntimeError, "weight must not require grad"),
    "ignore_index": ({"ignore_index": "no"}, TypeError, "ignore_index must be an int, got str"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error_before_any_launch(case: str) -> None:
    given, error, message = BAD[case]
    with trace.launches() as made, pytest.raises(error, match=message):
        F.cross_entropy(**{"x": X, "target": Y, **given})
    assert not made
