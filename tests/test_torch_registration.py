"""The operators under PyTorch's compiler, exporter and function transforms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lucid.torch
from tests.device import DEVICE

pytestmark = [
    pytest.mark.usefixtures("implementation"),
    pytest.mark.filterwarnings("ignore:reduction 'mean' also divides"),
]


def _logits(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    s, t = (torch.randn(rows, 7, dtype=torch.float64).to(DEVICE, dtype) for _ in range(2))
    return s.requires_grad_(), t.requires_grad_()


def _kl_div(reduction: str, s: Tensor, t: Tensor) -> Tensor:
    return lucid.torch.kl_div(s.log_softmax(-1), t.softmax(-1), reduction=reduction)


def _mean_of_one_row(s: Tensor, t: Tensor) -> Tensor:
    return lucid.torch.kl_div(s, t[:1], reduction="batchmean", log_target=True)


def _distillation(options: dict[str, Any], s: Tensor, t: Tensor) -> Tensor:
    return lucid.torch.distillation_loss(s, t, **options)


def _cross_entropy(s: Tensor, t: Tensor) -> Tensor:
    return lucid.torch.cross_entropy(s, t.argmax(-1), t[0].detach().abs(), label_smoothing=0.1)


def _soft_cross_entropy(s: Tensor, t: Tensor) -> Tensor:
    return lucid.torch.cross_entropy(s, t.softmax(-1), t[0].detach().abs(), label_smoothing=0.1)


def _head(columns: int = 5) -> Tensor:
    """A weight for hidden states of 7 features."""
    return torch.linspace(-1, 1, columns * 7, dtype=torch.float64, device=DEVICE).sin().view(columns, 7)


def _from_hidden(options: dict[str, Any], s: Tensor, t: Tensor) -> Tensor:
    return lucid.torch.linear_distillation_loss(s, _head(), t, -_head(), chunk_rows=2, **options)


def _from_hidden_and_logits(s: Tensor, t: Tensor) -> Tensor:
    return lucid.torch.linear_distillation_loss(s, _head(7), teacher_logits=t, student_softcap=2.0, chunk_rows=2)


def _linear_cross_entropy(s: Tensor, t: Tensor) -> Tensor:
    labels = t.argmax(-1).clamp_max(4)
    return lucid.torch.linear_cross_entropy(s, _head(), labels, class_weight=t[0, :5].detach().abs(), chunk_rows=2)


def _modules(s: Tensor, t: Tensor) -> Tensor:
    kl_div = lucid.torch.KLDivLoss(reduction="sum")(s.log_softmax(-1), t.softmax(-1))
    distillation = lucid.torch.DistillationLoss("js", beta=0.3, temperature=2.0)(s, t)
    from_hidden = lucid.torch.LinearDistillationLoss("js", chunk_rows=2)(s, _head(), t, -_head())
    return kl_div + distillation + from_hidden + lucid.torch.CrossEntropyLoss()(s, t.argmax(-1))


#: Losses of student and teacher logits, as users write them.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl_div, mean": functools.partial(_kl_div, "mean"),
    "kl_div, batchmean": functools.partial(_kl_div, "batchmean"),
    "kl_div, none": lambda s, t: _kl_div("none", s, t).sum(),
    "kl_div of shapes that broadcast": _mean_of_one_row,
    "distillation, mean": functools.partial(_distillation, {}),
    "distillation, batchmean": functools.partial(_distillation, {"reduction": "batchmean", "divergence": "reverse_kl"}),
    "distillation, none": lambda s, t: _distillation(
        {"reduction": "none", "divergence": "total_variation"}, s, t
    ).sum(),
    "distillation, vocab_size": functools.partial(_distillation, {"vocab_size": 5, "temperature": 3.0}),
    "distillation, in place": lambda s, t: _distillation({"inplace_gradient": True}, s * 2, t),
    "cross-entropy": _cross_entropy,
    "cross-entropy, probabilities": _soft_cross_entropy,
    "cross-entropy, probabilities, none": lambda s, t: lucid.torch.cross_entropy(s, t.exp(), reduction="none").sum(),
    "from hidden states": functools.partial(_from_hidden, {}),
    "from hidden states, js": functools.partial(_from_hidden, {"reduction": "batchmean", "divergence": "js"}),
    "from hidden states, none": lambda s, t: _from_hidden({"reduction": "none", "vocab_size": 4}, s, t).sum(),
    "from hidden states and logits": _from_hidden_and_logits,
    "linear cross-entropy": _linear_cross_entropy,
    "modules": _modules,
}


def _results(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    result = loss(*inputs)
    return [result, *(g for g in torch.autograd.grad(result, inputs, allow_unused=True) if g is not None)]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["distillation, mean", "cross-entropy"])
def test_a_loss_compiled_by_inductor_gives_the_same(name: str) -> None:
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="inductor")
    inputs = _logits(3)
    for got, expected in zip(_results(compiled, inputs), _results(LOSSES[name], inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": (1.0, 2.0, 3.0)},
        {"divergence": ("js",) * 3, "beta": (0.25, 0.5, 0.75)},
        {"hard_label_weight": (0.25, 0.5, 0.75)},
        {"normalizer": (2.0, 3.0, 4.0)},
        {"normalizer": (2, 3, 4)},
    ],
    ids=str,
)
def test_a_number_may_change_from_call_to_call(option: dict[str, tuple[Any, ...]]) -> None:
    """From its second value on the compiler knows a number only as a symbol."""
    labels = torch.tensor([1, 0, 3, -100], device=DEVICE)
    s, t = (torch.randn(4, 5, device=DEVICE) for _ in range(2))

    def loss(**options: Any) -> torch.Tensor:
        return lucid.torch.distillation_loss(s, t, labels=labels, **options)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for values in zip(*option.values(), strict=True):
        options = dict(zip(option, values, strict=True))
        torch.testing.assert_close(compiled(**options), loss(**options), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [int, functools.partial(torch.tensor, device=DEVICE)], ids=["int", "tensor"])
def test_another_number_of_tokens_needs_no_other_graph(kind: Callable[[int], Any]) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    s, t = (x.detach() for x in _logits(4))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lucid.torch.distillation_loss, fullgraph=True, backend=counter)
    for tokens in range(3, 15):
        expected = lucid.torch.distillation_loss(s, t, normalizer=tokens)
        torch.testing.assert_close(compiled(s, t, normalizer=kind(tokens)), expected)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("normalizer", [0, 0.0, torch.tensor(0, device=DEVICE)], ids=["int", "float", "tensor"])
def test_a_normalizer_of_0_where_no_token_counts_compiles(normalizer: Any) -> None:
    s, t = _logits(4)
    compiled = torch.compile(lucid.torch.distillation_loss, fullgraph=True, backend="aot_eager")
    loss = compiled(s, t, labels=torch.full((4,), -100, device=DEVICE), normalizer=normalizer)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, s)[0].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_loss_is_one_graph_gives_the_same_and_takes_other_batch_sizes(name: str) -> None:
    """The first call assumes its sizes, the second finds out that they vary; from then on nothing is compiled."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend=counter)
    for rows in (4, 5, 6, 7, 9, 12):
        inputs = _logits(rows)
        for got, expected in zip(_results(compiled, inputs), _results(LOSSES[name], inputs), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert counter.frame_count == 2


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_module_holds_the_operators_and_runs_at_any_batch_size(strict: bool) -> None:
    class Losses(torch.nn.Module):
        def forward(self, s: Tensor, t: Tensor) -> Tensor:
            return _modules(s, t)

    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(Losses(), _logits(4), dynamic_shapes=({0: rows}, {0: rows}), strict=strict)
    called = [str(node.target) for node in exported.graph.nodes if "lucid" in str(node.target)]
    names = ("kl_div", "divergence", "linear_distillation_loss", "cross_entropy")
    assert called == [f"lucid.{name}.default" for name in names]
    inputs = _logits(6)
    torch.testing.assert_close(exported.module()(*inputs), _modules(*inputs), rtol=1e-12, atol=1e-12)


def _arguments() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Each operator, and arguments as losses pass them."""
    ops = torch.ops.lucid
    s, t = _logits(3)
    x, p = s.detach().log_softmax(-1).requires_grad_(), t.detach().softmax(-1).requires_grad_()
    one, each = (torch.ones(shape, dtype=torch.float64, device=DEVICE) for shape in ((), (3, 7)))
    kind = ("js", 0.3, 0.5, 4.0, 0.25, 7)
    kept = torch.tensor([1, 6, 0], device=DEVICE)
    weight, classes = torch.rand(3, device=DEVICE), torch.rand(7, device=DEVICE)
    _, rows, factor = ops.divergence.default(s, t, weight, kept, None, *kind, -100, False, True, True, 1, 1.0)
    _, ce_rows, ce_factor = ops.cross_entropy.default(s, kept, classes, -100, 0.1, True, True, torch.float64)
    _, soft_rows, soft_factor = ops.soft_cross_entropy.default(s, p, classes, 0.1, True, 3, torch.float64)
    s_, t_ = s.detach(), t.detach()
    layers = (s, _head().requires_grad_(), _head()[:, 0].clone().requires_grad_(), t, -_head(), None, None)
    how = (*kind[:5], 5, 1.0, 3.0, 0.5, None, -100, True, True, 1, 1.0, 2, 2**28, torch.float64, torch.float64)
    each_row = (*how[:11], False, *how[12:])
    labels = kept.clamp_max(4)

    def here(logits: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """On the CPU, whose operators make a gradient with the loss."""
        return logits.detach().cpu().requires_grad_(), *(other.cpu() for other in others)

    return {
        "kl_div": (ops.kl_div, (x, p, False, True, 3, torch.float64)),
        "kl_div, none, transposed": (
            ops.kl_div,
            (x.detach().T.requires_grad_(), p.detach().T, True, False, 1, torch.float32),
        ),
        "kl_div_backward": (
            ops.kl_div_backward,
            (one.clone().requires_grad_(), x, p, False, 3, torch.float64, True, True),
        ),
        "kl_div_backward to x alone": (
            ops.kl_div_backward,
            (each.clone().requires_grad_(), None, p, True, 1, torch.float32, True, False),
        ),
        "divergence": (ops.divergence, (s, t, weight, kept, None, *kind, -100, False, True, True, 1, 1.0)),
        "divergence, none": (
            ops.divergence,
            (s, t, None, None, None, *kind[:4], 0.0, 5, 0, False, False, False, 1, 1.0),
        ),
        "divergence_and_gradient": (
            ops.divergence_and_gradient,
            (*here(s, t_, weight, kept), None, *kind, -100, False, True, True, 1, 1.0),
        ),
        "divergence_and_gradient, none": (
            ops.divergence_and_gradient,
            (*here(s, t_), None, None, None, *kind[:4], 0.0, 5, 0, False, False, False, 1, 1.0),
        ),
        "divergence_backward": (ops.divergence_backward, (s_, t_, kept, rows, factor, one, *kind, True, True)),
        "divergence_backward_": (ops.divergence_backward_, (s_.clone(), t_, kept, rows, factor, one, *kind, True)),
        "cross_entropy": (ops.cross_entropy, (s, kept, classes, -100, 0.1, True, True, torch.float64)),
        "cross_entropy_and_gradient": (
            ops.cross_entropy_and_gradient,
            (*here(s, kept, classes), -100, 0.1, True, True, torch.float64),
        ),
        "cross_entropy_backward": (
            ops.cross_entropy_backward,
            (s_, kept, classes, ce_rows, ce_factor, one, -100, 0.1),
        ),
        "cross_entropy_backward, transposed": (
            ops.cross_entropy_backward,
            (s_.T.contiguous().T, kept, classes, ce_rows, ce_factor, one, -100, 0.1),
        ),
        "soft_cross_entropy": (ops.soft_cross_entropy, (s, p, classes, 0.1, True, 3, torch.float64)),
        "soft_cross_entropy_and_gradient": (
            ops.soft_cross_entropy_and_gradient,
            (*here(s, p.detach(), classes), 0.1, True, 3, torch.float64),
        ),
        "soft_cross_entropy_backward": (
            ops.soft_cross_entropy_backward,
            (s_, p.detach(), classes, soft_rows, soft_factor, one, 0.1, True, True),
        ),
        "linear_distillation_loss": (
            ops.linear_distillation_loss,
            (*layers, weight, labels, None, *how, 0b1111),
        ),
        "linear_distillation_loss, none": (
            ops.linear_distillation_loss,
            (*layers[:3], None, None, None, t[:, :5], None, labels, None, *each_row, 0),
        ),
        "linear_distillation_loss_backward": (
            ops.linear_distillation_loss_backward,
            (*(x if x is None else x.detach() for x in layers), weight, labels, None, *each_row, each[:, 0], 0b1011),
        ),
        "linear_cross_entropy": (
            ops.linear_cross_entropy,
            (*layers[:3], labels, classes[:5], -100, 0.1, 0.5, 3.0, True, True, 2, 2**28, torch.float64, 0b111),
        ),
        "linear_cross_entropy_backward": (
            ops.linear_cross_entropy_backward,
            (
                *(x if x is None else x.detach() for x in layers[:3]),
                *(labels, None, -100, 0.0, 1.0, None, True, True, 2, 2**28, torch.float64, one, 0b101),
            ),
        ),
    }


CASES = (
    *("kl_div", "kl_div, none, transposed", "kl_div_backward", "kl_div_backward to x alone", "divergence"),
    *("divergence, none", "divergence_backward", "divergence_backward_", "cross_entropy", "cross_entropy_backward"),
    *("cross_entropy_backward, transposed", "soft_cross_entropy", "soft_cross_entropy_backward"),
    *("divergence_and_gradient", "divergence_and_gradient, none", "cross_entropy_and_gradient"),
    *("soft_cross_entropy_and_gradient", "linear_distillation_loss", "linear_distillation_loss, none"),
    *("linear_distillation_loss_backward", "linear_cross_entropy", "linear_cross_entropy_backward"),
)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck reads that of its clones
@pytest.mark.parametrize("case", CASES)
def test_opcheck_finds_nothing(case: str) -> None:
    operator, arguments = _arguments()[case]
    found = torch.library.opcheck(operator.default, arguments)
    assert set(found.values()) == {"SUCCESS"}
    assert len(found) == 4


def test_every_operator_is_checked() -> None:
    assert {operator.default.name() for operator, _ in _arguments().values()} == {
        f"lucid::{name}" for name in dir(torch.ops.lucid) if hasattr(getattr(torch.ops.lucid, name), "default")
    }
    assert set(_arguments()) == set(CASES)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "distillation, in place"])
def test_function_transforms_give_what_autograd_gives(name: str) -> None:
    loss, inputs = LOSSES[name], _logits(3)
    plain = tuple(t.detach() for t in inputs)
    expected = _results(loss, inputs)
    torch.testing.assert_close(torch.func.grad(loss)(*plain), expected[1])
    torch.testing.assert_close(torch.func.vjp(loss, *plain)[0], expected[0].detach())
    if name in (
        "cross-entropy",
        "linear cross-entropy",
        "modules",
    ):  # whose labels come from argmax, in no need of a batch of batches
        return
    batch = tuple(torch.stack([t, t.flip(0), t * 2]) for t in plain)
    losses, grads = torch.func.vmap(loss)(*batch), torch.func.vmap(torch.func.grad(loss))(*batch)
    for i in range(3):
        one = tuple(t[i].requires_grad_() for t in batch)
        got, expected = [losses[i], grads[i]], _results(loss, one)[:2]
        torch.testing.assert_close(got, [t.detach() for t in expected])


def test_vmap_keeps_what_is_not_in_the_batch() -> None:
    s, t = (x.detach() for x in _logits(3))
    losses = torch.func.vmap(lambda s: lucid.torch.distillation_loss(s, t[0]))(s)
    torch.testing.assert_close(losses, lucid.torch.distillation_loss(s, t[:1].expand(3, -1), reduction="none"))
    across = torch.func.vmap(lambda s: lucid.torch.distillation_loss(s, t[0]), in_dims=1)(s.T)
    torch.testing.assert_close(across, losses)


def test_second_derivatives_of_kl_div_through_torch_func() -> None:
    s, t = (x.detach() for x in _logits(2))
    ours, theirs = (
        torch.func.jacrev(torch.func.jacrev(functools.partial(f, reduction="batchmean", log_target=True), 1), 0)(s, t)
        for f in (lucid.torch.kl_div, torch.nn.functional.kl_div)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch.func.jvp calls it
def test_forward_mode_and_second_derivatives_of_divergences_say_that_they_do_not_work() -> None:
    s, t = _logits(2)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda s: lucid.torch.kl_div(s, t.detach(), reduction="sum"), (s.detach(),), (t.detach(),))
    for loss, name in (
        (LOSSES["distillation, mean"], "distillation_loss"),
        (_cross_entropy, "cross_entropy"),
        (_soft_cross_entropy, "cross_entropy"),
    ):
        (grad,) = torch.autograd.grad(loss(s, t), s, create_graph=True)
        with pytest.raises(RuntimeError, match=f"{name} has no second derivatives"):
            torch.autograd.grad(grad.sum(), s)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_meta_tensors_have_the_shapes(reduction: str) -> None:
    s, t = (x.detach().to("meta").requires_grad_() for x in _logits(3, torch.bfloat16))
    kl_div = lucid.torch.kl_div(s, t, reduction=reduction)
    losses = [
        lucid.torch.distillation_loss(s, t, reduction=reduction),
        lucid.torch.cross_entropy(s, torch.empty(3, dtype=torch.int64, device="meta"), reduction=reduction),
        lucid.torch.cross_entropy(s, t, reduction=reduction),
    ]
    assert kl_div.shape == ((3, 7) if reduction == "none" else ())
    assert [loss.shape for loss in losses] == [(3,) if reduction == "none" else ()] * 3
    assert [loss.dtype for loss in (kl_div, *losses)] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
    for loss in (kl_div, *losses):
        (grad,) = torch.autograd.grad(loss.sum(), s)
        assert (grad.is_meta, grad.shape, grad.dtype) == (True, s.shape, s.dtype)
