"""Parametrized tests run with all pairs of values of their parameters."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pairs import covering


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), unique=True, min_size=1))
def test_chosen_cases_have_every_pair_of_values_that_any_case_has(cases: list[tuple[int, ...]]) -> None:
    def pairs(indices: list[int]) -> set[object]:
        return {pair for i in indices for pair in combinations(enumerate(cases[i]), 2)}

    assert pairs(covering(cases)) == pairs(list(range(len(cases))))


def test_there_are_few_more_cases_than_pairs_of_the_two_longest_parameters() -> None:
    cases = [(a, b, c, d) for a in range(6) for b in range(5) for c in range(4) for d in range(3)]
    assert 30 <= len(covering(cases)) <= 36


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [0, 1, 2])
@pytest.mark.parametrize(("c", "d"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_parameters_that_are_given_together_are_one(
    a: int, b: int, c: int, d: int, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--every-combination"):
        pytest.skip("about a selection of combinations")
    name = request.node.originalname
    items: list[Any] = [item for item in request.session.items if getattr(item, "originalname", "") == name]
    cases = [item.callspec.params for item in items]
    assert len({(case["b"], case["c"], case["d"]) for case in cases}) == len(cases) == 12
    assert len({(case["a"], case["c"], case["d"]) for case in cases}) == 8
