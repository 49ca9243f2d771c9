"""A launcher's calls after the second with a layout: the recorded launches, with the values of the new call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import triton_kernels as tk
from tests.device import DEVICE
from triton_kernels.jit import partials
from triton_kernels.runtime import backend, launch, replay, tile_configs


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    replay.clear()
    yield
    replay.clear()


def _logits(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def _labels(seed: int, n: int, columns: int) -> torch.Tensor:
    return torch.randint(columns, (n,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _kl_div(seed: int) -> Any:
    x, p = _logits(seed, 6, 700), _logits(seed + 50, 6, 700).exp()
    one = torch.tensor(float(seed + 1)).to(DEVICE)
    grads = tk.kl_div_backward(x, p, one, shape=p.shape, dx_dtype=x.dtype, dtarget_dtype=p.dtype)
    return tk.kl_div_forward(x, p), tk.kl_div_forward(x, p, reduce=False), *grads


def _transposed(seed: int) -> Any:
    x, p = _logits(seed, 40, 30).t(), _logits(seed + 50, 40, 30).exp().t()
    return tk.kl_div_forward(x, p, reduce=False), tk.kl_div_forward(x[:, ::2], p[:, 1::2])


def _divergence(seed: int, name: str = "js", columns: int = 9001) -> Any:
    s, t, labels = _logits(seed, 3, columns), _logits(seed + 50, 3, columns), _labels(seed, 3, columns)
    losses, statistics = tk.divergence_forward(s, t, divergence=name, labels=labels, hard_label_weight=0.25)
    loss, factor = tk.token_mean(losses, weights=statistics[0])
    dtypes = {"dstudent_dtype": s.dtype, "dteacher_dtype": t.dtype}
    grads = tk.divergence_backward(
        s, t, statistics, loss, divergence=name, labels=labels, hard_label_weight=0.25, dloss_factor=factor, **dtypes
    )
    return losses, statistics[0], loss, factor, *grads


def _cross_entropy(seed: int) -> Any:
    x, labels = _logits(seed, 5, 1001, dtype=torch.bfloat16), _labels(seed, 5, 1001)
    losses, statistics = tk.cross_entropy_forward(x, labels, label_smoothing=0.1)
    one = torch.ones((), device=DEVICE)
    return losses, tk.cross_entropy_backward(x, labels, statistics, one, label_smoothing=0.1)


def _soft_cross_entropy(seed: int) -> Any:
    x, y = _logits(seed, 3, 9001), _logits(seed + 50, 3, 9001).exp()
    losses, statistics = tk.soft_cross_entropy_forward(x, y, label_smoothing=0.1)
    dtypes = {"dx_dtype": x.dtype, "dy_dtype": y.dtype}
    one = torch.ones((), device=DEVICE)
    return losses, *tk.soft_cross_entropy_backward(x, y, statistics, one, label_smoothing=0.1, **dtypes)


def _softmax(seed: int) -> Any:
    x = _logits(seed, 2, 70, 9)
    y = tk.softmax_forward(x, 1, log=True)
    return y, tk.softmax_backward(y, x, 1, log=True), tk.softmax_forward(x, 2)


def _token_mean(seed: int) -> Any:
    losses = _logits(seed, 20_000)
    return tk.token_mean(losses, weights=losses.abs(), dtype=torch.bfloat16)


CALLS: list[Callable[[int], Any]] = [
    _kl_div,
    _transposed,
    _divergence,
    _cross_entropy,
    _soft_cross_entropy,
    _softmax,
    _token_mean,
]


@pytest.mark.parametrize("calls", CALLS, ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("interpreted", [pytest.param(True, marks=pytest.mark.interpreter_only), False])
def test_a_repeated_call_gives_the_bits_of_a_first_one(calls: Callable[[int], Any], interpreted: bool) -> None:
    with tile_configs.use_tile_configs(interpreted=interpreted):
        first = []
        for seed in range(3):
            replay.clear()
            first.append(calls(seed))
        replay.clear()
        calls(8), calls(9)
        kept = dict(replay._recordings)
        assert kept
        assert all(isinstance(recording, replay._Recording) for recording in kept.values())
        repeated = [calls(seed) for seed in range(3)]
        assert dict(replay._recordings) == kept, "a call with known layouts was recorded again"
    for expected, found in zip(first, repeated, strict=True):
        for a, b in zip(expected, found, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
            assert torch.equal(a.cpu(), b.cpu())


def test_results_of_repeated_calls_have_memory_of_their_own() -> None:
    x, p = _logits(0, 4, 8), _logits(1, 4, 8).exp()
    results = [tk.kl_div_forward(x, p, reduce=False) for _ in range(5)]
    assert len({r.data_ptr() for r in results}) == 5


def test_one_tensor_twice_and_two_tensors_are_told_apart() -> None:
    x, p = _logits(0, 4, 8), _logits(1, 4, 8).exp()
    tk.kl_div_forward(p, p), tk.kl_div_forward(p, p)  # is recorded
    found = tk.kl_div_forward(x, p)
    replay.clear()
    assert torch.equal(found.cpu(), tk.kl_div_forward(x, p).cpu())


@pytest.mark.parametrize("rows", [0, 3])
def test_a_gradient_in_place_is_the_tensor_that_was_given(rows: int) -> None:
    for seed in range(4):
        s, t = _logits(seed, rows, 40), _logits(seed + 50, rows, 40)
        _, statistics = tk.divergence_forward(s, t)
        one = torch.ones((), device=DEVICE)
        expected, _ = tk.divergence_backward(s, t, statistics, one, dstudent_dtype=s.dtype)
        found, _ = tk.divergence_backward(s, t, statistics, one, student_out=s)
        assert found is s
        assert torch.equal(found.cpu(), expected.cpu())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: (_logits(0, 4, 8), _logits(1, 4, 8)), lambda: (_logits(0, 5, 8), _logits(1, 5, 8))),
        (lambda: (_logits(0, 8, 8), _logits(1, 8, 8)), lambda: (_logits(0, 8, 8).t(), _logits(1, 8, 8))),
        (lambda: (_logits(0, 4, 8), _logits(1, 4, 8)), lambda: (_logits(0, 4, 8).double(), _logits(1, 4, 8))),
        (lambda: (_logits(0, 64)[:16], _logits(1, 16)), lambda: (_logits(0, 64)[1:17], _logits(1, 16))),
    ],
    ids=["shape", "strides", "dtype", "alignment"],
)
def test_another_layout_is_another_recording(first: Any, second: Any) -> None:
    tk.kl_div_forward(*first())
    before = len(replay._recordings)
    found = tk.kl_div_forward(*second())
    assert len(replay._recordings) == before + 1
    x, y = (t.cpu().double() for t in second())
    truth = torch.nn.functional.kl_div(x, y.clamp(min=0), reduction="sum") if (y > 0).all() else None
    assert truth is None or torch.allclose(found.cpu().double(), truth, rtol=1e-6)


def test_observers_see_repeated_launches_as_they_saw_the_first() -> None:
    x, p = _logits(0, 4, 8), _logits(1, 4, 8).exp()
    seen: list[list[launch.Launch]] = [[], [], []]
    for made in seen:
        with launch.launch_hook(made.append):
            tk.kl_div_forward(x, p, reduce=False)
    (first,), _, (second,) = seen
    assert (first.kernel, first.grid[:1], first.config) == (second.kernel, second.grid[:1], second.config)
    assert first.args.keys() == second.args.keys()

    def without_tensors(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(without_tensors, value))
        return value.shape if isinstance(value, torch.Tensor) else value

    values = [{name: without_tensors(value) for name, value in made.args.items()} for made in (first, second)]
    assert values[0] == values[1]


def test_a_layout_that_comes_once_is_not_recorded() -> None:
    tk.kl_div_forward(_logits(0, 4), _logits(1, 4).exp())
    assert list(replay._recordings.values()) == [replay._SEEN]


def test_old_recordings_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MAX_RECORDINGS", 3)
    for n in range(1, 8):
        tk.kl_div_forward(_logits(0, n), _logits(1, n).exp())
    assert len(replay._recordings) == 3


def test_a_launcher_that_passes_a_view_of_an_argument_is_not_repeated() -> None:
    @replay.replayable
    def halved(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        launch.run(
            partials._finalize_kernel,
            (x.shape[0],),
            tile_configs.finalize(x.shape[1]),
            partials_ptr=x.view(-1),
            out_ptr=out[:, 0],
            columns=x.shape[1],
            scale=0.5,
            ACC_DTYPE=launch.tl_dtype(x.dtype),
        )
        return out

    halved(_logits(0, 1, 5)), halved(_logits(0, 1, 5))
    assert list(replay._recordings.values()) == [replay._NEVER]
    x = _logits(1, 1, 5)
    assert torch.allclose(halved(x)[0, 0].cpu(), x.cpu().sum() / 2)


class _ScaledKernel:
    """Stands in for a kernel: out = factors[0]·x, of operands (tensor, strides)."""

    arg_names = ("x", "out", "factors")

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def started(x: Any, out: Any, factors: Any, num_warps: int) -> None:
            assert x[1] == out[1] == (1,)
            out[0].copy_(x[0] * factors[0])

        return started


@pytest.mark.parametrize(
    ("passed", "repeats"), [("the argument", True), ("a view of the argument", False), ("a number in a tensor", False)]
)
def test_operands_are_repeated_with_the_tensors_of_the_call(passed: str, repeats: bool) -> None:
    @replay.replayable
    def doubled(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        operand = x.view(-1) if passed == "a view of the argument" else x
        factors = (torch.full((), 2.0) if passed == "a number in a tensor" else 2.0, 0.0)
        config = tile_configs.Config({})
        launch.run(_ScaledKernel(), (1,), config, x=(operand, (1,)), out=(out, (1,)), factors=factors)
        return out

    for seed in range(4):
        x = _logits(seed, 5)
        assert torch.equal(doubled(x), 2 * x)
    assert [isinstance(known, replay._Recording) for known in replay._recordings.values()] == [repeats]


@pytest.mark.parametrize("log", [False, True])
def test_a_launcher_that_calls_itself_with_a_view_is_not_repeated_without_launches(log: bool) -> None:
    """Softmax of a 0-d tensor is that of its one element: 1. A compiled logarithm of 1 is good to 2⁻²²."""
    for seed in range(5):
        y = tk.softmax_forward(_logits(seed), -1, log=log)
        dx = tk.softmax_backward(y, _logits(seed), -1, log=log)
        assert (float(y), float(dx)) == pytest.approx((0.0 if log else 1.0, 0.0), abs=4 * 2.0**-22)


def test_a_launcher_that_calls_another_is_recorded_with_its_launches() -> None:
    @replay.replayable
    def outer(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return tk.kl_div_forward(x, y, scale=0.5)

    found = []
    for seed in range(4):
        x, p = _logits(seed, 4, 8), _logits(seed + 50, 4, 8).exp()
        found.append((outer(x, p), x, p))
    (recording,) = (known for known in replay._recordings.values() if isinstance(known, replay._Recording))
    assert recording.launches
    for loss, x, p in found:
        assert torch.equal(loss.cpu(), tk.kl_div_forward(x, p, scale=0.5).cpu())


@pytest.mark.parametrize("result", ["a view of an argument", "what no launch wrote"])
def test_a_result_that_launches_did_not_make_is_not_repeated(result: str) -> None:
    @replay.replayable
    def launcher(x: torch.Tensor) -> torch.Tensor:
        return x[0] if result == "a view of an argument" else torch.empty((3,), device=x.device).fill_(7)

    for seed in range(4):
        x = _logits(seed, 2, 3)
        assert torch.equal(launcher(x), x[0] if result == "a view of an argument" else torch.full_like(x[0], 7))
    assert list(replay._recordings.values()) == [replay._NEVER]


@pytest.mark.parametrize("shape", [(5, 1, 16), (1, 5, 16), (5, 16, 1)], ids=str)
def test_results_are_laid_out_the_same_every_time(shape: tuple[int, ...]) -> None:
    """The stride of a dimension of size 1 is arbitrary, and `is_contiguous` ignores it."""
    x = _logits(0, *shape)[..., : (shape[-1] + 1) // 2]
    found = [tk.kl_div_forward(x, x.exp(), reduce=False).stride() for _ in range(4)]
    found += [tk.softmax_forward(x, 2).stride() for _ in range(4)]
    assert found == 4 * found[:1] + 4 * found[4:5]


@pytest.mark.skipif(backend.INTERPRETED, reason="the interpreter takes no tensor for a number")
@pytest.mark.parametrize("option", ["scale", "beta", "inv_temperature"])
def test_a_number_in_a_tensor_means_the_same_every_time(option: str) -> None:
    s, t = _logits(1, 3, 700), _logits(2, 3, 700)
    wanted = tk.divergence_forward(s, t, divergence="js", **{option: 0.25})[0]
    for _ in range(5):
        found = tk.divergence_forward(s, t, divergence="js", **{option: torch.tensor(0.25)})[0]
        assert torch.equal(found, wanted)


def test_options_are_told_apart_by_sign_of_zero_and_nan_is_one_option() -> None:
    x = p = torch.ones(3, device=DEVICE)
    for scale in (0.0, 0.0, -0.0, -0.0):
        tk.kl_div_forward(x, p, scale=scale)
    assert len(replay._recordings) == 2
    replay.clear()
    for _ in range(4):
        tk.kl_div_forward(x, p, scale=math.nan)
    assert len(replay._recordings) == 1


def test_an_option_that_is_no_plain_value_is_not_remembered() -> None:
    x = p = torch.ones(3, device=DEVICE)
    for _ in range(3):
        tk.kl_div_forward(x, p, scale=np.float64(0.5))
    assert not replay._recordings
