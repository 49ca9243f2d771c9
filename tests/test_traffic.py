"""Bytes and launches, counted: kernels move the lower bound of `cost`, and partial results."""

from __future__ import annotations

import pytest
import torch

import lucid
import lucid.nn.functional as F
import triton_kernels as tk
from triton_kernels.devtools import cost, trace
from triton_kernels.runtime import launch

pytestmark = pytest.mark.interpreter_only

SHAPE = (41, 1271)
N = 41 * 1271
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def _pair(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(SHAPE).log_softmax(-1).to(dtype), torch.randn(SHAPE).log_softmax(-1).to(dtype)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reduced_forward_reads_each_input_byte_once(dtype: torch.dtype, log_target: bool, tiles: str) -> None:
    x, y = _pair(dtype)
    with trace.traffic() as moved, trace.launches() as made:
        tk.kl_div_forward(x, y, log_target=log_target)
    programs = made[0].grid[0]
    partial = launch.compute_dtype(dtype).itemsize
    partials = programs * partial if programs > 1 else 0
    assert (programs > 1) == (tiles == "GPU's tiles")
    least = cost.kl_div_forward(x, y)
    assert (moved.read, moved.written) == (least.read + partials, least.written + partials)
    assert moved.launches == (2 if programs > 1 else 1)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unreduced_forward_reads_and_writes_once(dtype: torch.dtype, log_target: bool) -> None:
    x, y = _pair(dtype)
    with trace.traffic() as moved:
        tk.kl_div_forward(x, y, log_target=log_target, reduce=False)
    least = cost.kl_div_forward(x, y, reduce=False)
    assert (moved.read, moved.written, moved.launches) == (least.read, least.written, 1)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("want_x", "want_y"), [(True, False), (False, True), (True, True)])
def test_backward_is_one_launch_that_reads_the_target_once_and_x_only_for_the_targets_gradient(
    want_x: bool, want_y: bool, dtype: torch.dtype, log_target: bool
) -> None:
    pair = _pair(dtype)
    x, y = (lucid.from_torch(t) for t in pair)
    x.requires_grad_(want_x)
    y.requires_grad_(want_y)
    loss = F.kl_div(x, y, reduction="batchmean", log_target=log_target)
    one = lucid.ones_like(loss)
    with trace.traffic() as moved, trace.launches() as made:
        loss.backward(one)
    least = cost.kl_div_backward(*pair, one.to_torch(), log_target=log_target, to_x=want_x, to_target=want_y)
    dloss = (made[0].grid[0] - 1) * dtype.itemsize  # a scalar, once per program
    assert (moved.read, moved.written, moved.launches) == (least.read + dloss, least.written, 1)


def test_without_the_targets_gradient_x_is_not_kept_for_backward() -> None:
    x = lucid.from_torch(_pair(torch.float32)[0]).requires_grad_()
    loss = F.kl_div(x * 1, lucid.from_torch(_pair(torch.float32)[1]), log_target=True)
    saved = loss.grad_fn.context.saved_tensors
    assert [t is None for t in saved] == [True, False]


@pytest.mark.parametrize("view", ["transposed", "sliced", "expanded"])
def test_strided_inputs_are_read_in_place_and_never_copied(view: str) -> None:
    base = torch.randn(64, 96).log_softmax(-1)
    x = {"transposed": base.t(), "sliced": base[1::3, 5:-7], "expanded": base[:1].expand(64, 96)}[view]
    with trace.traffic() as moved:
        tk.kl_div_forward(x, x, log_target=True)
    assert moved.read == 2 * x.numel() * 4
    assert moved.launches == 1


def test_a_scalar_target_is_read_once_per_program() -> None:
    x = torch.randn(SHAPE).log_softmax(-1)
    with trace.traffic() as moved, trace.launches() as made:
        tk.kl_div_forward(x, torch.tensor(0.5))
    assert moved.read == N * 4 + made[0].grid[0] * 4


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("columns", [100, 1271, 8192])
def test_softmax_reads_and_writes_a_row_once_where_it_fits_a_tile(columns: int, log: bool, dtype: torch.dtype) -> None:
    x = torch.randn(6, columns // max(1, dtype.itemsize // 4)).to(dtype)  # a tile has room for half as many float64
    with trace.traffic() as moved:
        y = tk.softmax_forward(x, 1, log=log)
    least = cost.softmax_forward(x)
    assert (moved.read, moved.written, moved.launches) == (least.read, least.written, 1)
    with trace.traffic() as moved:
        tk.softmax_backward(y, x, 1, log=log)
    least = cost.softmax_backward(y, x)
    assert (moved.read, moved.written, moved.launches) == (least.read, least.written, 1)


def test_the_count_of_bytes_is_that_of_a_kernel_done_by_hand() -> None:
    x = torch.ones(1000)
    with trace.traffic() as moved:
        tk.pointwise("add", x, x, dtype=torch.float64)
    assert moved == trace.Traffic(read=8000, written=8000, launches=1)
