"""Gradients that are written over the student's logits: where they lie, and what becomes of the logits."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
import lucid.torch
from lucid.autograd import grad
from lucid.typing import Reduction
from tests.device import DEVICE


def _leaf(*shape: int) -> Any:
    return lucid.tensor(np.random.randn(*shape), dtype="float32", requires_grad=True)


def _module(weight: Any) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return module


@pytest.mark.usefixtures("launchers")
class TestGradientsInLucid:
    def test_are_the_gradients_and_lie_in_the_logits_memory(self) -> None:
        x, t = _leaf(5, 70), lucid.tensor(np.random.randn(5, 70).astype("float32"))
        F.distillation_loss(x * 2, t).backward()
        expected = x.grad.numpy().copy()
        x.grad = None
        student = x * 2
        student.retain_grad()
        address = student.data_ptr()
        F.distillation_loss(student, t, inplace_gradient=True).backward()
        assert student.grad.data_ptr() == address
        np.testing.assert_array_equal(x.grad.numpy(), expected)

    @pytest.mark.parametrize(
        "use",
        [
            lambda s: s.numpy(),
            lambda s: s.tolist(),
            lambda s: repr(s),
            lambda s: s + 1,
            lambda s: s > 0,
            lambda s: s.to_torch(),
            lambda s: np.from_dlpack(s) if s.device == "cpu" else s.to_torch(),
            lambda s: s.detach().sum(),
            lambda s: s.reshape(-1),
            lambda s: F.distillation_loss(s, s.detach()),
            lambda s: s.data_ptr(),
            lambda s: lucid.tensor(s),
            lambda s: pickle.dumps(s.detach()),
            lambda s: _module(lucid.zeros_like(s)).load_state_dict({"weight": s.detach()}),
        ],
    )
    def test_make_every_use_of_the_logits_an_error(self, use: Any) -> None:
        student = _leaf(5, 7) * 2
        view = student.reshape(7, 5)
        use(student.detach())
        F.distillation_loss(student, lucid.zeros(5, 7), inplace_gradient=True)
        for tensor in (student, view):
            with pytest.raises(RuntimeError, match="was overwritten in place by the gradient of a loss"):
                use(tensor)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_are_not_written_where_the_call_is_refused(self, reduction: Reduction) -> None:
        student = _leaf(5, 7) * 2
        before = student.numpy().copy()
        with lucid.check_values(), pytest.raises(IndexError, match="labels must lie in"):
            F.distillation_loss(
                student, lucid.zeros(5, 7), labels=lucid.tensor([0, 1, 2, 3, 99]), reduction=reduction,
                inplace_gradient=True,
            )  # fmt: skip
        np.testing.assert_array_equal(student.numpy(), before)

    @pytest.mark.parametrize("optimizer", [lucid.optim.SGD, lucid.optim.Adam])
    def test_are_no_step_from_logits_that_are_gone(self, optimizer: Any) -> None:
        logits = _leaf(5, 7) * 2
        parameter = nn.Parameter(logits.detach().reshape(7, 5))  # of the same memory
        F.distillation_loss(logits, lucid.zeros(5, 7), inplace_gradient=True).backward()
        parameter.grad = lucid.zeros(7, 5)
        for change in (
            optimizer([parameter], lr=0.1).step,
            lambda: _module(parameter).load_state_dict({"weight": parameter}),
        ):
            with pytest.raises(RuntimeError, match="was overwritten in place by the gradient of a loss"):
                change()

    def test_given_for_a_view_make_every_use_of_the_base_an_error(self) -> None:
        x = _leaf(2, 3, 7)
        base = x * 2
        F.distillation_loss(base.reshape(6, 7), lucid.zeros(6, 7), inplace_gradient=True).backward()
        with pytest.raises(RuntimeError, match="was overwritten in place by the gradient of a loss"):
            base.numpy()
        assert np.isfinite(x.grad.numpy()).all()

    def test_are_refused_to_an_operation_that_needs_the_logits_for_its_own_backward(self) -> None:
        x = _leaf(5, 7)
        student = x.exp()  # whose derivative is its value
        loss = F.distillation_loss(student, lucid.zeros(5, 7), inplace_gradient=True)
        with pytest.raises(RuntimeError, match="backward needs was modified in place"):
            loss.backward()

    def test_serve_two_backward_passes(self) -> None:
        x, student = _leaf(5, 7), []
        for in_place in (False, True):
            loss = F.distillation_loss(x * 2, lucid.zeros(5, 7), inplace_gradient=in_place)
            first, second = (grad(loss, x, lucid.tensor(g), retain_graph=g == 3.0)[0].numpy() for g in (3.0, 1.0))
            np.testing.assert_allclose(first, 3 * second, rtol=1e-6)
            student.append(second)
        np.testing.assert_array_equal(*student)

    def test_leave_logits_without_a_gradient_alone(self) -> None:
        student = lucid.tensor([[1.0, 2.0]])
        teacher = _leaf(1, 2)
        F.distillation_loss(student, teacher, inplace_gradient=True).backward()
        assert student.tolist() == [[1.0, 2.0]]

    def test_are_refused_for_memory_that_is_not_the_students_alone(self) -> None:
        x = _leaf(1, 7)
        with pytest.raises(RuntimeError, match="must not be expanded"):
            F.distillation_loss(x.expand(5, 7), lucid.zeros(5, 7), inplace_gradient=True)
        windows = lucid.from_torch(torch.randn(11).to(DEVICE).unfold(0, 7, 1)).requires_grad_()
        with pytest.raises(RuntimeError, match="overlap otherwise"):
            F.distillation_loss(windows, lucid.zeros(5, 7), inplace_gradient=True)
        both = _leaf(4, 7) * 1
        with pytest.raises(RuntimeError, match="must share no memory"):
            F.distillation_loss(both[:2], both[2:], inplace_gradient=True)

    def test_are_refused_to_a_leaf_and_its_views_unless_nothing_is_recorded(self) -> None:
        leaf = _leaf(5, 7)
        for logits in (leaf, leaf[:], leaf.reshape(7, 5).reshape(5, 7)):
            with pytest.raises(RuntimeError, match="student_logits must not be a leaf that requires grad"):
                F.distillation_loss(logits, lucid.zeros(5, 7), inplace_gradient=True)
        with lucid.no_grad():
            F.distillation_loss(leaf, lucid.zeros(5, 7), inplace_gradient=True)


def _inputs(rows: int = 4, columns: int = 6) -> tuple[Tensor, Tensor]:
    x, y = (torch.rand(rows, columns, dtype=torch.float64, device=DEVICE) for _ in range(2))
    return x.requires_grad_(), y.requires_grad_()


@pytest.mark.usefixtures("implementation")
class TestTheGradientInTorch:
    @pytest.mark.usefixtures("forms")
    def test_it_stands_where_the_logits_were(self) -> None:
        x, y = _inputs()
        logits = x * 2
        expected = torch.autograd.grad(lucid.torch.distillation_loss(x * 2, y), (x, y))
        loss = lucid.torch.distillation_loss(logits, y, inplace_gradient=True)
        address, seen = logits.data_ptr(), []
        logits.register_hook(lambda grad: seen.append(grad.data_ptr()))
        loss.backward()
        assert seen == [address]
        torch.testing.assert_close([x.grad, y.grad], list(expected))

    @pytest.mark.usefixtures("forms")
    def test_version_counters_know(self) -> None:
        x, y = _inputs()
        logits = x * 2
        other = logits.square().sum()  # needs the logits
        loss = lucid.torch.distillation_loss(logits, y, inplace_gradient=True)
        loss.backward()
        assert logits._version == 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            other.backward()

    @pytest.mark.usefixtures("forms")
    def test_other_gradients_to_the_logits_are_added(self) -> None:
        x, y = _inputs()
        logits = x * 2
        (lucid.torch.distillation_loss(logits, y, inplace_gradient=True) + logits.sum()).backward()
        (expected,) = torch.autograd.grad(lucid.torch.distillation_loss(x * 2, y), x)
        torch.testing.assert_close(x.grad, expected + 2)

    @pytest.mark.parametrize("in_forward", [True, False])
    @pytest.mark.parametrize("again", [lambda s: s, lambda s: s[:, :5], lambda s: s.view(-1, 2)])
    def test_another_loss_of_the_same_logits_is_an_error(
        self, again: Callable[[Tensor], Tensor], in_forward: bool
    ) -> None:
        x, y = _inputs()
        logits = x * 2
        first = again(logits)
        teacher = y.reshape(-1)[: first.numel()].view_as(first)
        with lucid.gradient_in_forward(in_forward):
            of_first = lucid.torch.distillation_loss(first, teacher, inplace_gradient=True)
        if not in_forward:
            of_first.backward()
        for name, loss in (
            ("student_logits", lucid.torch.distillation_loss),
            ("input", lucid.torch.cross_entropy),
            ("input", functools.partial(lucid.torch.kl_div, reduction="sum")),
        ):
            with pytest.raises(RuntimeError, match=f"{name} was overwritten by the gradient of an earlier loss"):
                loss(again(logits), again(logits).detach() * 1)
        with torch.no_grad():
            logits.copy_(x)
        assert lucid.torch.distillation_loss(logits, y).isfinite()

    @pytest.mark.parametrize("change", [lambda s: s.zero_(), lambda s: s.detach().clamp_(-0.01, 0.01)])
    @pytest.mark.usefixtures("forms")
    def test_a_change_before_backward_is_an_error(self, change: Callable[[Tensor], Tensor]) -> None:
        x, y = _inputs()
        logits = x * 2
        loss = lucid.torch.distillation_loss(logits, y, inplace_gradient=True)
        with torch.no_grad():
            change(logits)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.usefixtures("forms")
    def test_logits_may_be_a_view_that_torch_does_not_let_others_change(self) -> None:
        x, y = _inputs()
        expected = torch.autograd.grad(lucid.torch.distillation_loss(x * 2, y), x)
        model = torch.nn.Identity()
        model.register_full_backward_hook(lambda *_: None)
        for view in (model, lambda x: x.chunk(1)[0]):
            loss = lucid.torch.distillation_loss(view(x * 2), y, inplace_gradient=True)
            torch.testing.assert_close(torch.autograd.grad(loss, x), expected)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_a_call_that_is_refused_leaves_the_logits(self, reduction: Reduction) -> None:
        x, y = _inputs()
        logits = x * 2
        labels = torch.full(x.shape[:-1], 99, device=x.device)
        with lucid.check_values(), pytest.raises(IndexError, match="labels must lie in"):
            lucid.torch.distillation_loss(logits, y, labels=labels, reduction=reduction, inplace_gradient=True)
        assert torch.equal(logits, x * 2)

    def test_logits_that_others_share_are_refused(self) -> None:
        x, y = _inputs()
        with pytest.raises(RuntimeError, match="must not be expanded, or overlap otherwise"):
            lucid.torch.distillation_loss(x[:1].expand(4, -1), y, inplace_gradient=True)
        with pytest.raises(RuntimeError, match="must share no memory with teacher_logits"):
            lucid.torch.distillation_loss(x, x.detach(), inplace_gradient=True)

    def test_a_leaf_is_refused_and_a_view_of_one_unless_nothing_is_recorded(self) -> None:
        x, y = _inputs()
        loss = lucid.torch.DistillationLoss(inplace_gradient=True)
        for logits in (x, x.view_as(x), x.view(-1).view_as(x)):
            with pytest.raises(RuntimeError, match="student_logits must not be a leaf that requires grad, or a view"):
                loss(logits, y)
            with torch.no_grad():
                loss(logits, y)

    def test_transforms_of_functions_refuse_it(self) -> None:
        x, y = (t.detach() for t in _inputs())
        loss = lucid.torch.DistillationLoss(inplace_gradient=True)
        with pytest.raises(RuntimeError, match="inplace_gradient must be False within transforms"):
            torch.func.grad(lambda s: loss(s * 1, y))(x)

    def test_without_a_gradient_nothing_is_written(self) -> None:
        x, y = (t.detach() for t in _inputs())
        lucid.torch.distillation_loss(x, y.requires_grad_(), inplace_gradient=True).backward()
        assert x._version == 0

    @pytest.mark.usefixtures("forms")
    def test_second_derivatives_are_refused_with_a_gradient_in_place_too(self) -> None:
        s, t = _inputs()
        loss = lucid.torch.distillation_loss(s * 1, t, inplace_gradient=True)
        (grad,) = torch.autograd.grad(loss, s, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            grad.sum().backward()
