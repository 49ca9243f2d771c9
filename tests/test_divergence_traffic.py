"""Bytes, launches and memory of losses of rows of logits, counted."""

from __future__ import annotations

import pytest
import torch

import lucid
import lucid.nn.functional as F
import triton_kernels as tk
from lucid.autograd import grad
from tests.allocations import Allocations
from tests.row_reference import DIVERGENCES
from triton_kernels.devtools import trace
from triton_kernels.losses.distillation.terms import STATISTICS
from triton_kernels.runtime import launch, tile_configs

pytestmark = pytest.mark.interpreter_only

N, V = 4, 12000
KL = ("forward_kl", "reverse_kl")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def _pair(dtype: torch.dtype, rows: int = N, columns: int = V) -> tuple[lucid.Tensor, lucid.Tensor]:
    s, t = (lucid.from_torch(torch.randn(rows, columns).to(dtype)) for _ in range(2))
    return s, t


def _small(dtype: torch.dtype, chunks: int, rows: int = N) -> int:
    """At most so many bytes of numbers that are kept of rows and chunks are read or written, each a few times."""
    return 4 * launch.compute_dtype(dtype).itemsize * rows * (STATISTICS + 6 * chunks) + 1000


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_kl_reads_logits_once_forward_and_all_read_them_once_backward(
    kind: str, dtype: torch.dtype, tiles: str
) -> None:
    s, t = _pair(dtype)
    s.requires_grad_()
    both = 2 * N * V * dtype.itemsize
    with trace.traffic() as forward, trace.launches() as made:
        loss = F.distillation_loss(s, t, divergence=kind)
    chunks = made[0].args["chunks"]
    assert (chunks > 1) == (tiles == "GPU's tiles")
    # What needs p and q themselves takes a second look, at rows that are not on chip as a whole.
    looks = 1 if kind in KL or chunks == 1 else 2
    assert looks * both <= forward.read <= looks * both + _small(dtype, chunks)
    assert forward.written <= _small(dtype, chunks)
    with trace.traffic() as backward, trace.launches() as made:
        loss.backward(lucid.ones_like(loss))
    assert backward.launches == 1
    assert both <= backward.read <= both + _small(dtype, made[0].args["chunks"])
    assert backward.written == both // 2


