"""The loss and both gradients against float64 truth: every reduction, target kind, pair of dtypes and layout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
import triton_kernels as tk
from tests.device import DEVICE
from tests.hardware import DIRECTIONS, worst_case
from tests.reference import FLOATS, assert_within, exact, kl_terms
from tests.values import check_kl_div
from triton_kernels.losses import kl_div

pytestmark = pytest.mark.usefixtures("launchers")

View = Callable[[torch.Tensor], torch.Tensor]


def _as_it_is(base: torch.Tensor) -> torch.Tensor:
    return base


#: For x and for the target: the shape of a dense tensor, and the view of it that is passed.
LAYOUTS: dict[str, tuple[tuple[tuple[int, ...], View], tuple[tuple[int, ...], View]]] = {
    "contiguous": (((6, 32), _as_it_is), ((6, 32), _as_it_is)),
    "transposed": (((7, 24), torch.t), ((7, 24), torch.t)),
    "one transposed": (((24, 7), _as_it_is), ((7, 24), torch.t)),
    "sliced": (((10, 33), lambda t: t[1::2, 3:-2]), ((10, 33), lambda t: t[::2, 1:-4])),
    "expanded": (((6, 9), _as_it_is), ((1, 9), lambda t: t.expand(6, 9))),
    "broadcast": (((3, 1, 9), _as_it_is), ((2, 9), _as_it_is)),
    "0-d": (((), _as_it_is), ((), _as_it_is)),
    "empty": (((0, 5), _as_it_is), ((0, 5), _as_it_is)),
    "3-D": (((2, 3, 5), _as_it_is), ((2, 3, 5), _as_it_is)),
    "41 x 1271": (((41, 1271), _as_it_is), ((41, 1271), _as_it_is)),
    "3 x 131072": (((3, 131072), _as_it_is), ((3, 131072), _as_it_is)),
}


def _draw(shape: tuple[int, ...], dtype: torch.dtype, log: bool = True) -> torch.Tensor:
    """Log-probabilities along the last dimension, or probabilities; of a 0-d shape, a valid one."""
    values = torch.randn(shape, dtype=torch.float64)
    values = values.log_softmax(-1) if shape else -values.abs()
    return (values if log else values.exp()).to(DEVICE, dtype)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", F.REDUCTIONS)
@pytest.mark.parametrize("y_dtype", FLOATS)
@pytest.mark.parametrize("x_dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradients_are_true(
    layout: str, x_dtype: torch.dtype, y_dtype: torch.dtype, reduction: str, log_target: bool
) -> None:
    if layout == "0-d" and reduction == "batchmean":
        x = lucid.tensor(-1.0)
        with pytest.raises(RuntimeError, match=r"'batchmean' divides by x\.shape"):
            F.kl_div(x, x, reduction=reduction)
        return
    (x_shape, x_view), (y_shape, y_view) = LAYOUTS[layout]
    check_kl_div(x_view(_draw(x_shape, x_dtype)), y_view(_draw(y_shape, y_dtype, log_target)), log_target, reduction)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", F.REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_loss_and_gradients_are_true_with_the_tiles_of_a_gpu(
    dtype: torch.dtype, reduction: str, log_target: bool
) -> None:
    with tk.tile_configs.use_tile_configs(interpreted=False):
        check_kl_div(_draw((41, 171), dtype), _draw((41, 171), dtype, log_target), log_target, reduction)


def test_a_program_may_sum_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tk.tile_configs.Config({"BLOCK": 256, "TILES": 4})
    monkeypatch.setattr(tk.tile_configs, "pointwise_sum", lambda itemsize, numel, dims: config)
    x, log_p = _draw((41, 171), torch.float64), _draw((41, 171), torch.float64)
    loss = tk.kl_div_forward(x, log_p, log_target=True)
    terms = kl_terms(exact(x), exact(log_p), True)
    assert_within(loss, terms.sum(), np.abs(terms).sum(), torch.float64)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_target_of_one_element_is_broadcast(dtype: torch.dtype, log_target: bool) -> None:
    check_kl_div(_draw((6, 9), dtype), _draw((), dtype, log_target), log_target, "sum")


def test_an_unreduced_loss_is_laid_out_in_memory_as_its_inputs_are() -> None:
    x = _draw((7, 24), torch.float32).t()
    loss = tk.kl_div_forward(x, x, reduce=False, log_target=True)
    assert loss.stride() == x.stride()


def test_the_documented_examples_give_the_documented_numbers() -> None:
    def tensor(*values: float) -> lucid.Tensor:
        return lucid.tensor([values], dtype="float64")

    x, p = F.log_softmax(tensor(0.5, 1.0, 0.2), dim=1), F.softmax(tensor(0.3, 0.9, 0.4), dim=1)
    loss = lucid.nn.KLDivLoss(reduction="batchmean")(x, p)
    assert loss.item() == pytest.approx(0.0117040804, abs=5e-11)
    x, log_p = F.log_softmax(tensor(1.0, 2.0, 0.5), dim=1), F.log_softmax(tensor(0.8, 1.5, 0.9), dim=1)
    loss = lucid.nn.KLDivLoss(reduction="batchmean", log_target=True)(x, log_p)
    assert loss.item() == pytest.approx(0.0630953940, abs=5e-11)


def _rows_of_every_kind(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a student and of a teacher: ordinary, nearly equal, peaked, sure, almost sure."""
    s, t = (3 * torch.randn(12, 171, dtype=torch.float64) for _ in range(2))
    t[2:4] = s[2:4] + 1e-3 * t[2:4]
    s[4:6], t[4:6] = 30 * s[4:6], 30 * t[4:6]
    t[6:8, 5] += 40
    s[6, 5] += 40
    for row, gap in ((8, 3.0), (9, 6.0), (10, 9.0), (11, 12.0)):
        s[row, 7] = s[row].logsumexp(0) + gap
        t[row, 7] = t[row].logsumexp(0) + gap
    return s.log_softmax(-1).to(DEVICE, dtype), t.log_softmax(-1).to(DEVICE, dtype)


