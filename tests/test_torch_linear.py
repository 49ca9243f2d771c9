"""Losses from hidden states in PyTorch's world: views, tied weights, autocast, checkpoints, modes, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lucid.torch
from lucid.torch import eager, products
from lucid.typing import REDUCTIONS
from tests.allocations import Allocations
from tests.device import DEVICE

pytestmark = pytest.mark.usefixtures("implementation")

V, D, E = 50, 16, 24
linear_distillation_loss = lucid.torch.linear_distillation_loss


def _layers(*lead: int) -> dict[str, Tensor]:
    """Of which the student's need gradients."""
    student = {"student_hidden": (*lead, D), "student_weight": (V, D), "student_bias": (V,)}
    teacher = {"teacher_hidden": (*lead, E), "teacher_weight": (V, E)}
    tensors = {name: torch.randn(shape, device=DEVICE) for name, shape in (student | teacher).items()}
    return {name: tensor.requires_grad_(name in student) for name, tensor in tensors.items()}


def _results(loss: Tensor, x: dict[str, Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss.sum(), [t for t in x.values() if t.requires_grad])]


def _assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_it_is_the_loss_of_the_logits(reduction: Any) -> None:
    """Of a model's two lines, lm_head and distillation_loss."""
    x = _layers(2, 5)
    s = torch.nn.functional.linear(x["student_hidden"], x["student_weight"], x["student_bias"])
    t = torch.nn.functional.linear(x["teacher_hidden"], x["teacher_weight"])
    expected = lucid.torch.distillation_loss(s, t, reduction=reduction)
    got = linear_distillation_loss(**x, reduction=reduction, chunk_rows=3)
    _assert_same(_results(got, x), _results(expected, x))


