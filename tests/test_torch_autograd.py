"""lucid.torch in PyTorch's autograd: both inputs, twice, with hooks, and gradients of any strides."""

from __future__ import annotations

import functools
import math
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lucid.torch
from tests.device import DEVICE
from triton_kernels.devtools import trace

pytestmark = pytest.mark.usefixtures("implementation")

Loss = Callable[[Tensor, Tensor], Tensor]


def _both(loss: Callable[..., Tensor]) -> tuple[Loss, Loss]:
    """Return a loss of lucid.torch and the same of torch.nn.functional."""
    return functools.partial(loss, lucid.torch), functools.partial(loss, F)


#: Ours, and torch's expression for the same, of log-probabilities or logits.
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "kl_div": _both(lambda library, x, y: library.kl_div(x, y, reduction="batchmean")),
    "kl_div, none": _both(lambda library, x, y: library.kl_div(x, y, reduction="none", log_target=True)),
    "distillation": (
        lambda s, t: lucid.torch.distillation_loss(s, t, temperature=2.0, reduction="batchmean"),
        lambda s, t: F.kl_div((s / 2).log_softmax(-1), (t / 2).softmax(-1), reduction="batchmean"),
    ),
    "distillation, none": (
        lambda s, t: lucid.torch.distillation_loss(s, t, divergence="reverse_kl", reduction="none"),
        lambda s, t: F.kl_div(t.log_softmax(-1), s.softmax(-1), reduction="none").sum(-1),
    ),
    "cross-entropy": _both(lambda library, s, t: library.cross_entropy(s, t.argmax(-1), label_smoothing=0.2)),
    "cross-entropy, probabilities": _both(lambda library, s, t: library.cross_entropy(s, t, label_smoothing=0.2)),
}
NAMES = tuple(LOSSES)


def _inputs(rows: int = 4, columns: int = 6) -> tuple[Tensor, Tensor]:
    x, y = (torch.rand(rows, columns, dtype=torch.float64, device=DEVICE) for _ in range(2))
    return x.requires_grad_(), y.requires_grad_()


def _grads(loss: Tensor, inputs: tuple[Tensor, ...], dloss: Tensor | None = None) -> list[Tensor]:
    if dloss is None:
        dloss = torch.ones_like(loss)
    grads = torch.autograd.grad(loss, inputs, dloss, allow_unused=True, retain_graph=True)
    return [grad for grad in grads if grad is not None]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_to_both_are_torchs_and_those_of_differences(name: str) -> None:
    ours, theirs = LOSSES[name]
    inputs = _inputs()
    torch.testing.assert_close(_grads(ours(*inputs), inputs), _grads(theirs(*inputs), inputs))
    wanted = inputs if name != "cross-entropy" else (inputs[0], inputs[1].detach())
    assert torch.autograd.gradcheck(ours, wanted)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2,)), ((2, 0), (2, 0))], ids=str)
def test_second_derivatives_of_kl_div(shapes: tuple[tuple[int, ...], ...], reduction: str, log_target: bool) -> None:
    inputs = tuple(torch.rand(shape, dtype=torch.float64, device=DEVICE, requires_grad=True) for shape in shapes)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return lucid.torch.kl_div(x, y, reduction=reduction, log_target=log_target)

    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("log_target", [False, True])
def test_second_derivatives_are_0_where_the_target_is(log_target: bool) -> None:
    x = torch.tensor([-1.0, -torch.inf], device=DEVICE, requires_grad=True)
    y = torch.tensor([-torch.inf] * 2 if log_target else [0.0] * 2, device=DEVICE, requires_grad=True)
    loss = lucid.torch.kl_div(x, y, reduction="sum", log_target=log_target)
    grads = torch.autograd.grad(loss, (x, y), create_graph=True)
    second = torch.autograd.grad(grads[1].sum(), (x, y))
    assert [g.tolist() for g in (*grads, *second)] == [[0.0, 0.0]] * 4


