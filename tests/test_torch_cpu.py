"""CPU tensors of lucid.torch go through torch's own operators: which, when, with what memory, and how exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import lucid.torch
import triton_kernels as tk
from lucid.torch import cpu
from lucid.torch.cpu.rows import CHUNK
from lucid.typing import Reduction
from tests import row_reference
from tests.reference import exact
from tests.row_reference import DIVERGENCES
from triton_kernels.devtools import trace
from triton_kernels.runtime import backend

Loss = Callable[[Tensor, Tensor], Tensor]


def _divergence(kind: str) -> Loss:
    return lambda s, t: lucid.torch.distillation_loss(s, t, divergence=kind)


LOSSES: dict[str, Loss] = {
    **{kind: _divergence(kind) for kind in DIVERGENCES},
    "kl_div": lambda s, t: lucid.torch.kl_div(s, t.softmax(-1), reduction="sum"),
    "kl_div, log target": lambda s, t: lucid.torch.kl_div(s, t.log_softmax(-1), reduction="sum", log_target=True),
    "cross_entropy": lambda s, t: lucid.torch.cross_entropy(s, torch.arange(s.shape[0]) % s.shape[1]),
}
interpreted = pytest.mark.skipif(not backend.INTERPRETED, reason="kernels are compiled here and take no CPU tensors")


def _inputs(rows: int = 6, columns: int = 301, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    s, t = (3 * torch.randn(rows, columns, device="cpu") for _ in range(2))
    return s.to(dtype).requires_grad_(), t.to(dtype)


def _gradient(loss: Tensor, s: Tensor, dloss: Any = None) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, s, dloss, retain_graph=True)
    return gradient


@pytest.mark.parametrize("name", LOSSES)
def test_no_kernel_is_launched(name: str) -> None:
    s, t = _inputs()
    with trace.launches() as made:
        LOSSES[name](s, t).backward()
    assert not made


@interpreted
@pytest.mark.parametrize("name", LOSSES)
def test_the_switch_selects_kernels_for_forward_and_the_backward_that_belongs_to_it(name: str) -> None:
    s, t = _inputs()
    with trace.launches() as made:
        with lucid.torch.kernels_on_cpu():
            loss = LOSSES[name](s, t)
            count = len(made)
            other = lucid.torch.kernels_on_cpu(False)(LOSSES[name])(s, t)
        assert len(made) == count > 0
        loss.backward()
        assert len(made) > count
        count = len(made)
        with lucid.torch.kernels_on_cpu():
            other.backward()
        assert len(made) == count


@interpreted
def test_the_switch_holds_for_a_thread() -> None:
    with lucid.torch.kernels_on_cpu(), ThreadPoolExecutor(1) as thread:
        assert thread.submit(lucid.torch.operators.launchers, torch.zeros(1)).result() is cpu


@pytest.mark.skipif(backend.INTERPRETED, reason="about machines where kernels are compiled")
def test_the_switch_says_where_kernels_cannot_take_cpu_tensors() -> None:
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1 before Python starts"):
        lucid.torch.kernels_on_cpu()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_both_implementations_agree_to_a_few_roundings(name: str, dtype: torch.dtype) -> None:
    s, t = _inputs(dtype=dtype)
    results = []
    for kernels in (False, True):
        with lucid.torch.kernels_on_cpu(kernels):
            loss = LOSSES[name](s, t)
            results.append((loss.detach(), _gradient(loss, s)))
    unit = 64 * torch.finfo(torch.float32 if dtype == torch.float32 else torch.bfloat16).eps
    for mine, others in zip(*results, strict=True):
        assert (mine - others).abs().max() <= unit * others.abs().max()


class TestAGradientMadeInTheForwardPass:
    """It equals the gradient of a backward pass, also where it is asked for twice or changed in place."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
    @pytest.mark.parametrize("dloss", [1.0, 0.25, 3.7, 2.0**14, math.inf])
    @pytest.mark.parametrize("name", [name for name in LOSSES if name != "kl_div"])
    def test_is_rounded_once_more_unless_dloss_is_a_power_of_two(
        self, name: str, dloss: float, dtype: torch.dtype
    ) -> None:
        s, t = _inputs(dtype=dtype)
        loss = LOSSES[name](s, t)
        made = _gradient(loss, s, torch.full_like(loss, dloss))
        with lucid.torch.gradient_in_forward(False):
            loss = LOSSES[name](s, t)
        later = _gradient(loss, s, torch.full_like(loss, dloss))
        # One rounding is an eps at most; in float32 and float64 factors of rows are rounded, too.
        roundings = 0 if dloss != 3.7 or dtype == torch.float16 else 1 if dtype == torch.bfloat16 else 4
        torch.testing.assert_close(made, later, rtol=roundings * torch.finfo(dtype).eps, atol=0, equal_nan=True)

    @pytest.mark.parametrize("name", LOSSES)
    def test_is_the_same_in_a_second_pass_whatever_became_of_the_first_ones(self, name: str) -> None:
        s, t = _inputs()
        loss = LOSSES[name](s, t)
        first = _gradient(loss, s, torch.tensor(0.3))
        kept = first.clone()
        first.fill_(7)
        assert torch.equal(_gradient(loss, s, torch.tensor(0.3)), kept)

    @pytest.mark.parametrize("name", LOSSES)
    def test_is_an_error_where_the_graph_is_freed(self, name: str) -> None:
        s, t = _inputs()
        loss = LOSSES[name](s, t)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    @pytest.mark.parametrize("name", LOSSES)
    def test_is_right_where_logits_were_changed_meanwhile(self, name: str) -> None:
        s, t = _inputs()
        expected = _gradient(LOSSES[name](s, t), s)
        loss = LOSSES[name](s, t)
        s.detach().zero_()
        if not name.startswith("kl_div"):  # which keeps its target
            t.zero_()
        for _ in range(2):
            assert torch.equal(_gradient(loss, s), expected)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_is_0_for_skipped_tokens_also_where_what_comes_from_above_is_infinite(self, reduction: Reduction) -> None:
        s, t = _inputs()
        loss = lucid.torch.distillation_loss(s, t, weight=torch.arange(6) > 2, reduction=reduction)
        assert not _gradient(loss, s, torch.full_like(loss, math.inf))[:3].any()

    def test_is_made_only_where_it_is_wanted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        monkeypatch.setattr(tk.strides, "empty_as", lambda *args: made.append(args))
        s, t = _inputs()
        with torch.no_grad():
            _divergence("js")(s, t)
        _divergence("js")(s.detach(), t)
        lucid.torch.distillation_loss(s * 1, t, inplace_gradient=True)
        assert not made
        _divergence("js")(s, t)
        assert len(made) == 1

    def test_is_not_made_where_others_see_to_what_is_saved(self) -> None:
        s, t = _inputs()
        loss = checkpoint(lambda s: _divergence("js")(s * 1, t), s, use_reentrant=False)
        assert "LossWithGradient" in _divergence("js")(s, t).grad_fn.name()
        assert "LossWithGradient" not in loss.grad_fn.name()
        (gradient,) = torch.autograd.grad(loss, s)
        torch.testing.assert_close(gradient, _gradient(_divergence("js")(s, t), s))

    def test_is_not_made_for_tensors_of_another_class(self) -> None:
        class Kind(Tensor):
            pass

        s, t = _inputs()
        assert isinstance(_divergence("js")(s, t.as_subclass(Kind)), Kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_of_the_inputs_size_is_allocated_but_the_gradient(name: str, dtype: torch.dtype) -> None:
    s, t = _inputs(64, 32_000, dtype)
    target = t.softmax(-1) if name == "kl_div" else t.log_softmax(-1)
    LOSSES[name](*_inputs(1, CHUNK, dtype))  # the buffers that all calls share
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        if "kl_div" in name:
            loss = lucid.torch.kl_div(s, target, reduction="sum", log_target="log" in name)
        else:
            loss = LOSSES[name](s, t)
        loss.backward()
    sizes = [event.self_cpu_memory_usage for event in profiled.events()]
    assert [size for size in sizes if size > CHUNK] == [s.numel() * dtype.itemsize]


@pytest.mark.parametrize("columns", [33, 9_008, 300_000])
@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy", "kl_div", "kl_div, log target"])
def test_bits_do_not_depend_on_the_number_of_threads_or_of_rows(name: str, columns: int) -> None:
    s, t = _inputs(5, columns)
    if "kl_div" in name:
        t = t.log_softmax(-1) if "log" in name else t.softmax(-1)

    def loss_of(s: Tensor, t: Tensor) -> Tensor:
        if "kl_div" in name:
            return lucid.torch.kl_div(s, t, reduction="none", log_target="log" in name)
        if name == "cross_entropy":
            return lucid.torch.cross_entropy(s, torch.full(s.shape[:1], 3), reduction="none")
        return lucid.torch.distillation_loss(s, t, divergence=name, reduction="none")

    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for rows in (slice(0, 5), slice(2, 3), slice(1, 4)):
                loss = loss_of(s[rows], t[rows])
                (gradient,) = torch.autograd.grad(loss.sum(), s)
                results.append((loss[2 - rows.start], gradient[2]))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_divergence_is_not_negative_and_not_off_by_more_than_roundings_of_probabilities(kind: str) -> None:
    for family in ("nearly equal", "shifted", "peaked and nearly equal"):
        s, t = row_reference.family(family, 64, 1000)
        losses = lucid.torch.distillation_loss(s, t, divergence=kind, reduction="none")
        truth = row_reference.divergence(exact(s), exact(t), kind).loss
        assert losses.min() >= 0
        assert abs(exact(losses) - truth).max() <= 8 * 2.0**-24 * (1 + truth.max())


@pytest.mark.parametrize("shape", [(0, 9), (3, 0, 9), (9,), (2, 3, 2, 9)], ids=str)
def test_rows_may_be_none_and_of_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    s, t = torch.randn(shape).requires_grad_(), torch.randn(shape)
    loss = lucid.torch.distillation_loss(s, t, reduction="none")
    assert loss.shape == shape[:-1]
    loss.sum().backward()
    assert s.grad.shape == shape


@pytest.mark.parametrize("name", LOSSES)
def test_a_default_device_or_dtype_of_others_changes_nothing(name: str) -> None:
    s, t = _inputs(4, 9)
    labels = torch.tensor([1, -100, 3, 4])
    losses = [
        lambda: LOSSES[name](s, t),
        lambda: lucid.torch.distillation_loss(s, t, labels=labels, hard_label_weight=0.3, normalizer=3),
    ]
    expected = [(loss().detach(), _gradient(loss(), s)) for loss in losses[name == "cross_entropy" :]]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            made = [(loss().detach(), _gradient(loss(), s)) for loss in losses[name == "cross_entropy" :]]
    finally:
        torch.set_default_dtype(before)
    for pair, others in zip(made, expected, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(pair, others, strict=True))


TOKENS = {
    "some": [True, False, True, False, False, True],
    "a run": [False, False, True, True, True, False],
    "none": [False] * 6,
}


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("layout", ["contiguous", "a slice of sequences", "columns apart"])
def test_tokens_that_are_skipped_leave_the_others_as_they_are(layout: str, tokens: str) -> None:
    """Several chunks, some of them empty, with rows that cannot be seen as one dimension without a copy."""
    columns = cpu.rows.chunk_size() // 4 + 1
    s, t = torch.randn(2, 4, columns), torch.randn(2, 4, columns)
    if layout == "columns apart":
        s, t = (x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (s, t))
    s, t = (x[:, :3].contiguous() if layout == "contiguous" else x[:, :3] for x in (s, t))
    kept = torch.tensor(TOKENS[tokens]).view(2, 3)
    s.requires_grad_()
    loss = lucid.torch.distillation_loss(s, t, weight=kept, divergence="js", reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), s)
    alone = s.detach()[kept].requires_grad_()
    expected = lucid.torch.distillation_loss(alone, t[kept], divergence="js", reduction="none")
    assert torch.equal(loss[kept], expected)
    assert not loss[~kept].any()
    assert not gradient[~kept].any()
    if kept.any():
        assert torch.equal(gradient[kept], torch.autograd.grad(expected.sum(), alone)[0])