def test_positions_but_the_last_are_views_that_are_not_copied_as_a_whole() -> None:
    B, T, wide = 4, 65, 4000
    hidden, weight = torch.randn(B, T, 4, device=DEVICE), torch.randn(wide, 4, device=DEVICE)
    logits = torch.randn(B, T, wide, device=DEVICE)
    with Allocations(hidden, weight, logits) as made:
        got = linear_distillation_loss(hidden[:, :-1], weight, teacher_logits=logits[:, :-1], chunk_rows=16)
    assert logits[:, :-1].numel() * 4 not in made.bytes
    copied = linear_distillation_loss(hidden[:, :-1].clone(), weight, teacher_logits=logits[:, :-1].clone())
    torch.testing.assert_close(got, copied, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ignored", [True, False])
def test_a_slice_of_the_teachers_logits_gets_its_gradient(ignored: bool) -> None:
    x = {name: t for name, t in _layers(3, 5).items() if name.startswith("student")}
    logits = torch.randn(3, 6, V, device=DEVICE, requires_grad=True)
    labels = torch.randint(V, (3, 5), device=DEVICE)
    labels[1, 2:] = -100
    options: dict[str, Any] = {"labels": labels} if ignored else {}
    got = linear_distillation_loss(**x, teacher_logits=logits[:, 1:], chunk_rows=4, **options)
    s = x["student_hidden"] @ x["student_weight"].T + x["student_bias"]
    expected = lucid.torch.distillation_loss(s, logits[:, 1:], **options)
    _assert_same(_results(got, x | {"logits": logits}), _results(expected, x | {"logits": logits}))


def test_a_weight_that_is_tied_gets_the_sum_of_its_gradients() -> None:
    x = _layers(6)
    weight = torch.randn(V, D, device=DEVICE, requires_grad=True)
    embedded = torch.randint(V, (6,), device=DEVICE)

    def grads(loss: Any) -> list[Tensor]:
        return list(torch.autograd.grad(loss(weight[embedded], weight, x["teacher_hidden"][:, :D], weight), [weight]))

    got = grads(linear_distillation_loss)
    expected = grads(lambda h, w, g, v: lucid.torch.distillation_loss(h @ w.T, g @ v.T))
    _assert_same(got, expected)


def test_autocast_chooses_the_dtype_of_the_products_as_for_a_linear_layer() -> None:
    x = _layers(6)
    rounded = {name: t.detach().bfloat16() for name, t in x.items()}
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        loss = linear_distillation_loss(**x)
    expected = linear_distillation_loss(**rounded)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    assert {t.grad.dtype for t in x.values() if t.requires_grad} == {torch.float32}
    # Summed in float32, of gradients to logits that are bfloat16.
    assert not torch.equal(x["student_weight"].grad, x["student_weight"].grad.bfloat16().float())


def test_autocast_leaves_a_float64_teacher_alone() -> None:
    x = _layers(6)
    x |= {name: x[name].double() for name in ("teacher_hidden", "teacher_weight")}
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        loss = linear_distillation_loss(**x)
    rounded = {name: t.bfloat16() if name.startswith("student") else t for name, t in x.items()}
    torch.testing.assert_close(loss, linear_distillation_loss(**rounded), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "dynamic"),
    [
        ({"reduction": ("batchmean",) * 3}, None),
        ({"reduction": ("batchmean",) * 3}, True),
        ({"temperature": (1.0, 2.0, 3.0)}, None),
        ({"normalizer": (2.0, 3.0, 4.0)}, None),
        ({"student_logit_scale": (0.5, 1.5, 2.0)}, True),
        ({"student_softcap": (5.0, 6.0, 7.0)}, None),
        ({"workspace_mib": (1.0, 2.0, 3.5)}, None),
        ({"chunk_rows": (2, 3, 4)}, None),
        ({"chunk_rows": (2, 3, 4)}, True),
    ],
    ids=str,
)
def test_options_and_sizes_may_change_in_compiled_code(options: dict[str, Any], dynamic: bool | None) -> None:
    """From its second value on the compiler knows a number only as a symbol."""
    torch._dynamo.reset()
    compiled = torch.compile(linear_distillation_loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows, *values in zip((5, 6, 8), *options.values(), strict=True):
        x, given = _layers(rows), dict(zip(options, values, strict=True))
        _assert_same(_results(compiled(**x, **given), x), _results(linear_distillation_loss(**x, **given), x))


def test_small_gradients_of_a_product_in_float16_keep_the_upstream_gradients_scale() -> None:
    """As of a GradScaler: without it those of many tokens are 0 in float16."""
    x = {name: t.detach().requires_grad_(name == "student_hidden") for name, t in _layers(6).items()}
    expected = _results(2.0**16 * linear_distillation_loss(**x, normalizer=2.0**24), x)[1]
    with torch.autocast(DEVICE.type, dtype=torch.float16):
        loss = linear_distillation_loss(**x, normalizer=2.0**24)
    (got,) = torch.autograd.grad(2.0**16 * loss, [x["student_hidden"]])
    assert (got - expected).norm() <= 5e-3 * expected.norm()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.filterwarnings("ignore:The reentrant checkpoint:UserWarning")
def test_a_checkpoint_around_it_changes_nothing(reentrant: bool, reduction: Any) -> None:
    x = _layers(6)
    names, tensors = list(x), list(x.values())

    def loss(*given: Tensor) -> Tensor:
        return linear_distillation_loss(**dict(zip(names, given, strict=True)), reduction=reduction)

    expected = _results(loss(*tensors), x)
    made = checkpoint(loss, *tensors, use_reentrant=reentrant)
    made.sum().backward()
    _assert_same([made.detach(), *(t.grad for t in tensors if t.requires_grad)], expected)


def test_without_gradients_none_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, calls, product = _layers(6), [0], products.matmul

    def matmul(*given: Any, **options: Any) -> Tensor:
        calls[0] += 1
        return product(*given, **options)

    expected = linear_distillation_loss(**x).detach()
    monkeypatch.setattr(products, "matmul", matmul)
    with torch.no_grad():
        torch.testing.assert_close(linear_distillation_loss(**x), expected)
    assert calls == [2]
    with torch.inference_mode():
        torch.testing.assert_close(linear_distillation_loss(**x), expected)
        made = {name: t.detach() * 1 for name, t in x.items()}
        teacher = {"teacher_hidden": x["teacher_hidden"] * 1}
    assert not linear_distillation_loss(**made).requires_grad
    for reduction in REDUCTIONS:
        _results(linear_distillation_loss(**x | teacher, reduction=reduction), x)


def test_an_upstream_gradient_of_1_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient that was computed with the loss becomes the leaf's."""
    monkeypatch.setattr(eager, "dispatch_modes", lambda: 0)  # that of the count is no reason to compute otherwise
    x = _layers(6)
    loss = linear_distillation_loss(**x)
    with Allocations(*x.values(), loss) as made:
        loss.backward()
    assert made.above(64) == []


def test_hidden_states_may_be_gone_in_backward_unless_it_needs_them() -> None:
    x = _layers(6)
    expected = _results(linear_distillation_loss(**x), x)[1]
    hidden = x["student_hidden"] * 1
    loss = linear_distillation_loss(**x | {"student_hidden": hidden})
    with torch.no_grad():
        hidden.zero_()
    loss.backward()
    torch.testing.assert_close(x["student_hidden"].grad, expected)
    hidden = x["student_hidden"] * 1
    losses = linear_distillation_loss(**x | {"student_hidden": hidden}, reduction="none")
    with torch.no_grad():
        hidden.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_a_training_loop_learns_what_one_of_logits_learns() -> None:
    def train(from_hidden: bool) -> list[Tensor]:
        torch.manual_seed(1)
        body, head = nn.Linear(8, D, device=DEVICE), nn.Linear(D, V, device=DEVICE)
        teacher = nn.Linear(8, V, device=DEVICE).requires_grad_(False)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.5)
        losses = []
        for _ in range(10):
            inputs = torch.randn(12, 8, device=DEVICE)
            optimizer.zero_grad()
            if from_hidden:
                loss = linear_distillation_loss(
                    body(inputs), head.weight, inputs, teacher.weight,
                    student_bias=head.bias, teacher_bias=teacher.bias, chunk_rows=5,
                )  # fmt: skip
            else:
                loss = lucid.torch.distillation_loss(head(body(inputs)), teacher(inputs))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    got, expected = train(True), train(False)
    _assert_same(got, expected)
    assert got[-1] < got[0]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_compiled_loss_has_the_dtype_of_the_products(reduction: Any) -> None:
    """Not of a weight, which is converted."""
    x = _layers(6)
    x["teacher_weight"] = x["teacher_weight"].double()
    expected = linear_distillation_loss(**x, reduction=reduction)
    compiled = torch.compile(linear_distillation_loss, fullgraph=True, backend="aot_eager")
    got = compiled(**x, reduction=reduction)
    assert got.dtype == expected.dtype == torch.float32
    _assert_same(_results(got, x), _results(expected, x))
