"""Rows of all kinds: losses and gradients no worse than torch's float32, also with the worst special functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import triton_kernels as tk
from tests import logits
from tests.device import DEVICE
from tests.logits import DIVERGENCES, FAMILIES
from tests.reference import exact
from triton_kernels import backend

#: How far special functions of a GPU may be off: ex2.approx relatively; lg2.approx absolutely in (½, 2), else so too.
SPECIAL = 2.0**-22
COLUMNS = 4000


def _error_of(values: np.ndarray) -> np.ndarray:
    """For each float32 a number that has nothing to do with it but for being always the same, from −1 to 1."""
    mixed = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(2**32)
    return mixed / 2.0**31 - 1


@pytest.fixture(params=["exact special functions", "the worst special functions"])
def special(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """The error of special functions, as a multiple of the largest that they may have on a GPU."""
    if not backend.INTERPRETED:
        return 1.0
    if request.param == "exact special functions":
        return 0.0
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def worst(original: Any, off: Any) -> Any:
        def function(self: Any, arg: Any) -> Any:
            result = original(self, arg)
            if result.data.dtype != np.float32:
                return result
            with np.errstate(all="ignore"):
                wrong = off(arg.data, result.data.astype(np.float64), _error_of(arg.data) * SPECIAL)
            return TensorHandle(wrong.astype(np.float32), result.dtype)

        return function

    def exp2(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> np.ndarray:
        return np.where(x == 0, 1, y * (1 + error))

    def log2(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> np.ndarray:
        return np.where(x == 1, 0, np.where((x > 0.5) & (x < 2), y + error, y * (1 + error)))

    builder = InterpreterBuilder
    monkeypatch.setattr(builder, "create_exp2", worst(builder.create_exp2, exp2))
    monkeypatch.setattr(builder, "create_log2", worst(builder.create_log2, log2))
    return 1.0


def _of_torch(s: torch.Tensor, t: torch.Tensor, kind: str) -> tuple[np.ndarray, ...]:
    """What torch calculates in float32: log_softmax and kl_div or their like, and autograd; a mask counts as 0."""
    s, t = (x.float().detach().clone().requires_grad_() for x in (s, t))
    lq, lp = s.log_softmax(-1), t.log_softmax(-1)
    q, p = lq.exp(), lp.exp()
    none = torch.zeros(())

    def kl(log_q: torch.Tensor, p: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        there = p > 0
        return (p * (torch.where(there, log_p, none) - torch.where(there, log_q, none))).sum(-1)

    if kind == "forward_kl":
        loss = kl(lq, p, lp)
    elif kind == "reverse_kl":
        loss = kl(lp, q, lq)
    elif kind == "js":
        m = (p + q) / 2
        log_m = torch.where(m > 0, m, torch.ones(())).log()
        loss = (kl(log_m, p, lp) + kl(log_m, q, lq)) / 2
    else:
        loss = (p - q).abs().sum(-1) / 2
    ds, dt = torch.autograd.grad(loss.sum(), (s, t))
    return exact(loss), exact(ds), exact(dt)


def _distance(got: np.ndarray, truth: np.ndarray) -> float:
    """The root mean square of the errors."""
    return float(np.sqrt(np.mean((got - truth) ** 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_losses_and_gradients_are_no_worse_than_torchs(
    kind: str, family: str, dtype: torch.dtype, special: float
) -> None:
    s, t = (x.to(dtype) for x in logits.family(family, 8, COLUMNS))
    if family == "masked" and kind == "reverse_kl":
        s, t = t, s
    truth = logits.divergence(exact(s), exact(t), kind)
    torchs = _of_torch(s, t, kind)
    with tk.launch.tables(interpreted=False):
        losses, statistics = tk.divergence_forward(s.to(DEVICE), t.to(DEVICE), divergence=kind)
        ds, dt = tk.divergence_backward(
            s.to(DEVICE),
            t.to(DEVICE),
            statistics,
            torch.ones((), device=DEVICE),
            divergence=kind,
            dstudent_dtype=torch.float32,
            dteacher_dtype=torch.float32,
        )
    # What torch loses; or four roundings, and two special functions in a row, of numbers that are not small themselves:
    # of probabilities, and for the loss of logarithms.
    unit = 4 * 2.0**-24 + 2 * special * SPECIAL
    q, p = np.exp(logits.log_softmax(exact(s))), np.exp(logits.log_softmax(exact(t)))
    sizes = [1 + np.abs(truth.loss), q + p, q + p]
    if kind in ("forward_kl", "reverse_kl"):  # the gradient to p has log p − log q in it
        sizes[2 if kind == "forward_kl" else 1] = truth.dt_size if kind == "forward_kl" else truth.ds_size
    for name, got, wanted, torch_got, size in zip(
        ("loss", "ds", "dt"), (losses, ds, dt), truth[:3], torchs, sizes, strict=True
    ):
        error, theirs = _distance(exact(got), wanted), _distance(torch_got, wanted)
        allowed = unit * _distance(size, 0 * size)
        if math.isnan(theirs):  # torch's gradient of a logarithm of 0
            theirs = 0.0
        # Of two ways that round equally often, either may be lucky on eight rows.
        assert error <= max(1.25 * theirs, allowed), f"{name}: {error:.2e}, torch {theirs:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_nearly_equal_rows_lose_less_than_with_torch(kind: str, special: float) -> None:
    """A divergence of 1e-6 is the difference of numbers that are a thousand times larger."""
    s, t = logits.family("nearly equal", 32, COLUMNS)
    truth = logits.divergence(exact(s), exact(t), kind).loss
    with tk.launch.tables(interpreted=False):
        losses, _ = tk.divergence_forward(s.to(DEVICE), t.to(DEVICE), divergence=kind)
    theirs = _of_torch(s, t, kind)[0]
    assert _distance(exact(losses), truth) < _distance(theirs, truth)


@pytest.mark.usefixtures("special")
@pytest.mark.parametrize("family", [f for f in FAMILIES if "peaked" not in f])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients_of_a_row_sum_to_zero(kind: str, family: str) -> None:
    s, t = logits.family(family, 4, COLUMNS)
    if family == "masked" and kind == "reverse_kl":
        s, t = t, s
    s, t = s.to(DEVICE), t.to(DEVICE)
    _, statistics = tk.divergence_forward(s, t, divergence=kind)
    one = torch.ones((), device=DEVICE)
    dtypes = {"dstudent_dtype": torch.float32, "dteacher_dtype": torch.float32}
    for gradient in tk.divergence_backward(s, t, statistics, one, divergence=kind, **dtypes):
        total = np.abs(exact(gradient).sum(-1)).max()
        # p and q sum to 1 to within a few special functions' errors, and are multiplied by logarithms.
        assert total <= 64 * 2.0**-24 + 8 * SPECIAL * np.abs(exact(gradient)).sum(-1).max()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equal_rows_have_a_divergence_and_a_gradient_of_exactly_zero(dtype: torch.dtype, kind: str) -> None:
    s = (5 * torch.randn(3, 20000)).to(DEVICE, dtype)
    losses, statistics = tk.divergence_forward(s, s.clone(), divergence=kind)
    ds, dt = tk.divergence_backward(
        s,
        s.clone(),
        statistics,
        torch.ones((), device=DEVICE),
        divergence=kind,
        dstudent_dtype=dtype,
        dteacher_dtype=dtype,
    )
    assert not losses.any()
    assert not ds.any()
    assert not dt.any()
