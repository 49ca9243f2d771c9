"""Parametrized tests run with all pairs of values of their parameters."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pairs import covering, pairs_of


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), unique=True, min_size=1))
def test_chosen_cases_have_every_pair_of_values_that_any_case_has(cases: list[tuple[int, ...]]) -> None:
    pairs = [pairs_of(case) for case in cases]
    assert frozenset().union(*(pairs[i] for i in covering(pairs))) == frozenset().union(*pairs)


def test_there_are_few_more_cases_than_pairs_of_the_two_longest_parameters() -> None:
    assert 30 <= len(covering([pairs_of(case) for case in product(range(6), range(5), range(4), range(3))])) <= 36


def _cases(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Return the parameters of the cases of a test that are run."""
    if request.config.getoption("--every-combination"):
        pytest.skip("about a selection of combinations")
    name = request.node.originalname
    items: list[Any] = [item for item in request.session.items if getattr(item, "originalname", "") == name]
    return [item.callspec.params for item in items]


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [0, 1, 2])
@pytest.mark.parametrize(("c", "d"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_parameters_that_are_given_together_are_one(
    a: int, b: int, c: int, d: int, request: pytest.FixtureRequest
) -> None:
    cases = _cases(request)
    assert len({(case["b"], case["c"], case["d"]) for case in cases}) == len(cases) == 12
    assert len({(case["a"], case["c"], case["d"]) for case in cases}) == 8


@pytest.mark.interpreter_only
@pytest.mark.usefixtures("launchers", "tiles")
@pytest.mark.parametrize("a", [0, 1, 2, 3])
@pytest.mark.parametrize("b", [0, 1, 2])
def test_kernels_with_the_tiles_of_a_gpu_run_with_every_pair_and_other_variants_with_every_value(
    a: int, b: int, request: pytest.FixtureRequest
) -> None:
    by_variant: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for case in _cases(request):
        by_variant.setdefault((case["launchers"], case["tiles"]), set()).add((case["a"], case["b"]))
    assert by_variant.pop(("kernels", "GPU's tiles")) == set(product(range(4), range(3)))
    assert len(by_variant) == 2
    for cases in by_variant.values():
        assert len(cases) == 4
        assert {b for _, b in cases} == {0, 1, 2}
