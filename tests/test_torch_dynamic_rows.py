"""Numbers of rows that depend on data, as of masked logits, within one graph of PyTorch's compiler or exporter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import lucid.torch
from tests.device import DEVICE
from tests.test_torch_registration import LOSSES, _logits, _results

pytestmark = [
    pytest.mark.usefixtures("implementation"),
    pytest.mark.filterwarnings("ignore:reduction 'mean' also divides"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with config.patch(capture_dynamic_output_shape_ops=True):
        yield


def _of_kept_rows(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda s, t, keep: loss(s[keep], t[keep])


def _kept(*rows: int) -> Tensor:
    mask = torch.zeros(6, dtype=torch.bool)
    mask[list(rows)] = True
    return mask.to(DEVICE)


MASKED: dict[str, Callable[..., Tensor]] = {
    # Where a slice takes one row, the compiler has to know that one was kept.
    **{name: _of_kept_rows(loss) for name, loss in LOSSES.items() if name != "kl_div of shapes that broadcast"},
    "kl_div of one row for all": lambda s, t, keep: lucid.torch.kl_div(
        s[keep].log_softmax(-1), t.softmax(-1).mean(0, keepdim=True), reduction="batchmean"
    ),
    "rows kept twice": lambda s, t, keep: lucid.torch.distillation_loss(s[keep], t[keep == 1]),
    "labels kept on their own": lambda s, t, keep: (
        lucid.torch.cross_entropy(s[keep], t.argmax(-1)[keep == 1])
        + lucid.torch.distillation_loss(s[keep], t[keep], labels=t.argmax(-1)[keep == 1], hard_label_weight=0.5)
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_loss_of_kept_rows_is_one_graph_and_gives_the_same(name: str) -> None:
    compiled = torch.compile(MASKED[name], fullgraph=True, backend="aot_eager")
    inputs = _logits(6)
    for keep in (_kept(0, 2, 5), _kept(1, 2, 3, 4), _kept(3)):
        results = [_results(lambda s, t: loss(s, t, keep), inputs) for loss in (compiled, MASKED[name])]  # noqa: B023
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_a_loss_of_kept_rows_gives_the_same_in_compiled_code() -> None:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        rows = lucid.torch.kl_div(s[keep].T, t[keep].T, reduction="none", log_target=True)
        return rows.sum() + lucid.torch.distillation_loss(s[keep], t[keep]) + lucid.torch.cross_entropy(s[keep], labels)

    inputs, keep = _logits(6), _kept(0, 2, 5)
    labels = torch.tensor([0, 6, 2], device=DEVICE)
    results = [_results(f, inputs) for f in (torch.compile(loss, fullgraph=True), loss)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", MASKED)
def test_an_exported_loss_keeps_other_rows_than_it_was_exported_with(name: str, strict: bool) -> None:
    class Loss(torch.nn.Module):
        def forward(self, s: Tensor, t: Tensor, keep: Tensor) -> Tensor:
            return MASKED[name](s, t, keep)

    inputs = tuple(x.detach() for x in _logits(6))
    exported = torch.export.export(Loss(), (*inputs, _kept(0, 2, 5)), strict=strict)
    for keep in (_kept(1), _kept(0, 1, 2, 3, 4)):
        expected = MASKED[name](*inputs, keep)
        torch.testing.assert_close(exported.module()(*inputs, keep), expected, rtol=1e-12, atol=1e-12)


def test_rows_and_labels_that_turn_out_not_to_be_equally_many_are_an_error() -> None:
    def loss(s: Tensor, labels: Tensor, keep: Tensor, other: Tensor) -> Tensor:
        return lucid.torch.cross_entropy(s[keep], labels[other])

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    s, labels = torch.randn(6, 7, device=DEVICE), torch.arange(6, device=DEVICE)
    compiled(s, labels, _kept(1, 2), _kept(0, 3))
    with pytest.raises(RuntimeError, match="Runtime assertion failed"):
        compiled(s, labels, _kept(1, 2), _kept(0, 3, 4))


def _none(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return (torch.ops.lucid.kl_div(x, y, True, False, 1, torch.float32),)


def _gradients(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.lucid.kl_div_backward(x.new_empty(()), x, y, True, 1, torch.float32, True, True)


def _expanded(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return _none(x, y.select(1, 0).unsqueeze(1).expand(y.shape)) + _none(x.select(1, 0).unsqueeze(1).expand(y.shape), y)


@pytest.mark.parametrize("operator", [_none, _gradients, _expanded])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_strides_are_known_before_the_number_of_rows_is(
    order: tuple[int, ...], operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strides(shape: tuple[Any, ...], device: Any) -> list[tuple[Any, ...]]:
        x, y = (torch.empty(shape, device=device).permute(order) for _ in range(2))
        return [tuple(result.stride()) for result in operator(x, y)]

    for dim, shape in itertools.product(range(3), [(2, 3, 7), (2, 5, 4)]):
        symbols = ShapeEnv()
        with FakeTensorMode(shape_env=symbols), monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            rows = symbols.create_unbacked_symint()
            torch._check(rows >= 0)
            symbolic = strides((*shape[:dim], rows, *shape[dim + 1 :]), DEVICE)
        torch._check(rows == shape[dim])
        assert [tuple(map(int, result)) for result in symbolic] == strides(shape, DEVICE)
