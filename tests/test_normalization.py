"""Layer and RMS normalization: values and gradients against torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as torch_functional

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
import triton_kernels as tk
from lucid.autograd import gradcheck, gradgradcheck
from tests.values import values_of
from triton_kernels.devtools import trace
from triton_kernels.runtime import launch

#: Shapes, numbers of normalized dimensions, and permutations in memory; rows below, at and above a tile.
SHAPES: dict[str, Any] = {
    "rows": ((37, 96), 1, None),
    "odd": ((5, 7, 33), 1, None),
    "two dimensions": ((6, 3, 10), 2, None),
    "transposed": ((20, 41), 1, (1, 0)),
    "a slice": ((9, 64), 1, "slice"),
    "long rows": ((3, 9001), 1, None),
    "one element": ((4, 1), 1, None),
    "many rows": ((1101, 8), 1, None),
    "more tiles than programs": ((300, 1030), 1, None),
}


def operands(name: str, dtype: str, parameters: str) -> list[Any]:
    shape, dims, order = SHAPES[name]
    draw = np.random.default_rng(0)
    x = lucid.tensor(draw.normal(1, 2, size=shape), dtype=dtype)
    if order == "slice":
        x = x[:, 3:50]
    elif order:
        x = x.permute(*order)
    sizes = x.shape[x.ndim - dims :]
    weight, bias = (lucid.tensor(draw.normal(1, 0.5, size=sizes), dtype=parameters).requires_grad_() for _ in range(2))
    return [x.detach().requires_grad_(), weight, bias]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["layer", "rms", "plain layer"])
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_the_formula(name: str, kind: str, dtype: str, tiles: str) -> None:
    ours = operands(name, dtype, "float32" if dtype == "bfloat16" else dtype)
    theirs = [torch.tensor(values_of(x), requires_grad=True) for x in ours]
    sizes = ours[1].shape
    if kind == "layer":
        out, expected = (
            F.layer_norm(ours[0], sizes, *ours[1:]),
            torch_functional.layer_norm(theirs[0], sizes, *theirs[1:]),
        )
    elif kind == "rms":
        out = F.rms_norm(ours[0], sizes, ours[1], eps=1e-6)
        expected = torch_functional.rms_norm(theirs[0], sizes, theirs[1], eps=1e-6)
    else:
        out, expected = F.layer_norm(ours[0], sizes), torch_functional.layer_norm(theirs[0], sizes)
    weights = lucid.tensor(np.random.default_rng(1).normal(size=out.shape), dtype=dtype)
    out.backward(weights)
    expected.backward(torch.from_numpy(values_of(weights)))
    assert out.dtype is ours[0].dtype
    eps = {"float64": 2.0**-52, "float32": 2.0**-23}.get(dtype, torch.finfo(ours[0].dtype.torch).eps)
    # Means are of |x| up to 8 and their inverse standard deviations; gradients are differences of such terms.
    np.testing.assert_allclose(values_of(out), expected.detach(), rtol=4 * eps, atol=16 * eps)
    for x, y in zip(ours, theirs, strict=True):
        if y.grad is not None:
            assert x.grad.dtype is x.dtype
            own = {"float64": 2.0**-52, "float32": 2.0**-23}.get(x.dtype.name, torch.finfo(x.dtype.torch).eps)
            if x is ours[0]:  # which grows with 1/√eps where a row has one element
                limit = 64 * own * (1000 if name == "one element" else 1)
            else:  # a sum over rows, of products that were rounded to x's dtype
                limit = 64 * max(own, eps if dtype == "float64" else 2.0**-23) * (ours[0].numel() / x.numel()) ** 0.5
            np.testing.assert_allclose(values_of(x.grad), y.grad, rtol=16 * own, atol=limit)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_derivatives_match_finite_differences_twice(kind: str) -> None:
    draw = np.random.default_rng(0)
    x, weight, bias = (lucid.tensor(draw.normal(size=s), requires_grad=True) for s in ((2, 3, 4), (3, 4), (3, 4)))
    leaves = [x, weight, bias] if kind == "layer" else [x, weight]
    normalize: Any = F.layer_norm if kind == "layer" else F.rms_norm

    def function(x: Any, *parameters: Any) -> Any:
        return normalize(x, (3, 4), *parameters, eps=0.1)

    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


def test_forward_is_a_launch_and_backward_one_and_the_sum_of_each_parameters_gradient() -> None:
    x, weight, bias = operands("rows", "float32", "float32")
    launched: list[str] = []
    with launch.launch_hook(lambda made: launched.append(made.kernel.__name__)):
        F.layer_norm(x, 96, weight, bias).backward(lucid.ones(37, 96))
    assert launched == ["_normalize_kernel", "_normalize_backward_kernel", "_sum_kernel", "_sum_kernel"]


def test_a_row_gives_the_same_bits_alone_and_among_many(tiles: str) -> None:
    x = lucid.tensor(np.random.default_rng(0).normal(size=(70, 300)), dtype="float32")
    whole = F.layer_norm(x, 300)
    for row in (0, 33, 69):
        assert F.layer_norm(x[row : row + 1], 300).tolist() == whole[row : row + 1].tolist()


def test_a_large_mean_does_not_cost_digits() -> None:
    """The variance is that of deviations, not a difference of mean squares."""
    draw = np.random.default_rng(0).normal(size=(4, 500))
    x = lucid.tensor(draw + 1000.0, dtype="float32")
    exact = values_of(x)
    truth = (exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)
    np.testing.assert_allclose(F.layer_norm(x, 500, eps=0.0).numpy(), truth, atol=3e-4)


def test_modules_have_torchs_names_and_representations() -> None:
    assert repr(nn.LayerNorm((3, 4), bias=False)) == "LayerNorm((3, 4), eps=1e-05, elementwise_affine=True)"
    assert repr(nn.RMSNorm(8)) == "RMSNorm((8,), eps=None, elementwise_affine=True)"
    assert list(nn.LayerNorm(3).state_dict()) == ["weight", "bias"]
    assert list(nn.LayerNorm(3, bias=False).state_dict()) == ["weight"]
    assert list(nn.LayerNorm(3, elementwise_affine=False).state_dict()) == []
    assert list(nn.RMSNorm(3).state_dict()) == ["weight"]
    x = lucid.tensor([[3.0, 4.0]], dtype="float16")
    x = x / 4096  # eps is that of float32
    truth = x.double().numpy() / np.sqrt(12.5 / 2**24 + 2.0**-23)
    np.testing.assert_array_equal(nn.RMSNorm(2, elementwise_affine=False)(x).numpy(), truth.astype(np.float16))
    np.testing.assert_array_equal(truth.astype(np.float16), torch_functional.rms_norm(x.cpu().to_torch(), (2,)).numpy())
    layer = nn.LayerNorm(2)
    assert layer(lucid.tensor([[1.0, 3.0]])).tolist() == pytest.approx(np.array([[-1.0, 1.0]]), rel=1e-4)


def test_no_rows_give_parameters_a_gradient_of_zeros() -> None:
    layer, x = nn.LayerNorm(2), lucid.zeros(0, 2, dtype="float16", requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert (y.shape, y.dtype, x.grad.shape) == ((0, 2), lucid.float16, (0, 2))
    assert (layer.weight.grad.tolist(), layer.bias.grad.tolist()) == ([0, 0], [0, 0])
    assert F.rms_norm(x, 2) is not x


@pytest.mark.interpreter_only
@pytest.mark.parametrize(("columns", "looks"), [(1000, (1, 1)), (5000, (3, 2))])
def test_a_row_of_one_tile_is_read_once(columns: int, looks: tuple[int, int]) -> None:
    x, options = torch.randn(9, columns), {"columns": columns}
    with tk.tile_configs.use_tile_configs(interpreted=False):
        with trace.traffic() as forward:
            out, mean, rstd = tk.normalize_forward(x, None, None, eps=1e-5, centred=True, **options)
        with trace.traffic() as backward:
            tk.normalize_backward(x, out, None, mean, rstd, to_weight=False, to_bias=False, **options)
    assert forward.read == looks[0] * x.nbytes
    assert backward.read == 2 * looks[1] * x.nbytes + mean.nbytes + rstd.nbytes


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: F.layer_norm(x, 4),
            RuntimeError,
            r"x of layer_norm must have the last dimensions \(4,\)",
        ),
        (lambda x: F.rms_norm(x, (5, 2, 3)), RuntimeError, r"x of rms_norm must have the last dimensions \(5, 2, 3\)"),
        (lambda x: F.layer_norm(x, ()), ValueError, r"normalized_shape must be one or more positive ints, got \(\)"),
        (lambda x: F.layer_norm(x, 0), ValueError, "normalized_shape must be one or more positive ints, got 0"),
        (lambda x: F.layer_norm(x, (1.5,)), TypeError, "normalized_shape must be an int, got float"),
        (lambda x: F.layer_norm(x, 3, eps=-1), ValueError, "eps must be a number of at least 0, got -1"),
        (
            lambda x: F.layer_norm(x, 3, lucid.ones(2)),
            RuntimeError,
            r"weight of layer_norm must have shape \(3,\)",
        ),
        (lambda x: F.rms_norm(x, 3, lucid.ones(3).long()), TypeError, "weight must be float16, bfloat16, float32 or"),
        (
            lambda x: F.rms_norm(x.long(), 3),
            TypeError,
            "x must be float16, bfloat16, float32 or",
        ),
        (lambda x: nn.LayerNorm(-1), ValueError, "normalized_shape must be one or more positive ints, got -1"),
        (lambda x: nn.RMSNorm(3, eps="a"), TypeError, "eps must be a number of at least 0, got str"),
        (lambda x: nn.LayerNorm(3, bias=1), TypeError, "bias must be a bool, got int"),
    ],
)
def test_what_does_not_fit_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call(lucid.ones(2, 3))
