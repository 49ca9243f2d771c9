"""Clipping of gradients: the norms and clipped gradients of torch in float64, without a wait for the device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid.nn.utils import clip_grad_norm_, clip_grad_value_
from tests.test_no_torch_arithmetic import NoArithmetic
from tests.values import leaf, values_of
from triton_kernels.devtools import trace
from triton_kernels.runtime import tile_configs

SHAPES = [(3, 4), (1,), (0,), (41, 13), (), (2, 3, 5)]


def parameters(dtype: str, size: float = 1.0) -> list[Any]:
    """Return leaves with gradients of about `size`, one of them strided, and one without."""
    draw = np.random.default_rng(0)
    params = [lucid.zeros(*shape, dtype=dtype, requires_grad=True) for shape in SHAPES]
    for param in params:
        param.grad = lucid.tensor(draw.normal(size=param.shape) * size, dtype=dtype)
    strided = lucid.zeros(7, 5, dtype=dtype, requires_grad=True)
    strided.grad = lucid.tensor(draw.normal(size=(12, 7)) * size, dtype=dtype)[::2][:5].T.detach()
    return [*params, strided, leaf([1.0])]


def gradients_of(params: list[Any]) -> list[torch.Tensor]:
    return [torch.tensor(values_of(param.grad)) for param in params if param.grad is not None]


def clipped_by_torch(params: list[Any], *args: Any) -> tuple[list[np.ndarray], float]:
    """Return what torch makes of the gradients in float64, and their norm."""
    twins = [torch.zeros_like(grad, requires_grad=True) for grad in gradients_of(params)]
    for twin, grad in zip(twins, gradients_of(params), strict=True):
        twin.grad = grad
    # torch knows no largest element of an empty gradient.
    norm = torch.nn.utils.clip_grad_norm_([twin for twin in twins if twin.numel()], *args)
    return [twin.grad.numpy() for twin in twins], norm.item()


def ulp(dtype: str) -> float:
    return torch.finfo(getattr(torch, dtype)).eps


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("max_norm", [0.5, 1e9, 0.0, math.inf])
@pytest.mark.parametrize("norm_type", [2.0, 1, 3.5, 0.5, math.inf, "inf"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_norm_and_clipped_gradients_are_torchs(dtype: str, norm_type: Any, max_norm: float) -> None:
    params = parameters(dtype)
    expected, norm = clipped_by_torch(params, max_norm, float(norm_type))
    strides = [param.grad.stride() for param in params if param.grad is not None]
    got = clip_grad_norm_(params, max_norm, norm_type)
    wide = "float64" if dtype == "float64" else "float32"
    assert (got.shape, got.dtype.name) == ((), wide)
    np.testing.assert_allclose(got.item(), norm, rtol=40 * ulp(wide))
    clipped = [param.grad for param in params if param.grad is not None]
    for grad, truth in zip(clipped, expected, strict=True):
        assert grad.dtype.name == dtype
        np.testing.assert_allclose(values_of(grad), truth, rtol=ulp(dtype) + 40 * ulp(wide), atol=1e-7)
    assert [grad.stride() for grad in clipped] == strides
    assert params[-1].grad is None


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(
    ("dtype", "size"), [("float16", 2e4), ("bfloat16", 1e37), ("float32", 1e37), ("float32", 1e-30), ("float16", 1e-7)]
)
def test_squares_neither_overflow_nor_underflow_where_the_norm_does_not(dtype: str, size: float) -> None:
    params = parameters(dtype, size)
    _, norm = clipped_by_torch(params, 1.0)
    np.testing.assert_allclose(clip_grad_norm_(params, 1.0).item(), norm, rtol=1e-6)


def test_gradients_of_several_dtypes_are_clipped_by_one_norm() -> None:
    params = parameters("bfloat16") + parameters("float64") + parameters("float32")
    expected, norm = clipped_by_torch(params, 1.0)
    got = clip_grad_norm_(params, 1.0)
    assert got.dtype is lucid.float64
    np.testing.assert_allclose(got.item(), norm, rtol=1e-6)
    for param, truth in zip([p for p in params if p.grad is not None], expected, strict=True):
        np.testing.assert_allclose(values_of(param.grad), truth, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize(("bad", "norm"), [(math.inf, math.inf), (-math.inf, math.inf), (math.nan, math.nan)])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
def test_a_norm_that_is_not_finite_scales_gradients_as_torch_does_or_is_an_error(
    norm_type: float, bad: float, norm: float
) -> None:
    def fresh() -> list[Any]:
        params = [leaf([1.0, 2.0]), leaf([3.0, 0.0, 0.0])]
        params[0].grad, params[1].grad = lucid.tensor([bad, 1e38]), lucid.tensor([2.0, 1.0, 0.0])
        return params

    params = fresh()
    message = rf"^the norm of order {norm_type:g} of the gradients must be finite to clip by it, got {norm}: "
    with pytest.raises(RuntimeError, match=message):
        clip_grad_norm_(params, 1.0, norm_type, error_if_nonfinite=True)
    assert params[1].grad.tolist() == [2.0, 1.0, 0.0]
    expected, _ = clipped_by_torch(fresh(), 1.0, norm_type)
    np.testing.assert_equal(clip_grad_norm_(params, 1.0, norm_type).item(), norm)
    for param, truth in zip(params, expected, strict=True):
        np.testing.assert_equal(values_of(param.grad), truth)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_clipped_values_are_torchs(dtype: str) -> None:
    params = parameters(dtype)
    params[0].grad[0, 0] = math.nan
    truth = [grad.clamp(-0.25, 0.25).numpy() for grad in gradients_of(params)]
    clip_grad_value_(iter(params), 0.25)
    for param, expected in zip([p for p in params if p.grad is not None], truth, strict=True):
        np.testing.assert_array_equal(values_of(param.grad), expected)


def test_launches_do_not_depend_on_the_number_of_parameters() -> None:
    for params in (parameters("float32"), [x for _ in range(3) for x in parameters("float32")]):
        with trace.launches() as launched:
            clip_grad_norm_(params, 1.0)
        assert [launch.kernel.__name__ for launch in launched] == ["_norm_kernel", "_merge_kernel", "_multiply_kernel"]
        with trace.launches() as launched:
            clip_grad_value_(params, 1.0)
        assert len(launched) == 1


def test_the_norm_does_not_depend_on_the_run_nor_on_chunks_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tile_configs.Config({"BLOCK": 16, "TILES": 2, "BLOCK_T": 4})
    monkeypatch.setattr(tile_configs, "multi_tensor", lambda *_: small)
    results = {clip_grad_norm_(parameters("float32"), math.inf).item() for _ in range(3)}
    assert len(results) == 1
    np.testing.assert_allclose(results.pop(), clipped_by_torch(parameters("float32"), 1.0)[1], rtol=1e-6)


def test_a_tensor_is_accepted_and_nothing_is_clipped_without_gradients() -> None:
    x = leaf([3.0])
    assert clip_grad_norm_(x, 1.0).item() == 0.0
    x.grad = lucid.tensor([4.0])
    assert clip_grad_norm_(x, 2.0).item() == 4.0
    clip_grad_value_(x, 1.0)
    assert x.grad.item() == 1.0
    assert clip_grad_norm_([], 1.0).item() == 0.0
    empty = lucid.zeros(0, requires_grad=True)
    empty.grad = lucid.zeros(0)
    assert clip_grad_norm_([empty], 1.0, 3.0).item() == 0.0


def test_clipping_keeps_the_gradients_object_and_is_a_change_of_version() -> None:
    x = leaf([3.0])
    grad = x.grad = lucid.tensor([4.0])
    version = grad._buffer._version
    clip_grad_norm_(x, 2.0)
    clip_grad_value_(x, 1.0)
    assert x.grad is grad
    assert grad._buffer._version == version + 2


def test_deferred_values_of_a_gradient_are_computed_before_it_is_clipped() -> None:
    x = leaf([0.0, 0.0])
    x.grad = lucid.tensor([3.0, 4.0]) * 1
    softmax = x.grad.softmax()
    before = x.grad.clone().softmax().tolist()
    clip_grad_norm_(x, 1.0)
    assert softmax.tolist() == before


def test_clipping_does_no_arithmetic_in_torch() -> None:
    params = parameters("float32") + parameters("bfloat16")
    with NoArithmetic():
        clip_grad_norm_(params, 1.0)
        clip_grad_norm_(params, 1.0, 3.0)
        clip_grad_value_(params, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: clip_grad_norm_(3, 1.0), TypeError, "parameters must be a lucid.Tensor or an iterable .*, got int"),
        (lambda x: clip_grad_norm_([1.0], 1.0), TypeError, "parameters must be lucid.Tensors, got float"),
        (lambda x: clip_grad_norm_(x, "1"), TypeError, "max_norm must be a number, got str"),
        (lambda x: clip_grad_norm_(x, -1), ValueError, "max_norm must be a number of at least 0, got -1"),
        (lambda x: clip_grad_norm_(x, math.nan), ValueError, "max_norm must be a number of at least 0, got nan"),
        (lambda x: clip_grad_norm_(x, 1.0, 0), ValueError, "norm_type must be a number above 0, or infinity, got 0"),
        (lambda x: clip_grad_norm_(x, 1.0, -math.inf), ValueError, "norm_type must be a number of .*, got -inf"),
        (lambda x: clip_grad_norm_(x, 1.0, 2, 1), TypeError, "error_if_nonfinite must be a bool, got int"),
        (lambda x: clip_grad_value_(x, True), TypeError, "clip_value must be a number, got bool"),
        (lambda x: clip_grad_value_(x, -1.0), ValueError, "clip_value must be a number of at least 0, got -1.0"),
    ],
)
def test_an_impossible_argument_is_named(call: Any, error: type[Exception], message: str) -> None:
    x = leaf([1.0])
    x.grad = lucid.tensor([2.0])
    with pytest.raises(error, match=f"^{message}$"):
        call(x)
    assert x.grad.item() == 2.0
