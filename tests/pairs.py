"""All-pairs testing: a subset of a test's cases that covers every pair of parameter values.

The main variant, kernels with GPU tiles, covers every pair. The other variants (torch's operators, the interpreter's
tiles) cover every value: the same claims hold for them, and each has few paths of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import pytest

from perf.static.pairs import covering, pairs_of

#: Fixtures that select a variant of the code under test, and the value that selects the main one.
VARIANTS = {"launchers": "kernels", "implementation": "kernels", "tiles": "GPU's tiles"}


def thin(items: list[pytest.Item], config: pytest.Config) -> None:
    """Keep cases of each parametrized test that cover all pairs; keep all of tests marked ``every_combination``."""
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        groups[item.nodeid.partition("[")[0]].append(item)
    kept: set[str] = set()
    for group in groups.values():
        every = len(group) == 1 or group[0].get_closest_marker("every_combination")
        chosen = group if every else [group[i] for i in covering([_covered(item) for item in group])]
        kept.update(item.nodeid for item in chosen)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]


def _covered(item: pytest.Item) -> frozenset[Hashable]:
    """Return what a case covers: pairs of values in the main variant, values with the variant in others."""
    params: dict[str, object] = item.callspec.params  # type: ignore[attr-defined]
    variant = tuple((name, str(params[name])) for name in VARIANTS if name in params)
    values = _values(item, {name: value for name, value in params.items() if name not in VARIANTS})
    if all(VARIANTS[name] == value for name, value in variant):
        return pairs_of(values)
    return frozenset([variant, *((variant, *each) for each in enumerate(values))])


def _values(item: pytest.Item, params: dict[str, object]) -> list[Hashable]:
    """Return the identities of the values of each parameter; those that are parametrized together are one."""
    factor = {name: name for name in params}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        factor.update(dict.fromkeys(names, names[0]))
    values: dict[str, tuple[int, ...]] = defaultdict(tuple)
    for name in sorted(params):
        values[factor[name]] += (id(params[name]),)
    return list(values.values())
