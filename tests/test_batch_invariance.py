"""A row's loss and gradients have the same bits every time, alone, among many, and wherever it stands."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

import triton_kernels as tk
from tests import kernels
from tests.device import DEVICE
from tests.row_reference import DIVERGENCES
from triton_kernels.runtime import backend

pytestmark = pytest.mark.usefixtures("launchers")

Results = tuple[torch.Tensor, ...]
#: Below, at and above a tile, even and odd, divisible by 16 and not. What depends on these is how code is compiled.
COLUMNS = (1001, 9008) if backend.INTERPRETED else (300, 1000, 1001, 1024, 9001, 9008)


def _labelled(s: torch.Tensor, t: torch.Tensor, kind: str) -> Results:
    labels = torch.full(s.shape[:-1], 3, device=DEVICE)
    return kernels.divergence(s, t, kind, labels=labels, hard_label_weight=0.4)


def _cross_entropy(s: torch.Tensor, t: torch.Tensor) -> Results:
    labels = torch.full(s.shape[:-1], 3, device=DEVICE)
    losses, statistics = tk.cross_entropy_forward(s, labels, label_smoothing=0.1)
    one = torch.ones((), device=DEVICE)
    dx = torch.empty_like(s)
    with_gradient, _ = tk.cross_entropy_forward(s, labels, label_smoothing=0.1, dx=dx)
    return losses, tk.cross_entropy_backward(s, labels, statistics, one, label_smoothing=0.1), with_gradient, dx


def _soft_cross_entropy(s: torch.Tensor, t: torch.Tensor) -> Results:
    dx = torch.empty_like(s)
    with_gradient, _ = tk.soft_cross_entropy_forward(s, t, label_smoothing=0.1, dx=dx)
    losses, statistics = tk.soft_cross_entropy_forward(s, t, label_smoothing=0.1)
    one = torch.ones((), device=DEVICE)
    wanted = {"dx_dtype": torch.float32, "dy_dtype": torch.float32}
    gradients = tk.soft_cross_entropy_backward(s, t, statistics, one, label_smoothing=0.1, **wanted)
    return losses, *(g for g in gradients if g is not None), with_gradient, dx


def _softmax(log: bool) -> Callable[[torch.Tensor, torch.Tensor], Results]:
    def results(s: torch.Tensor, t: torch.Tensor) -> Results:
        y = tk.softmax_forward(s, -1, log=log)
        return y, tk.softmax_backward(y, t, -1, log=log)

    return results


OPS: dict[str, Callable[[torch.Tensor, torch.Tensor], Results]] = {
    kind: functools.partial(kernels.divergence, kind=kind, inv_temperature=0.5) for kind in DIVERGENCES
}
OPS |= {f"{kind}, labels": functools.partial(_labelled, kind=kind) for kind in DIVERGENCES}
OPS |= {"cross_entropy": _cross_entropy, "soft_cross_entropy": _soft_cross_entropy}
OPS |= {"softmax": _softmax(False), "log_softmax": _softmax(True), "sum": lambda s, t: (tk.sum(s, [-1]),)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("op", OPS)
def test_a_row_gives_the_same_bits_alone_among_many_and_in_every_place(
    op: str, columns: int, dtype: torch.dtype
) -> None:
    s, t = (torch.randn(5, columns).to(DEVICE, dtype) for _ in range(2))
    with tk.tile_configs.use_tile_configs(interpreted=False):
        many = OPS[op](s, t)
        assert all(map(torch.equal, many, OPS[op](s, t))), "another time"
        for place in (3,) if backend.INTERPRETED else (0, 3):
            row = slice(place, place + 1)
            parts = {"view": (s[row], t[row]), "copy": (s[row].clone(), t[row].clone()), "1-D": (s[place], t[place])}
            parts |= {"elsewhere": (s.flip(0)[4 - place :], t.flip(0)[4 - place :])}
            for name, part in parts.items():
                for alone, among in zip(OPS[op](*part), many, strict=True):
                    first = alone if name == "1-D" else alone[0]
                    assert torch.equal(first, among[place]), f"row {place}, {name}"


@pytest.mark.parametrize("op", OPS)
def test_a_row_of_a_padded_batch_gives_the_same_bits_alone_and_among_many(op: str) -> None:
    """Sequences without their last token: the rows of a batch are apart by more than a row."""
    s, t = (torch.randn(3, 5, 1001).to(DEVICE) for _ in range(2))
    with tk.tile_configs.use_tile_configs(interpreted=False):
        many = OPS[op](s[:, :-1], t[:, :-1])
        alone = OPS[op](s[1:2, 2:3], t[1:2, 2:3])
    for one, among in zip(alone, many, strict=True):
        assert torch.equal(one[0, 0], among[1, 2])
