"""Divergences from logits, and their gradients, against float64 truth: kinds, dtypes, layouts, tokens, reductions."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
import triton_kernels as tk
from tests import row_reference
from tests.device import DEVICE
from tests.reference import FLOATS, arithmetic_of, assert_within, exact
from tests.row_reference import DIVERGENCES
from triton_kernels.devtools import trace

pytestmark = pytest.mark.usefixtures("launchers")

INF = math.inf


def _check(
    s: torch.Tensor,
    t: torch.Tensor,
    kind: str,
    *,
    weight: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    reduction: str = "none",
    normalizer: float | None = None,
    **options: Any,
) -> None:
    """Run the loss forward and backward with a random dloss, and compare everything with truth."""
    student, teacher = (lucid.from_torch(x).requires_grad_() for x in (s, t))
    given = {"weight": weight, "labels": labels}
    loss = F.distillation_loss(
        student,
        teacher,
        divergence=kind,
        reduction=reduction,
        normalizer=normalizer,
        **{name: lucid.from_torch(x) for name, x in given.items() if x is not None},
        **options,
    )
    arithmetic = arithmetic_of(s.dtype, t.dtype)
    assert loss.dtype.torch == arithmetic
    # Powers of two scale a rounded gradient exactly.
    dloss = torch.ldexp(torch.randn(loss.shape, dtype=torch.float64).sign(), torch.randint(-3, 4, loss.shape))
    dloss = dloss.to(DEVICE, arithmetic)
    loss.backward(lucid.from_torch(dloss))

    V = options.get("vocab_size") or s.shape[-1]
    lead = tuple(s.shape[:-1])
    flat_s, flat_t = (exact(x)[..., :V].reshape(-1, V) for x in (s, t))
    T, alpha = options.get("temperature", 1.0), options.get("hard_label_weight", 0.0)
    truth = row_reference.divergence(flat_s, flat_t, kind, options.get("beta", 0.5), T)
    soft = (1 - alpha) * (T * T if options.get("temperature_squared") else 1)
    values, ds, dt = soft * truth.loss, soft * truth.ds, soft * truth.dt
    value_size, ds_size, dt_size = soft * truth.loss_size, soft * truth.ds_size, soft * truth.dt_size
    w = np.ones(len(flat_s)) if weight is None else exact(weight).reshape(-1)
    if labels is not None:
        y = labels.cpu().numpy().reshape(-1)
        w = np.where(y == -100, 0, w)
        if alpha:
            hard, hard_ds = row_reference.hard(flat_s, np.where(y == -100, 0, y))
            values, ds = values + alpha * hard, ds + alpha * hard_ds
            value_size, ds_size = value_size + alpha * (hard + 1), ds_size + alpha * (np.abs(hard_ds) * 2 + 1e-9)
    tokens = _weighted(w, values)
    sizes = _weighted(np.abs(w), value_size)
    denominator = {"mean": w.sum(), "batchmean": s.shape[0]}.get(reduction, 1) if normalizer is None else normalizer
    outer = exact(dloss)
    rounds = 16 + math.log2(V)
    if reduction == "none":
        assert_within(loss.to_torch(), tokens.reshape(lead), sizes.reshape(lead), arithmetic, rounds)
        outer = outer.reshape(-1)
    else:
        assert_within(loss.to_torch(), tokens.sum() / denominator, sizes.sum() / denominator, arithmetic, rounds)
        outer = np.full(len(flat_s), outer / denominator)
    for leaf, gradient, size in ((student, ds, ds_size), (teacher, dt, dt_size)):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        columns = leaf.shape[-1]
        wanted, condition = (np.zeros((len(flat_s), columns)) for _ in range(2))
        wanted[:, :V] = _weighted((w * outer)[:, None], gradient)
        condition[:, :V] = _weighted(np.abs(w * outer)[:, None], size)
        shape = (*lead, columns)
        assert_within(leaf.grad.to_torch(), wanted.reshape(shape), condition.reshape(shape), arithmetic, rounds)


def _weighted(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.where(w == 0, 0.0, w * x)


def _draw(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return (3 * torch.randn(shape, dtype=torch.float64)).to(DEVICE, dtype)


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    "rows": ((6, 48), lambda t: t),
    "one row": ((33,), lambda t: t),
    "one column": ((5, 1), lambda t: t),
    "41 x 1271": ((41, 1271), lambda t: t),
    "transposed": ((24, 7), lambda t: t.t()),
    "sliced": ((10, 33), lambda t: t[1::2, 3:-2]),
    "3-D, permuted": ((3, 5, 16), lambda t: t.permute(1, 0, 2)),
    "4-D, columns first": ((2, 17, 3, 2), lambda t: t.permute(0, 2, 3, 1)),
    "no rows": ((0, 9), lambda t: t),
}


@pytest.mark.usefixtures("tiles", "forms")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_losses_and_gradients_are_true_for_every_layout(kind: str, layout: str) -> None:
    shape, view = LAYOUTS[layout]
    _check(view(_draw(shape, torch.float32)), view(_draw(shape, torch.float32)), kind)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("t", FLOATS, ids=str)
@pytest.mark.parametrize("s", FLOATS, ids=str)
def test_losses_and_gradients_are_true_for_every_pair_of_dtypes(s: torch.dtype, t: torch.dtype, kind: str) -> None:
    _check(_draw((7, 130), s), _draw((7, 130), t), kind)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_student_and_teacher_may_lie_differently_in_memory(kind: str) -> None:
    _check(_draw((24, 7), torch.float32).t(), _draw((7, 24), torch.float32), kind)
    _check(_draw((3, 5, 16), torch.float32), _draw((5, 3, 16), torch.bfloat16).transpose(0, 1), kind)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1000, 9001, 20000])
def test_long_rows_are_true_with_the_tiles_of_a_gpu(columns: int, dtype: torch.dtype, kind: str) -> None:
    with tk.tile_configs.use_tile_configs(interpreted=False):
        _check(_draw((2, columns), dtype), _draw((2, columns), dtype), kind, temperature=2.0)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_row_of_more_tiles_than_chunks_may_meet_is_true(
    kind: str, contiguous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks have several tiles, which are not held in registers."""
    monkeypatch.setattr(tk.tile_configs, "MAX_ROW_CHUNKS", 3)
    monkeypatch.setattr(tk.tile_configs, "MAX_ROW_CHUNKS_OF_SEVERAL", 3)
    for columns, dtype in ((9500 if contiguous else 333, torch.float64), (30001 if contiguous else 333, torch.float32)):
        s, t = (_draw((2, columns), dtype) if contiguous else _draw((columns, 2), dtype).t() for _ in range(2))
        labels = torch.tensor([columns - 1, 5]).to(DEVICE)
        with tk.tile_configs.use_tile_configs(interpreted=False):
            _check(s, t, kind, labels=labels, hard_label_weight=0.3, temperature=2.0)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 0.9])
