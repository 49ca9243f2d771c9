"""The engine: which gradients arrive where, in which order, and what is kept alive. The oracle is torch.autograd."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
from lucid.autograd import Function, backward, grad
from tests.values import leaf


class Identity(Function):
    """Costs no kernel launch."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad


class Square(Function):
    """Saves its input, and has a derivative of every order."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad * x * 2


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
    first = x.grad
    (x * 1).sum().backward()
    assert first.tolist() == [6.0, 12.0], "the old gradient is not changed behind its holder's back"


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
    assert repr(y.grad_fn) == "<_MulBackward>"
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
        (lambda: [1.0, 1.0], TypeError, "gradient must be a Tensor, got list"),
        (lambda: 1.0, TypeError, "gradient must be a Tensor, got float"),
        (lambda: torch.ones(2), TypeError, "gradient must be a Tensor, got Tensor"),
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
    with pytest.raises(
        RuntimeError, match=r"^a tensor that does not require grad, and was not made from one that does"
    ):
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
    with pytest.raises(TypeError, match=r"^tensors must be a Tensor or a sequence of Tensors, got float$"):
        backward(1.0)


def test_backward_from_a_value_and_from_what_it_was_made_of() -> None:
    x = leaf([3.0])
    y = x * x
    backward([y * y, y])
    assert x.grad.tolist() == [4 * 27.0 + 6.0]


# Memory


def test_a_second_backward_through_a_freed_graph_is_refused_and_changes_nothing() -> None:
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    shared = x * w
    shared.sum().backward()
    before = [x.grad.tolist(), w.grad.tolist()]
    fresh = leaf([5.0, 6.0])
    for again in (shared.sum(), (shared * fresh).sum()):
        with pytest.raises(
            RuntimeError, match=r"^backward a second time through a graph that has been freed: pass retain"
        ):
            again.backward()
        with pytest.raises(RuntimeError, match=r"^backward a second time through a graph that has been freed"):
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
        with pytest.raises(RuntimeError, match=r"^backward a second time through a graph that has been freed"):
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
    with pytest.raises(RuntimeError, match=r"^backward a second time"):
        y.backward()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts free memory: a cycle stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("function", [lambda x: x * x, lambda x: x.exp(), lambda x: F.softmax(x), Square.apply])
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
    with pytest.raises(RuntimeError, match=r"^a tensor of shape \(2,\) that backward needs was changed in place after"):
        y.backward()
    harmless.backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_a_saved_result_changed_in_place_is_noticed() -> None:
    x = leaf([1.0, 2.0])
    y = x.exp()
    y.to_torch().zero_()
    with pytest.raises(RuntimeError, match=r"changed in place after it was used \(version \d, expected \d\)$"):
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


def test_grad_takes_tensors_that_fit() -> None:
    x = leaf([1.0, 2.0])
    x.grad = lucid.tensor([3.0, 4.0])
    (x * 1).sum().backward()
    assert x.grad.tolist() == [4.0, 5.0]
    for wrong, error, message in (
        (lucid.ones(3), RuntimeError, r"grad must have the tensor's shape \(2,\), got \(3,\)"),
        (lucid.ones(2).half(), RuntimeError, r"grad must have the tensor's dtype lucid.float32, got lucid.float16"),
        ([1.0, 2.0], TypeError, "grad must be a lucid Tensor or None, got list"),
    ):
        with pytest.raises(error, match=f"^{message}$"):
            x.grad = wrong
    assert copy.deepcopy(x).grad.tolist() == [4.0, 5.0]
