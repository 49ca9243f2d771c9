"""Upstream gradients of losses whose gradient is computed with them: any value, any strides, twice, and in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lucid
import lucid.nn.functional as F
import lucid.torch
import triton_kernels as tk
from tests import row_reference
from tests.device import DEVICE
from tests.reference import exact
from triton_kernels.devtools import trace

N, V = 5, 40
INF, NAN = math.inf, math.nan
UPSTREAM = (1.0, 0.0, 2.0, 2.0**-7, -1.0, 0.3, INF, -INF, NAN)
LABELS = torch.tensor([3, -100, 0, 17, 39])
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}


def _logits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    s, t = torch.randn(2, N, V).to(dtype)
    return s, t


def _truth(s: Tensor, t: Tensor, kind: str) -> np.ndarray:
    """Gradients of the rows' losses; 0 of the one that is ignored."""
    if kind == "cross_entropy":
        _, ds = row_reference.hard(exact(s), LABELS.clamp(min=0).numpy())
    else:
        ds = row_reference.divergence(exact(s), exact(t), kind).ds
    return ds * (LABELS != -100).numpy()[:, None]


def _probabilities(t: Tensor) -> Tensor:
    return t.float().softmax(-1)


def _in_torch(
    s: Tensor, t: Tensor, kind: str, reduction: str, device: torch.device = DEVICE, kernels: bool = True
) -> tuple[Tensor, Callable[..., np.ndarray]]:
    leaf, labels = s.to(device).requires_grad_(), LABELS.to(device)
    with lucid.torch.kernels_on_cpu(kernels and device.type == "cpu"):
        if kind == "cross_entropy":
            loss = lucid.torch.cross_entropy(leaf, labels, reduction=reduction)
        elif kind == "cross-entropy with probabilities":
            loss = lucid.torch.cross_entropy(leaf, _probabilities(t).to(device), reduction=reduction)
        else:
            loss = lucid.torch.distillation_loss(
                leaf, t.to(device), divergence=kind, labels=labels, reduction=reduction
            )

    def backward(dloss: Tensor, retain: bool) -> np.ndarray:
        return exact(torch.autograd.grad(loss, leaf, dloss.to(device, loss.dtype), retain_graph=retain)[0])

    return loss, backward


def _in_lucid(s: Tensor, t: Tensor, kind: str, reduction: str) -> tuple[Any, Callable[..., np.ndarray]]:
    leaf, labels = lucid.from_torch(s.to(DEVICE)).requires_grad_(), lucid.from_torch(LABELS.to(DEVICE))
    if kind == "cross_entropy":
        loss = F.cross_entropy(leaf, labels, reduction=reduction)
    elif kind == "cross-entropy with probabilities":
        loss = F.cross_entropy(leaf, lucid.from_torch(_probabilities(t).to(DEVICE)), reduction=reduction)
    else:
        teacher = lucid.from_torch(t.to(DEVICE))
        loss = F.distillation_loss(leaf, teacher, divergence=kind, labels=labels, reduction=reduction)

    def backward(dloss: Tensor, retain: bool) -> np.ndarray:
        given = lucid.from_torch(dloss.to(DEVICE, _dtype(loss)))
        return exact(lucid.autograd.grad(loss, leaf, given, retain_graph=retain)[0].to_torch())

    return loss, backward


def _dtype(loss: Any) -> torch.dtype:
    return loss.dtype if isinstance(loss, Tensor) else loss.to_torch().dtype


