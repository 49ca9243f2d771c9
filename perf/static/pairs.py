"""All-pairs coverage: a few cases that together have every pair of values of their factors."""

from __future__ import annotations

import heapq
import random
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

#: Cases that are drawn at random to choose from: a pair of values is in several of them.
DRAWN = 2000


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Cases in which any two values of different factors meet; few, but not the fewest; always the same."""
    draw = random.Random(0).randrange
    drawn = [tuple(draw(len(values)) for values in factors.values()) for _ in range(DRAWN)]
    pairs = [pairs_of(case) for case in drawn]
    every = sum(len(one) * len(two) for one, two in combinations(factors.values(), 2))
    if len(frozenset().union(*pairs)) < every:
        raise ValueError(f"not all {every} pairs of values are in {DRAWN} cases; draw more")
    chosen = [drawn[i] for i in covering(pairs)]
    return [{name: factors[name][i] for name, i in zip(factors, case, strict=True)} for case in chosen]


def covering(cases: Sequence[frozenset[Hashable]]) -> list[int]:
    """Return the indices of a set cover of the cases: greedy, deterministic."""
    missing = frozenset[Hashable]().union(*cases)
    queue = [(-len(case), i) for i, case in enumerate(cases)]
    heapq.heapify(queue)
    chosen: list[int] = []
    while missing:
        before, i = heapq.heappop(queue)
        now = -len(cases[i] & missing)
        if now > before:  # partly covered since it was counted
            heapq.heappush(queue, (now, i))
        else:
            missing -= cases[i]
            chosen.append(i)
    return sorted(chosen)


def pairs_of(values: Sequence[Hashable]) -> frozenset[Hashable]:
    """Return all pairs of values with their positions, or the single value."""
    return frozenset(combinations(enumerate(values), min(2, len(values))))
