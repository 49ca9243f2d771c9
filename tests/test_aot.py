"""Launches compiled for GPUs that need not be there: how they are described, and that faults are found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import triton_kernels
from perf.static import matrix, reachable
from tests import broken_kernels
from tests.device import DEVICE
from triton_kernels.devtools import aot, trace
from triton_kernels.runtime import launch
from triton_kernels.runtime.launch import Launch
from triton_kernels.runtime.tile_configs import Config


def _launch(kernel: Any, block: int, offset: int = 0) -> Launch:
    x, y = (torch.empty(2**20 + 16, device="meta")[offset:][: 2**20] for _ in range(2))
    return Launch(kernel, (1,), {"x_ptr": x, "y_ptr": y}, Config({"BLOCK": block}, num_warps=4))


def test_refused_spilling_and_narrow_launches_are_found_on_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    calls = [
        ("wide", _launch(broken_kernels.copy, 1024)),
        ("unaligned", _launch(broken_kernels.copy, 1024, offset=1)),
        ("refused", _launch(broken_kernels.refused, 4)),
        ("spill", _launch(broken_kernels.spill, 2**17)),
        ("narrow", _launch(broken_kernels.narrow, 1024)),
    ]
    found = reachable.faults(calls, tuple(aot.TARGETS), jobs=2)
    by_target = {target: [fault for fault in found if f", {target}: " in fault] for target in aot.TARGETS}
    for target, faults in by_target.items():
        refused, spill, *narrow = faults
        assert refused.startswith(f"refused, refused, {target}: CompilationError")
        assert spill.startswith(f"spill, spill, {target}: ")
        assert " bytes of spills with " in spill
        expected = f"narrow, narrow, {target}: 32 bytes a thread in 128-bit accesses, at least 64 expected"
        assert narrow == ([expected] if target.startswith("cuda") else [])  # accesses are not read from hip's code
    assert capsys.readouterr().out == "20 launches compiled, 11 of them with faults\n"


def test_launches_that_are_described_alike_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(function: Any, tasks: list[Any], jobs: int) -> list[Any]:
        assert len(tasks) == 1
        return [{"spills": 0, "shared": 0, "loads": {}, "stores": {}} for _ in tasks]

    monkeypatch.setattr(reachable.worker, "answers", answers)
    assert (
        reachable.faults(
            [("one", _launch(broken_kernels.copy, 64)), ("two", _launch(broken_kernels.copy, 64))], ["cuda:90"], 1
        )
        == []
    )


@pytest.mark.parametrize(("target", "most"), [("cuda:80", 166912), ("cuda:90", 232448), ("hip:gfx942", 65536)])
def test_a_launch_that_needs_more_shared_memory_than_a_target_has_is_found(
    target: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = iter((most, most + 1))
    report = {"spills": 0, "loads": {}, "stores": {}}
    monkeypatch.setattr(reachable.worker, "answers", lambda *_: [{**report, "shared": next(used)}])
    call = [("copy", _launch(broken_kernels.copy, 64))]
    assert reachable.faults(call, [target], 1) == []
    (fault,) = reachable.faults(call, [target], 1)
    assert fault == f"copy, copy, {target}: {most + 1} bytes of shared memory, at most {most} accepted"


def test_partial_sums_are_not_of_full_size_though_all_operands_broadcast() -> None:
    made: list[Launch] = []
    with torch.device("meta"), launch.dry_run(made.append):
        column, row = torch.empty(256, 1), torch.empty(4096, dtype=torch.float64)
        triton_kernels.kl_div_forward(column, row, reduce=True)
    assert reachable.least_wide(made[0]) == 0


def test_one_launch_in_eight_is_compiled_for_another_target_and_always_for_the_same() -> None:
    targets = [reachable.some_targets(str(number)) for number in range(1000)]
    assert targets == [reachable.some_targets(str(number)) for number in range(1000)]
    assert {first for first, *_ in targets} == {"cuda:90"}
    others = [other for _, *rest in targets for other in rest]
    assert set(others) == set(aot.TARGETS) - {"cuda:90"}
    assert 90 < len(others) < 160


class TestMatrix:
    def test_every_kernel_is_launched(self) -> None:
        launched = {made.kernel.__name__ for _, made in reachable.launches()}
        assert launched == set(_kernels())

    def test_every_launcher_is_called(self) -> None:
        no_launchers = {"raise_pending_errors"}
        launchers = {name for name in triton_kernels.__all__ if callable(getattr(triton_kernels, name))}
        assert {*matrix.CALLS} >= launchers - no_launchers


def _kernels() -> Iterator[str]:
    """Names of the jit functions of the package that are launched."""
    import sys

    for name, module in list(sys.modules.items()):
        if name.startswith("triton_kernels."):
            yield from (key for key in vars(module) if key.startswith("_") and key.endswith("_kernel"))


class TestDescriptions:
    def _describe(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        with trace.launches() as made:
            triton_kernels.kl_div_forward(*args, **kwargs)
        return [aot.describe(launched) for launched in made]

    def test_launches_that_differ_only_in_sizes_are_the_same(self) -> None:
        with triton_kernels.tile_configs.use_tile_configs(interpreted=False):
            first = self._describe(torch.zeros(50).to(DEVICE), torch.zeros(50).to(DEVICE))
            second = self._describe(torch.zeros(7, 9).to(DEVICE), torch.zeros(7, 9).to(DEVICE))
        assert first == second

    def test_dtype_alignment_and_flags_tell_launches_apart(self) -> None:
        x = torch.zeros(65).to(DEVICE)
        described = [
            self._describe(x[:64], x[:64]),
            self._describe(x[1:], x[:64]),
            self._describe(x[:64].double(), x[:64]),
            self._describe(x[:64], x[:64], log_target=True),
        ]
        assert len({json.dumps(d) for d in described}) == 4

    def test_a_description_is_plain_data(self) -> None:
        (described,) = self._describe(torch.zeros(64).to(DEVICE), torch.zeros(64).to(DEVICE))
        assert json.loads(json.dumps(described)) == described

    def test_planned_launches_are_those_of_a_gpu_and_are_not_executed(self) -> None:
        planned: list[Launch] = []
        x = torch.empty(3, 70000, device="meta")
        with triton_kernels.launch.dry_run(planned.append), trace.launches() as made:
            triton_kernels.softmax_forward(x, 1)
        assert [launched.kernel.__name__ for launched in planned] == ["_softmax_kernel"]
        assert made == []