FRONT_ENDS: dict[str, Callable[..., tuple[Any, Callable[..., np.ndarray]]]] = {
    "lucid.torch": _in_torch,
    "lucid.torch, with torch's operators": partial(_in_torch, device=torch.device("cpu"), kernels=False),
    "lucid": _in_lucid,
}


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("kind", ["forward_kl", "js", "cross_entropy"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_the_gradient_is_multiplied_by_any_upstream_gradient(
    front_end: str, kind: str, reduction: str, dtype: torch.dtype
) -> None:
    """Rounded to its dtype before, and once more after, unless that is exact; rows that do not count stay 0."""
    s, t = _logits(dtype)
    wanted = _truth(s, t, kind) / (4 if reduction == "mean" else 1)
    loss, backward = FRONT_ENDS[front_end](s, t, kind, reduction)
    for number, upstream in enumerate(UPSTREAM):
        dloss = torch.full(tuple(loss.shape), upstream)
        if reduction == "none":  # another one for each row, in memory that is not contiguous
            dloss = torch.tensor((UPSTREAM[number:] + UPSTREAM[:number])[:N]).repeat_interleave(2)[::2]
            assert not dloss.is_contiguous()
        got = backward(dloss, retain=number < len(UPSTREAM) - 1)
        g = np.broadcast_to(dloss.to(_dtype(loss)).double().numpy().reshape(-1, 1), (N, 1))
        assert not got[1].any()
        infinite = ~np.isfinite(g)[:, 0] & (LABELS != -100).numpy()
        assert not np.isfinite(got[infinite]).any()
        g = np.where(np.isfinite(g), g, 0)
        truth, roundings = g * wanted, 1 + (np.abs(np.frexp(g)[0]) != 0.5)
        # Arithmetic is of numbers up to 1, in float32.
        budget = roundings * ROUNDOFF[dtype] * np.abs(truth) + np.abs(g) * 2.0**-24
        assert (np.abs(got - truth) <= budget)[~infinite].all()


@pytest.mark.parametrize(
    "kind",
    ["forward_kl", "reverse_kl", "js", "total_variation", "cross_entropy", "cross-entropy with probabilities"],
)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_power_of_two_scales_exactly_and_backward_passes_do_not_disturb_each_other(front_end: str, kind: str) -> None:
    _, backward = FRONT_ENDS[front_end](*_logits(torch.bfloat16), kind, "mean")
    first = backward(torch.tensor(1.0), retain=True)
    assert np.array_equal(backward(torch.tensor(-8.0), retain=True), -8 * first)
    backward(torch.tensor(0.3), retain=True)
    assert np.array_equal(backward(torch.tensor(1.0), retain=True), first)
    assert np.array_equal(backward(torch.tensor(0.25), retain=False), first / 4)


@pytest.mark.interpreter_only
@pytest.mark.parametrize("upstream", [1.0, 2.0])
def test_a_factor_of_one_moves_no_memory_of_the_gradients_size(upstream: float) -> None:
    gradient = torch.randn(64, 3000)
    with trace.traffic() as moved:
        tk.scale_gradient(gradient, torch.tensor(upstream), in_place=True)
    assert moved.launches == 1
    moves = 0 if upstream == 1 else 2 * gradient.nbytes
    assert moves < moved.read + moved.written <= moves + 8 * len(gradient)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("layout", ["dense", "columns first", "sliced", "3-D"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_scaling_takes_any_layout(layout: str, dtype: torch.dtype, in_place: bool) -> None:
    base = torch.randn(12, 70).to(DEVICE, dtype)
    gradient = {
        "dense": base,
        "columns first": base.t(),
        "sliced": base[1::3, 2:-3],
        "3-D": base.view(3, 4, 70).transpose(0, 1),
    }[layout]
    rows, columns = gradient.shape[:-1].numel(), gradient.shape[-1]
    dloss = torch.randn(gradient.shape[:-1]).to(DEVICE)
    weights = (torch.arange(rows) % 3).float().to(DEVICE)
    before = exact(gradient)
    for tiles in (True, False):
        given = gradient.clone() if not in_place else gradient.detach().clone(memory_format=torch.preserve_format)
        with tk.tile_configs.use_tile_configs(interpreted=tiles):
            got = tk.scale_gradient(given, dloss, weights=weights, vocab_size=columns - 2, in_place=in_place)
        assert (got.data_ptr() == given.data_ptr()) == in_place
        g = np.where(exact(weights) == 0, 1.0, exact(dloss).reshape(-1)).reshape(*gradient.shape[:-1], 1)
        wanted = np.where(np.arange(columns) < columns - 2, before * g, before)
        np.testing.assert_allclose(exact(got), wanted, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["forward_kl", "js"])
@pytest.mark.parametrize("front_end", ["lucid.torch", "lucid"])
def test_a_mean_over_rows_that_all_count_divides_the_gradient(front_end: str, kind: str) -> None:
    s, t = _logits(torch.float32)
    wanted = row_reference.divergence(exact(s), exact(t), kind).ds / N
    if front_end == "lucid":
        leaf = lucid.from_torch(s.to(DEVICE)).requires_grad_()
        F.distillation_loss(leaf, lucid.from_torch(t.to(DEVICE)), divergence=kind).backward()
        got = exact(leaf.grad.to_torch())
    else:
        torch_leaf = s.to(DEVICE).requires_grad_()
        with lucid.torch.kernels_on_cpu(DEVICE.type == "cpu"):
            lucid.torch.distillation_loss(torch_leaf, t.to(DEVICE), divergence=kind).backward()
        got = exact(torch_leaf.grad)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-8)


def test_a_small_float16_gradient_meets_the_upstream_gradient_before_it_is_rounded() -> None:
    s, t = (x.to(DEVICE) for x in _logits(torch.float16))
    gradients = []
    for dtype in (torch.float16, torch.float32):
        leaf = lucid.from_torch(s.to(dtype)).requires_grad_()
        loss = F.distillation_loss(leaf, lucid.from_torch(t.to(dtype)), normalizer=2.0**24)
        gradients.append(exact(lucid.autograd.grad(loss, leaf, lucid.full_like(loss, 2.0**20))[0].to_torch()))
    half, single = gradients
    np.testing.assert_allclose(half, single, rtol=2e-3, atol=1e-6)


@pytest.mark.interpreter_only
def test_a_wrong_label_is_an_error_of_the_call_where_the_gradient_is_computed() -> None:
    leaf = lucid.from_torch(torch.randn(2, 5)).requires_grad_()
    with pytest.raises(IndexError, match="labels must lie in 0 to 4"):
        F.distillation_loss(leaf, lucid.zeros(2, 5), labels=lucid.tensor([1, 7]))
    with pytest.raises(IndexError, match="target must lie in 0 to 4"):
        F.cross_entropy(leaf, lucid.tensor([1, 7]))


def test_a_gradient_of_more_tiles_than_programs_is_multiplied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tk.tile_configs, "SCALING_PROGRAMS", 3)
    gradient = torch.randn(4, 9001).to(DEVICE)
    wanted = 2 * exact(gradient)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        got = tk.scale_gradient(gradient, torch.tensor(2.0).to(DEVICE), in_place=True)
    assert np.array_equal(exact(got), wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", ["labels", "probabilities"])
def test_cross_entropy_of_a_row_of_more_tiles_than_chunks_may_meet_is_true(
    targets: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tk.tile_configs, "MAX_ROW_CHUNKS", 3)
    x, of = 3 * torch.randn(3, 30_001), torch.tensor([5, 17_000, 30_000])
    forward: Callable[..., tuple[Tensor, Tensor]] = tk.cross_entropy_forward
    if targets == "probabilities":
        of, forward = torch.randn(3, 30_001).softmax(-1), tk.soft_cross_entropy_forward
    x[:, 9000:21_000] += 20  # so that the maxima of tiles differ
    wide, of_wide = x.double().requires_grad_(), of.double() if of.is_floating_point() else of
    truth = torch.nn.functional.cross_entropy(wide, of_wide, reduction="none", label_smoothing=smoothing)
    (wanted,) = torch.autograd.grad(truth.sum(), wide)
    dx = torch.full_like(x, NAN).to(DEVICE)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        for gradient in (dx, None):
            losses, _ = forward(x.to(DEVICE), of.to(DEVICE), label_smoothing=smoothing, dx=gradient)
            np.testing.assert_allclose(exact(losses), exact(truth), rtol=1e-5)
    np.testing.assert_allclose(exact(dx), exact(wanted), rtol=1e-4, atol=1e-9)
