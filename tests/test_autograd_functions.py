"""Hooks on tensors, custom functions, and the check against finite differences itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid.autograd import Function, grad, gradcheck, gradgradcheck
from tests.values import leaf

# Hooks


def test_a_hook_sees_the_complete_gradient_once() -> None:
    x = leaf([1.0, 2.0])
    seen: list[Any] = []
    inner = x * 2
    for tensor in (x, inner):
        tensor.register_hook(lambda grad: seen.append(grad.tolist()))
    (inner * 3 + inner * inner).sum().backward()
    assert seen == [[7.0, 11.0], [14.0, 22.0]]
    assert x.grad.tolist() == [14.0, 22.0]


def test_hooks_run_in_order_and_each_gets_what_the_one_before_returned() -> None:
    x = leaf([1.0])
    inner = x * 1
    seen: list[Any] = []
    for tensor in (inner, x):
        tensor.register_hook(lambda grad: grad * 10)
        tensor.register_hook(lambda grad: seen.append(grad.item()))
        tensor.register_hook(lambda grad: grad + 1)
    inner.retain_grad()
    inner.sum().backward()
    assert seen == [10.0, 110.0]
    assert (inner.grad.item(), x.grad.item()) == (11.0, 111.0)


def test_hooks_run_for_autograd_grad_and_are_recorded_with_the_graph() -> None:
    def second(x: Any, grad: Any) -> list[Any]:
        inner = x * 1
        inner.register_hook(lambda grad: grad * inner)
        x.register_hook(lambda grad: grad * grad)
        (dx,) = grad((inner * inner).sum(), x, create_graph=True)
        return [dx.tolist(), grad(dx, x)[0].tolist()]

    theirs = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    assert second(leaf([2.0], "float64"), grad) == second(theirs, torch.autograd.grad)


def test_a_removed_hook_runs_no_more() -> None:
    x = leaf([1.0])
    inner = x * 2
    handles = [tensor.register_hook(lambda grad: grad * 0) for tensor in (inner, x)]
    for handle in handles:
        handle.remove()
        handle.remove()
    with x.register_hook(lambda grad: grad * 0):
        pass
    once: Any = x.register_hook(lambda grad: once.remove())
    x.register_hook(lambda grad: grad + 1)
    inner.sum().backward()
    assert x.grad.tolist() == [3.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3.0, "a tensor hook must return None or a Tensor, got float"),
        (np.ones(2), "a tensor hook must return None or a Tensor, got numpy.ndarray"),
        (lucid.ones(3), r"what a tensor hook returns must have the gradient's shape \(2,\), got \(3,\)"),
        (lucid.ones(2).half(), "what a tensor hook returns must have the gradient's dtype lucid.float32, got .*16"),
    ],
    ids=["number", "array", "shape", "dtype"],
)
@pytest.mark.parametrize("where", ["leaf", "first leaf", "inner"])
def test_a_hook_that_returns_something_else_stops_backward_before_any_grad_changes(
    where: str, returned: Any, message: str
) -> None:
    x, y, z = leaf([1.0, 2.0]), leaf([3.0, 4.0]), leaf([5.0, 6.0])
    z.grad = lucid.tensor([7.0, 8.0])
    inner = x * z
    kept: Any = inner * y
    kept.retain_grad()
    {"leaf": x, "first leaf": y, "inner": inner}[where].register_hook(lambda grad: returned)
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        kept.sum().backward()
    assert (x.grad, y.grad, kept.grad, z.grad.tolist()) == (None, None, None, [7.0, 8.0])


def test_what_cannot_be_hooked_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"^a hook can be registered only on a tensor that requires grad$"):
        lucid.ones(1).register_hook(print)
    with pytest.raises(TypeError, match=r"^hook must be callable, got int$"):
        leaf(1.0).register_hook(3)


# Custom functions


class SumAndDifference(Function):
    @staticmethod
    def forward(ctx: Any, a: Any, b: Any, scale: float) -> Any:
        ctx.scale = scale
        ctx.wanted = ctx.needs_input_grad
        return (a + b) * scale, a - b

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total, difference = (0 if g is None else g for g in grads)
        return total * ctx.scale + difference, total * ctx.scale - difference, None


def test_a_function_of_several_outputs_gets_a_gradient_for_each() -> None:
    a, b = leaf([1.0], "float64"), leaf([2.0], "float64")
    total, difference = SumAndDifference.apply(a, b, 3.0)
    (total * 2 + difference * 5).sum().backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([11.0], [1.0])
    assert gradcheck(SumAndDifference.apply, (a, b, 3.0))
    assert gradgradcheck(lambda a, b: SumAndDifference.apply(a * b, b, 3.0), (a, b))


def test_an_unused_output_has_no_gradient() -> None:
    a, b = leaf([1.0]), lucid.tensor([2.0])
    total, _ = SumAndDifference.apply(a, b, 3.0)
    assert total.grad_fn.context.wanted == (True, False, False)
    total.sum().backward()
    assert a.grad.tolist() == [3.0]
    assert b.grad is None
    total, difference = SumAndDifference.apply(a, b, 3.0)
    with pytest.raises(RuntimeError, match="is not part of the graph of the outputs"):
        grad(total, difference)


def make(forward: Any, backward: Any) -> type[Function]:
    return type("Made", (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


@pytest.mark.parametrize(
    ("backward", "error", "message"),
    [
        (lambda ctx, g: (g, g), RuntimeError, "MadeBackward must return 1 gradients, .* got 2"),
        (lambda ctx, g: (), RuntimeError, "MadeBackward must return 1 gradients, .* got 0"),
        (lambda ctx, g: g[:1], RuntimeError, r"MadeBackward returned .* shape \(1,\) for an argument of shape \(2,\)"),
        (lambda ctx, g: 1.0, TypeError, "MadeBackward must return lucid.Tensors and Nones, got float"),
        (lambda ctx, g: [g], TypeError, "MadeBackward must return lucid.Tensors and Nones, got list"),
    ],
)
def test_a_backward_that_returns_something_else_is_refused(backward: Any, error: type[Exception], message: str) -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(error, match=f"^{message}$"):
        make(lambda ctx, x: x * 2, backward).apply(x).sum().backward()
    assert x.grad is None


def test_a_backward_may_return_none_and_its_gradient_gets_the_arguments_dtype() -> None:
    x = leaf([1.0, 2.0])
    nothing = make(lambda ctx, x: x * 2, lambda ctx, g: None).apply(x).sum()
    nothing.backward(retain_graph=True)
    assert not x.grad
    with pytest.raises(RuntimeError, match="is not part of the graph of the outputs"):
        grad(nothing, x)
    make(lambda ctx, x: x * 2, lambda ctx, g: g.double() * 2).apply(x).sum().backward()
    assert (x.grad.dtype, x.grad.tolist()) == (lucid.float32, [2.0, 2.0])


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_forward_must_return_tensors(requires_grad: bool) -> None:
    x = lucid.tensor([1.0], requires_grad=requires_grad)
    for wrong, name in (((lambda ctx, x: 3.0), "float"), ((lambda ctx, x: (x, "a")), "str")):
        with pytest.raises(TypeError, match=f"^Made.forward must return lucid.Tensors and Nones, got {name}$"):
            make(wrong, None).apply(x)
    with pytest.raises(
        TypeError, match=r"^save_for_backward takes Tensors and Nones, got int; other values can be attributes"
    ):
        make(lambda ctx, x: ctx.save_for_backward(x, 3), None).apply(x)
    for method in ("forward", "backward"):
        with pytest.raises(NotImplementedError, match=f"^a Function must define {method}$"):
            getattr(Function, method)(None)


def test_a_tensor_handed_through_is_another_one_in_the_graph() -> None:
    outer = leaf([5.0])
    through = make(lambda ctx, x: (x, x, outer), lambda ctx, a, b, c: a * 2 + b * 3)
    x = leaf([1.0])
    first, second, third = through.apply(x)
    assert x.is_leaf
    assert outer.is_leaf
    assert not third.is_leaf
    first.register_hook(lambda grad: grad * 10)
    (first + second + third * 0).sum().backward()
    assert x.grad.tolist() == [23.0]
    assert outer.grad is None


def test_integer_outputs_have_no_gradient() -> None:
    both = make(lambda ctx, x: (x * 2, x.to("int64"), None), lambda ctx, g, none, nothing: g * 2)
    x = leaf([1.5])
    doubled, whole, nothing = both.apply(x)
    assert (doubled.requires_grad, whole.requires_grad, nothing) == (True, False, None)
    doubled.sum().backward()
    assert x.grad.tolist() == [2.0]


def test_saved_tensors_come_back_as_they_were() -> None:
    seen: list[Any] = []

    class Keeps(Function):
        @staticmethod
        def forward(ctx: Any, x: Any, y: Any) -> Any:
            out = x * y
            ctx.save_for_backward(x, None, out)
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            seen.extend(ctx.saved_tensors)
            return grad, grad

    x, y = leaf([2.0]), lucid.tensor([3.0])
    out = Keeps.apply(x, y)
    out.sum().backward()
    assert seen[0] is x
    assert seen[1] is None
    assert (seen[2].tolist(), seen[2].grad_fn is out.grad_fn) == ([6.0], True)
    with pytest.raises(RuntimeError, match=r"^trying to backward through the graph a second time"):
        _ = out.grad_fn.context.saved_tensors


# The check itself


def test_gradients_of_arguments_that_were_left_out_are_none() -> None:
    class Scale(Function):
        @staticmethod
        def forward(ctx: Any, x: lucid.Tensor, factor: float = 2.0, offset: lucid.Tensor | None = None) -> lucid.Tensor:
            return x * factor if offset is None else x * factor + offset

        @staticmethod
        def backward(ctx: Any, grad: lucid.Tensor) -> Any:
            return grad * 2.0, None, None

    x: Any = lucid.ones(2, requires_grad=True)
    Scale.apply(x).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_gradcheck_fails_on_wrong_gradients() -> None:
    x = leaf([0.5, 1.5], "float64")
    for wrong in (
        make(lambda ctx, x: x * 3, lambda ctx, g: g * 2.99),
        make(lambda ctx, x: x * 3, lambda ctx, g: None),
        make(lambda ctx, x: x.sum().expand(2), lambda ctx, g: g),
    ):
        with pytest.raises(
            AssertionError, match=r"^the Jacobian of output 0 to input 0 differs from finite differences"
        ):
            gradcheck(wrong.apply, x)
        with pytest.raises(AssertionError, match=r"^a projection of the Jacobian of output 0 to input 0 differs from"):
            gradcheck(wrong.apply, x, fast_mode=True)


def test_gradcheck_fails_where_the_graph_is_cut() -> None:
    x = leaf([0.5, 1.5], "float64")
    with pytest.raises(AssertionError, match=r"^the Jacobian of output 1 to input 0 differs"):
        gradcheck(lambda x: (x * 2, x.detach() * 2), x)
    assert gradcheck(lambda x: (x * 2, x.to("int64")), x)


def test_gradgradcheck_fails_on_wrong_second_derivatives() -> None:
    class Cube(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x * x

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            (x,) = ctx.saved_tensors
            return grad * (x * x.detach() * 3)

    x = leaf([0.5, 1.5], "float64")
    assert gradcheck(Cube.apply, x)
    with pytest.raises(AssertionError, match="differs from finite differences"):
        gradgradcheck(Cube.apply, x)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_checks_refuse_what_they_cannot_check(check: Any) -> None:
    with pytest.raises(ValueError, match=r"^input 1 must be float64 for finite differences, got lucid.float32$"):
        check(lambda a, b: a * b, (leaf(1.0, "float64"), leaf(1.0)))
    with pytest.raises(ValueError, match=r"^inputs must hold a Tensor that requires grad, got none$"):
        check(lambda a: a, (lucid.tensor(1.0, dtype="float64"), 3))


def test_checks_take_empty_and_strided_inputs() -> None:
    x = lucid.from_torch(leaf(np.arange(6.0).reshape(2, 3)).T.to_torch()).requires_grad_()
    assert gradcheck(lambda x: x * x, x)
    assert gradgradcheck(lambda x: x * x, leaf(np.zeros((0, 2))))
