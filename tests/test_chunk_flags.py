"""Programs that hold the chunks of a row, and meet: the same bits in any order of programs, in place or not.

Triton's interpreter runs programs one after another, here in several orders. On a stand-in for a GPU that executes
compiled code, blocks and warps take turns at random; there planted faults of the protocol must show.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import triton_kernels as tk
from tests import broken_flags
from tests.device import DEVICE
from triton_kernels.jit import chunk_flags
from triton_kernels.losses import cross_entropy
from triton_kernels.losses.distillation import forward
from triton_kernels.ops import softmax
from triton_kernels.runtime import backend, row_tiling

#: A stand-in for a GPU, whose machine can be told how to schedule.
EMULATE: Any = importlib.import_module("emulate") if importlib.util.find_spec("emulate") else None
N = 3
SOFTMAX = ("softmax", "log_softmax")
#: Divergences whose teacher gets a gradient, too, of softcapped logits.
BOTH = {f"{kind}, both": kind for kind in ("forward_kl", "js")}
KINDS = ("forward_kl", "reverse_kl", "js", "total_variation", "cross_entropy", "soft_cross_entropy", *SOFTMAX, *BOTH)


def _columns(kind: str) -> int:
    """Columns of a row of several chunks; softmax keeps longer ones on chip."""
    return 36001 if kind in SOFTMAX else 12001


def _in_place(kind: str) -> tuple[bool, ...]:
    return (False,) if kind in ("soft_cross_entropy", *SOFTMAX) else (False, True)


def _logits(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with a large, a small and no divergence; and labels."""
    torch.manual_seed(0)
    V = _columns(kind)
    t = torch.randn(N, V)
    noise = torch.randn(N, V) * torch.tensor([1.0, 1e-3, 0.0])[:, None]
    labels = torch.tensor([3, V - 1, 7000])
    return (t + noise).to(DEVICE, dtype), t.to(DEVICE, dtype), labels.to(DEVICE)


def _loss_and_gradient(
    kind: str, logits: tuple[Tensor, Tensor, Tensor], in_place: bool, polls: int
) -> tuple[Tensor, Tensor]:
    """Return losses and gradients; or the output of softmax, and the gradient for an upstream gradient t."""
    s, t, labels = logits
    s = s.clone()
    ds = s if in_place else torch.full_like(s, float("nan"))
    with tk.tile_configs.use_tile_configs(interpreted=False):
        if kind in SOFTMAX:
            losses = tk.softmax_forward(s, 1, log=kind == "log_softmax", polls=polls)
            ds = tk.softmax_backward(losses, t, 1, log=kind == "log_softmax", polls=polls)
        elif kind == "cross_entropy":
            losses, _ = tk.cross_entropy_forward(s, labels, label_smoothing=0.1, dx=ds, polls=polls)
        elif kind == "soft_cross_entropy":
            losses, _ = tk.soft_cross_entropy_forward(s, t.abs(), label_smoothing=0.1, dx=ds, polls=polls)
        elif kind in BOTH:
            t = t.clone()
            dt = t if in_place else torch.full_like(t, float("nan"))
            caps = {"student_softcap": 3.0, "teacher_softcap": 2.0}
            losses, _ = tk.divergence_forward(
                s, t, divergence=BOTH[kind], dstudent=ds, dteacher=dt, polls=polls, **caps
            )
            ds = torch.cat((ds, dt))
        else:
            losses, _ = tk.divergence_forward(
                s, t, divergence=kind, labels=labels, hard_label_weight=0.5, dstudent=ds, polls=polls
            )
    return losses, ds


@contextmanager
def _order(order: Callable[[int], int]) -> Iterator[None]:
    """Run the interpreter's program `order(i)` as the ith."""
    from triton.runtime.interpreter import InterpreterBuilder

    original = InterpreterBuilder.set_grid_idx

    def permuted(self: Any, x: int, y: int, z: int) -> None:
        original(self, order(x), y, z)

    InterpreterBuilder.set_grid_idx = permuted
    try:
        yield
    finally:
        InterpreterBuilder.set_grid_idx = original


