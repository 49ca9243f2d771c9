"""Semantics of divergences of logits: special rows, skipped tokens, normalizers, determinism."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
import triton_kernels as tk
from lucid.autograd import grad
from tests import kernels, row_reference
from tests.row_reference import DIVERGENCES

pytestmark = pytest.mark.usefixtures("launchers")

INF = math.inf
NAN = math.nan


def _leaf(*shape: int, dtype: str = "float32") -> Any:
    return lucid.tensor(np.random.randn(*shape), dtype=dtype, requires_grad=True)


def _losses(s: list[float], t: list[float], kind: str, **options: Any) -> tuple[float, list[float], list[float]]:
    student, teacher = (lucid.tensor([row], dtype="float32", requires_grad=True) for row in (s, t))
    loss = F.distillation_loss(student, teacher, divergence=kind, reduction="sum", **options)
    loss.backward()
    return loss.item(), student.grad.tolist()[0], teacher.grad.tolist()[0]


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_columns_masked_on_both_sides_add_nothing(kind: str) -> None:
    loss, ds, dt = _losses([1.0, -INF, 2.0, -INF], [0.5, -INF, 3.0, -INF], kind)
    expected, es, et = _losses([1.0, 2.0], [0.5, 3.0], kind)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert [ds[1], ds[3], dt[1], dt[3]] == [0, 0, 0, 0]
    np.testing.assert_allclose([ds[0], ds[2], dt[0], dt[2]], [*es, *et], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_mask_where_only_p_or_only_q_is_zero_gives_the_true_loss_and_infinity_only_for_kl(kind: str) -> None:
    plain, masked = [1.0, 2.0, 0.0], [0.5, -INF, 1.0]
    for s, t in ((plain, masked), (masked, plain)):
        truth = row_reference.divergence(np.array([s]), np.array([t]), kind)
        loss, ds, dt = _losses(s, t, kind)
        infinite = (kind, s is masked) in (("forward_kl", True), ("reverse_kl", False))
        assert math.isinf(truth.loss[0]) == infinite
        assert loss == pytest.approx(truth.loss[0], rel=1e-6)
        if not infinite:
            np.testing.assert_allclose([ds, dt], [truth.ds[0], truth.dt[0]], rtol=1e-5, atol=1e-7)


def test_a_student_that_excludes_everything_has_no_distribution_and_no_divergence() -> None:
    assert np.isnan(_losses([-INF, -INF], [0.0, 1.0], "forward_kl")[0])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_nan_comes_out_as_nan_and_so_does_a_logit_of_infinity(kind: str, value: float, side: str) -> None:
    s, t = (torch.randn(4, 9000) for _ in range(2))
    one, other = (s, t) if side == "student" else (t, s)
    one[1:3, 5000] = value
    other[2, 5000] = -INF
    losses, ds, dt = kernels.divergence(s, t, kind)
    assert losses.isnan().tolist() == [False, True, True, False]
    for gradient in (ds, dt):
        assert gradient[1:3].isnan().any(-1).all()
        assert not gradient[[0, 3]].isnan().any()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("mark", ["weight", "labels"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_skipped_token_may_hold_anything_and_gets_a_zero_gradient(kind: str, reduction: str, mark: str) -> None:
    s, t = np.random.randn(4, 9000).astype("float32"), np.random.randn(4, 9000).astype("float32")
    s[1], t[1], s[2], t[2] = NAN, INF, -INF, NAN
    student, teacher = (lucid.tensor(x, requires_grad=True) for x in (s, t))
    tokens = {
        "weight": {"weight": lucid.tensor([1.0, 0.0, 0.0, 2.0])},
        "labels": {"labels": lucid.tensor([3, -100, -100, 5]), "hard_label_weight": 0.5},
    }[mark]
    loss = F.distillation_loss(student, teacher, divergence=kind, reduction=reduction, **tokens)
    loss.backward(lucid.ones_like(loss))
    assert np.isfinite(loss.numpy()).all()
    for leaf in (student, teacher):
        assert not leaf.grad.numpy()[1:3].any()
        assert np.isfinite(leaf.grad.numpy()).all()
        assert leaf.grad.numpy()[[0, 3]].any()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_an_infinite_divergence_does_not_count_where_hard_labels_have_all_the_weight(kind: str) -> None:
    student = lucid.tensor([[0.0, -INF, 1.0]], requires_grad=True)
    teacher, labels = lucid.tensor([[-INF, 1.0, 1.0]], requires_grad=True), lucid.tensor([0])
    loss = F.distillation_loss(student, teacher, divergence=kind, labels=labels, hard_label_weight=1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.e), rel=1e-6)
    np.testing.assert_allclose(student.grad.numpy(), [[1 / (1 + math.e) - 1, 0, math.e / (1 + math.e)]], rtol=1e-6)
    assert not teacher.grad.numpy().any()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_without_a_valid_token_loss_and_gradients_are_zero_and_the_graph_is_there(kind: str, reduction: str) -> None:
    student, teacher = _leaf(3, 8), _leaf(3, 8)
    for given in ({"weight": lucid.zeros(3)}, {"labels": lucid.tensor([-1, -1, -1]), "ignore_index": -1}):
        loss = F.distillation_loss(student, teacher, divergence=kind, reduction=reduction, **given)
        loss.backward(lucid.ones_like(loss))
        assert not loss.numpy().any()
        assert not student.grad.numpy().any()
        assert not teacher.grad.numpy().any()


@pytest.mark.parametrize("normalizer", [0, 0.0, 2, lucid.tensor(0), lucid.tensor(-1.0), lucid.tensor(NAN)], ids=str)
@pytest.mark.parametrize("rows", [0, 3, 9000])
def test_without_a_valid_token_the_normalizer_does_not_matter(rows: int, normalizer: Any) -> None:
    student, teacher = _leaf(rows, 8), _leaf(rows, 8)
    for reduction in ("mean", "batchmean"):
        options = {"weight": lucid.zeros(rows), "reduction": reduction, "normalizer": normalizer}
        loss = F.distillation_loss(student, teacher, **options)
        loss.backward()
        assert loss.item() == 0
        assert not student.grad.numpy().any()
        assert not teacher.grad.numpy().any()


@pytest.mark.parametrize("rows", [2, 9000])
def test_weights_that_add_up_to_0_are_tokens_that_count(rows: int) -> None:
    """Their mean is a quotient by 0, and a normalizer divides their sum as any other."""
    student, teacher = _leaf(rows, 8), _leaf(rows, 8)
    weight = lucid.tensor(np.resize([1.0, -1.0], rows))
    total = F.distillation_loss(student, teacher, weight=weight, reduction="sum").item()
    assert F.distillation_loss(student, teacher, weight=weight).item() == math.copysign(INF, total)
    normalized = F.distillation_loss(student, teacher, weight=weight, normalizer=lucid.tensor(4.0))
    assert normalized.item() == pytest.approx(total / 4, rel=1e-5)


@pytest.mark.parametrize("in_place", [False, True])
def test_no_tokens_at_all_are_no_valid_token(in_place: bool) -> None:
    for reduction in ("mean", "sum", "batchmean"):
        student = _leaf(0, 8)
        loss = F.distillation_loss(student, lucid.zeros(0, 8), reduction=reduction, inplace_gradient=in_place)
        loss.backward()
        assert loss.item() == 0
        assert student.grad.shape == (0, 8)


def test_a_gpus_tiles_do_not_depend_on_the_number_of_rows() -> None:
    with tk.tile_configs.use_tile_configs(interpreted=False):
        for itemsize in (2, 4, 8):
            for columns in (3, 100, 1000, 5000, 100_000):
                for flags in itertools.product((False, True), repeat=2):
                    tiles = [tk.tile_configs.logits(itemsize, rows, columns, *flags) for rows in (1, 5, 10**6)]
                    assert tiles[0] == tiles[1] == tiles[2]


@pytest.mark.parametrize("mask", [-INF, -1e10, -1e30])
@pytest.mark.parametrize("side", ["both", "student", "teacher"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_long_rows_may_be_masked_for_whole_chunks(kind: str, side: str, mask: float) -> None:
    s, t = (np.random.randn(2, 20000) for _ in range(2))
    if side != "teacher":
        s[:, 3000:17000] = mask
    if side != "student":
        t[:, 3000:17000] = mask
    truth = row_reference.divergence(s, t, kind)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        losses, ds, dt = kernels.divergence(*(torch.from_numpy(x).float() for x in (s, t)), kind)
    np.testing.assert_allclose(losses.cpu(), truth.loss, rtol=1e-5)
    for gradient, wanted in ((ds, truth.ds), (dt, truth.dt)):
        if np.isfinite(truth.loss).all():
            np.testing.assert_allclose(gradient.cpu(), wanted, rtol=1e-3, atol=1e-8)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("temperature", [0.5, 1.0, "of the size of the steps"])
@pytest.mark.parametrize("largest", [7e8, -7e8, 1e12, -1e12, 1e30, -1e30])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_rows_of_very_large_logits_are_true(kind: str, largest: float, temperature: Any) -> None:
    unit = float(np.spacing(np.float32(abs(largest))))
    s, t = (np.float32(largest) - np.random.randint(0, 3, (2, 4, 9001)) * unit).astype(np.float32).astype(float)
    temperature = temperature if isinstance(temperature, float) else unit
    truth = row_reference.divergence(s, t, kind, temperature=temperature)
    losses, ds, dt = kernels.divergence(
        *(torch.from_numpy(x).float() for x in (s, t)), kind, inv_temperature=1 / temperature
    )
    np.testing.assert_allclose(losses.cpu(), truth.loss, rtol=1e-5, atol=1e-9)
    for gradient, wanted in ((ds, truth.ds), (dt, truth.dt)):
        np.testing.assert_allclose(gradient.cpu(), wanted, rtol=1e-3, atol=1e-8 / min(temperature, 1.0))


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_a_logit_is_minus_infinity_from_2e38_times_temperature_below_the_maximum_on(temperature: float) -> None:
    for below, infinite in ((2e38 * min(temperature, 1.0), False), (3.4e38, temperature <= 1)):
        loss, ds, _ = _losses([0.0, -below], [0.0, 0.0], "forward_kl", temperature=temperature)
        assert loss == (INF if infinite else pytest.approx(below / temperature / 2, rel=1e-6))
        np.testing.assert_allclose(ds, [0.5 / temperature, -0.5 / temperature], rtol=1e-6)


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_columns_beyond_the_vocabulary_get_no_gradient_even_from_one_that_is_nan(kind: str) -> None:
    student, teacher = _leaf(3, 9), _leaf(3, 8)
    loss = F.distillation_loss(student, teacher, divergence=kind, reduction="none", vocab_size=6)
    loss.backward(lucid.tensor([1.0, NAN, INF]))
    assert not student.grad.numpy()[:, 6:].any()
    assert not teacher.grad.numpy()[:, 6:].any()
    assert np.isnan(student.grad.numpy()[1, :6]).all()


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("distillation_loss", lambda x: F.distillation_loss(x, lucid.zeros(3, 5))),
        ("cross_entropy", lambda x: F.cross_entropy(x, lucid.tensor([0, 1, 2]))),
        ("cross_entropy", lambda x: F.cross_entropy(x, lucid.ones(3, 5))),
    ],
)
def test_gradients_of_gradients_are_refused(name: str, loss: Any) -> None:
    x = _leaf(3, 5)
    (dx,) = grad(loss(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name} has no second derivatives"):
        (dx * dx).sum().backward()


def test_gradients_flow_through_hooks_and_arithmetic_around_the_loss() -> None:
    x = _leaf(3, 5, dtype="float64")
    t = np.random.randn(3, 5)
    seen = []
    scaled = x * 3
    scaled.register_hook(lambda g: seen.append(g.numpy().copy()))
    (F.distillation_loss(scaled, lucid.tensor(t), reduction="sum") * 0.5).backward()
    truth = row_reference.divergence(x.detach().numpy() * 3, t, "forward_kl").ds * 0.5
    np.testing.assert_allclose(seen[0], truth, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), 3 * truth, rtol=1e-9, atol=1e-12)


@pytest.mark.kernels_only
def test_nothing_waits_for_the_device_between_call_and_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of tensors are read in one place, where the CPU's reports are."""
    reads: list[str] = []

    def noting(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any) -> Any:
            reads.append(name)
            return original(self, *args)

        return read

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, noting(name))
    monkeypatch.setattr(lucid.ops.divergence, "raise_device_errors", lambda buffer, labels="labels": None)
    x = _leaf(4, 9)
    labels, weight = lucid.tensor([1, 2, -100, 3]), lucid.tensor([True, True, True, False])
    loss = F.distillation_loss(
        x, lucid.zeros(4, 9), labels=labels, weight=weight, normalizer=lucid.tensor(2.0), hard_label_weight=0.5
    )
    loss.backward()
    F.cross_entropy(x, labels).backward()
    assert not reads


@pytest.mark.parametrize("one_launch", [True, False])
def test_gradients_of_gradients_are_refused_also_where_nothing_but_the_graph_knows_the_logits(one_launch: bool) -> None:
    """A graph that took the gradient for a constant would return a wrong second derivative."""
    for loss in (
        lambda s: F.distillation_loss(s, lucid.zeros(3, 5)),
        lambda s: F.cross_entropy(s, lucid.tensor([0, 1, 2])),
    ):
        x = _leaf(3, 5)
        with lucid.gradient_in_forward(one_launch):
            (dx,) = grad(loss(x * 2), x, create_graph=True)
        with pytest.raises(RuntimeError, match="has no second derivatives"):
            grad((dx * dx).sum(), x)
