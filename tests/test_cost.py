"""The least that an op must move is what our kernels do move, where one program does it all."""

from __future__ import annotations

import pytest
import torch

import triton_kernels as tk
from triton_kernels.devtools import cost, trace
from triton_kernels.devtools.cost import Cost

SHAPE = (41, 1271)
N = 41 * 1271
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.interpreter_only
@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_div_moves_what_it_must(dtype: torch.dtype, log_target: bool, reduce: bool) -> None:
    x, y = (torch.randn(SHAPE).log_softmax(-1).to(dtype) for _ in range(2))
    with trace.traffic() as moved:
        loss = tk.kl_div_forward(x, y, log_target=log_target, reduce=reduce)
    least = cost.kl_div_forward(x, y, reduce=reduce)
    assert (moved.read, moved.written) == (least.read, least.written)
    with trace.traffic() as moved:
        tk.kl_div_backward(None, y, loss, shape=SHAPE, log_target=log_target, dx_dtype=dtype)
    least = cost.kl_div_backward(x, y, loss, log_target=log_target)
    assert (moved.read, moved.written) == (least.read, least.written)
    with trace.traffic() as moved:
        tk.kl_div_backward(x, y, loss, shape=SHAPE, log_target=log_target, dx_dtype=dtype, dtarget_dtype=dtype)
    least = cost.kl_div_backward(x, y, loss, log_target=log_target, to_target=True)
    assert (moved.read, moved.written) == (least.read, least.written)


@pytest.mark.interpreter_only
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_moves_what_it_must(dtype: torch.dtype, log: bool) -> None:
    x = torch.randn(SHAPE).to(dtype)
    with trace.traffic() as moved:
        y = tk.softmax_forward(x, 1, log=log)
    least = cost.softmax_forward(x)
    assert (moved.read, moved.written) == (least.read, least.written)
    with trace.traffic() as moved:
        tk.softmax_backward(y, x, 1, log=log)
    least = cost.softmax_backward(y, x)
    assert (moved.read, moved.written) == (least.read, least.written)


def test_a_broadcast_operand_is_read_once_and_its_gradient_has_its_own_shape() -> None:
    x, target = _meta(*SHAPE, dtype=torch.bfloat16), _meta(1271)
    assert cost.kl_div_forward(x, target, reduce=False) == Cost(2 * N + 4 * 1271, 4 * N, 3 * N)
    assert cost.kl_div_forward(x, target.expand(SHAPE)) == Cost(2 * N + 4 * 1271, 4, 4 * N)
    backward = cost.kl_div_backward(x, target, _meta(), to_x=False, to_target=True)
    assert backward == Cost(2 * N + 4 * 1271 + 4, 4 * 1271, 4 * N)


def test_no_element_is_no_byte() -> None:
    assert cost.kl_div_forward(_meta(0, 5), _meta(0, 5), reduce=False) == Cost(0, 0, 0)
    assert cost.distinct_bytes(_meta(3, 0).expand(3, 0)) == 0


def test_no_gradient_wanted_is_no_arithmetic() -> None:
    assert cost.kl_div_backward(_meta(3), _meta(3), _meta(), log_target=True, to_x=False).flops == 0


def test_costs_add_up() -> None:
    total = Cost(1, 2, 3) + Cost(10, 20, 30)
    assert (total, total.bytes) == (Cost(11, 22, 33), 33)
