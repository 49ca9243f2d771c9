"""lucid.torch.kl_div and KLDivLoss take the place of torch's own."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import lucid.torch
from tests.device import DEVICE
from tests.reference import arithmetic_of, assert_within, exact, kl_terms

pytestmark = pytest.mark.usefixtures("implementation")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INF = math.inf


def _quietly(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*args, **kwargs)


def _pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    if shape:
        x, y = x.log_softmax(-1), y.softmax(-1)
    return x.to(DEVICE, dtype), y.abs().to(DEVICE, dtype)


@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (2, 3, 5), (0, 5)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
def test_arguments_mean_what_they_mean_in_torch(
    size_average: bool | None, reduce: bool | None, reduction: str, shape: tuple[int, ...]
) -> None:
    x, y = _pair(*shape)
    for log_target in (False, True):
        ours, theirs = (
            _quietly(function, x, y, size_average, reduce, reduction, log_target)
            for function in (lucid.torch.kl_div, F.kl_div)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)
        modules = [
            _quietly(kind, size_average, reduce, reduction, log_target)
            for kind in (lucid.torch.KLDivLoss, torch.nn.KLDivLoss)
        ]
        ours, theirs = (_quietly(module, x, y) for module in modules)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_batchmean_divides_by_the_rows_of_the_input_even_where_the_target_has_more() -> None:
    x, y = _pair(3, 5)
    ours, theirs = (function(x[:1], y, reduction="batchmean") for function in (lucid.torch.kl_div, F.kl_div))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_signatures_are_torchs() -> None:
    for ours, theirs in (
        (lucid.torch.kl_div, F.kl_div),
        (lucid.torch.cross_entropy, F.cross_entropy),
        (lucid.torch.KLDivLoss, torch.nn.KLDivLoss),
        (lucid.torch.CrossEntropyLoss, torch.nn.CrossEntropyLoss),
    ):
        parameters = [
            [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]
            for function in (ours, theirs)
        ]
        assert parameters[0] == parameters[1]


def test_the_module_is_torchs_but_for_its_kernels() -> None:
    ours, theirs = (
        lucid.torch.KLDivLoss(reduction="sum", log_target=True),
        torch.nn.KLDivLoss(reduction="sum", log_target=True),
    )
    assert isinstance(ours, torch.nn.KLDivLoss)
    assert (repr(ours), ours.reduction, ours.log_target) == (repr(theirs), "sum", True)
    assert dict(ours.state_dict()) == dict(theirs.state_dict()) == {}
    x, y = _pair(3, 5)
    loss = ours(x, y.log())
    torch.testing.assert_close(loss, theirs(x, y.log()))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x, y.log()), loss)
    ours.reduction = "none"  # read at every call
    assert ours(x, y.log()).shape == (3, 5)


def test_mean_and_deprecated_arguments_warn() -> None:
    x, y = _pair(3, 5)
    with pytest.warns(UserWarning, match="'batchmean'") as caught:
        lucid.torch.kl_div(x, y)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="deprecated: pass reduction='sum'") as caught:
        lucid.torch.kl_div(x, y, size_average=False)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="deprecated: pass reduction='none'"):
        lucid.torch.kl_div(x, y, reduce=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lucid.torch.kl_div(x, y, reduction="batchmean")


@pytest.mark.parametrize("a", FLOATS, ids=str)
@pytest.mark.parametrize("b", FLOATS, ids=str)
@pytest.mark.parametrize("shapes", [((3, 5), (3, 5)), ((3, 5), ()), ((), (3, 5)), ((3, 1), (5,))], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["as it is", "autocast"])
def test_results_and_gradients_have_torchs_dtypes(
    shapes: tuple[tuple[int, ...], ...], a: torch.dtype, b: torch.dtype, autocast: bool
) -> None:
    x, y = _pair(*shapes[0], dtype=a)[0].requires_grad_(), _pair(*shapes[1], dtype=b)[1].requires_grad_()
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=autocast):
        ours, theirs = (f(x, y, reduction="sum") for f in (lucid.torch.kl_div, F.kl_div))
        assert ours.dtype == theirs.dtype
        assert lucid.torch.kl_div(x, y, reduction="none").dtype == F.kl_div(x, y, reduction="none").dtype
    terms = kl_terms(exact(x), exact(y), False)
    arithmetic = arithmetic_of(a, b)
    assert_within(ours, terms.sum(), 4 * abs(terms).sum(), arithmetic)
    for leaf, grad in zip((x, y), torch.autograd.grad(ours, (x, y)), strict=True):
        assert (grad.dtype, grad.shape) == (leaf.dtype, leaf.shape)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_zero_target_adds_0_where_torch_gives_nan(dtype: torch.dtype) -> None:
    """The one place where results differ from torch's on purpose."""
    x = torch.tensor([-INF, -1.0], dtype=dtype, device=DEVICE, requires_grad=True)
    p = torch.tensor([0.0, 0.0], dtype=dtype, device=DEVICE, requires_grad=True)
    ours, theirs = (f(x, p, reduction="none") for f in (lucid.torch.kl_div, F.kl_div))
    assert ours.tolist() == [0.0, 0.0]
    assert theirs[0].isnan()
    assert theirs[1] == 0
    ours_x, ours_p = torch.autograd.grad(ours.sum(), (x, p))
    theirs_x, theirs_p = torch.autograd.grad(theirs.sum(), (x, p))
    assert ours_x.tolist() == ours_p.tolist() == theirs_x.tolist() == [0.0, 0.0]
    assert not theirs_p.isfinite().any()
    log = (f(x, torch.full_like(p, -INF), reduction="none", log_target=True) for f in (lucid.torch.kl_div, F.kl_div))
    ours, theirs = log
    assert ours.tolist() == [0.0, 0.0]
    assert theirs.isnan().all()


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("log_target", [False, True])
def test_a_zero_target_gets_a_gradient_of_0_also_from_an_infinite_one(log_target: bool, reduction: str) -> None:
    x = torch.tensor([-1.0, -2.0, -INF], device=DEVICE)
    p = torch.tensor([0.5, 0.0, 0.0], device=DEVICE)
    target = (p.log() if log_target else p).requires_grad_()
    loss = lucid.torch.kl_div(x, target, reduction=reduction, log_target=log_target)
    (gradient,) = torch.autograd.grad(loss, target, torch.full_like(loss, INF))
    assert gradient.tolist() == [INF, 0.0, 0.0]


