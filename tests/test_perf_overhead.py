"""``python -m perf overhead``: counts without a GPU, and host times by a clock of our own making."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import triton_kernels
from perf import results
from perf.__main__ import main
from perf.count import counting
from perf.environment import COLUMNS as ENV
from perf.measure import overhead
from tests.test_perf_sweep import replace
from triton_kernels.runtime import tile_configs

pytestmark = pytest.mark.interpreter_only


@pytest.fixture(autouse=True)
def _poison() -> None:
    """Fresh buffers are left as they are: filling them would count."""


def _counts(tmp_path: Path, arguments: str, code: int = 0) -> list[dict[str, str]]:
    file = tmp_path / "rows.csv"
    assert main(["overhead", "--count-only", *arguments.split(), "--csv", str(file)]) == code
    return results.read_csv(file)


def test_without_a_gpu_launches_syncs_and_python_calls_are_counted(tmp_path: Path) -> None:
    rows = _counts(tmp_path, "kl_div --variants prob --dtypes fp32 --reductions mean --providers ours,torch,compile")
    assert tuple(rows[0]) == (
        *("format", "op", "variant", "mode", "provider", "n", "v", "d", "dtype", "reduction", "status"),
        *("median_us", "p20_us", "p80_us", "launches", "syncs", "python_calls"),
        *ENV,
    )
    found = {(row["provider"], row["mode"]): (row["launches"], row["syncs"]) for row in rows}
    assert found["ours", "forward"] == ("2", "0")
    assert found["ours", "backward"] == ("1", "0")
    assert found["ours", "full"] == ("3", "0")
    assert found["torch", "forward"] == ("4", "0")
    assert found["compile", "full"] == ("", "")
    assert {row["median_us"] for row in rows} == {""}
    calls = {(row["provider"], row["mode"]): int(row["python_calls"] or 0) for row in rows}
    assert calls["ours", "full"] > calls["ours", "forward"] > calls["torch", "forward"] > 0


def test_without_a_gpu_count_only_is_implied(tmp_path: Path) -> None:
    arguments = ["overhead", "softmax", "--modes", "forward", "--shapes", "2x10", "--providers", "ours", "--csv"]
    assert main([*arguments, str(tmp_path / "rows.csv")]) == 0
    (row,) = results.read_csv(tmp_path / "rows.csv")
    assert (row["status"], row["median_us"], row["launches"]) == ("ok", "", "1")


def test_append_adds_rows_and_a_failure_of_lucid_torch_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "softmax --modes forward --providers lucid.torch --append"
    _counts(tmp_path, arguments)
    replace(monkeypatch, "softmax", "lucid.torch", lambda x: x)
    rows = _counts(tmp_path, arguments, code=1)
    assert [row["status"].partition(":")[0] for row in rows] == ["skipped", "failed"]


def test_python_calls_are_frames_and_those_of_a_kernel_are_none() -> None:
    def inner() -> None: ...

    def outer() -> None:
        inner()
        inner()
        torch.add(torch.ones(1), 1)

    assert counting.python_calls(outer) == 3


def test_python_calls_do_not_count_what_a_kernel_does() -> None:
    def calls(rows: int) -> int:
        x = torch.zeros(rows, 5000)
        with tile_configs.use_tile_configs(interpreted=False):
            return counting.python_calls(lambda: triton_kernels.softmax_forward(x, 1))

    assert 0 < calls(20) == calls(60) < 200


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (lambda x, y: x + y, (80, 40, 1, 40, 0)),
        (lambda x, y: x + x, (40, 40, 1, 40, 0)),
        (lambda x, y: x[:1].expand(5), (0, 0, 0, 0, 0)),
        (lambda x, y: x[:1].expand(10) + y, (44, 40, 1, 40, 0)),
        (lambda x, y: x.add_(y), (80, 40, 1, 0, 0)),
        (lambda x, y: x.copy_(y), (40, 40, 1, 0, 0)),
        (lambda x, y: torch.mul(x, y, out=x), (40, 40, 1, 0, 0)),
        (lambda x, y: torch.empty(7), (0, 0, 0, 28, 0)),
        (lambda x, y: x[:0].clone(), (0, 0, 0, 0, 0)),
        (lambda x, y: x[:0].sum(), (0, 4, 1, 4, 0)),
        (lambda x, y: x.zero_(), (0, 40, 1, 0, 0)),
        (lambda x, y: x[0].item(), (0, 0, 0, 0, 1)),
        (lambda x, y: torch.equal(x, y), (80, 0, 1, 0, 1)),
    ],
)
def test_an_aten_operation_reads_operands_and_writes_results_once(step: Any, expected: tuple[int, ...]) -> None:
    x, y = torch.ones(10), torch.ones(10)
    with counting.counted() as counts:
        step(x, y)
    assert (counts.read, counts.written, counts.launches, counts.allocated, counts.syncs) == expected


def test_the_peak_is_of_what_is_alive_at_once() -> None:
    with counting.counted() as counts:
        for _ in range(3):
            torch.empty(100)
        kept = torch.empty(10)
    assert (counts.peak, counts.live, counts.allocated, kept.nbytes) == (400, 40, 1240, 40)


def test_host_time_is_per_call_between_waiting_and_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.cycle([0.0, 8e-6, 0.0, 2e-6, 0.0, 4e-6, 0.0, 6e-6])  # the first is not counted
    log: list[str] = []

    class Steps:
        def __getattr__(self, name: str) -> Any:
            return lambda: log.append(name)

    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    assert overhead.host_us([Steps(), Steps()], 3).median == pytest.approx(2.0)
    assert log == 4 * [*["prepare"] * 2, "synchronize", *["step"] * 2, "synchronize", *["clear"] * 2]


def test_launches_and_syncs_are_read_off_the_names_of_what_the_profiler_saw() -> None:
    launches = ["cudaLaunchKernel", "cuLaunchKernel", "cuLaunchKernelEx", "cudaLaunchKernelExC"]
    launches += ["cudaLaunchCooperativeKernel", "hipModuleLaunchKernel", "hipExtModuleLaunchKernel"]
    syncs = ["cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize"]
    others = ["aten::mul", "cudaMemcpyAsync", "void at::native::launch_kernel<4>()", "cudaStreamIsCapturing"]
    assert overhead.per_call([*launches, *syncs, *others], 1) == (7, 3)
    assert overhead.per_call([*launches * 4, "cudaDeviceSynchronize"], 4) == (7, 0)
