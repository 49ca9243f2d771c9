"""Random numbers: the bits of Philox by seed, counter and element, and the distributions made of them."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid import nn
from tests.device import DEVICE
from tests.philox import element_bits, philox
from tests.reference import FLOATS, ROUNDOFF, exact
from tests.values import values_of
from triton_kernels import random

SHAPE = (13, 41)
NUMEL = 13 * 41
BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}
#: Its counters cross 2³²; the key has a high word.
STATE = (3 * 2**40 + 7, 2**32 - 50)


def layouts(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Buffers of one shape."""
    return {
        "contiguous": torch.empty(SHAPE, dtype=dtype, device=DEVICE),
        "transposed": torch.empty(SHAPE[::-1], dtype=dtype, device=DEVICE).T,
        "sliced": torch.empty(13, 2 * 41 + 1, dtype=dtype, device=DEVICE)[:, 1::2],
    }


def fractions(dtype: torch.dtype, state: tuple[int, int] = STATE, numel: int = NUMEL) -> np.ndarray:
    """The numbers in [0, 1) that elements have, by the first bits of their words."""
    wide = dtype is torch.float64
    bits = element_bits(*state, numel, wide)
    return (bits >> np.uint64((64 if wide else 32) - BITS[dtype])) * 2.0 ** -BITS[dtype]


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ([0] * 4, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_reference_gives_the_known_answers_of_random123(counter: list[int], seed: int, words: str) -> None:
    assert [f"{word:08x}" for word in philox(seed, [np.array(word) for word in counter])] == words.split()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_uniform_numbers_are_philoxs_bits_in_row_major_order(tiles: str, dtype: torch.dtype, layout: str) -> None:
    out = layouts(dtype)[layout]
    random.fill_uniform(out, *STATE)
    np.testing.assert_array_equal(exact(out).ravel(), fractions(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_bits_are_below_one(dtype: torch.dtype) -> None:
    top = torch.tensor(1 - 2.0 ** -BITS[dtype], dtype=torch.float64)
    assert top.to(dtype).item() == top.item() < 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("low", "high"), [(-0.3, 0.3), (2.0, 3.0), (1e4, 1e4)])
def test_uniform_numbers_between_bounds_are_rounded_once(dtype: torch.dtype, low: float, high: float) -> None:
    out = layouts(dtype)["contiguous"]
    random.fill_uniform(out, *STATE, low, high)
    scale = high - low if dtype is torch.float64 else float(np.float32(high - low))
    truth = torch.tensor(low + scale * fractions(dtype))
    expected = truth if dtype is torch.float64 else truth.float().to(dtype)
    atol = 2.0**-53 if dtype is torch.float64 else 0.0  # for a fused multiply-add
    np.testing.assert_allclose(exact(out).ravel(), exact(expected), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_normal_numbers_are_quantiles_of_uniform_ones(tiles: str, dtype: torch.dtype, layout: str) -> None:
    out = layouts(dtype)[layout]
    random.fill_normal(out, *STATE, mean=0.5, std=2.0)
    wide = dtype is torch.float64
    bits = element_bits(*STATE, NUMEL, wide) >> np.uint64(12 if wide else 0)
    quantiles = torch.special.ndtri(torch.tensor((bits + 0.5) * 2.0 ** (-52 if wide else -32)))
    truth = 0.5 + 2 * quantiles.numpy()
    np.testing.assert_allclose(exact(out).ravel(), truth, rtol=1.01 * ROUNDOFF[dtype], atol=1e-14 if wide else 1e-7)


@pytest.mark.parametrize("p", [1e-300, 1e-20, 2e-11, 1e-9, 0.01, 0.0749, 0.0751, 0.3, 0.5, 0.77, 0.9251, 1 - 2.0**-50])
def test_quantiles_are_right_in_the_middle_and_in_both_tails(p: float) -> None:
    """Of one probability, in place of those that random bits give."""
    out = torch.empty(3, dtype=torch.float64, device=DEVICE)
    standard = {"mean": 0.0, "std": 1.0, "least": -math.inf, "most": math.inf, "WIDE": True}
    random._fill(random._normal_kernel, out, 0, 0, p_from=p, p_to=p, **standard)
    # NumPy has no quantiles, and torch's are less precise in the tails.
    np.testing.assert_allclose(exact(out), statistics.NormalDist().inv_cdf(p), rtol=2e-15, atol=1e-16)


@pytest.mark.parametrize("x", [-20.0, -6.3, -3.1, -1.4, -0.2, 0.1, 1.9, 3.3, 7.7])
def test_truncated_numbers_are_within_bounds_that_have_no_number_between_them(x: float) -> None:
    out = torch.empty(3, dtype=torch.float64, device=DEVICE)
    bounds = x, np.nextafter(x, np.inf).item()
    random.fill_normal(out, 0, 0, least=bounds[0], most=bounds[1])
    assert set(exact(out)) <= set(bounds)


@pytest.mark.parametrize(
    ("least", "most"), [(-2.0, 2.0), (-0.1, 0.3), (1.0, 1.5), (4.0, 6.0), (-8.0, -7.5), (8.0, 9.0)]
)
def test_truncated_normal_numbers_have_the_distribution_between_the_bounds(least: float, most: float) -> None:
    out = torch.empty(4000, dtype=torch.float64, device=DEVICE)
    random.fill_normal(out, *STATE, mean=0.5, std=2.0, least=0.5 + 2 * least, most=0.5 + 2 * most)
    values = (exact(out) - 0.5) / 2
    assert least <= values.min()
    assert values.max() <= most

    def cdf(x: torch.Tensor) -> torch.Tensor:
        return torch.special.erfc(x * -np.sqrt(0.5)) / 2

    # By symmetry in the lower tail, where the distribution function is precise.
    a, b, x = (
        torch.tensor(v, dtype=torch.float64) for v in ((least, most, values) if least < 0 else (-most, -least, -values))
    )
    uniform = ((cdf(x) - cdf(a)) / (cdf(b) - cdf(a))).sort().values.numpy()
    distance = np.abs(uniform - (np.arange(4000) + 0.5) / 4000).max()
    assert distance < 1.63 / np.sqrt(4000), "Kolmogorov-Smirnov at 1 %"


def test_moments_and_correlations_of_a_stream_are_those_of_independent_numbers() -> None:
    n = 200_000
    lucid.manual_seed(11)
    even, normal = lucid.rand(n).numpy().astype(np.float64), lucid.randn(n).numpy().astype(np.float64)
    for values, variance, fourth in ((even - 0.5, 1 / 12, 1 / 80), (normal, 1, 3)):
        assert abs(values.mean()) < 4 * np.sqrt(variance / n)
        assert abs((values**2).mean() - variance) < 4 * np.sqrt((fourth - variance**2) / n)
        for lag in (1, 2, 3, 4, 41):
            assert abs((values[lag:] * values[:-lag]).mean()) < 4.5 * variance / np.sqrt(n)
    assert abs(((even - 0.5) * normal).mean()) < 4.5 * np.sqrt(1 / 12 / n), "calls in sequence are independent"


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(("low", "high"), [(-3, 5), (0, 1), (-128, 127), (7, 100)])
def test_integers_are_remainders_of_64_bits(tiles: str, dtype: torch.dtype, low: int, high: int) -> None:
    out = layouts(dtype)["transposed"]
    random.fill_randint(out, *STATE, low, high)
    bits = element_bits(*STATE, NUMEL, wide=True)
    np.testing.assert_array_equal(out.cpu().numpy().ravel(), low + (bits % np.uint64(high - low)).astype(np.int64))


def test_integers_may_be_far_apart() -> None:
    values = lucid.randint(-(2**62), 2**62 - 1, (1000,)).numpy()
    assert values.min() < -(2**61)
    assert values.max() > 2**61


def test_randint_takes_its_bounds_as_torch_does() -> None:
    lucid.manual_seed(1)
    first = lucid.randint(5, (40,), dtype="int32")
    lucid.manual_seed(1)
    assert first.tolist() == lucid.randint(0, 5, (40,)).tolist()
    assert first.dtype is lucid.int32
    assert set(first.tolist()) == set(range(5))


@pytest.mark.parametrize("n", [0, 1, 2, 1001])
def test_a_permutation_has_every_number_once(n: int) -> None:
    order = lucid.randperm(n)
    assert sorted(order.tolist()) == list(range(n))
    assert order.dtype is lucid.int64
    assert n < 3 or order.tolist() != list(range(n))


def test_all_permutations_are_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(300):
        order = tuple(lucid.randperm(3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert sum((count - 50) ** 2 / 50 for count in counts.values()) < 20.5, "chi-squared of 5 degrees at 0.1 %"


def test_bernoulli_numbers_are_ones_at_their_probability() -> None:
    values = lucid.bernoulli(0.3, size=(100, 100), dtype="float16").numpy()
    assert set(values.ravel().tolist()) == {0.0, 1.0}
    assert abs(values.mean(dtype=np.float64) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1e4)
    assert not lucid.bernoulli(0, size=9).numpy().any()
    assert lucid.bernoulli(1, size=9).numpy().all()


DRAWS: dict[str, Callable[[], Any]] = {
    "rand": lambda: lucid.rand(7),
    "rand of float64": lambda: lucid.rand(7, dtype="float64"),
    "randn": lambda: lucid.randn(7),
    "randint": lambda: lucid.randint(0, 1000, (7,)),
    "randperm": lambda: lucid.randperm(7),
    "bernoulli": lambda: lucid.bernoulli(0.5, size=7),
    "rand_like": lambda: lucid.rand_like(lucid.zeros(7)),
    "randn_like": lambda: lucid.randn_like(lucid.zeros(7)),
    "nn.init": lambda: nn.init.xavier_normal_(lucid.zeros(1, 7)),
    "dropout": lambda: nn.functional.dropout(lucid.ones(7)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_restored_state_repeats_what_followed_and_continues(name: str) -> None:
    draw = DRAWS[name]
    lucid.manual_seed(5)
    lucid.rand(3)
    state = lucid.get_rng_state()
    first, second = draw().tolist(), lucid.randn(3, dtype="float64").tolist()
    lucid.manual_seed(6)
    lucid.set_rng_state(state)
    assert draw().tolist() == first
    assert lucid.randn(3, dtype="float64").tolist() == second
    assert lucid.initial_seed() == 5


@pytest.mark.parametrize("name", DRAWS)
def test_every_call_takes_the_same_counters_for_the_same_number_of_elements(name: str) -> None:
    lucid.manual_seed(5)
    DRAWS[name]()
    assert lucid.get_rng_state().tolist() == [5, 4]


def test_a_seed_of_the_operating_system_is_returned_and_repeats() -> None:
    seed = lucid.seed()
    first = lucid.rand(4).tolist()
    assert lucid.initial_seed() == seed != lucid.seed()
    lucid.manual_seed(seed)
    assert lucid.rand(4).tolist() == first


def test_threads_get_numbers_of_their_own() -> None:
    lucid.manual_seed(2)
    draws: list[list[float]] = []
    threads = [threading.Thread(target=lambda: draws.append(lucid.rand(8).tolist())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lucid.manual_seed(2)
    assert sorted(draws) == sorted(lucid.rand(8).tolist() for _ in threads)


def test_numbers_of_another_device_are_the_same() -> None:
    """Where kernels do not run on the CPU, its memory is filled by way of theirs."""
    lucid.manual_seed(3)
    here = lucid.randn(5, device="cpu")
    lucid.manual_seed(3)
    np.testing.assert_allclose(here.numpy(), lucid.randn(5).numpy(), rtol=1e-6)
    assert here.device == "cpu"


def test_an_empty_tensor_takes_no_counters() -> None:
    before = lucid.get_rng_state().tolist()
    assert lucid.rand(0, 3).shape == lucid.randn(0, 3).shape == (0, 3)
    assert lucid.get_rng_state().tolist() == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lucid.manual_seed(2**63), ValueError, "seed must be a non-negative integer of at most 63 bits"),
        (lambda: lucid.manual_seed(True), ValueError, "got True"),
        (lambda: lucid.set_rng_state([1, 2]), TypeError, "state must be an int64 lucid.Tensor .* got list"),
        (lambda: lucid.set_rng_state(lucid.zeros(2)), TypeError, "got lucid.float32"),
        (lambda: lucid.set_rng_state(lucid.tensor([1])), ValueError, r"two non-negative numbers, got \[1\]"),
        (lambda: lucid.set_rng_state(lucid.tensor([1, -1])), ValueError, r"got \[1, -1\]"),
        (lambda: lucid.randint(3, 3, (2,)), ValueError, "low must be below high, .* got low=3 and high=3"),
        (lambda: lucid.randint(0, 200, (2,), dtype="int8"), ValueError, "within lucid.int8, got low=0 and high=200"),
        (lambda: lucid.randint(-(2**62) - 1, 2**62, (2,)), ValueError, "less than 2"),
        (lambda: lucid.randint(0.5, 3, (2,)), TypeError, "low must be an int, got float"),
        (lambda: lucid.randint(0, 3, (2,), dtype="float32"), TypeError, "an integer dtype, got lucid.float32"),
        (lambda: lucid.randperm(-1), ValueError, "n must be non-negative, .* got -1"),
        (lambda: lucid.randperm(300, dtype="int8"), ValueError, "within lucid.int8, got 300"),
        (lambda: lucid.randperm(3, dtype="bool"), TypeError, "an integer dtype, got lucid.bool_"),
        (lambda: lucid.bernoulli(1.5, size=2), ValueError, "p must be a number from 0 to 1, got 1.5"),
        (lambda: lucid.rand_like([1.0]), TypeError, "other must be a lucid.Tensor, got list"),
    ],
)
def test_what_cannot_be_drawn_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    before = lucid.get_rng_state().tolist()
    with pytest.raises(error, match=message):
        call()
    assert lucid.get_rng_state().tolist() == before


def test_values_of_a_seed_stay() -> None:
    """Checkpoints and published seeds rely on them."""
    lucid.manual_seed(0)
    assert [f"{value:.5f}" for value in values_of(lucid.rand(3))] == ["0.39905", "0.88052", "0.73571"]
    assert [f"{value:.5f}" for value in values_of(lucid.randn(3))] == ["-2.06526", "-0.46925", "-1.07608"]