@pytest.mark.parametrize("kind", ["js", "total_variation"])
def test_js_and_total_variation_read_short_rows_twice_in_all(kind: str) -> None:
    s, t = _pair(torch.bfloat16, 16, 8192)
    s.requires_grad_()
    with tile_configs.use_tile_configs(interpreted=False), trace.traffic() as moved:
        loss = F.distillation_loss(s, t, divergence=kind)
        loss.backward(lucid.ones_like(loss))
    one = 16 * 8192 * 2
    assert 4 * one <= moved.read <= 4 * one + _small(torch.bfloat16, 4, 16)
    assert moved.written <= one + _small(torch.bfloat16, 4, 16)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_hard_labels_take_no_further_pass(kind: str) -> None:
    s, t = _pair(torch.bfloat16)
    labels = lucid.from_torch(torch.randint(0, V, (N,)))
    read = []
    for weight in (0.0, 0.5):
        with trace.traffic() as moved:
            F.distillation_loss(s, t, divergence=kind, labels=labels, hard_label_weight=weight, temperature=2.0)
        read.append(moved.read)
    assert read[1] - read[0] <= 3 * N * 8  # a logit and a label of each row


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("mark", ["weight", "bool", "labels"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_logits_of_skipped_tokens_are_not_read(kind: str, mark: str) -> None:
    s, t = _pair(torch.float32)
    s.requires_grad_()
    kept = torch.arange(N) % 4 == 1
    given: dict[str, torch.Tensor] = {
        "weight": {"weight": kept.float()},
        "bool": {"weight": kept},
        "labels": {"labels": torch.where(kept, 5, -100)},
    }[mark]
    with trace.traffic() as forward, trace.launches() as made:
        loss = F.distillation_loss(s, t, divergence=kind, **{n: lucid.from_torch(x) for n, x in given.items()})
    chunks = made[0].args["chunks"]
    both = 2 * int(kept.sum()) * V * 4
    looks = 1 if kind in KL or chunks == 1 else 2
    per_program = 16 * N * chunks * looks  # each program looks at the weights and labels of its rows
    assert looks * both <= forward.read <= looks * both + _small(torch.float32, chunks) + per_program
    with trace.traffic() as backward, trace.launches() as made:
        loss.backward(lucid.ones_like(loss))
    chunks = made[0].args["chunks"]
    assert both <= backward.read <= both + _small(torch.float32, 2 * chunks)
    assert backward.written == N * V * 4


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_nothing_as_large_as_the_logits_is_allocated_but_the_gradient_and_in_place_not_even_that(
    kind: str, dtype: torch.dtype, in_place: bool
) -> None:
    s, t = _pair(dtype)
    logits = s.requires_grad_() * 1
    with tile_configs.use_tile_configs(interpreted=False), Allocations() as made:
        loss = F.distillation_loss(logits, t, divergence=kind, inplace_gradient=in_place)
        grad(loss, logits, lucid.ones_like(loss))
    size = N * V * dtype.itemsize
    assert made.above(size / 50) == ([] if in_place else [size])
    # In all, beyond inputs and gradient, no more than 1 %.
    assert sum(made.bytes) - (0 if in_place else size) <= 0.01 * 3 * size


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_reads_logits_once_each_way(dtype: torch.dtype, smoothing: float) -> None:
    x, _ = _pair(dtype)
    x.requires_grad_()
    labels = torch.randint(0, V, (N,))
    labels[2] = -100
    one = (N - 1) * V * dtype.itemsize
    with trace.traffic() as forward, trace.launches() as made:
        loss = F.cross_entropy(x, lucid.from_torch(labels), label_smoothing=smoothing)
    chunks = made[0].args["chunks"]
    assert one <= forward.read <= one + _small(dtype, 2 * chunks)
    with trace.traffic() as backward, trace.launches() as made:
        loss.backward(lucid.ones_like(loss))
    assert one <= backward.read <= one + _small(dtype, 2 * made[0].args["chunks"])
    assert backward.written == N * V * dtype.itemsize


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_cross_entropy_reads_logits_and_probabilities_once_each_way(
    dtype: torch.dtype, smoothing: float, wanted: tuple[bool, bool]
) -> None:
    """Probabilities are not read for the gradient to them alone."""
    leaves = [t.requires_grad_(asked) for t, asked in zip(_pair(dtype), wanted, strict=True)]
    one = N * V * dtype.itemsize
    with Allocations() as allocated, trace.traffic() as forward, trace.launches() as made:
        loss = F.cross_entropy(*leaves, label_smoothing=smoothing)
    chunks = made[0].args["chunks"]
    assert 2 * one <= forward.read <= 2 * one + _small(dtype, 2 * chunks)
    assert forward.written <= _small(dtype, chunks)
    assert not allocated.above(one / 50)
    with Allocations() as allocated, trace.traffic() as backward, trace.launches() as made:
        loss.backward(lucid.ones_like(loss))
    looks = 2 if wanted[0] else 1
    assert backward.launches == 1
    assert looks * one <= backward.read <= looks * one + _small(dtype, 2 * made[0].args["chunks"])
    assert backward.written == sum(wanted) * one
    assert allocated.above(one / 50) == [one] * sum(wanted)


def test_the_logits_are_read_in_place_whatever_their_strides() -> None:
    base = torch.randn(6, 40, 4)
    for view in (base.transpose(0, 1), base[::2, 1:], base.permute(2, 0, 1)):
        with trace.traffic() as moved, trace.launches() as made:
            tk.divergence_forward(view, view)
        assert moved.read == 2 * view.nbytes
        assert len(made) == 1
