"""TRL's loss for generalised knowledge distillation and ours are one function.

`generalized_jsd_loss` calls the divergences by beta: 0 is `forward_kl`, 1 is `reverse_kl`, and what lies between is
`js` with the same beta, which is the teacher's part of the mixture in both. Its 'batchmean' is, with labels, the 'mean'
over tokens, and without them ours, over rows; its 'mean' divides by the number of columns, too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lucid.torch
from tests import row_reference
from tests.device import DEVICE
from tests.reference import assert_within, exact

pytest.importorskip("trl")
# These modules warn that they are experimental, which importorskip keeps quiet about.
gkd: Any = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
gold: Any = pytest.importorskip("trl.experimental.gold.gold_trainer")

ROWS, LENGTH, V = 3, 5, 97
DIVERGENCES: dict[float, dict[str, Any]] = {
    0.0: {"divergence": "forward_kl"},
    0.25: {"divergence": "js", "beta": 0.25},
    0.5: {"divergence": "js", "beta": 0.5},
    1.0: {"divergence": "reverse_kl"},
}

pytestmark = pytest.mark.parametrize(
    "theirs", [gkd.GKDTrainer.generalized_jsd_loss, gold.GOLDTrainer.generalized_jsd_loss], ids=["gkd", "gold"]
)


def _logits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (ROWS, LENGTH, V)
    return tuple((3 * torch.randn(shape)).to(DEVICE, dtype).requires_grad_() for _ in range(2))  # type: ignore[return-value]


def _labels() -> torch.Tensor:
    """Return labels that count in every row except the last, whose completion was cut off."""
    labels = torch.randint(0, V, (ROWS, LENGTH))
    labels[0, :2], labels[1, 3:], labels[2] = -100, -100, -100
    return labels.to(DEVICE)


def _results(loss: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return loss, *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("labelled", [False, True], ids=["all tokens", "labels"])
@pytest.mark.parametrize("beta", DIVERGENCES)
def test_loss_and_gradients_are_the_same(theirs: Any, beta: float, labelled: bool, temperature: float) -> None:
    options = {**DIVERGENCES[beta], "temperature": temperature}
    labels = _labels() if labelled else None
    reduction = "mean" if labelled else "batchmean"
    s, t = _logits(torch.float64)
    ours = _results(lucid.torch.distillation_loss(s, t, labels=labels, reduction=reduction, **options), s, t)
    expected = _results(theirs(s, t, labels, beta, temperature), s, t)
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-13)
    assert not labelled or not ours[1][2].any()


@pytest.mark.parametrize("beta", DIVERGENCES)
def test_in_float32_ours_is_theirs_in_float64_to_a_few_roundings(theirs: Any, beta: float) -> None:
    labels = _labels()
    s, t = _logits(torch.float32)
    loss, ds = _results(lucid.torch.distillation_loss(s, t, labels=labels, temperature=2.0, **DIVERGENCES[beta]), s)
    exact_s = s.detach().double().requires_grad_()
    wanted, wanted_ds = (exact(x) for x in _results(theirs(exact_s, t.double(), labels, beta, 2.0), exact_s))
    rows = [exact(x).reshape(-1, V) for x in (s, t)]
    kind, inner = DIVERGENCES[beta]["divergence"], DIVERGENCES[beta].get("beta", 0.5)
    size = row_reference.divergence(*rows, kind, inner, 2.0)
    tokens = exact(labels != -100)
    weight = tokens / tokens.sum()
    assert_within(loss, wanted, (size.loss_size.reshape(ROWS, LENGTH) * weight).sum(), torch.float32)
    assert_within(ds, wanted_ds, size.ds_size.reshape(s.shape) * weight[..., None], torch.float32)


def test_reductions_have_these_names(theirs: Any) -> None:
    s, t = (x.detach() for x in _logits(torch.float64))
    labels = _labels()
    valid = labels != -100
    ours = lucid.torch.distillation_loss

    def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-13)

    same(ours(s, t, labels=labels, reduction="sum"), theirs(s, t, labels, 0, reduction="sum"))
    same(ours(s, t, labels=labels, reduction="none")[valid], theirs(s, t, labels, 0, reduction="none").sum(-1))
    same(ours(s, t, labels=labels), theirs(s, t, labels, 0))
    same(ours(s, t, labels=labels) / V, theirs(s, t, labels, 0, reduction="mean"))
    same(ours(s, t, reduction="batchmean"), theirs(s, t, None, 0))
    for count in (7, torch.tensor(7, device=DEVICE)):
        same(ours(s, t, labels=labels, normalizer=count), theirs(s, t, labels, 0, num_items_in_batch=count))


@pytest.mark.parametrize("beta", DIVERGENCES)
def test_a_batch_without_a_valid_token_has_loss_0_in_both(theirs: Any, beta: float) -> None:
    s, t = _logits(torch.float64)
    labels = torch.full((ROWS, LENGTH), -100, device=DEVICE)
    for loss in (
        lucid.torch.distillation_loss(s, t, labels=labels, **DIVERGENCES[beta]),
        theirs(s, t, labels, beta),
    ):
        value, ds = _results(loss, s)
        assert value == 0
        assert not ds.any()
