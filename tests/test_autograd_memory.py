"""Lifetime of saved tensors, errors for freed graphs and modified tensors, and ownership of gradients."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import numpy as np
import pytest

import lucid
import lucid.nn.functional as F
from lucid.autograd import backward, grad
from tests.values import Identity, leaf


def test_a_second_backward_through_a_freed_graph_is_refused_and_changes_nothing() -> None:
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    shared = x * w
    shared.sum().backward()
    before = [x.grad.tolist(), w.grad.tolist()]
    fresh = leaf([5.0, 6.0])
    for again in (shared.sum(), (shared * fresh).sum()):
        with pytest.raises(
            RuntimeError,
            match=r"^trying to backward through the graph a second time, after it has been freed: pass retain",
        ):
            again.backward()
        with pytest.raises(RuntimeError, match=r"^trying to backward through the graph a second time"):
            grad(again, x)
    assert [x.grad.tolist(), w.grad.tolist()] == before
    assert fresh.grad is None


def test_a_freed_graph_that_saved_nothing_is_refused_as_well_and_before_any_hook_runs() -> None:
    x = leaf([1.0, 2.0])
    shifted = x + 1
    shifted.sum().backward()
    seen: list[Any] = []
    again = shifted - 1
    again.register_hook(seen.append)
    for call in (lambda: again.sum().backward(), lambda: grad(again.sum(), x)):
        with pytest.raises(RuntimeError, match=r"^trying to backward through the graph a second time"):
            call()
    assert seen == []
    assert x.grad.tolist() == [1.0, 1.0]


def test_a_retained_graph_can_be_gone_through_again() -> None:
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward(create_graph=True)
    y.backward()
    assert x.grad.tolist() == [6.0, 12.0]
    with pytest.raises(RuntimeError, match=r"^trying to backward"):
        y.backward()


@pytest.mark.parametrize("function", [lambda x: x * x, lambda x: x.exp(), lambda x: F.softmax(x)])
def test_backward_releases_what_was_saved(function: Any, no_collector: None) -> None:
    x = leaf([1.0, 2.0])
    kept = x * 3
    buffer = weakref.ref(kept._buffer)
    y = function(kept)
    total = y.sum()
    saved = weakref.ref(y._buffer)
    del kept, y
    assert buffer() is not None or saved() is not None
    total.backward()
    assert buffer() is None
    assert saved() is None


@pytest.mark.parametrize("how", ["never run", "backward", "retained", "grad", "third derivative"])
def test_a_graph_is_collected_without_the_cycle_collector(how: str, no_collector: None) -> None:
    x, w = leaf([[1.0, 2.0]]), leaf([[3.0, 4.0]])
    hidden = (F.linear(x, w) + 1).tanh()
    hidden.register_hook(lambda grad: None)
    hidden.retain_grad()
    loss = F.kl_div(F.log_softmax(hidden.expand(1, 2)), F.softmax(x), reduction="batchmean") + hidden.exp().sum()
    if how in ("backward", "retained"):
        loss.backward(retain_graph=how == "retained")
    elif how == "grad":
        grad(loss, [x, w])
    elif how == "third derivative":
        (dx,) = grad(loss, x, create_graph=True)
        assert dx is not None
        (ddx,) = grad(dx.sum(), x, create_graph=True)
        assert ddx is not None
        ddx.sum().backward()
        del dx, ddx
    node, buffer = weakref.ref(hidden.grad_fn), weakref.ref(hidden._buffer)
    del hidden, loss
    assert node() is None
    assert buffer() is None


def test_only_what_backward_needs_is_saved() -> None:
    x, constant = leaf([1.0, 2.0]), lucid.tensor([3.0, 4.0])
    moved = x * 2
    product, ratio, total, shifted = moved * constant, moved / constant, moved + constant, moved - 1
    moved.to_torch().zero_()
    (product + ratio + total + shifted).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * (np.array([3.0, 4.0]) + [1 / 3, 1 / 4] + 2), rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to_torch().mul_(2),
        lambda x: x.detach().reshape(2, 1).to_torch().zero_(),
        lambda x: lucid.nn.init.zeros_(x),
        lambda x: lucid.optim.SGD([x], lr=0.1).step(),
        lambda x: lucid.optim.Adam([x], lr=0.1).step(),
    ],
)
def test_a_saved_tensor_changed_in_place_is_noticed(change: Any) -> None:
    x = leaf([1.0, 2.0])
    x.grad = lucid.ones(2)
    y, harmless = (x * x).sum(), (x + 1).sum()
    change(x)
    with pytest.raises(
        RuntimeError, match=r"^a tensor of shape \(2,\) that backward needs was modified in place after"
    ):
        y.backward()
    harmless.backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_a_saved_result_changed_in_place_is_noticed() -> None:
    x = leaf([1.0, 2.0])
    y = x.exp()
    y.to_torch().zero_()
    with pytest.raises(RuntimeError, match=r"modified in place after it was used \(version \d, expected \d\)$"):
        y.sum().backward()


def memory(tensor: Any) -> int:
    return tensor.to_torch().untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y, g: (x + y).backward(g),
        lambda x, y, g: (x.T + y.T).backward(g.T.clone()),
        lambda x, y, g: (x.reshape(4) + y.reshape(4)).sum().backward(),
        lambda x, y, g: backward([x, y * 1], [g, g]),
        lambda x, y, g: (Identity.apply(x) + y.clone()).backward(g),
        lambda x, y, g: (x[0] + y[0]).backward(g[0]),
    ],
)
def test_no_two_gradients_share_memory(make: Any) -> None:
    x, y, g = leaf(np.ones((2, 2))), leaf(np.ones((2, 2))), lucid.tensor(np.ones((2, 2)))
    make(x, y, g)
    assert len({memory(t) for t in (x.grad, y.grad, g, x, y)}) == 5
    x.grad.to_torch().zero_()
    assert y.grad.numpy().any()
    assert g.numpy().all()


def test_a_part_of_a_gradient_shares_no_memory_with_the_rest() -> None:
    x, weights = leaf([1.0, 2.0, 3.0, 4.0]), leaf([5.0, 6.0])
    (dx,) = grad(x[1:3], x, weights, create_graph=True)  # zeros with the weights put in, so its gradient is a part
    outer = lucid.tensor([1.0, 2.0, 3.0, 4.0])
    assert dx is not None
    dx.backward(outer)
    assert weights.grad.tolist() == [2.0, 3.0]
    assert memory(weights.grad) != memory(outer)


def test_every_element_of_a_gradient_has_its_own_memory() -> None:
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    x.mean().backward()
    x.grad.to_torch()[0, 0] = 9
    assert x.grad.tolist() == [[9.0, 0.25], [0.25, 0.25]]


def test_a_retained_gradient_and_a_leafs_share_no_memory() -> None:
    x = leaf([1.0, 2.0])
    y: Any = Identity.apply(x)
    z: Any = Identity.apply(y)
    y.retain_grad()
    z.retain_grad()
    z.backward(lucid.ones(2))
    assert len({memory(t.grad) for t in (x, y, z)}) == 3


def test_a_gradient_kept_by_a_hook_is_its_holders() -> None:
    x = leaf([1.0, 2.0])
    held: list[Any] = []
    x.register_hook(held.append)
    replacement = lucid.tensor([5.0, 6.0])
    y = leaf([1.0, 2.0])
    y.register_hook(lambda grad: replacement)
    (x * 2 + y * 3).sum().backward()
    assert memory(x.grad) != memory(held[0])
    assert memory(y.grad) != memory(replacement)
    assert (x.grad.tolist(), y.grad.tolist()) == ([2.0, 2.0], [5.0, 6.0])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_second_gradient_is_added_in_place(transposed: bool) -> None:
    x = lucid.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    weights = lucid.tensor([[1.0, 2.0], [0.5, 1.5]])
    (x * weights).sum().backward()
    held: Any = x.grad
    at = memory(held)
    saved = held.detach().clone().requires_grad_() * held  # keeps the first gradient for backward
    y = (x.T * weights).sum() if transposed else (x * weights * 2.0).sum()
    y.backward()
    assert x.grad is held
    assert memory(held) == at
    expected = [[2.0, 2.5], [2.5, 3.0]] if transposed else [[3.0, 6.0], [1.5, 4.5]]
    assert held.tolist() == expected
    with pytest.raises(RuntimeError, match=r"^a tensor of shape \(2, 2\) that backward needs was modified in place"):
        saved.sum().backward()


def test_a_gradient_with_a_graph_is_not_changed_by_another() -> None:
    x: Any = lucid.tensor([2.0], requires_grad=True)
    (x**3).sum().backward(create_graph=True)
    first = x.grad
    (x * x).sum().backward(create_graph=True)
    assert (first.tolist(), x.grad.tolist()) == ([12.0], [16.0])
    x.grad = None
    first.sum().backward()
    assert x.grad.tolist() == [12.0]


def test_grad_takes_tensors_that_fit() -> None:
    x = leaf([1.0, 2.0])
    x.grad = lucid.tensor([3.0, 4.0])
    (x * 1).sum().backward()
    assert x.grad.tolist() == [4.0, 5.0]
    for wrong, error, message in (
        (lucid.ones(3), RuntimeError, r"grad must have the tensor's shape \(2,\), got \(3,\)"),
        (lucid.ones(2).half(), RuntimeError, r"grad must have the tensor's dtype lucid.float32, got lucid.float16"),
        ([1.0, 2.0], TypeError, "grad must be a lucid.Tensor or None, got list"),
    ):
        with pytest.raises(error, match=f"^{message}$"):
            x.grad = wrong
    assert copy.deepcopy(x).grad.tolist() == [4.0, 5.0]