@pytest.mark.interpreter_only
@pytest.mark.parametrize(("dtype", "permuted"), [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_programs_changes_no_bit(kind: str, dtype: torch.dtype, permuted: bool) -> None:
    logits = _logits(kind, dtype)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        programs = N * row_tiling.RowTiling(_columns(kind), {"s": logits[0]}, meeting=128).chunks
    first = _loss_and_gradient(kind, logits, False, 0)
    for in_place in _in_place(kind):
        with _order((lambda i: i * 7 % programs) if permuted else (lambda i: programs - 1 - i)):
            again = _loss_and_gradient(kind, logits, in_place, 0)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.interpreter_only
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*SOFTMAX, *BOTH)])
def test_without_a_gradient_it_is_the_last_program_of_a_row_that_stores_its_loss(kind: str) -> None:
    s, t, labels = logits = _logits(kind, torch.float32)
    wanted, _ = _loss_and_gradient(kind, logits, False, 0)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        programs = N * row_tiling.RowTiling(_columns(kind), {"s": s}, meeting=128).chunks
        for order in (lambda i: i, lambda i: programs - 1 - i):
            with _order(order):
                if kind == "cross_entropy":
                    losses, _ = tk.cross_entropy_forward(s, labels, label_smoothing=0.1)
                elif kind == "soft_cross_entropy":
                    losses, _ = tk.soft_cross_entropy_forward(s, t.abs(), label_smoothing=0.1)
                else:
                    losses, _ = tk.divergence_forward(s, t, divergence=kind, labels=labels, hard_label_weight=0.5)
            torch.testing.assert_close(losses, wanted, rtol=1e-6, atol=1e-9)


def _results(kind: str, dtype: torch.dtype, seeds: range) -> list[tuple[Tensor, Tensor]]:
    """Results under random schedules of blocks, in flight together or not, and of warps."""
    types = {"vm_seed": ctypes.c_uint64, "vm_resident": ctypes.c_int, "vm_warps": ctypes.c_int}
    cells = {name: EMULATE.cell(name, c_type) for name, c_type in types.items()}
    before = {name: cell.value for name, cell in cells.items()}
    logits = _logits(kind, dtype)
    results = []
    try:
        for seed in seeds:
            for name, value in {"vm_seed": seed, "vm_resident": 1 + seed % 7, "vm_warps": seed % 2}.items():
                cells[name].value = value
            for in_place in _in_place(kind):
                for polls in (0, 1, 50):
                    results.append(_loss_and_gradient(kind, logits, in_place, polls))
    finally:
        for name, value in before.items():
            cells[name].value = value
    return results


def _different(results: list[tuple[Tensor, Tensor]]) -> int:
    return sum(not all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)) for other in results)


needs_stand_in = pytest.mark.skipif(
    EMULATE is None or backend.INTERPRETED, reason="schedules are chosen on the stand-in for a GPU, ../shared/fakegpu"
)


@needs_stand_in
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_no_schedule_changes_a_bit(kind: str, dtype: torch.dtype) -> None:
    results = _results(kind, dtype, range(1, 13))
    assert len(results) == 36 * len(_in_place(kind))
    assert _different(results) == 0


FAULTS = {
    "the flag is set before the data are stored": ("may_publish", broken_flags.publish_before_the_data),
    "no program waits": ("next_chunk", broken_flags.without_waiting),
    "no check of the flag after the loads": ("may_publish", broken_flags.without_a_check_after_the_loads),
}


@needs_stand_in
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["forward_kl", "js", "cross_entropy"])
def test_a_fault_of_the_protocol_shows_under_some_schedule(
    kind: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, broken = FAULTS[fault]
    right = _loss_and_gradient(kind, _logits(kind, torch.float32), False, 50)
    monkeypatch.setattr(chunk_flags, name, broken)
    module, kernel = (
        (cross_entropy, "_cross_entropy_kernel") if kind == "cross_entropy" else (forward, "_divergence_kernel")
    )
    monkeypatch.setattr(module, kernel, row_tiling.row_jit(getattr(module, kernel).fn))
    _assert_a_difference_from(right, kind)


def _assert_a_difference_from(right: tuple[Tensor, Tensor], kind: str) -> None:
    for first in range(1, 2000, 10):
        found = _results(kind, torch.float32, range(first, first + 10))
        if _different([right, *found]):
            return
    raise AssertionError("no schedule shows it")


SOFTMAX_FAULTS = {
    "the flag is set before the data are stored": (softmax, "_publish", broken_flags.publish_before_the_statistics),
    "no program waits": (chunk_flags, "next_chunk", broken_flags.without_waiting),
}


@needs_stand_in
@pytest.mark.parametrize("fault", SOFTMAX_FAULTS)
@pytest.mark.parametrize("kernel", ["_softmax_kernel", "_softmax_backward_kernel"])
@pytest.mark.parametrize("kind", SOFTMAX)
def test_a_fault_of_the_protocol_in_softmax_shows_under_some_schedule(
    kind: str, kernel: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = _loss_and_gradient(kind, _logits(kind, torch.float32), False, 50)
    monkeypatch.setattr(*SOFTMAX_FAULTS[fault])
    monkeypatch.setattr(softmax, kernel, row_tiling.row_jit(getattr(softmax, kernel).fn))
    _assert_a_difference_from(right, kind)
