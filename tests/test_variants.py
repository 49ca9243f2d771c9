"""Steps of varying length are one variant of each kernel: after the first two steps Triton compiles nothing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

import triton_kernels as tk
from triton_kernels.devtools import aot


def _step(length: int, columns: int, dtype: torch.dtype) -> None:
    """The launches of a training step: logits of a batch of sequences, shifted against their labels."""
    s, t = (torch.empty(2, length, columns, dtype=dtype) for _ in range(2))
    labels, one = torch.zeros(2, length, dtype=torch.int64), torch.ones(())
    s, t, labels = s[:, :-1], t[:, :-1], labels[:, 1:]
    for kind in ("forward_kl", "js"):
        losses, statistics = tk.divergence_forward(s, t, divergence=kind, labels=labels, hard_label_weight=0.5)
        _, factor = tk.token_mean(losses, weights=statistics[0])
        common = {"divergence": kind, "labels": labels, "hard_label_weight": 0.5}
        tk.divergence_backward(s, t, statistics, one, dloss_factor=factor, dstudent_dtype=dtype, **common)
    losses, statistics = tk.cross_entropy_forward(s, labels)
    tk.token_mean(losses, weights=statistics[0])
    tk.cross_entropy_backward(s, labels, statistics, one)
    losses, statistics = tk.soft_cross_entropy_forward(s, t)
    tk.token_mean(losses)
    tk.soft_cross_entropy_backward(s, t, statistics, one, dx_dtype=dtype)
    y = tk.softmax_forward(s, -1)
    tk.softmax_backward(y, y, -1)
    tk.kl_div_forward(y, y)
    tk.kl_div_backward(None, y, one, shape=y.shape, dx_dtype=dtype)
    tk.sum(y, [2])
    tk.matmul(y.view(-1, columns), torch.empty(columns, 48, dtype=dtype))


def _new_variants(lengths: list[int], step: Callable[[int], None]) -> list[int]:
    """Variants that Triton had not compiled before, of each step."""
    seen: set[str] = set()
    new = []
    for length in lengths:
        before = len(seen)
        with tk.launch.dry_run(lambda launched: seen.add(json.dumps(aot.describe(launched)))):
            step(length)
        new.append(len(seen) - before)
    return new


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1024, 5001], ids=["even", "odd"])
def test_steps_of_varying_length_compile_nothing_after_the_first_two(columns: int, dtype: torch.dtype) -> None:
    lengths = [37, 38, 17, 18, 33, 36, 40, 48, 49, 64, 65, 100, 129, 130]
    new = _new_variants(lengths, lambda length: _step(length, columns, dtype))
    assert new[0] > 0
    assert sum(new[2:]) == 0, new


@pytest.mark.parametrize("columns", [16, 5001])  # rows of 16 are one unit of memory apart
def test_a_last_batch_of_one_sequence_compiles_nothing(columns: int) -> None:
    def step(rows: int) -> None:
        s = torch.empty(rows, columns)
        _, statistics = tk.divergence_forward(s, s)
        tk.divergence_backward(s, s, statistics, torch.ones(()), dstudent_dtype=s.dtype)
        tk.softmax_forward(s, 1)

    assert _new_variants([8, 16, 1], step)[1:] == [0, 0]
