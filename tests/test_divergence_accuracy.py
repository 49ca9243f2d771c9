"""Rows of all kinds: losses and gradients within a budget in float32, also with the worst special functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import triton_kernels as tk
from tests import kernels, row_reference
from tests.device import DEVICE
from tests.reference import exact
from tests.row_reference import DIVERGENCES, FAMILIES
from triton_kernels.runtime import backend

pytestmark = pytest.mark.usefixtures("launchers")

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


def _unit(special: float) -> float:
    """Return the unit of errors: four roundings, and two special functions in a row."""
    return 4 * 2.0**-24 + 2 * special * SPECIAL


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_losses_and_gradients_are_good_to_a_few_roundings(
    kind: str, family: str, dtype: torch.dtype, special: float
) -> None:
    s, t = (x.to(dtype) for x in row_reference.family(family, 4, COLUMNS))
    if family == "masked" and kind == "reverse_kl":
        s, t = t, s
    truth = row_reference.divergence(exact(s), exact(t), kind)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        losses, ds, dt = kernels.divergence(s, t, kind)
    unit = _unit(special)
    log_q, log_p = row_reference.log_softmax(exact(s)), row_reference.log_softmax(exact(t))
    q, p = np.exp(log_q), np.exp(log_p)
    # In units: probabilities, which are not small themselves, and for the loss of KL logarithms.
    sizes = [1 + np.abs(truth.loss), q + p, q + p]
    flips = [0.0, 0.0, 0.0]
    if kind in ("forward_kl", "reverse_kl"):
        weight = p if kind == "forward_kl" else q
        sizes[0] = 1 + (weight * np.where(weight == 0, 0.0, np.abs(log_q) + np.abs(log_p))).sum(-1)
        # The gradient to p has log p − log q in it.
        sizes[2 if kind == "forward_kl" else 1] = truth.dt_size if kind == "forward_kl" else truth.ds_size
    elif kind == "total_variation":
        # Where |q − p| is below the errors of q and p, its sign is undetermined, and the gradient is off by q or p.
        bits = 2 + np.where(q == 0, 0.0, np.abs(log_q)) + np.where(p == 0, 0.0, np.abs(log_p))
        unsure = np.abs(q - p) <= unit * bits * (q + p) / 2
        flips = [0.0, np.where(unsure, q, 0.0), np.where(unsure, p, 0.0)]
    for name, got, wanted, size, flip in zip(
        ("loss", "ds", "dt"), (losses, ds, dt), truth[:3], sizes, flips, strict=True
    ):
        error, allowed = _rms(exact(got) - wanted), _rms(unit * size + flip)
        assert error <= allowed, f"{name}: {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_nearly_equal_rows_lose_little(kind: str, special: float) -> None:
    """A divergence of 1e-6 is the difference of numbers that are a thousand times larger."""
    s, t = row_reference.family("nearly equal", 32, COLUMNS)
    truth = row_reference.divergence(exact(s), exact(t), kind).loss
    with tk.tile_configs.use_tile_configs(interpreted=False):
        losses, _ = tk.divergence_forward(s.to(DEVICE), t.to(DEVICE), divergence=kind)
    log_q, log_p = row_reference.log_softmax(exact(s)), row_reference.log_softmax(exact(t))
    q, p = np.exp(log_q), np.exp(log_p)
    unit = _unit(special)
    if kind == "js":  # a sum of squares of log p − log q, each of which is off by so much
        size = unit * ((q + p) / 2 * np.abs(log_p - log_q)).sum(-1)
    else:
        # Errors of columns have nothing to do with each other: of those of a sum that much remains.
        size = unit * np.sqrt((q**2 + p**2).sum(-1))
    if "kl" in kind:  # each of two sums over a row is rounded to float32 after it was merged from chunks
        size += 4 * 2.0**-24
    error, allowed = _rms(exact(losses) - truth), _rms(size)
    assert error <= allowed, f"{error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_js_of_nearly_equal_rows_loses_little_for_mixtures_of_unequal_parts(beta: float, special: float) -> None:
    """Where few columns differ by as much, third powers of log p − log q do not cancel in the sum over a row."""
    t = 3 * torch.randn(8, COLUMNS)
    s = t + 0.04 * (torch.rand(8, COLUMNS) < 0.1)
    truth = row_reference.divergence(exact(s), exact(t), "js", beta).loss
    losses, _ = tk.divergence_forward(s.to(DEVICE), t.to(DEVICE), divergence="js", beta=beta)
    log_q, log_p = row_reference.log_softmax(exact(s)), row_reference.log_softmax(exact(t))
    size = _unit(special) * ((np.exp(log_q) + np.exp(log_p)) / 2 * np.abs(log_p - log_q)).sum(-1)
    error, allowed = _rms(exact(losses) - truth), _rms(size)
    assert error <= allowed, f"{error:.2e}, allowed {allowed:.2e}"


@pytest.mark.usefixtures("special")
@pytest.mark.parametrize("family", [f for f in FAMILIES if "peaked" not in f])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients_of_a_row_sum_to_zero(kind: str, family: str) -> None:
    s, t = row_reference.family(family, 4, COLUMNS)
    if family == "masked" and kind == "reverse_kl":
        s, t = t, s
    for gradient in kernels.divergence(s, t, kind)[1:]:
        total = np.abs(exact(gradient).sum(-1)).max()
        # p and q sum to 1 to within a few special functions' errors, and are multiplied by logarithms.
        assert total <= 64 * 2.0**-24 + 8 * SPECIAL * np.abs(exact(gradient)).sum(-1).max()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equal_rows_have_a_divergence_and_a_gradient_of_exactly_zero(dtype: torch.dtype, kind: str) -> None:
    s = (5 * torch.randn(2, 10000)).to(dtype)
    assert not any(result.any() for result in kernels.divergence(s, s.clone(), kind, dtype))


#: Sizes of a divergence that a difference of larger numbers would lose.
SMALL = (1e-8, 1e-6, 1e-4, 1e-3, 3e-3, 1e-2)


def _small_divergences(family: str) -> tuple[Tensor, Tensor]:
    """Rows of 128,256 logits, of which the ith has a divergence of the order `SMALL[i]`, in float32.

    With the tiles of a GPU, of which the interpreter takes seconds, rows are shorter.
    """
    columns = 128_256 if tk.tile_configs.interpreted() else 12_000
    t = torch.randn(len(SMALL), columns, dtype=torch.float64) * {"ordinary": 1.0, "wide": 3.0}.get(family, 2.0)
    if family == "peaked":
        t[:, 77] += 15
    noise = torch.randn_like(t)
    if family == "one column":
        noise = (torch.arange(t.shape[-1]) == 5) * 30.0
    s = t + noise * (2 * torch.tensor(SMALL).double()).sqrt()[:, None]
    if family == "masked":
        s[:, 6_000:9_000], t[:, 6_000:9_000] = -math.inf, -math.inf
    return s.float(), t.float()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("family", ["ordinary", "wide", "peaked", "one column", "masked"])
@pytest.mark.parametrize(("kind", "beta"), [("forward_kl", 0.5), ("reverse_kl", 0.5), ("js", 0.5), ("js", 0.1)])
def test_small_divergences_are_right_to_a_thousandth_and_never_negative(
    kind: str, beta: float, family: str, special: float
) -> None:
    s, t = _small_divergences(family)
    truth = row_reference.divergence(exact(s), exact(t), kind, beta).loss
    losses, _, _ = kernels.divergence(s, t, kind, beta=beta)
    assert (losses >= 0).all()
    # 1e-3 of each that is 1e-8 or more; of smaller ones, such as of a peaked row, that much of 1e-8.
    assert (np.abs(exact(losses) - truth) <= 1e-3 * np.maximum(truth, 1e-8)).all(), (exact(losses), truth)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("columns", [1, 300, 20_000])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_logits_that_differ_by_a_constant_are_the_same_distribution(kind: str, columns: int) -> None:
    t = torch.randint(-64, 64, (3, columns)) / 8  # so that the sum is exact
    results = kernels.divergence(t + 100, t.clone(), kind, inv_temperature=0.37)
    assert not any(result.any() for result in results)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [130, 20_001])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_one_launch_and_two_differ_by_rounding_alone(kind: str, columns: int, dtype: torch.dtype) -> None:
    s, t = (torch.randn(3, columns).to(dtype) for _ in range(2))
    labels = torch.randint(0, columns, (3,)).to(DEVICE)
    options = {"labels": labels, "hard_label_weight": 0.3, "inv_temperature": 0.5}
    accurate = torch.float64 if dtype == torch.float64 else torch.float32
    one = kernels.divergence(s, t, kind, accurate, **options)
    two = kernels.divergence_in_two_launches(s, t, kind, accurate, **options)
    assert torch.equal(one[0], two[0])
    for a, b in zip(one[1:], two[1:], strict=True):
        unit = torch.finfo(accurate).eps
        torch.testing.assert_close(a, b, rtol=16 * unit, atol=16 * unit * b.abs().max().item())


@pytest.mark.parametrize("steps", [1, 3, 100])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_rows_that_differ_by_roundings_have_no_negative_divergence(kind: str, steps: int) -> None:
    t = 3 * torch.randn(16, 3000)
    s = t + torch.randint(-steps, steps + 1, t.shape) * 2.0**-23 * t.abs()
    for given in ((s, t), (t, s)):
        losses, _, _ = kernels.divergence(*given, kind)
        assert (losses >= 0).all()
        assert losses.any()
