"""lucid.torch.distillation_loss and cross_entropy: values, options, dtypes and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lucid
import lucid.nn.functional as LF
import lucid.torch
from tests import row_reference
from tests.device import DEVICE
from tests.reference import FLOATS, ROUNDOFF, arithmetic_of, assert_within, exact
from tests.row_reference import DIVERGENCES
from triton_kernels.devtools import trace

pytestmark = pytest.mark.usefixtures("implementation")

ROWS, V = 6, 37


def _on_device(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return tensor.to(DEVICE, dtype or tensor.dtype)


def _logits(dtype: torch.dtype = torch.float64, columns: tuple[int, int] = (V, V)) -> tuple[Tensor, Tensor]:
    s, t = (_on_device(3 * torch.randn(ROWS, width, dtype=torch.float64), dtype) for width in columns)
    return s.requires_grad_(), t.requires_grad_()


@pytest.mark.parametrize("t_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("s_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_loss_and_gradients_are_the_true_ones(kind: str, s_dtype: torch.dtype, t_dtype: torch.dtype) -> None:
    s, t = _logits()
    dtypes = s_dtype, t_dtype
    s, t = (x.detach().to(dtype).requires_grad_() for x, dtype in zip((s, t), dtypes, strict=True))
    beta = 0.3 if kind == "js" else None
    loss = lucid.torch.distillation_loss(s, t, divergence=kind, beta=beta, temperature=2.0, reduction="sum")
    arithmetic = arithmetic_of(*dtypes)
    assert loss.dtype == arithmetic
    truth = row_reference.divergence(exact(s), exact(t), kind, 0.3, 2.0)
    assert_within(loss, truth.loss.sum(), truth.loss_size.sum(), arithmetic)
    ds, dt = torch.autograd.grad(loss, (s, t))
    assert (ds.dtype, dt.dtype) == dtypes
    assert_within(ds, truth.ds, truth.ds_size, arithmetic)
    assert_within(dt, truth.dt, truth.dt_size, arithmetic)


def test_all_options_at_once_mean_what_they_say() -> None:
    """Against the definition, in float64."""
    s, t = _logits(columns=(V + 3, V + 5))
    labels = _on_device(torch.tensor([0, 5, -1, V - 1, 7, -1]))
    weight = _on_device(torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0, 1.0], dtype=torch.float64))
    tokens = _on_device(torch.tensor(11))
    options: dict[str, Any] = {"divergence": "reverse_kl", "temperature": 3.0, "temperature_squared": True}
    options |= {"labels": labels, "ignore_index": -1, "hard_label_weight": 0.25, "vocab_size": V, "weight": weight}
    for reduction, normalizer in (("none", None), ("sum", None), ("mean", None), ("batchmean", None), ("mean", tokens)):
        given = {**options, "reduction": reduction, "normalizer": normalizer}
        loss = lucid.torch.distillation_loss(s, t, **given)
        module = lucid.torch.DistillationLoss(
            **{name: value for name, value in given.items() if name not in ("labels", "weight", "normalizer")}
        )
        assert torch.equal(loss, module(s, t, weight=weight, labels=labels, normalizer=normalizer))
        log_q, log_p = ((x[:, :V] / 3).log_softmax(-1) for x in (s, t))
        each = 0.75 * 9 * (log_q.exp() * (log_q - log_p)).sum(-1)
        each = each + 0.25 * F.cross_entropy(s[:, :V], labels, ignore_index=-1, reduction="none")
        w = weight * (labels != -1)
        total = {"none": w * each, "mean": (w * each).sum() / w.sum(), "batchmean": (w * each).sum() / ROWS}
        expected = (w * each).sum() / 11 if normalizer is not None else total.get(reduction, (w * each).sum())
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        dloss = torch.randn_like(expected)
        got = torch.autograd.grad(loss, (s, t), dloss)
        torch.testing.assert_close(got, torch.autograd.grad(expected, (s, t), dloss), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(V,), (4, V), (4, V, 3), (2, V, 3, 2)], ids=str)
def test_cross_entropy_is_torchs(shape: tuple[int, ...], reduction: str, weighted: bool, smoothing: float) -> None:
    x = _on_device(torch.randn(shape, dtype=torch.float64)).requires_grad_()
    target = torch.randint(0, V, shape[:1] + shape[2:] if len(shape) > 1 else ())
    if len(shape) > 1:
        target.view(-1)[1] = 3
        target[target == 3] = -100
    target = _on_device(target)
    weight = _on_device(torch.rand(V, dtype=torch.float64)) if weighted else None
    options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    ours, theirs = (f(x, target, **options) for f in (lucid.torch.cross_entropy, F.cross_entropy))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    dloss = torch.randn_like(theirs)
    grads = [torch.autograd.grad(loss, x, dloss)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    module = lucid.torch.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=smoothing).to(DEVICE)
    assert torch.equal(module(x, target), ours)


def test_a_module_ignores_the_label_that_it_was_told_to() -> None:
    x, target = _on_device(torch.randn(4, V, dtype=torch.float64)), _on_device(torch.tensor([0, 3, 3, 1]))
    ours, theirs = (library.CrossEntropyLoss(ignore_index=3)(x, target) for library in (lucid.torch, torch.nn))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(V,), (4, V), (4, V, 3), (2, V, 3, 2)], ids=str)
def test_cross_entropy_with_probabilities_is_torchs(
    shape: tuple[int, ...], reduction: str, weighted: bool, smoothing: float
) -> None:
    x, y = (_on_device(torch.rand(shape, dtype=torch.float64)).requires_grad_() for _ in range(2))
    weight = _on_device(torch.rand(V, dtype=torch.float64)) if weighted else None
    options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    dloss = torch.randn_like(F.cross_entropy(x, y, **options))
    for wanted in ((x,), (y,), (x, y)):  # a gradient to the logits alone is calculated in another place
        given = [tensor if any(tensor is other for other in wanted) else tensor.detach() for tensor in (x, y)]
        ours, theirs = (f(*given, **options) for f in (lucid.torch.cross_entropy, F.cross_entropy))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        grads = [torch.autograd.grad(loss, wanted, dloss) for loss in (ours, theirs)]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    module = lucid.torch.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=smoothing).to(DEVICE)
    assert torch.equal(module(x, y), ours)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("y_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("x_dtype", FLOATS, ids=str)
def test_dtypes_of_cross_entropy_with_probabilities_are_torchs(
    x_dtype: torch.dtype, y_dtype: torch.dtype, autocast: bool
) -> None:
    x, y = (_on_device(torch.rand(3, V), dtype).requires_grad_() for dtype in (x_dtype, y_dtype))
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
        ours, theirs = (f(x, y) for f in (lucid.torch.cross_entropy, F.cross_entropy))
    assert ours.dtype == theirs.dtype
    ours.backward()
    assert (x.grad.dtype, y.grad.dtype) == (x_dtype, y_dtype)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_gradient_to_the_logits_alone_may_be_asked_for_twice_and_scaled(reduction: str) -> None:
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.25}
    for dtype in (torch.float32, torch.bfloat16):
        x, y = _on_device(torch.randn(3, V), dtype).requires_grad_(), _on_device(torch.rand(3, V), dtype)
        loss = lucid.torch.cross_entropy(x, y, **options)
        dloss = torch.randn_like(loss)
        first, second = (torch.autograd.grad(loss, x, dloss, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, second)
        truth = torch.autograd.grad(F.cross_entropy(x.double(), y.double(), **options), x, dloss.double())[0]
        torch.testing.assert_close(first, truth, rtol=2 * ROUNDOFF[dtype], atol=1e-5)


def test_without_a_token_that_counts_the_loss_is_0_where_torch_gives_nan() -> None:
    """On purpose: the mean over no token is 0, with a zero gradient, for a rank that got none."""
    s, t = _logits(torch.float32)
    ignored = _on_device(torch.full((ROWS,), -100))
    assert F.cross_entropy(s, ignored).isnan()
    for loss in (lucid.torch.cross_entropy(s, ignored), lucid.torch.distillation_loss(s, t, labels=ignored)):
        assert loss.item() == 0
        (grad,) = torch.autograd.grad(loss, s)
        assert not grad.any()


@pytest.mark.parametrize(
    "kind", [int, float, lambda count: torch.tensor(count, device=DEVICE)], ids=["int", "float", "tensor"]
)
@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_a_normalizer_of_0_gives_0_where_no_token_counts(reduction: str, kind: Callable[[int], Any]) -> None:
    s, t = _logits(torch.float32)
    for given in ({"labels": _on_device(torch.full((ROWS,), -100))}, {"weight": _on_device(torch.zeros(ROWS))}):
        loss = lucid.torch.distillation_loss(s, t, normalizer=kind(0), reduction=reduction, **given)
        assert loss.item() == 0
        assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (s, t)))


def test_the_facade_and_this_give_the_same_bits() -> None:
    s, t = _logits(torch.bfloat16)
    labels = _on_device(torch.arange(ROWS))
    options = {"divergence": "js", "beta": 0.2, "temperature": 1.5, "hard_label_weight": 0.5}
    loss = lucid.torch.distillation_loss(s, t, labels=labels, **options)
    (grad,) = torch.autograd.grad(loss, s)
    student = lucid.from_torch(s.detach()).requires_grad_()
    teacher = lucid.from_torch(t.detach())
    other = LF.distillation_loss(student, teacher, labels=lucid.from_torch(labels), **options)
    other.backward()
    assert torch.equal(loss, other.to_torch().reshape(()))
    assert torch.equal(grad, student.grad.to_torch())


S, T = torch.zeros(3, 5, device=DEVICE), torch.ones(3, 5, device=DEVICE)
LABELS = torch.zeros(3, dtype=torch.int64, device=DEVICE)
JS = {"divergence": "js"}
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "divergence": ({"divergence": "kl"}, ValueError, "divergence must be one of .* got 'kl'"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction must be one of .* got 'avg'"),
    "beta 2": ({**JS, "beta": 2}, ValueError, r"beta must be a number in the open interval \(0, 1\), got 2$"),
    "beta 0": ({**JS, "beta": 0}, ValueError, "got 0.0: for that pass divergence='forward_kl' and no beta"),
    "beta 1": ({**JS, "beta": 1}, ValueError, "got 1.0: for that pass divergence='reverse_kl' and no beta"),
    "beta, forward_kl": ({"beta": 0.5}, ValueError, "beta is of divergence 'js' alone, got beta=0.5 for 'forward_kl'"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature must be a number from 1e-15 to 1e15, got 0.0"),
    "temperature, NaN": (
        {"temperature": math.nan},
        ValueError,
        "temperature must be a number from 1e-15 to 1e15, got nan",
    ),
    "temperature, tensor": (
        {"temperature": S},
        TypeError,
        "temperature must be a number from 1e-15 to 1e15, got torch.Tensor",
    ),
    "student, NumPy": (
        {"student_logits": np.zeros((3, 5))},
        TypeError,
        r"got numpy.ndarray: pass torch.from_numpy\(student_logits\)",
    ),
    "student, integers": ({"student_logits": S.long()}, TypeError, "student_logits must be float16, .* torch.int64"),
    "student, 0-d": ({"student_logits": S[0, 0]}, RuntimeError, "must have a dimension of columns"),
    "teacher, rows": ({"teacher_logits": T[:2]}, RuntimeError, r"student_logits \(3, 5\) and teacher_logits \(2, 5\)"),
    "teacher, columns": ({"teacher_logits": T[:, :2]}, RuntimeError, "equally many columns .* got 5 and 2"),
    "teacher, device": ({"teacher_logits": T.to("meta")}, RuntimeError, "teacher_logits on meta"),
    "weight, rows": ({"weight": T[0]}, RuntimeError, r"weight must have shape \(3,\)"),
    "weight, device": ({"weight": T[:, 0].to("meta")}, RuntimeError, "weight and student_logits must be on one device"),
    "labels, device": ({"labels": LABELS.to("meta")}, RuntimeError, "labels and student_logits must be on one device"),
    "weight, integers": ({"weight": LABELS}, TypeError, "weight must be bool or floating, got torch.int64"),
    "weight, gradient": ({"weight": torch.ones(3, device=DEVICE, requires_grad=True)}, RuntimeError, "weight.detach"),
    "labels, floating": ({"labels": T[:, 0]}, TypeError, "labels must be int32 or int64, got torch.float32"),
    "labels, none": ({"hard_label_weight": 0.5}, ValueError, "labels must be given for a hard_label_weight of 0.5"),
    "hard_label_weight": ({"hard_label_weight": 2}, ValueError, "hard_label_weight must be a number from 0 to 1"),
    "normalizer": ({"normalizer": -1}, ValueError, "normalizer must be a positive number, .* got -1"),
    "normalizer, shape": ({"normalizer": T}, RuntimeError, "0-d Tensor, got shape"),
    "normalizer, sum": ({"normalizer": 2, "reduction": "sum"}, ValueError, "normalizer requires .* 'sum'"),
    "vocab_size": ({"vocab_size": 6}, ValueError, "vocab_size must lie in 1 to 5, got 6"),
    "vocab_size 0": ({"vocab_size": 0}, ValueError, "vocab_size must be a positive int, got 0"),
    "ignore_index": ({"ignore_index": 1.5}, TypeError, "ignore_index must be an int, got float"),
    "ignore_index alone": ({"ignore_index": -100}, ValueError, "labels must be given for an ignore_index of -100"),
    "squared": ({"temperature_squared": "yes"}, TypeError, "temperature_squared must be a bool, got str"),
    "in place": ({"inplace_gradient": 1}, TypeError, "inplace_gradient must be a bool, got int"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_any_launch(case: str) -> None:
    arguments, error, message = BAD[case]
    with trace.launches() as made, pytest.raises(error, match=message):
        lucid.torch.distillation_loss(**{"student_logits": S, "teacher_logits": T, **arguments})
    assert not made


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((S, T[:, 0]), {}, RuntimeError, r"must have input's shape \(3, 5\), got \(3,\) of torch.float32"),
        ((S, T.long()), {}, TypeError, "target of input's shape is class probabilities, which must be floating"),
        ((S, T.to("meta")), {}, RuntimeError, "target and input must be on one device, got target on meta"),
        ((S, T), {"ignore_index": 3}, ValueError, "ignore_index is of labels alone, got 3"),
        ((S, LABELS[:2]), {}, RuntimeError, r"target must have shape \(3,\), that of input .* got \(2,\)$"),
        (
            (S[0], LABELS[:1]),
            {},
            RuntimeError,
            r"target must have shape \(\), that of input \(5,\) without dimension 0",
        ),
        ((S.expand(2, 4, 3, 5), LABELS.expand(2, 4, 3)), {}, RuntimeError, r"pass input.permute\(0, 3, 1, 2\)$"),
        ((S, LABELS.to("meta")), {}, RuntimeError, "target and input must be on one device, got target on meta"),
        ((S.int(), LABELS), {}, TypeError, "input must be float16"),
        ((S, LABELS, T[0, :2]), {}, RuntimeError, r"weight must have shape \(5,\), one for each class"),
        ((S, LABELS), {"reduction": "batchmean"}, ValueError, "reduction must be one of"),
        ((S, LABELS), {"label_smoothing": 2}, ValueError, "label_smoothing must be a number from 0 to 1"),
        ((S[:, :0], LABELS), {}, RuntimeError, "input must have at least one class"),
    ],
)
def test_bad_input_to_cross_entropy_is_named(
    args: Any, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with trace.launches() as made, pytest.raises(error, match=message):
        lucid.torch.cross_entropy(*args, **kwargs)
    assert not made


def test_deprecated_arguments_of_cross_entropy_decide_instead_of_reduction() -> None:
    for size_average, reduce in ((False, None), (None, False), (True, True)):
        with pytest.warns(UserWarning, match="deprecated"):
            ours = lucid.torch.cross_entropy(S, LABELS, None, size_average, -100, reduce)
        with pytest.warns(UserWarning, match="deprecated"):
            theirs = F.cross_entropy(S, LABELS, None, size_average, -100, reduce)
        torch.testing.assert_close(ours, theirs)


def test_invalid_values_that_kernels_find_are_errors_of_the_call_inside_check_values() -> None:
    bad = LABELS.clone()
    bad[1] = 5
    with lucid.check_values():
        for name, loss in (
            ("target", lambda: lucid.torch.cross_entropy(S, bad)),
            ("target", lambda: lucid.torch.cross_entropy(S.clone().requires_grad_(), bad)),
            ("labels", lambda: lucid.torch.distillation_loss(S, T, labels=bad)),
            ("target", lambda: torch.compile(lucid.torch.cross_entropy, backend="aot_eager")(S, bad)),
        ):
            with pytest.raises(IndexError, match=f"{name} must lie in 0 to 4, .* got 5"):
                loss()
        with pytest.raises(ValueError, match="normalizer must be positive"):
            lucid.torch.distillation_loss(S, T, normalizer=torch.tensor(-1.0, device=DEVICE))
        assert lucid.torch.cross_entropy(S, LABELS).isfinite()


def test_errors_are_found_in_and_after_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_kernels.runtime import device_errors

    monkeypatch.setattr(device_errors, "_buffers", {})  # as before the first call of all
    bad = torch.full_like(LABELS, 9)
    with torch.inference_mode():
        lucid.torch.cross_entropy(S, LABELS)
    for mode in (False, True, False):
        with torch.inference_mode(mode), lucid.check_values(), pytest.raises(IndexError, match="got 9"):
            lucid.torch.cross_entropy(S, bad)