def test_subclasses_of_tensors_and_views_that_negate_are_read_for_what_they_are() -> None:
    class Subclass(torch.Tensor):
        pass

    x, y = _pair(3, 5)
    for loss in (lucid.torch.kl_div, F.kl_div):
        result = loss(x.as_subclass(Subclass).requires_grad_(), y, reduction="sum")
        assert isinstance(result, Subclass)
        torch.testing.assert_close(result.as_subclass(torch.Tensor), F.kl_div(x, y, reduction="sum"))
    negated = torch.randn(3, 5, dtype=torch.complex64, device=DEVICE).conj().imag
    assert negated.is_neg()
    ours, theirs = (f(negated, y, reduction="sum") for f in (lucid.torch.kl_div, F.kl_div))
    torch.testing.assert_close(ours, theirs)


def test_strides_of_results_are_those_of_the_input() -> None:
    x, y = (t.T for t in _pair(5, 3))
    assert lucid.torch.kl_div(x, y, reduction="none").stride() == F.kl_div(x, y, reduction="none").stride() == (1, 3)


X, Y = torch.zeros(3, 5, device=DEVICE), torch.ones(3, 5, device=DEVICE)
BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "a reduction that is none": ((X, Y), {"reduction": "avg"}, ValueError, "reduction must be one of .* got 'avg'"),
    "a number": ((X, 1.0), {}, TypeError, "target must be a torch.Tensor, got float"),
    "integers": ((X.int(), Y), {}, TypeError, "input must be float16, .* got torch.int32"),
    "complex numbers": ((X, Y.to(torch.complex64)), {}, TypeError, "target must be float16, .* got torch.complex64"),
    "eight bits": ((X.to(torch.float8_e4m3fn), Y), {}, TypeError, "input must be float16, .* got torch.float8_e4m3fn"),
    "shapes": ((X, Y[:, :2]), {}, RuntimeError, r"broadcast, got input \(3, 5\) and target \(3, 2\)"),
    "devices": ((X, Y.to("meta")), {}, RuntimeError, "input and target must be on one device, got input on .* meta"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_any_launch(case: str) -> None:
    args, kwargs, error, message = BAD[case]
    from triton_kernels.devtools import trace

    with trace.launches() as made, pytest.raises(error, match=message):
        lucid.torch.kl_div(*args, **{"reduction": "sum", **kwargs})
    assert not made


@pytest.mark.skipif(DEVICE.type == "cpu", reason="about machines where kernels are compiled")
def test_cpu_tensors_need_no_kernel_where_kernels_are_compiled() -> None:
    x, y = X.cpu(), Y.cpu()
    ours = lucid.torch.kl_div(x, y, reduction="sum")
    torch.testing.assert_close(ours, F.kl_div(x, y, reduction="sum"))
