"""More than 2³¹ elements, or elements further apart than that: 64-bit offsets where, and only where, needed."""

from __future__ import annotations

import math

import pytest
import torch
import triton.language as tl

import triton_kernels as tk
from tests import row_reference
from tests.device import DEVICE
from triton_kernels.devtools import trace
from triton_kernels.runtime import backend, launch, strides, tile_configs

FAR = 2**31 + 2**20


@pytest.fixture(scope="module")
def far() -> torch.Tensor:
    """Four numbers over 2³¹ elements apart; the memory between them is never touched."""
    storage = torch.empty(3 * FAR + 8, dtype=torch.bfloat16, device=DEVICE)
    view = storage.as_strided((4,), (FAR,))
    view.copy_(torch.tensor([0.5, 0.25, 1.0, 0.125]))
    return view


def test_elements_beyond_32_bit_offsets_are_reached(far: torch.Tensor) -> None:
    x = torch.full((4,), -1.0, device=DEVICE)
    expected = (far.double() * (far.double().log() + 1)).cpu()
    with trace.launches() as made:
        loss = tk.kl_div_forward(x, far, reduce=False)
        dx, dy = tk.kl_div_backward(x, far, x, shape=(4,), dx_dtype=x.dtype, dtarget_dtype=torch.float32)
    assert all(launched.args["INDEX_DTYPE"] == tl.int64 for launched in made)
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dx.cpu(), far.cpu().float())
    torch.testing.assert_close(dy.cpu(), -(far.float().log() + 2).cpu())


def test_rows_beyond_32_bit_offsets_are_reached(far: torch.Tensor) -> None:
    rows = far.as_strided((4, 1), (FAR, 1))
    expected = rows.float().cpu()
    torch.testing.assert_close(tk.sum(rows, [1]).cpu().float(), expected[:, 0])
    torch.testing.assert_close(tk.sum(rows, [0]).cpu().float(), expected.sum(0), rtol=1e-2, atol=1e-2)
    columns = far.as_strided((1, 4), (1, FAR))
    softmax = columns.cpu().float().softmax(1)
    torch.testing.assert_close(tk.softmax_forward(columns, 1).cpu().float(), softmax, rtol=1e-2, atol=1e-2)
    assert tk.softmax_forward(rows, 1).cpu().float().eq(1).all()
    torch.testing.assert_close(tk.pointwise("add", rows, rows, dtype=torch.float32).cpu(), expected * 2)
    torch.testing.assert_close(tk.matmul(rows, rows[:1]).cpu().float(), expected * expected[:1], rtol=1e-2, atol=1e-2)
    indices = torch.tensor([3, 1], device=DEVICE)
    torch.testing.assert_close(tk.embedding_forward(indices, rows).cpu().float(), expected[[3, 1]])


@pytest.mark.parametrize("s_strides", [(2 * FAR, FAR), (FAR, 1)], ids=["rows and columns", "rows"])
def test_rows_and_columns_of_logits_beyond_32_bit_offsets_are_reached(
    s_strides: tuple[int, int], far: torch.Tensor
) -> None:
    s = far.as_strided((2, 2), s_strides)
    if s_strides[1] == 1:
        s[:, 1] = 0.75
    t = torch.tensor([[0.0, 1.0], [2.0, 0.0]], device=DEVICE)
    losses, statistics = tk.divergence_forward(s, t)
    one = torch.ones((), device=DEVICE)
    _, dt = tk.divergence_backward(s, t, statistics, one, dteacher_dtype=torch.float32)
    labels = torch.tensor([1, 0], device=DEVICE)
    entropies, _ = tk.cross_entropy_forward(s, labels)
    truth = row_reference.divergence(s.double().cpu().numpy(), t.double().cpu().numpy(), "forward_kl")
    torch.testing.assert_close(losses.cpu().double(), torch.from_numpy(truth.loss), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dt.cpu().double(), torch.from_numpy(truth.dt), rtol=1e-5, atol=1e-6)
    expected = torch.nn.functional.cross_entropy(s.cpu().float(), labels.cpu(), reduction="none")
    torch.testing.assert_close(entropies.cpu(), expected, rtol=1e-5, atol=1e-6)


def _last_two_of_many(*limits: int) -> range:
    """Return the last two numbers of many, which are those of programs."""
    return range(limits[0] - 2, limits[0]) if len(limits) == 1 and limits[0] > 1000 else range(*limits)


def test_a_loss_over_more_than_2_to_the_31_elements_counts_every_one() -> None:
    """The interpreter, which would take a minute, runs the last program below 2³¹ and the one beyond, and no other."""
    n = counted = 2**31 + 12345
    x, p = (torch.tensor([value], dtype=torch.float16, device=DEVICE).expand(n) for value in (-1.0, 0.5))
    with pytest.MonkeyPatch.context() as patch:
        if backend.INTERPRETED:
            counted = 2**20 + 12345
            patch.setattr(tile_configs, "INTERPRETER_TILE", 2**20)
            patch.setattr("triton.runtime.interpreter.range", _last_two_of_many, raising=False)
            patch.setattr(torch, "empty", torch.zeros)  # partial sums of the other programs
        with trace.launches() as made:
            loss = tk.kl_div_forward(x, p, scale=1 / counted)
    assert made[0].args["INDEX_DTYPE"] == tl.int64
    expected = 0.5 * (math.log(0.5) + 1)
    assert loss.item() == pytest.approx(expected, rel=2**-10)


@pytest.mark.parametrize(
    ("numel", "stride", "wide"),
    [(2**20, 1, False), (2**31 - 2**17, 1, False), (2**31 - 2**10, 1, True), (2**31, 1, True), (2, 2**31, True)],
)
def test_offsets_are_wide_only_where_a_program_could_reach_2_to_the_31(numel: int, stride: int, wide: bool) -> None:
    tensor = torch.empty(0, device="meta").as_strided((numel,), (stride,))
    reached = strides.coalesce((numel,), tensor).max_offset(padding=2**16)
    assert launch.index_dtype(reached) is (tl.int64 if wide else tl.int32)


def test_ordinary_launches_are_not_wide() -> None:
    x = torch.randn(64, 33).log_softmax(-1).to(DEVICE)
    with trace.launches() as made:
        y = tk.softmax_forward(x, 1)
        tk.softmax_backward(y, x, 1)
        tk.kl_div_forward(x, y)
        tk.kl_div_backward(x, y, x, shape=x.shape, dx_dtype=x.dtype, dtarget_dtype=x.dtype)
        tk.sum(x, [0])
        tk.matmul(x, x.t())
        tk.pointwise("add", x, x, dtype=x.dtype)
        _, statistics = tk.divergence_forward(x, y)
        tk.divergence_backward(x, y, statistics, x[:, 0], dstudent_dtype=x.dtype)
    assert made
    assert not any(launched.args.get("INDEX_DTYPE") == tl.int64 for launched in made)
