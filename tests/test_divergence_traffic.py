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

N, V = 3, 12000
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def _pair(dtype: torch.dtype, rows: int = N, columns: int = V) -> tuple[lucid.Tensor, lucid.Tensor]:
    s, t = (lucid.from_torch(torch.randn(rows, columns).to(dtype)) for _ in range(2))
    return s, t


def _small(dtype: torch.dtype, chunks: int, rows: int = N) -> int:
    """At most so many bytes of numbers that are kept of rows and chunks are read or written, each a few times."""
    return 4 * launch.compute_dtype(dtype).itemsize * rows * (STATISTICS + 6 * chunks) + 1000


def _in_forward(dtype: torch.dtype) -> bool:
    """Whether the gradient is computed with the loss; small ones of float16 need the upstream gradient's scale."""
    return dtype != torch.float16


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("upstream", [1.0, 0.3])
@pytest.mark.parametrize("in_forward", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_logits_are_read_once_for_loss_and_gradient_together_and_twice_without_that(
    kind: str, dtype: torch.dtype, in_forward: bool, upstream: float
) -> None:
    s, t = _pair(dtype)
    s.requires_grad_()
    one = N * V * dtype.itemsize
    with lucid.gradient_in_forward(in_forward), trace.traffic() as forward, trace.launches() as made:
        loss = F.distillation_loss(s, t, divergence=kind)
    # Each program of a row reads 7 statistics of each of its chunks.
    chunks = made[0].args["chunks"]
    small = _small(dtype, chunks) + 7 * N * chunks**2 * launch.compute_dtype(dtype).itemsize
    with trace.traffic() as backward:
        loss.backward(lucid.full_like(loss, upstream))
    in_forward &= _in_forward(dtype)
    scaled = one if upstream != 1 else 0
    assert 2 * one <= forward.read <= 2 * one + small
    assert one * in_forward <= forward.written <= one * in_forward + small
    assert backward.launches == 1
    read, written = (scaled, scaled) if in_forward else (2 * one, one)
    assert read <= backward.read <= read + small
    assert backward.written == written


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_without_a_gradient_logits_are_read_once_however_long_rows_are(
    kind: str, dtype: torch.dtype, tiles: str
) -> None:
    s, t = _pair(dtype)
    both = 2 * N * V * dtype.itemsize
    with trace.traffic() as forward, trace.launches() as made:
        F.distillation_loss(s, t, divergence=kind)
    chunks = made[0].args["chunks"]
    assert (chunks > 1) == (tiles == "GPU's tiles")
    assert both <= forward.read <= both + _small(dtype, chunks * chunks)
    assert forward.written <= _small(dtype, 2 * chunks)
    assert [launched.kernel.__name__ for launched in made] == ["_divergence_kernel", "_token_mean_kernel"]


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
    both = 2 * int(kept.sum()) * V * 4
    with tile_configs.use_tile_configs(interpreted=False), trace.launches() as made:
        tk.divergence_forward(s.to_torch(), t.to_torch(), divergence=kind, **given)
    chunks = made[0].args["chunks"]
    with tile_configs.use_tile_configs(interpreted=False), trace.traffic() as forward:
        loss = F.distillation_loss(s, t, divergence=kind, **{n: lucid.from_torch(x) for n, x in given.items()})
        loss.backward(lucid.ones_like(loss))
    assert both <= forward.read <= both + _small(torch.float32, chunks * chunks) + 32 * N * chunks
    assert N * V * 4 <= forward.written <= N * V * 4 + _small(torch.float32, 2 * chunks)


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


@pytest.mark.parametrize("in_forward", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_reads_logits_once_with_its_gradient(
    dtype: torch.dtype, smoothing: float, in_forward: bool
) -> None:
    x, _ = _pair(dtype)
    x.requires_grad_()
    labels = torch.randint(0, V, (N,))
    labels[2] = -100
    one, written, small = (N - 1) * V * dtype.itemsize, N * V * dtype.itemsize, _small(dtype, 2)
    with lucid.gradient_in_forward(in_forward), trace.traffic() as forward:
        loss = F.cross_entropy(x, lucid.from_torch(labels), label_smoothing=smoothing)
    with trace.traffic() as backward:
        loss.backward(lucid.ones_like(loss))
    in_forward &= _in_forward(dtype)
    assert one <= forward.read <= one + small
    assert forward.written <= in_forward * written + small
    assert backward.read <= (not in_forward) * one + small
    assert backward.written == (not in_forward) * written


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("in_forward", [True, False])
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_cross_entropy_reads_logits_and_probabilities_once_with_its_gradient(
    dtype: torch.dtype, smoothing: float, wanted: tuple[bool, bool], in_forward: bool
) -> None:
    """The gradient to probabilities takes a launch of its own, which does not read them for that alone."""
    leaves = [t.requires_grad_(asked) for t, asked in zip(_pair(dtype), wanted, strict=True)]
    one = N * V * dtype.itemsize
    with (
        lucid.gradient_in_forward(in_forward),
        Allocations() as allocated,
        trace.traffic() as forward,
        trace.launches() as made,
    ):
        loss = F.cross_entropy(*leaves, label_smoothing=smoothing)
    in_forward &= _in_forward(dtype) and wanted == (True, False)
    gradients = [one] * sum(wanted)
    # Each program of a row reads 4 statistics of each of its chunks.
    chunks = made[0].args["chunks"]
    small = _small(dtype, chunks) + 4 * N * chunks**2 * launch.compute_dtype(dtype).itemsize
    assert 2 * one <= forward.read <= 2 * one + small
    assert 0 <= forward.written - in_forward * sum(gradients) <= _small(dtype, chunks)
    assert allocated.above(one / 50) == gradients * in_forward
    with Allocations() as allocated, trace.traffic() as backward:
        loss.backward(lucid.ones_like(loss))
    looks = 0 if in_forward else 2 if wanted[0] else 1
    assert backward.launches == 1
    assert looks * one <= backward.read <= looks * one + small
    assert backward.written == (not in_forward) * sum(gradients)
    assert allocated.above(one / 50) == gradients * (not in_forward)


def test_the_logits_are_read_in_place_whatever_their_strides() -> None:
    base, other = torch.randn(2, 6, 40, 4)
    for view, teacher in zip(
        (base.transpose(0, 1), base[::2, 1:], base.permute(2, 0, 1)),
        (other.transpose(0, 1), other[::2, 1:], other.permute(2, 0, 1)),
        strict=True,
    ):
        with trace.traffic() as moved, trace.launches() as made:
            tk.divergence_forward(view, teacher)
        assert moved.read == 2 * view.nbytes
        assert len(made) == 1
