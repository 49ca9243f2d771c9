"""Parametrized tests run with all pairs of values of their parameters."""

from __future__ import annotations

from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.static.pairs import covering, pairs_of, pairwise
from tests.pairs import thin


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), unique=True, min_size=1))
def test_chosen_cases_have_every_pair_of_values_that_any_case_has(cases: list[tuple[int, ...]]) -> None:
    pairs = [pairs_of(case) for case in cases]
    assert frozenset().union(*(pairs[i] for i in covering(pairs))) == frozenset().union(*pairs)


def test_there_are_few_more_cases_than_pairs_of_the_two_longest_parameters() -> None:
    assert 30 <= len(covering([pairs_of(case) for case in product(range(6), range(5), range(4), range(3))])) <= 36


def test_any_two_values_of_two_factors_meet() -> None:
    factors = {"a": range(12), "b": range(9), "c": range(3), "d": range(2)}
    cases = pairwise(factors)
    for one, two in combinations(factors, 2):
        assert {(case[one], case[two]) for case in cases} == set(product(factors[one], factors[two]))
    assert len(cases) <= 130
    with pytest.raises(ValueError, match="draw more"):
        pairwise({"a": range(200), "b": range(200)})


def _kept(parametrized: dict[str, list[tuple[Any, ...]]], marked: bool = False) -> list[dict[str, Any]]:
    """Return the parameters of the cases that are kept of a test with these decorators."""
    items: list[Any] = []
    for values in product(*parametrized.values()):
        params: dict[str, Any] = {}
        for names, value in zip(parametrized, values, strict=True):
            params |= dict(zip(names.split(", "), value, strict=True))
        items.append(
            SimpleNamespace(
                nodeid=f"tests/test_x.py::test_x[{len(items)}]",
                callspec=SimpleNamespace(params=params),
                iter_markers=lambda _: [pytest.mark.parametrize(names, []).mark for names in parametrized],
                get_closest_marker=lambda _: marked or None,
            )
        )
    dropped: list[Any] = []
    config: Any = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: dropped.extend(items)))
    count = len(items)
    thin(items, config)
    assert len(items) + len(dropped) == count
    return [item.callspec.params for item in items]


def test_parameters_that_are_given_together_are_one() -> None:
    cases = _kept({"a": [(0,), (1,)], "b": [(0,), (1,), (2,)], "c, d": [(0, 0), (0, 1), (1, 0), (1, 1)]})
    assert len({(case["b"], case["c"], case["d"]) for case in cases}) == len(cases) == 12
    assert len({(case["a"], case["c"], case["d"]) for case in cases}) == 8


def test_a_test_that_is_marked_runs_with_every_combination() -> None:
    factor = [(0,), (1,), (2,)]
    assert len(_kept({"a": factor, "b": factor, "c": factor}, marked=True)) == 27


def test_kernels_with_the_tiles_of_a_gpu_run_with_every_pair_and_other_variants_with_every_value() -> None:
    cases = _kept(
        {
            "launchers, tiles": [("kernels", "GPU's tiles"), ("kernels", "others"), ("torch's", "GPU's tiles")],
            "a": [(0,), (1,), (2,), (3,)],
            "b": [(0,), (1,), (2,)],
        }
    )
    by_variant: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for case in cases:
        by_variant.setdefault((case["launchers"], case["tiles"]), set()).add((case["a"], case["b"]))
    assert by_variant.pop(("kernels", "GPU's tiles")) == set(product(range(4), range(3)))
    assert len(by_variant) == 2
    for pairs in by_variant.values():
        assert len(pairs) == 4
        assert {b for _, b in pairs} == {0, 1, 2}
