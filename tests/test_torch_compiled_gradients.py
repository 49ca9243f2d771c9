"""Graphs of torch.compile in which the student's gradient alone is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lucid.torch
from tests.device import DEVICE
from triton_kernels.devtools import trace

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


#: Losses of student and teacher logits and labels.
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "distillation": lambda s, t, y: lucid.torch.distillation_loss(s, t, labels=y, hard_label_weight=0.25),
    "distillation, none": lambda s, t, y: lucid.torch.distillation_loss(s, t, labels=y, reduction="none"),
    "cross-entropy": lambda s, t, y: lucid.torch.cross_entropy(s, y),
    "cross-entropy, none": lambda s, t, y: lucid.torch.cross_entropy(s, y, reduction="none"),
    "probabilities": lambda s, t, y: lucid.torch.cross_entropy(s, t.softmax(-1)),
    "probabilities, none": lambda s, t, y: lucid.torch.cross_entropy(s, t.softmax(-1), reduction="none"),
}


def _of_student(
    loss: Callable[..., Tensor], upstream: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    s, t = (torch.randn(4, 7).to(DEVICE, dtype) for _ in range(2))
    value = loss(s.requires_grad_(), t, torch.tensor([3, -100, 6, -100], device=DEVICE))
    return value, torch.autograd.grad(value, s, torch.full_like(value, upstream))[0]


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_gradient_to_the_student_alone_is_the_eager_one(name: str) -> None:
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    for upstream in (1.0, 0.3, -4.0, 0.0, float("inf")):
        expected, got = (_of_student(loss, upstream) for loss in (LOSSES[name], compiled))
        torch.testing.assert_close(got[0], expected[0], rtol=3e-7, atol=0)
        if upstream == float("inf"):  # 0 in tokens that do not count, infinite or NaN elsewhere
            assert torch.equal(got[1].isfinite(), expected[1].isfinite())
        else:
            # Where gradients are differences, they differ by the roundings of what they are differences of.
            torch.testing.assert_close(got[1], expected[1], rtol=3e-7, atol=abs(upstream) * 2**-26)


@pytest.mark.parametrize("upstream", [float("nan"), float("inf")])
def test_a_compiled_gradient_of_equal_rows_passes_on_what_is_not_finite_but_not_to_ignored_tokens(
    upstream: float,
) -> None:
    s = torch.randn(3, 7, device=DEVICE, requires_grad=True)
    labels = torch.tensor([1, -100, 2], device=DEVICE)
    torch.compile(lucid.torch.distillation_loss, fullgraph=True, backend="aot_eager")(
        s, s.detach().clone(), labels=labels
    ).backward(torch.tensor(upstream, device=DEVICE))
    assert s.grad is not None
    assert s.grad[[0, 2]].isnan().all()
    assert not s.grad[1].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_graph_without_a_compiler_behind_it_refuses_second_derivatives(name: str) -> None:
    s, t = (torch.randn(4, 7, device=DEVICE) for _ in range(2))
    labels = torch.tensor([3, -100, 6, -100], device=DEVICE)
    loss = torch.compile(LOSSES[name], fullgraph=True, backend="eager")(s.requires_grad_(), t, labels).sum()

    def penalized() -> None:
        (gradient,) = torch.autograd.grad(loss, s, create_graph=True)
        (loss + gradient.square().sum()).backward()

    with pytest.raises(RuntimeError, match="has no second derivatives"):
        penalized()


def _called(loss: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> list[str]:
    """Operators of ours in the graphs of a compiled loss, forward and backward."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    called: list[str] = []

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        called.extend(str(node.target).split(".")[1] for node in graph.graph.nodes if "lucid" in str(node.target))
        return make_boxed_func(graph.forward)

    _of_student(torch.compile(loss, fullgraph=True, backend=aot_autograd(fw_compiler=compiler)), 1.0, dtype)
    return called


def test_a_graph_calculates_a_gradient_to_the_student_alone_in_the_forward_pass_on_the_cpu(implementation: str) -> None:
    """Not so by kernels, nor where it would be rounded twice."""
    forward, both = ["divergence_and_gradient"], ["divergence", "divergence_backward"]
    assert _called(LOSSES["distillation"]) == (both if implementation == "kernels" else forward)
    assert _called(LOSSES["distillation"], torch.bfloat16) == both


@pytest.mark.kernels_only
def test_a_graph_of_torch_s_operators_is_not_run_where_kernels_are_asked_for() -> None:
    compiled = torch.compile(LOSSES["distillation"], fullgraph=True, backend="aot_eager")
    with lucid.torch.kernels_on_cpu(False):
        _of_student(compiled)
    with trace.launches() as made:
        _of_student(compiled)
    assert made
