"""The estimates of memory in `perf.memory`, beside what torch's functions hold, counted operation by operation."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perf import cases, memory, providers
from perf.cases import Point

pytestmark = pytest.mark.interpreter_only

N, V = 8, 1024


class Live(TorchDispatchMode):
    """Bytes of storages that operations made and that are still there: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._live:
                    self._live[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._drop, storage._cdata)
        return result

    def _drop(self, key: int) -> None:
        self.now -= self._live.pop(key)


@pytest.fixture(autouse=True)
def _poison() -> None:
    """Fresh buffers are left as they are: filling them would count."""


def _names() -> list[tuple[str, str]]:
    return [(op, variant) for op, entry in cases.OPS.items() for variant in entry.variants if variant != "log"]


@pytest.mark.parametrize(("op", "variant"), _names())
def test_the_tensors_that_torch_holds_are_those_of_the_estimate(op: str, variant: str) -> None:
    point = Point(op, variant, N, V, torch.float32, "mean" if cases.OPS[op].reductions else "")
    inputs, dloss = cases.make_inputs(point, torch.device("cpu"), 0)
    saved = most = 0
    with cases.quiet():
        for mode in ("backward", "full"):
            subject = providers.Subject("torch", providers.function("torch", point), point, mode, inputs, dloss)
            subject.prepare()
            subject.clear()
            with Live() as live:
                subject.prepare()
                saved = max(saved, live.now)
                subject.step()
            most = max(most, live.most)
    estimated = memory.held(point, "torch")
    whole = N * V * 4
    assert (-(-(saved - 20 * N) // whole) <= estimated[0], -(-(most - 20 * N) // whole) <= estimated[1]) == (True, True)
    assert estimated[1] <= most / whole + 1


def test_jensen_shannon_of_torch_needs_nine_tensors_and_the_graph_of_each_other_set() -> None:
    point = Point("distillation", "js", 8192, 131072, torch.bfloat16, "mean")
    whole = 8192 * 131072 * 2
    ours, theirs = (
        memory.needed(point, provider, "backward", 2, ("output", "student")) for provider in ("lucid.torch", "torch")
    )
    assert theirs - ours == (9 + 6 - 1 - 1) * whole


def test_what_a_provider_overwrites_is_there_twice() -> None:
    point = Point("cross_entropy", "", 64, 4096, torch.float32, "mean")
    inputs = 64 * 4096 * 4 + 64 * 8
    needed = {name: memory.needed(point, name, "full", 3, ("output", "x")) for name in ("lucid.torch", "liger")}
    assert needed["liger"] - needed["lucid.torch"] == 3 * inputs
