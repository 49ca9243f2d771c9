"""The engine: which gradients arrive where, in which order. The oracle is torch.autograd."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid.autograd import backward, grad
from tests.values import Identity, leaf

# Graphs


def test_a_chain_of_100_000_nodes_neither_recurses_in_backward_nor_when_it_is_collected() -> None:
    x = leaf([1.0])
    y = x
    for _ in range(100_000):
        y = Identity.apply(y)
    y.backward()
    assert x.grad.tolist() == [1.0]
    last = weakref.ref(y.grad_fn)
    del y
    assert last() is None


GRAPHS: dict[str, Any] = {
    "a diamond": lambda a, b: ((a * b) * (a + b)).sum(),
    "a value used twice in one operation": lambda a, b: (a * a + b / b).sum(),
    "a value used at different depths": lambda a, b: ((((a * b) * b) * a) + a).sum() + b.sum(),
    "a ladder of diamonds": lambda a, b: _ladder(a, b).sum(),
    "a branch that ends nowhere": lambda a, b: ((a * b).sum(), (a * b * a).exp())[0],
}


def _ladder(a: Any, b: Any) -> Any:
    for _ in range(12):
        a, b = a * 0.5 + b * 0.25, a * 0.25 - b * 0.5
    return a * b


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_of_any_graph_are_torchs(name: str) -> None:
    values = [[0.5, 2.0], [1.5, -3.0]]
    ours, theirs = [leaf(v, "float64") for v in values], [torch.tensor(v).double().requires_grad_() for v in values]
    GRAPHS[name](*ours).backward()
    GRAPHS[name](*theirs).backward()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad, rtol=1e-14)


def test_gradients_are_the_same_bits_every_time() -> None:
    values = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)

    def run() -> list[bytes]:
        a, b = leaf(values[0]), leaf(values[1])
        total = a * 0
        for i in range(8):
            total = total + (a * b).tanh() * (i + 0.1) + a / (b * b + 1)
        total.sum().backward()
        return [a.grad.numpy().tobytes(), b.grad.numpy().tobytes()]

    assert run() == run()


def test_what_was_recorded_last_runs_first() -> None:
    x = leaf([1.0])
    seen: list[int] = []
    branches = [x * i for i in range(5)]
    for i, branch in enumerate(branches):
        branch.register_hook(lambda grad, i=i: seen.append(i))
    (branches[3] + branches[0] + branches[4] + branches[2] + branches[1]).sum().backward()
    assert seen == [4, 3, 2, 1, 0]


def test_gradients_add_up_over_backwards() -> None:
    x = leaf([1.0, 2.0])
    for times in (1, 2, 3):
        (x * x).sum().backward()
        assert x.grad.tolist() == [2.0 * times, 4.0 * times]


def test_only_leaves_and_tensors_that_retain_it_get_a_gradient() -> None:
    x, constant = leaf([3.0]), lucid.tensor([2.0])
    y: Any = x * constant
    z: Any = y * y
    z.retain_grad()
    x.retain_grad()
    z.sum().backward()
    assert (x.grad.tolist(), z.grad.tolist(), y.grad, constant.grad) == ([24.0], [1.0], None, None)
    assert [t.is_leaf for t in (x, constant, y)] == [True, True, False]
    assert [t.requires_grad for t in (x, constant, y, y.detach())] == [True, False, True, False]
    assert repr(y.grad_fn) == "<MulBackward>"
    with pytest.raises(RuntimeError, match=r"^retain_grad can be called only on a tensor that requires grad$"):
        constant.retain_grad()


def test_a_leaf_is_its_own_root() -> None:
    x = leaf(2.0)
    x.backward()
    assert x.grad.item() == 1.0
    assert grad(x, x)[0].item() == 1.0


def test_requires_grad_can_be_switched_for_leaves_of_a_floating_dtype_only() -> None:
    x = lucid.tensor([1.0])
    assert x.requires_grad_() is x
    y = x * 2
    x.requires_grad = False
    assert not (x * 2).requires_grad
    assert y.requires_grad_() is y
    with pytest.raises(RuntimeError, match=r"^requires_grad can be switched off for leaves only; use detach\(\)$"):
        y.requires_grad = False
    with pytest.raises(
        RuntimeError, match=r"^only tensors of a floating dtype can require gradients, got lucid.bool_$"
    ):
        (x > 0).requires_grad_()
    assert not (y > 0).requires_grad
    assert not y.to("int64").requires_grad


def test_a_leaf_frozen_after_it_was_used_gets_no_gradient() -> None:
    frozen, other = leaf([2.0]), leaf([3.0])
    y = frozen * other
    frozen.requires_grad = False
    y.sum().backward()
    assert (frozen.grad, other.grad.tolist()) == (None, [2.0])


# Where backward may start


def test_backward_of_many_elements_needs_a_gradient() -> None:
    x = leaf([1.0, 2.0])
    y = x * x
    with pytest.raises(RuntimeError, match=r"^a gradient can be left out only for a tensor of one element, got shape"):
        y.backward()
    y.backward(lucid.tensor([3.0, 4.0]))
    assert x.grad.tolist() == [6.0, 16.0]
    one: Any = leaf([[5.0]])
    (one * 1).backward()
    assert one.grad.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (lambda: lucid.ones(3), RuntimeError, r"gradient must have the tensor's shape \(2,\), got \(3,\)"),
        (lambda: lucid.ones(()), RuntimeError, r"gradient must have the tensor's shape \(2,\), got \(\)"),
        (lambda: lucid.ones(2).double(), RuntimeError, "gradient must have the tensor's dtype lucid.float32, got .*64"),
        (lambda: [1.0, 1.0], TypeError, "gradient must be a lucid.Tensor, got list"),
        (lambda: 1.0, TypeError, "gradient must be a lucid.Tensor, got float"),
        (lambda: torch.ones(2), TypeError, "gradient must be a lucid.Tensor, got torch.Tensor"),
    ],
)
def test_a_gradient_that_does_not_fit_is_refused(gradient: Any, error: type[Exception], message: str) -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(error, match=f"^{message}$"):
        (x * 2).backward(gradient())
    assert x.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU beside the CPU")
def test_a_gradient_on_another_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"^gradient must have the tensor's device cuda:0, got cpu$"):
        (leaf([1.0]).cuda() * 2).backward(lucid.ones(1, device="cpu"))


def test_what_requires_no_grad_has_no_backward() -> None:
    with pytest.raises(RuntimeError, match=r"^a tensor that does not require grad and has no grad_fn"):
        lucid.tensor(1.0).backward()


def test_backward_from_several_tensors_goes_once_through_what_they_share() -> None:
    x = leaf([1.0, 2.0])
    shared = x * 2
    calls = []
    shared.register_hook(lambda grad: calls.append(grad.tolist()))
    backward([shared.sum(), shared * shared], [None, lucid.ones(2)])
    assert calls == [[5.0, 9.0]]
    assert x.grad.tolist() == [10.0, 18.0]
    y = leaf([1.0])
    backward((y * 3, y * 3))
    assert y.grad.tolist() == [6.0]
    with pytest.raises(RuntimeError, match=r"^grad_tensors must have an entry for each of tensors, 2, got 1$"):
        backward([y * 2, y * 2], [None])
    with pytest.raises(TypeError, match=r"^tensors must be a lucid.Tensor or a sequence of them, got float$"):
        backward(1.0)


def test_backward_from_a_value_and_from_what_it_was_made_of() -> None:
    x = leaf([3.0])
    y = x * x
    backward([y * y, y])
    assert x.grad.tolist() == [4 * 27.0 + 6.0]