def test_js_is_true_for_every_mixture(beta: float) -> None:
    _check(_draw((5, 77), torch.float32), _draw((5, 77), torch.float32), "js", beta=beta)


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1, 4.0])
def test_temperature_divides_logits_and_its_square_multiplies_losses(
    temperature: float, squared: bool, kind: str
) -> None:
    s, t = _draw((5, 77), torch.float32), _draw((5, 77), torch.float32)
    _check(s, t, kind, temperature=temperature, temperature_squared=squared)


@pytest.mark.usefixtures("tiles", "forms")
@pytest.mark.parametrize("columns", [77, 20000])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_hard_labels_mix_in_cross_entropy_at_temperature_1(kind: str, temperature: float, columns: int) -> None:
    s, t = _draw((6, columns), torch.float32), _draw((6, columns), torch.float32)
    labels = torch.randint(0, columns, (6,))
    labels[2] = -100
    options = {"temperature": temperature, "hard_label_weight": 0.3, "temperature_squared": True}
    _check(s, t, kind, labels=labels.to(DEVICE), **options)


def test_hard_labels_find_their_column_in_logits_that_are_columns_in_memory() -> None:
    s, t = _draw((77, 6), torch.float32).T, _draw((6, 77), torch.float32)
    _check(s, t, "forward_kl", labels=torch.randint(0, 77, (6,)).to(DEVICE), hard_label_weight=0.3)


@pytest.mark.usefixtures("tiles", "forms")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
@pytest.mark.parametrize("tokens", ["weight", "bool", "labels", "both", "strided"])
@pytest.mark.parametrize("kind", ["forward_kl", "js"])
def test_tokens_count_by_their_weights_and_labels(kind: str, tokens: str, reduction: str) -> None:
    s, t = _draw((4, 3, 50), torch.float32), _draw((4, 3, 50), torch.float32)
    weight = torch.rand(4, 3)
    weight[0, 1] = 0
    labels = torch.randint(0, 50, (4, 3), dtype=torch.int32)
    labels[1] = -100
    if tokens == "bool":
        weight = torch.gt(weight, 0.5)
    if tokens == "strided":
        weight, labels = weight.t().contiguous().t(), labels.repeat(1, 2)[:, ::2]
    _check(
        s,
        t,
        kind,
        weight=None if tokens == "labels" else weight.to(DEVICE),
        labels=None if tokens in ("weight", "bool") else labels.to(DEVICE),
        reduction=reduction,
    )


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_normalizer_replaces_the_denominator_as_a_number_or_in_device_memory(kind: str, reduction: str) -> None:
    s, t = _draw((4, 50), torch.float32), _draw((4, 50), torch.float32)
    _check(s, t, kind, reduction=reduction, normalizer=37.0)
    losses = []
    for normalizer in (37.0, lucid.tensor(37), lucid.tensor(37.0, dtype="float64")):
        student = lucid.from_torch(s).requires_grad_()
        loss = F.distillation_loss(student, lucid.from_torch(t), reduction=reduction, normalizer=normalizer)
        loss.backward()
        losses.append((loss.item(), student.grad.numpy()))
    for loss, grad in losses[1:]:
        assert loss == pytest.approx(losses[0][0], rel=1e-6)
        np.testing.assert_allclose(grad, losses[0][1], rtol=1e-6)


