"""Grids that CUDA takes: up to 2^31 − 1 programs along the first dimension, 65,535 along the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import triton_kernels as tk


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


CASES: dict[str, Callable[[], Any]] = {
    "softmax along many rows": lambda: tk.softmax_forward(_meta(4_300_000, 2), 0),
    "softmax backward along many rows": lambda: tk.softmax_backward(_meta(4_300_000, 2), _meta(4_300_000, 2), 0),
    "sum of all": lambda: tk.sum(_meta(2**31), [0]),
    "sum of columns": lambda: tk.sum(_meta(268_500_000, 8), [0]),
    "sum of rows": lambda: tk.sum(_meta(2**24, 128), [1]),
    "matmul, wide": lambda: tk.matmul(_meta(16, 8), _meta(8, 2_200_000)),
    "matmul, tall": lambda: tk.matmul(_meta(2_200_000, 8), _meta(8, 16)),
    "embedding": lambda: tk.embedding_forward(_meta(8, dtype=torch.int64), _meta(10, 70_000_000)),
    "embedding backward": lambda: tk.embedding_backward(_meta(8, dtype=torch.int64), _meta(8, 4_300_000), 10),
    "kl_div": lambda: tk.kl_div_forward(_meta(2**20, 2**12), _meta(2**20, 2**12)),
    "divergence": lambda: tk.divergence_forward(_meta(2**18, 2**17), _meta(2**18, 2**17), divergence="js"),
}


@pytest.mark.parametrize("case", CASES)
def test_cuda_takes_the_grids_of_large_inputs(case: str) -> None:
    launched: list[tk.launch.Launch] = []
    with tk.launch.dry_run(launched.append):
        CASES[case]()
    assert launched
    for launch in launched:
        assert launch.grid[0] < 2**31, launch.kernel.__name__
        assert all(size <= 65_535 for size in launch.grid[1:]), launch.kernel.__name__


def test_a_softmax_along_a_long_strided_dimension_starts_few_programs_that_merge_few_chunks() -> None:
    launched: list[tk.launch.Launch] = []
    with tk.launch.dry_run(launched.append):
        tk.softmax_forward(_meta(1_000_000, 2), 0)
        tk.softmax_backward(_meta(1_000_000, 2), _meta(1_000_000, 2), 0)
    assert len(launched) == 2
    for launch in launched:
        assert launch.args["chunks"] <= tk.tile_configs.MAX_ROW_CHUNKS_OF_SEVERAL
        assert launch.args["chunks"] * launch.args["tiles"] * launch.config["BLOCK_V"] < 1_000_000 + 2**14
        assert launch.grid == (launch.args["chunks"],)