@pytest.mark.interpreter_only
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("log_target", [False, True], ids=["probabilities", "log-probabilities"])
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_loss_and_gradients_are_true_with_the_worst_errors_that_a_gpu_may_make(
    dtype: torch.dtype, reduction: str, log_target: bool, direction: str
) -> None:
    x, log_p = _rows_of_every_kind(dtype)
    y = log_p if log_target else log_p.double().exp().to(dtype)
    with worst_case(direction):
        check_kl_div(x, y, log_target, reduction)
        for row in range(len(x)):  # so that no row hides another's error
            check_kl_div(x[row], y[row], log_target, reduction)


@pytest.mark.interpreter_only
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_logarithm_is_good_to_a_few_roundings_for_every_probability(direction: str) -> None:
    """p alone, against itself: nothing else is added up that an error could be small beside."""
    near_1 = 1 + np.arange(-(2**17), 2**17) * 2.0**-18
    everywhere = np.exp(np.linspace(-103, 80, 2**15))
    p = torch.from_numpy(np.concatenate([near_1[near_1 > 0], everywhere])).float()
    x = torch.zeros_like(p)
    with worst_case(direction):
        check_kl_div(x, p, False, "none")


@pytest.mark.interpreter_only
@pytest.mark.kernels_only
def test_without_the_rest_near_1_the_worst_errors_exceed_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_div.math, "NEAR_1_FROM", kl_div.tl.constexpr(float("inf")))
    x, log_p = _rows_of_every_kind(torch.float32)
    with worst_case("up"), pytest.raises(AssertionError, match="exceeds its budget"):
        check_kl_div(x[-1], log_p[-1].double().exp().float(), False, "sum")
