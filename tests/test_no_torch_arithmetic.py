"""torch allocates, views, copies, converts and moves memory, and computes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
import lucid.torch
from lucid.autograd import grad
from lucid.ops import from_hidden
from lucid.torch.operators import KERNELS
from tests.device import DEVICE

#: Operations that allocate, fill with a constant, view, copy, convert or move; what reads one number back; and
#: `promote_types`, which looks a dtype up.
ALLOWED = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "zeros", "zeros_like", "ones"),
    *("ones_like", "full", "full_like", "fill_", "zero_"),
    *("view", "_unsafe_view", "as_strided", "expand", "permute", "t", "transpose", "slice", "select", "unsqueeze"),
    *("squeeze", "detach", "alias", "set_", "_reshape_alias"),
    *(
        "index",
        "index_put_",
        "index_select",
        "gather",
        "flip",
        "cat",
        "masked_fill",
    ),  # elements that are moved, or filled
    *("arange", "nonzero"),  # their numbers
    *("clone", "copy_", "_to_copy", "lift_fresh", "_local_scalar_dense", "promote_types"),
    *("resolve_conj", "resolve_neg"),  # what `tolist` does first, to numbers that are neither
}


class NoArithmetic(TorchDispatchMode):
    """Fails on any torch operation that is not in the list, and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in KERNELS:
            with self:
                return KERNELS[func](*args)
        name = func.name().removeprefix("aten::").partition(".")[0]
        assert name in ALLOWED, f"torch was asked to compute: {func.name()}"
        self.seen.add(name)
        return func(*args, **(kwargs or {}))


def test_the_guard_fails_on_arithmetic() -> None:
    x = torch.ones(2)
    with NoArithmetic():
        for compute in (lambda: x + x, lambda: x.sum(), lambda: x.softmax(0), lambda: x @ x, lambda: x > 0):
            with pytest.raises(AssertionError, match="torch was asked to compute"):
                compute()


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", F.REDUCTIONS)
def test_the_loss_forward_and_backward_does_no_arithmetic_in_torch(reduction: str, log_target: bool) -> None:
    values = [torch.rand(4, 6, dtype=torch.float64).to(DEVICE), torch.rand(1, 6, dtype=torch.float32).to(DEVICE)]
    with NoArithmetic() as guard:
        x, y = (lucid.from_torch(t).requires_grad_() for t in values)
        loss = F.kl_div(x, y, reduction=reduction, log_target=log_target)
        loss.backward(lucid.ones_like(loss))
    assert "empty" in guard.seen


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("waits", [True, False])
def test_losses_from_hidden_states_do_no_arithmetic_in_torch(
    reduction: Any, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the host must not wait for the tokens that count."""
    monkeypatch.setattr(from_hidden, "may_wait", lambda *_: waits)
    shapes = ((6, 4), (9, 4), (9,), (6, 3), (9, 3))
    with NoArithmetic():
        h, w, b, g, v = (lucid.from_torch(torch.ones(shape).to(DEVICE)).requires_grad_() for shape in shapes)
        labels = lucid.tensor([1, -100, 2, 3, -100, 0])
        loss = F.linear_distillation_loss(
            h, w, g, v, student_bias=b, labels=labels, reduction=reduction, chunk_rows=2, student_softcap=3.0
        )
        loss.backward(lucid.ones_like(loss))
        F.linear_cross_entropy(h, w, labels, chunk_rows=2).backward()


@pytest.mark.parametrize("divergence", ["forward_kl", "js"])
def test_losses_of_logits_do_no_arithmetic_in_torch(divergence: str) -> None:
    with NoArithmetic():
        s, t = (lucid.randn(3, 4, 9, requires_grad=True) for _ in range(2))
        labels, weight = lucid.tensor(np.arange(12).reshape(3, 4) % 9), lucid.rand(3, 4)
        options = {"labels": labels, "weight": weight, "hard_label_weight": 0.5, "normalizer": lucid.tensor(3.0)}
        F.distillation_loss(s, t, divergence=divergence, **options).backward()
        F.distillation_loss(s * 2, t, divergence=divergence, inplace_gradient=True, vocab_size=7).backward()
        F.distillation_loss(s, t, reduction="none").sum().backward()
        F.cross_entropy(s.reshape(12, 9), labels.reshape(-1), lucid.rand(9), label_smoothing=0.1).backward()
        F.cross_entropy(s, lucid.tensor(np.zeros((3, 9), dtype=np.int64)), reduction="none").sum().backward()
        F.cross_entropy(s, t, lucid.rand(4), label_smoothing=0.1).backward()


@pytest.mark.kernels_only
@pytest.mark.usefixtures("implementation")
def test_losses_of_torch_tensors_do_no_arithmetic_in_torch() -> None:
    labels, weight = torch.arange(6).to(DEVICE), torch.rand(6).to(DEVICE)
    s, t = (torch.randn(6, 9).to(DEVICE).requires_grad_() for _ in range(2))
    with NoArithmetic() as guard:
        losses = [
            lucid.torch.kl_div(s, t, reduction="batchmean", log_target=True),
            lucid.torch.distillation_loss(s, t, labels=labels, weight=weight, hard_label_weight=0.5),
            lucid.torch.distillation_loss(s, t, divergence="js", vocab_size=7, normalizer=4.0),
            lucid.torch.cross_entropy(s, labels, torch.ones(9, device=DEVICE), label_smoothing=0.1),
            lucid.torch.cross_entropy(s, t, torch.ones(9, device=DEVICE), label_smoothing=0.1),
        ]
        for loss in losses:
            loss.backward()
            s.grad = t.grad = None
    assert "empty" in guard.seen


def test_second_derivatives_do_no_arithmetic_in_torch() -> None:
    with NoArithmetic():
        x, y = (lucid.rand(3, 4, requires_grad=True) for _ in range(2))
        for log_target in (False, True):
            dx, dy = grad(F.kl_div(x, y, log_target=log_target), (x, y), create_graph=True)
            grad((dx * dx).sum() + (dy * dy).sum(), (x, y))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_a_training_step_does_no_arithmetic_in_torch(optimizer: str) -> None:
    with NoArithmetic():
        model = nn.Sequential(
            nn.Embedding(11, 4), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)
        )
        options = {"momentum": 0.9, "nesterov": True} if optimizer == "SGD" else {}
        step = getattr(lucid.optim, optimizer)(model.parameters(), lr=0.1, **options)
        indices = lucid.tensor(np.arange(6) % 11)
        target = F.softmax(lucid.randn(6, 5), dim=-1)
        losses = []
        for _ in range(2):
            step.zero_grad()
            loss = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(model(indices), dim=-1), target)
            loss.backward()
            step.step()
            losses.append(loss.item())
    assert losses[1] < losses[0]


def test_operators_do_no_arithmetic_in_torch() -> None:
    with NoArithmetic():
        a, b = lucid.rand(3, 4, requires_grad=True), lucid.rand(4, requires_grad=True)
        results = [a + b, a - 2, 2 / (a + 1), a * b, -a, a**2, (a + 1) ** b, a @ b, a[1:, ::2], a.T, a.mean(0), abs(a)]
        results += [
            a.exp(),
            (a + 1).log(),
            a.sqrt(),
            a.tanh(),
            a.relu(),
            a.reshape(2, 6),
            a.double(),
            a.expand(2, 3, 4),
        ]
        for result in results:
            result.sum().backward(retain_graph=True)
        assert (a == a.clone()).numpy().all()
        repr(a)