def test_third_derivatives_are_those_of_the_second_ones() -> None:
    inputs = _inputs(1, 3)

    def slope(x: Tensor, y: Tensor) -> Tensor:
        loss = lucid.torch.kl_div(x, y, reduction="sum", log_target=True)
        return torch.autograd.grad(loss, y, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_going_backward_repeatedly_adds_the_same_gradient(name: str) -> None:
    ours, _ = LOSSES[name]
    x, y = _inputs()
    loss = ours(x, y)
    dloss = torch.randn_like(loss)
    loss.backward(dloss, retain_graph=True)
    first = x.grad.clone()
    loss.backward(dloss)
    assert torch.equal(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward(dloss)


@pytest.mark.parametrize("name", ["kl_div, none", "distillation, none"])
def test_dloss_may_have_any_strides(name: str) -> None:
    ours, theirs = LOSSES[name]
    inputs = _inputs()
    mine, other = ours(*inputs), theirs(*inputs)
    dense = torch.randn(*mine.shape, 3, dtype=torch.float64, device=DEVICE)
    transposed = torch.randn(*reversed(mine.shape), dtype=torch.float64, device=DEVICE).permute(
        *reversed(range(mine.dim()))
    )
    expanded = torch.randn((), dtype=torch.float64, device=DEVICE).expand(mine.shape)
    for dloss in (dense[..., 1], transposed, expanded, expanded[:1].expand(mine.shape)):
        torch.testing.assert_close(_grads(mine, inputs, dloss), _grads(other, inputs, dloss))


@pytest.mark.kernels_only
@pytest.mark.parametrize("side", [0, 1], ids=["to the first", "to the second"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "cross-entropy"])
def test_only_the_gradient_that_is_asked_for_is_written(name: str, side: int) -> None:
    ours, _ = LOSSES[name]
    inputs = [t.detach() for t in _inputs()]
    inputs[side].requires_grad_()
    by_loss = {"kl_div": ("dx_ptr", "dtarget_ptr"), "distillation": ("ds", "dt"), "cross-entropy": ("dx", "dy")}
    gradients = by_loss[name.partition(",")[0]]
    for in_forward in (True, False):
        with lucid.gradient_in_forward(in_forward), trace.launches() as made:
            ours(*inputs).sum().backward()
        (writing,) = (launched.args for launched in made if launched.args.get(gradients[side]) is not None)
        assert [writing.get(pointer) is not None for pointer in gradients] == [side == 0, side == 1]


@pytest.mark.parametrize("name", NAMES)
def test_without_grad_there_is_no_graph(name: str) -> None:
    ours, _ = LOSSES[name]
    x, y = _inputs()
    with torch.no_grad():
        assert not ours(x, y).requires_grad
    assert not ours(x.detach(), y.detach()).requires_grad
    with torch.inference_mode():
        assert ours(x, y).is_inference()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_hooks_anomaly_mode_and_retain_grad(name: str) -> None:
    ours, theirs = LOSSES[name]
    x, y = _inputs()
    seen: list[Tensor] = []
    with torch.autograd.detect_anomaly(check_nan=True):
        inner = x * 2
        inner.retain_grad()
        inner.register_hook(seen.append)
        inner.register_hook(lambda grad: grad * 3)
        loss = ours(inner, y)
        loss.grad_fn.register_hook(lambda grads, outer: None)
        loss.sum().backward()
    (expected,) = _grads(theirs(2 * x, y), (x,))[:1]
    torch.testing.assert_close(seen[0] * 2, expected)
    torch.testing.assert_close(inner.grad, seen[0] * 3)
    torch.testing.assert_close(x.grad, expected * 3)


@pytest.mark.parametrize("name", NAMES)
def test_what_backward_needs_may_not_change_in_between(name: str) -> None:
    ours, _ = LOSSES[name]
    x, y = _inputs()
    changed = y * 1 if "kl_div" in name else x * 1
    with lucid.gradient_in_forward(False):
        loss = ours(x, changed) if "kl_div" in name else ours(changed, y)
    changed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


@pytest.mark.parametrize("in_forward", [True, False])
@pytest.mark.parametrize("name", [name for name in NAMES if name in ("distillation", "cross-entropy")])
def test_second_derivatives_are_refused_also_where_nothing_but_the_graph_knows_the_logits(
    name: str, in_forward: bool
) -> None:
    """A graph that took the gradient for a constant would return a wrong one."""
    ours, _ = LOSSES[name]
    x, y = _inputs()
    with lucid.gradient_in_forward(in_forward):
        (dx,) = torch.autograd.grad(ours(x * 2, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad((dx * dx).sum(), x)


@pytest.mark.parametrize("name", [name for name in NAMES if name in ("distillation", "cross-entropy")])
def test_logits_may_change_or_go_once_the_gradient_is_computed(name: str) -> None:
    ours, theirs = LOSSES[name]
    x, y = _inputs()
    expected = _grads(theirs(x, y), (x,))
    logits = x * 1
    loss = ours(logits, y)
    logits.mul_(2)
    gone = weakref.ref(logits)
    del logits
    assert gone() is None
    torch.testing.assert_close(_grads(loss, (x,)), expected)


def test_inputs_are_never_changed_unless_asked() -> None:
    for ours, _ in LOSSES.values():
        x, y = _inputs()
        before = [t.detach().clone() for t in (x, y)]
        ours(x, y).sum().backward()
        assert [t._version for t in (x, y)] == [0, 0]
        assert all(map(torch.equal, (x, y), before))


def _rows() -> tuple[Tensor, Tensor]:
    s, t = (torch.randn(6, 50, device=DEVICE) for _ in range(2))
    return s.requires_grad_(), t


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_used_again_for_another_loss_counts_as_it_was(dtype: torch.dtype) -> None:
    s, t = _rows()
    s = s.detach().to(dtype).requires_grad_()
    buffer = torch.empty(6, device=DEVICE)
    kinds = [torch.tensor(k, device=DEVICE) for k in ([1.0, 1, 1, 0, 0, 0], [0.0, 0, 0, 1, 1, 1])]
    losses = [lucid.torch.distillation_loss(s, t, weight=buffer.copy_(kind)) for kind in kinds]
    expected = [lucid.torch.distillation_loss(s, t, weight=kind) for kind in kinds]
    made, wanted = (torch.autograd.grad(sum(each) / 3, s)[0] for each in (losses, expected))
    assert torch.equal(made, wanted)


@pytest.mark.parametrize("to_teacher", [False, True])
def test_losses_of_tokens_may_be_changed_in_place(to_teacher: bool) -> None:
    s, t = _rows()
    mask = torch.tensor([0, 1, 0, 1, 1, 0], device=DEVICE)
    for loss in (
        lambda: lucid.torch.distillation_loss(s, t.requires_grad_(to_teacher), reduction="none"),
        lambda: lucid.torch.cross_entropy(s, torch.arange(6, device=DEVICE), reduction="none"),
        lambda: lucid.torch.cross_entropy(s, t.detach().softmax(-1), reduction="none"),
    ):
        each = loss()
        each *= mask
        assert torch.equal(torch.autograd.grad(each.sum(), s)[0], torch.autograd.grad((loss() * mask).sum(), s)[0])


def test_infinite_weights_give_no_finite_loss() -> None:
    s, t = _rows()
    weight = torch.ones(6, device=DEVICE)
    weight[1] = math.inf
    assert lucid.torch.distillation_loss(s, t, weight=weight).isnan()
    classes = torch.ones(50, device=DEVICE)
    classes[1] = math.inf
    assert lucid.torch.cross_entropy(s, torch.arange(6, device=DEVICE), classes).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_with_several_vectors_at_once_are_those_of_each(dtype: torch.dtype) -> None:
    s, t = _rows()
    s = s.detach().to(dtype).requires_grad_()
    each = lucid.torch.distillation_loss(s, t, reduction="none")
    vectors = torch.eye(6, device=DEVICE)
    (together,) = torch.autograd.grad(each, s, vectors, is_grads_batched=True, retain_graph=True)
    for vector, product in zip(vectors, together, strict=True):
        assert torch.equal(torch.autograd.grad(each, s, vector, retain_graph=True)[0], product)


def test_what_is_traced_is_the_loss() -> None:
    s, t = _rows()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit's end
        traced = torch.jit.trace(lambda s, t: lucid.torch.distillation_loss(s, t), (s, t), check_trace=False)
        assert torch.equal(traced(s, t), lucid.torch.distillation_loss(s, t))


def test_log_probabilities_that_backward_does_not_need_may_change() -> None:
    s, t = _rows()
    x, target = s * 1, t.log_softmax(-1)
    loss = lucid.torch.kl_div(x, target, reduction="sum", log_target=True)
    x.zero_()
    (grad,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(grad, -target.exp())
