"""Softmax and log-softmax, forward and backward, against float64 truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
import triton_kernels as tk
from lucid.autograd import gradcheck, gradgradcheck
from tests.device import DEVICE
from tests.hardware import DIRECTIONS, worst_case
from tests.reference import FLOATS, ROUNDOFF, arithmetic_of, assert_within, exact
from triton_kernels.runtime import backend

INF = math.inf

LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor], int]] = {
    "rows": ((5, 48), lambda t: t, 1),
    "columns": ((48, 5), lambda t: t, 0),
    "many columns": ((40, 64), lambda t: t, 0),
    "middle dimension": ((3, 7, 4), lambda t: t, 1),
    "negative dimension": ((3, 7, 4), lambda t: t, -2),
    "transposed": ((7, 24), lambda t: t.t(), 1),
    "sliced": ((10, 33), lambda t: t[1::2, 3:-2], 1),
    "expanded rows": ((1, 9), lambda t: t.expand(6, 9), 1),
    "expanded columns": ((6, 1), lambda t: t.expand(6, 9), 1),
    "permuted": ((3, 5, 8), lambda t: t.permute(2, 0, 1), 2),
    "one column": ((4, 1), lambda t: t, 1),
    "one row": ((1, 7), lambda t: t, 1),
    "0-d": ((), lambda t: t, 0),
    "no rows": ((0, 3), lambda t: t, 1),
    "no columns": ((3, 0), lambda t: t, 1),
    "41 x 1271": ((41, 1271), lambda t: t, 1),
}


def _check(x: torch.Tensor, dim: int, log: bool) -> None:
    leaf = lucid.from_torch(x).requires_grad_()
    y = (F.log_softmax if log else F.softmax)(leaf, dim)
    assert (y.shape, y.dtype.torch) == (tuple(x.shape), x.dtype)
    wide = x.detach().cpu().double().requires_grad_()
    truth = wide.log_softmax(dim) if log else wide.softmax(dim)
    dy = torch.randn(x.shape, dtype=torch.float64).to(x.dtype)
    y.backward(lucid.from_torch(dy.to(DEVICE)))
    arithmetic = arithmetic_of(x.dtype)
    size = np.abs(exact(x))
    spread = np.max(size, axis=dim if x.dim() else None, initial=0, keepdims=bool(x.dim())) + 1
    expected = exact(truth)
    # A sum of V terms rounds about log₂ V times, whatever tree it is.
    rounds = 8 + math.log2(max(x.shape[dim], 1) if x.dim() else 1)
    assert_within(y.to_torch(), expected, (spread if log else expected * spread) + 0 * expected, arithmetic, rounds)
    # The backward pass sees the rounded y, as torch's does.
    given = exact(y.to_torch())
    p, g = np.exp(given) if log else given, exact(dy)
    axis = dim if x.dim() else None
    total = (g if log else g * p).sum(axis=axis, keepdims=bool(x.dim()))
    magnitude = (np.abs(g) if log else np.abs(g * p)).sum(axis=axis, keepdims=bool(x.dim()))
    dx = g - p * total if log else p * (g - total)
    condition = np.abs(g) + p * magnitude * (1 + np.abs(given)) if log else p * (np.abs(g) + magnitude)
    assert leaf.grad is not None
    assert_within(leaf.grad.to_torch(), dx, condition, arithmetic, rounds)
    if x.dim() and x.shape[dim] and not log:
        rows = exact(y.to_torch()).sum(axis=dim)
        np.testing.assert_allclose(rows, 1, atol=x.shape[dim] ** 0.5 * 4 * ROUNDOFF[x.dtype])


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log-softmax"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_and_gradients_are_true(dtype: torch.dtype, layout: str, log: bool) -> None:
    shape, view, dim = LAYOUTS[layout]
    _check(view((3 * torch.randn(shape, dtype=torch.float64)).to(DEVICE, dtype)), dim, log)


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log-softmax"])
@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 70), 1), ((3, 40000), 1), ((2, 100000), 1), ((300, 20), 0), ((2, 150, 33), 1)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_and_gradients_are_true_with_the_tiles_of_a_gpu(
    dtype: torch.dtype, shape: tuple[int, ...], dim: int, log: bool
) -> None:
    with tk.tile_configs.use_tile_configs(interpreted=False):
        _check((3 * torch.randn(shape, dtype=torch.float64)).to(DEVICE, dtype), dim, log)


@pytest.mark.interpreter_only
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log-softmax"])
@pytest.mark.parametrize("columns", [171, 70000])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_true_with_the_worst_errors_that_a_gpu_may_make(
    dtype: torch.dtype, direction: str, columns: int, log: bool
) -> None:
    for scale, shift in ((3, 0), (30, 0), (1, 1e4)):
        x = (scale * torch.randn(2, columns, dtype=torch.float64) + shift).to(DEVICE, dtype)
        with tk.tile_configs.use_tile_configs(interpreted=False), worst_case(direction):
            _check(x, 1, log)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log-softmax"])
@pytest.mark.parametrize("columns", [1, 2, 255, 1_000_000])
def test_rows_may_have_from_one_to_a_million_columns(columns: int, log: bool) -> None:
    _check(torch.randn(1, columns).to(DEVICE), 1, log)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("shape", "dim"), [((5, 40001), 1), ((3000, 40), 0)], ids=str)
def test_a_long_row_gives_the_same_bits_alone_and_among_many(shape: tuple[int, int], dim: int, log: bool) -> None:
    if dim == 0 and backend.INTERPRETED:
        pytest.skip("NumPy sums strided rows in an order that depends on the number of rows; compiled code does not")
    x, dy = torch.randn(shape).to(DEVICE), torch.randn(shape).to(DEVICE)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        y = tk.softmax_forward(x, dim, log=log)
        dx = tk.softmax_backward(y, dy, dim, log=log)
        for row in range(0, shape[1 - dim], 3):
            alone = [t.narrow(1 - dim, row, 1) for t in (x, y, dy, dx)]
            assert torch.equal(tk.softmax_forward(alone[0], dim, log=log), alone[1])
            assert torch.equal(tk.softmax_backward(alone[1], alone[2], dim, log=log), alone[3])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("log", [False, True])
def test_special_rows_are_those_of_torch(log: bool) -> None:
    row = [1.0, 2.0, -1.0, 0.5]
    special = [
        [-INF, 2.0, -INF, 0.5],
        [-INF] * 4,
        [INF, 0.0, 1.0, 2.0],
        [math.nan, 0.0, 1.0, -INF],
        [1e4, 1e4 + 1, 1e4 - 80, -1e4],
        [88.0] * 4,
        row,
    ]
    x = torch.tensor(special)
    expected = x.double().log_softmax(1) if log else x.double().softmax(1)
    got = tk.softmax_forward(x.to(DEVICE), 1, log=log).cpu().double()
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strided", [False, True])
def test_a_long_row_with_masked_parts_is_right_where_whole_chunks_are_masked(strided: bool) -> None:
    x = torch.randn(2, 70000)
    x[0, :40000] = -INF
    x[1] = -INF
    with tk.tile_configs.use_tile_configs(interpreted=False):
        got = tk.softmax_forward((x.t().contiguous().t() if strided else x).to(DEVICE), 1).cpu().double()
    torch.testing.assert_close(got, x.double().softmax(1), equal_nan=True, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_long_rows_may_hold_any_finite_logits(scale: float, log: bool) -> None:
    """Parts of rows are far below the row's maximum, and parts of others are near it."""
    x = torch.randn(4, 40000)
    x[0] *= scale
    x[1, :9000] -= scale
    x[2, 9000:] += scale
    x[3, 5000::2] = -scale
    with tk.tile_configs.use_tile_configs(interpreted=False):
        y = tk.softmax_forward(x.to(DEVICE), 1, log=log)
        dx = tk.softmax_backward(y, torch.ones_like(y), 1, log=log)
    truth = x.double().log_softmax(1) if log else x.double().softmax(1)
    # A probability of 1 has a logarithm of 0, where ex2.approx and lg2.approx may err by 2⁻²² each.
    torch.testing.assert_close(y.cpu().double(), truth, rtol=1e-5, atol=2**-21 if log else 1e-12)
    p, total = (truth.exp(), 40000) if log else (truth, 0)
    torch.testing.assert_close(dx.cpu().double(), (1 if log else 0) - p * total, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_derivatives_agree_with_finite_differences(dim: int, log: bool) -> None:
    x = lucid.tensor(np.random.randn(2, 3), requires_grad=True)
    function = F.log_softmax if log else F.softmax
    assert gradcheck(lambda x: function(x, dim), x, fast_mode=True)
    assert gradgradcheck(lambda x: function(x, dim), x, fast_mode=True)


def test_dim_is_the_last_by_default() -> None:
    x = lucid.randn(2, 3)
    for function in (F.softmax, F.log_softmax):
        assert function(x).tolist() == function(x, dim=-1).tolist() == function(x, 1).tolist()
    for module, function in ((nn.Softmax, F.softmax), (nn.LogSoftmax, F.log_softmax)):
        assert module()(x).tolist() == function(x).tolist()
    assert nn.LogSoftmax(dim=0)(x).tolist() == F.log_softmax(x, 0).tolist()


def test_integers_become_float32() -> None:
    y = F.softmax(lucid.tensor([1, 1]))
    assert y.dtype is lucid.float32
    assert y.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_bad_input_gets_one_clear_error(function: Callable[..., lucid.Tensor]) -> None:
    with pytest.raises(TypeError, match=r"^x must be a lucid.Tensor, got list$"):
        function([1.0])
    with pytest.raises(IndexError, match=r"^dim must lie in -2 to 1 for shape \(2, 3\), got 2$"):
        function(lucid.zeros(2, 3), 2)
    with pytest.raises(TypeError, match=r"^dim must be an integer, got str$"):
        function(lucid.zeros(2, 3), "x")
