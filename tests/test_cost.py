"""Lower bounds of traffic and operations; test_traffic compares them with what kernels move."""

from __future__ import annotations

import torch

from triton_kernels.devtools import cost
from triton_kernels.devtools.cost import Cost

SHAPE = (41, 1271)
N = 41 * 1271


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


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