@pytest.mark.usefixtures("tiles", "forms")
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize(("s", "t"), [(64, 64), (64, 53), (50, 61), (9000, 8500)])
def test_columns_beyond_the_vocabulary_count_nothing_and_get_no_gradient(s: int, t: int, kind: str) -> None:
    student, teacher = _draw((5, s), torch.float32), _draw((5, t), torch.float32)
    vocab = min(s, t) - 3
    student[:, vocab:], teacher[:, vocab:] = math.nan, INF
    _check(student, teacher, kind, vocab_size=vocab)


@pytest.mark.parametrize("count", [1, 100, 20000])
def test_many_losses_are_added_up_to_their_mean(count: int) -> None:
    losses, weights = torch.rand(count).to(DEVICE), torch.rand(count).to(DEVICE)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        loss, factor = tk.token_mean(losses, weights=weights, scale=3.0)
    expected = 3 * exact(losses).sum() / exact(weights).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert factor.item() == pytest.approx(3 / exact(weights).sum(), rel=1e-6)


@pytest.mark.parametrize("count", [3, 20000])
def test_where_no_token_counts_mean_and_factor_are_0(count: int) -> None:
    losses, weights = torch.rand(count).to(DEVICE), torch.zeros(count).to(DEVICE)
    for denominator in (None, torch.zeros(()).to(DEVICE)):
        with tk.tile_configs.use_tile_configs(interpreted=False):
            assert not any(tk.token_mean(losses, weights=weights, denominator=denominator))


def test_tokens_count_whose_weights_cancel_in_every_program() -> None:
    weights = torch.tensor([1.0, -1.0]).repeat(10000).to(DEVICE)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        assert tk.token_mean(weights, weights=weights, denominator=torch.ones(()).to(DEVICE))[1].item() == 1
        assert tk.token_mean(weights, weights=weights)[1].item() == INF


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_the_truth_is_that_of_torchs_own_derivatives(kind: str) -> None:
    s, t = (torch.randn(4, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    lq, lp = (s / 3).log_softmax(-1), (t / 3).log_softmax(-1)
    q, p = lq.exp(), lp.exp()
    log_m = (0.3 * p + 0.7 * q).log()
    loss = {
        "forward_kl": (p * (lp - lq)).sum(-1),
        "reverse_kl": (q * (lq - lp)).sum(-1),
        "js": (0.3 * p * (lp - log_m) + 0.7 * q * (lq - log_m)).sum(-1),
        "total_variation": (p - q).abs().sum(-1) / 2,
    }[kind]
    ds, dt = torch.autograd.grad(loss.sum(), (s, t))
    truth = row_reference.divergence(exact(s), exact(t), kind, 0.3, 3.0)
    for got, wanted in ((truth.loss, loss), (truth.ds, ds), (truth.dt, dt)):
        np.testing.assert_allclose(got, exact(wanted), rtol=1e-9, atol=1e-12)


LOSSES: dict[str, Callable[[lucid.Tensor, lucid.Tensor], lucid.Tensor]] = {
    **{kind: functools.partial(F.distillation_loss, divergence=kind) for kind in DIVERGENCES},
    "kl_div": functools.partial(F.kl_div, log_target=True),
    "cross_entropy": F.cross_entropy,
}


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_only_the_gradients_asked_for_are_made_in_one_launch_each(
    name: str, wanted: tuple[bool, bool], launchers: str
) -> None:
    leaves = [lucid.from_torch(_draw((3, 20), torch.float32)).requires_grad_() for _ in range(2)]
    expected = lucid.autograd.grad(LOSSES[name](*leaves), leaves)
    given = [leaf if asked else leaf.detach() for leaf, asked in zip(leaves, wanted, strict=True)]
    loss = LOSSES[name](*given)
    assert loss.requires_grad is any(wanted)
    if any(wanted):
        with trace.launches() as made:
            loss.backward()
        computed = name != "kl_div" and launchers == "kernels"  # with the loss
        assert len(made) <= (sum(wanted) if computed else 1)
    for leaf, asked, gradient in zip(given, wanted, expected, strict=True):
        assert (leaf.grad is not None) == asked
        if asked:
            assert np.array_equal(leaf.grad.numpy(), gradient.numpy())


def test_the_module_is_the_function_with_its_attributes_read_at_the_call() -> None:
    s, t = (lucid.from_torch(_draw((3, 20), torch.float32)) for _ in range(2))
    labels, weight = lucid.tensor([1, -100, 3]), lucid.tensor([1.0, 1.0, 0.5])
    options = {"divergence": "js", "beta": 0.2, "temperature": 2.0, "temperature_squared": True, "vocab_size": 19}
    options |= {"hard_label_weight": 0.25, "reduction": "sum"}
    module = nn.DistillationLoss()
    for name, value in options.items():
        setattr(module, name, value)
    got = module(s, t, weight=weight, labels=labels)
    assert got.item() == F.distillation_loss(s, t, weight=weight, labels=labels, **options).item()
    assert (
        module(s, t, weight=weight, labels=labels).item()
        == nn.DistillationLoss(**options)(s, t, weight=weight, labels=labels).item()
    )
    assert "temperature_squared=True" in repr(module)
