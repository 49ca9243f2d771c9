"""All-pairs coverage: a few cases of a test that together have every pair of values of its parameters."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations

import pytest


def covering(cases: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """Return the indices of cases that have every pair of values that occurs in any of them: greedy, deterministic."""
    pairs = [set(combinations(enumerate(case), min(2, len(case)))) for case in cases]
    missing = set[object]().union(*pairs)
    queue = [(-len(new), i) for i, new in enumerate(pairs)]
    heapq.heapify(queue)
    chosen: list[int] = []
    while missing:
        before, i = heapq.heappop(queue)
        now = -len(pairs[i] & missing)
        if now > before:  # covered in part since it was counted
            heapq.heappush(queue, (now, i))
        else:
            missing -= pairs[i]
            chosen.append(i)
    return sorted(chosen)


def thin(items: list[pytest.Item], config: pytest.Config) -> None:
    """Keep the cases of each parametrized test that cover all pairs; all of one marked ``every_combination``."""
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        groups[item.nodeid.partition("[")[0]].append(item)
    kept: set[pytest.Item] = set()
    for group in groups.values():
        every = len(group) == 1 or group[0].get_closest_marker("every_combination")
        kept.update(group if every else [group[i] for i in covering([_factors(item) for item in group])])
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _factors(item: pytest.Item) -> tuple[Hashable, ...]:
    """Return the identities of the values of each parameter; those that are parametrized together are one."""
    params: dict[str, object] = item.callspec.params  # type: ignore[attr-defined]
    factor = {name: name for name in params}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        factor.update(dict.fromkeys(names, names[0]))
    values: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for name in sorted(params):
        values[factor[name]] += (id(params[name]),)
    return tuple(values.values())
