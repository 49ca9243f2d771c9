"""Tensors of another kind than a loss takes: of another library, sparse, nested, or with torch's negative bit."""

from __future__ import annotations

import contextlib
import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
import lucid.torch
from tests.device import DEVICE
from triton_kernels.devtools import trace

X = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5]], device=DEVICE)
LABELS, WEIGHT = torch.tensor([2, 0], device=DEVICE), torch.tensor([1.0, 0.5], device=DEVICE)
NAMES = ("input", "target", "student_logits", "teacher_logits", "weight", "labels", "normalizer", "classes")


def _call(name: str, change: Callable[[Any], Any], functions: Any, of: Callable[[torch.Tensor], Any]) -> Any:
    """The loss with an argument of that name, which is given changed."""
    x, y, labels, weight, classes = map(of, (X, X.flip(0), LABELS, WEIGHT, X[0].abs()))
    if name in ("input", "target"):
        x, y = (change(x), y) if name == "input" else (x, change(y))
        return functions.kl_div(x, y, reduction="sum", log_target=True)
    if name == "classes":
        return functions.cross_entropy(x, labels, change(classes))
    if name == "labels of cross_entropy":
        return functions.cross_entropy(x, change(labels))
    arguments = {"student_logits": x, "teacher_logits": y, "weight": weight, "labels": labels}
    if name == "normalizer":
        arguments["normalizer"] = of(torch.tensor(2.0, device=DEVICE))
    return functions.distillation_loss(**{**arguments, name: change(arguments[name])})


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_another_library_is_named_with_what_converts_it(name: str) -> None:
    ours = {"input": "x", "classes": "weight"}.get(name, name)
    theirs = {"classes": "weight"}.get(name, name)
    numpy = lambda x: np.ones(2)  # noqa: E731
    for functions, of, change, message in (
        (F, lucid.from_torch, lambda x: x.to_torch(), f"{ours} must be a lucid.Tensor, got torch.Tensor: "
         f"pass lucid.from_torch({ours})"),
        (F, lucid.from_torch, numpy, f"{ours} must be a lucid.Tensor, got numpy.ndarray: pass lucid.tensor({ours})"),
        (lucid.torch, torch.Tensor.detach, lucid.from_torch, f"{theirs} must be a torch.Tensor, got lucid.Tensor: "
         f"pass {theirs}.to_torch()"),
        (lucid.torch, torch.Tensor.detach, numpy, f"{theirs} must be a torch.Tensor, got numpy.ndarray: "
         f"pass torch.from_numpy({theirs})"),
    ):  # fmt: skip
        with trace.launches() as made, pytest.raises(TypeError, match=re.escape(message)):
            _call(name, change, functions, of)
        assert not made


def test_a_models_output_in_place_of_its_logits_is_named_with_them() -> None:
    output = types.SimpleNamespace(logits=X)
    with pytest.raises(TypeError, match=r"student_logits must be a torch.Tensor, .*: pass student_logits.logits$"):
        lucid.torch.distillation_loss(output, X)
    with pytest.raises(TypeError, match=r"target must be a lucid.Tensor, got SimpleNamespace: pass target.logits$"):
        F.kl_div(lucid.from_torch(X), output)


def _jagged(x: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor([x, x], layout=torch.jagged)


UNUSUAL: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "sparse": (torch.Tensor.to_sparse, "must be dense, got layout torch.sparse_coo: pass {}.to_dense()"),
    "nested": (
        lambda x: torch.nested.nested_tensor([x, x]),
        "must not be a nested tensor: pass torch.cat({}.unbind())",
    ),
    "jagged": (_jagged, "must not be a nested tensor: pass {}.values()"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "normalizer"] + ["labels of cross_entropy"])
def test_a_sparse_or_nested_tensor_is_named_with_what_makes_it_dense(name: str, kind: str) -> None:
    change, message = UNUSUAL[kind]
    named = {"classes": "weight", "labels of cross_entropy": "target"}.get(name, name)
    with trace.launches() as made, pytest.raises(TypeError, match=re.escape(f"{named} {message.format(named)}")):
        _call(name, change, lucid.torch, torch.Tensor.detach)
    assert not made


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_from_torch_refuses_sparse_and_nested_tensors(kind: str) -> None:
    change, message = UNUSUAL[kind]
    with pytest.raises(TypeError, match=re.escape(f"source {message.format('source')}")):
        lucid.from_torch(change(X))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_the_values_of_a_jagged_tensor_are_rows() -> None:
    rows = _jagged(X).values()
    torch.testing.assert_close(
        lucid.torch.cross_entropy(rows, _jagged(LABELS).values()), lucid.torch.cross_entropy(X, LABELS)
    )


NEGATIVE: dict[str, Callable[[], torch.Tensor]] = {
    "neg_view": lambda: torch._neg_view(X.clone()),
    "imaginary part of a conjugate": lambda: torch.complex(X, X).conj().imag,
}


@pytest.mark.parametrize("kind", NEGATIVE)
def test_sharing_memory_that_holds_the_negatives_of_values_is_refused(kind: str) -> None:
    negative = NEGATIVE[kind]()
    for share in (lucid.from_torch, lucid.from_dlpack):
        with pytest.raises(ValueError, match=r"has torch's negative bit: pass source.resolve_neg\(\)"):
            share(negative)
        assert torch.equal(share(negative.resolve_neg()).to_torch(), negative)


@pytest.mark.usefixtures("implementation", "forms")
@pytest.mark.parametrize("kind", NEGATIVE)
@pytest.mark.parametrize(
    "name", ["input", "target", "student_logits", "teacher_logits", "weight", "classes", "normalizer"]
)
def test_losses_of_torch_tensors_take_the_values_and_not_the_memory(name: str, kind: str) -> None:
    def negative(x: torch.Tensor) -> torch.Tensor:
        return torch._neg_view(-x) if kind == "neg_view" else torch.complex(x, -x).conj().imag

    given: list[torch.Tensor] = []
    results = []
    for change in (negative, torch.Tensor.clone):

        def leaf(x: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] = change) -> torch.Tensor:
            given.append(change(x).requires_grad_(name in ("input", "target", "student_logits", "teacher_logits")))
            return given[-1]

        # With the bit, the dispatcher is asked, and the gradient is computed in backward.
        with contextlib.nullcontext() if change is negative else lucid.gradient_in_forward(False):
            loss = _call(name, leaf, lucid.torch, torch.Tensor.detach)
        results.append([loss.detach()])
        if given[-1].requires_grad:
            results[-1] += torch.autograd.grad(loss, given[-1], negative(torch.tensor(0.7, device=DEVICE)))
    assert given[0].is_neg()
    assert not given[1].is_neg()
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_gradient_cannot_be_written_over_the_negatives_of_logits() -> None:
    student = torch._neg_view(X.clone()).requires_grad_()
    with pytest.raises(RuntimeError, match=r"negative bit: pass student_logits.resolve_neg\(\)"):
        lucid.torch.distillation_loss(student, X, inplace_gradient=True)