def test_buffers_of_a_first_call_in_inference_mode_are_of_use_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.rows._workspace, "buffers", ())
    s, t = _inputs()
    with torch.inference_mode():
        _divergence("js")(s, t)
    _divergence("js")(s, t).backward()


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=interpreted)])
def test_what_was_made_in_inference_mode_is_a_tensor_like_others(kernels: bool) -> None:
    s, _ = _inputs(4, 9)
    teacher = torch.randn(4, 18)
    with torch.inference_mode():
        wide, labels, weight = teacher * 1, torch.arange(4) + 0, torch.arange(9.0) + 1
    cases: list[Callable[[Any], Tensor]] = [
        *(
            lambda of, kind=kind: lucid.torch.distillation_loss(s, of(wide)[:, ::2], divergence=kind)
            for kind in DIVERGENCES
        ),
        lambda of: lucid.torch.distillation_loss(s, of(wide)[:, :9].float(), labels=of(labels), hard_label_weight=0.5),
        lambda of: lucid.torch.kl_div(s, of(wide)[:, :9].softmax(-1), reduction="sum"),
        lambda of: lucid.torch.kl_div(s, of(wide)[:, :9], reduction="sum", log_target=True),
        lambda of: lucid.torch.cross_entropy(s, of(labels), of(weight)),
        lambda of: lucid.torch.distillation_loss(s * 1, of(wide)[:, :9], inplace_gradient=True),
    ]
    with lucid.torch.kernels_on_cpu(kernels):
        for loss in cases:
            (made,) = torch.autograd.grad(loss(lambda x: x), s)
            (expected,) = torch.autograd.grad(loss(torch.clone), s)
            assert torch.equal(made, expected)


@pytest.mark.parametrize("grad", [False, True])
def test_weights_whose_sum_has_no_reciprocal_in_float32_give_a_mean(grad: bool) -> None:
    s, t = _inputs(4, 8)
    s, labels = s.detach().requires_grad_(grad), torch.arange(4)
    loss = lucid.torch.distillation_loss(s, t, weight=torch.full((4,), 5e-40))
    torch.testing.assert_close(loss, lucid.torch.distillation_loss(s, t))
    loss = lucid.torch.cross_entropy(s, labels, torch.full((8,), 5e-40))
    torch.testing.assert_close(loss, lucid.torch.cross_entropy(s, labels))
    assert lucid.torch.distillation_loss(s, t, normalizer=1e-40).item() == torch.inf
