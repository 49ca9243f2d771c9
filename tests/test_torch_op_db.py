"""The entry for kl_div of PyTorch's own database of operators, through lucid.torch: samples, dtypes, gradients."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch

import lucid.torch
from tests.device import DEVICE
from tests.reference import arithmetic_of, assert_within, exact, kl_gradients, kl_terms

pytest.importorskip("expecttest", reason="PyTorch's database of operators imports expecttest")

pytestmark = pytest.mark.usefixtures("implementation")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SAMPLES = 16


@functools.cache
def _entry() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of others, while they are imported
        from torch.testing._internal.common_methods_invocations import op_db
    (entry,) = (op for op in op_db if op.name == "nn.functional.kl_div")
    return entry


@functools.cache
def _samples(dtype: torch.dtype, requires_grad: bool = False) -> list[Any]:
    return list(_entry().sample_inputs(DEVICE, dtype, requires_grad=requires_grad))


def _loss(function: Any, sample: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "reduction", UserWarning)
        return function(sample.input, *sample.args, **sample.kwargs)


def test_the_database_has_the_dtypes_and_samples_that_are_run() -> None:
    assert _entry().dtypes == set(DTYPES)
    assert {len(_samples(dtype)) for dtype in DTYPES} == {SAMPLES}


@pytest.mark.parametrize("number", range(SAMPLES))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradient_of_a_sample(dtype: torch.dtype, number: int) -> None:
    sample = _samples(dtype, requires_grad=True)[number]
    (target,), reduction, log_target = sample.args, sample.kwargs["reduction"], sample.kwargs["log_target"]
    loss, theirs = _loss(lucid.torch.kl_div, sample), _loss(torch.nn.functional.kl_div, sample)
    assert (loss.shape, loss.dtype, loss.requires_grad) == (theirs.shape, theirs.dtype, theirs.requires_grad)
    x, y = exact(sample.input), exact(target)
    terms = kl_terms(x, y, log_target)
    count = {"none": 1, "sum": 1, "mean": terms.size, "batchmean": sample.input.shape[0] if sample.input.dim() else 1}
    scale = 1 / max(count[reduction], 1)
    truth = terms if reduction == "none" else terms.sum()
    size = abs(terms) if reduction == "none" else abs(terms).sum()
    arithmetic = arithmetic_of(dtype)
    if terms.size:
        assert_within(loss, truth * scale, size * scale * 4, arithmetic)
    dloss = torch.randn(loss.shape, dtype=torch.float64).to(DEVICE, dtype)
    wanted = [t for t in (sample.input, target) if t.requires_grad]
    grads = torch.autograd.grad(loss, wanted, dloss)
    truths = dict(zip((sample.input, target), kl_gradients(x, y, exact(dloss) * scale, log_target), strict=True))
    for leaf, grad in zip(wanted, grads, strict=True):
        assert (grad.shape, grad.dtype) == (leaf.shape, leaf.dtype)
        assert_within(grad, truths[leaf], abs(truths[leaf]) + scale, arithmetic)


@pytest.mark.parametrize("number", range(SAMPLES))
def test_derivatives_of_a_sample_are_those_of_differences(number: int) -> None:
    sample = _samples(torch.float64, requires_grad=True)[number]

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        return _loss(lucid.torch.kl_div, type(sample)(inputs[0], args=inputs[1:], kwargs=sample.kwargs))

    inputs = (sample.input, *(arg.detach().requires_grad_() for arg in sample.args))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
