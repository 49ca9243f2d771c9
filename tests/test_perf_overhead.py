"""``python -m perf overhead``: counts without a GPU, and host times by a clock of our own making."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import triton_kernels
from perf import progress, results, selection
from perf.__main__ import main
from perf.count import counting
from perf.environment import COLUMNS as ENV
from perf.measure import overhead
from perf.measure.ops import OPS
from tests.test_perf_sweep import Device, Steps, _replace
from triton_kernels.runtime import tile_configs

pytestmark = pytest.mark.interpreter_only


@pytest.fixture(autouse=True)
def _poison() -> None:
    """Fresh buffers are left as they are: filling them would count."""


def _main(arguments: str, *more: str) -> int:
    return main(["overhead", *arguments.split(), *more])


def test_without_a_gpu_it_counts_and_says_that_there_are_no_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "rows.csv"
    arguments = "kl_div --variants prob --dtypes fp32 --reductions mean --providers ours,torch,compile --csv"
    assert _main(arguments, str(file)) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("no GPU is available: launches, syncs and Python calls are counted, times are left")
    assert "µs" not in captured.out
    _, rows = results.read(file, "overhead")
    assert tuple(rows[0]) == (
        *("format", "op", "variant", "mode", "provider", "n", "v", "dtype", "reduction", "status"),
        *("median_us", "p20_us", "p80_us", "launches", "syncs", "python_calls"),
        *ENV,
    )
    found = {(row["provider"], row["mode"]): (row["launches"], row["syncs"]) for row in rows}
    assert found[("ours", "forward")] == ("2", "0")
    assert found[("ours", "backward")] == ("1", "0")
    assert found[("ours", "full")] == ("3", "0")
    assert found[("torch", "forward")] == ("4", "0")
    assert found[("compile", "full")] == ("", "")
    assert {row["median_us"] for row in rows} == {""}
    calls = {(row["provider"], row["mode"]): int(row["python_calls"] or 0) for row in rows}
    assert calls[("ours", "full")] > calls[("ours", "forward")] > calls[("torch", "forward")] > 0


def test_append_adds_rows_and_a_failure_of_lucid_torch_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.csv"
    arguments = "softmax --count-only --modes forward --providers lucid.torch --append --csv"
    assert _main(arguments, str(file)) == 0
    _replace(monkeypatch, "softmax", "lucid.torch", lambda x: x)
    assert _main(arguments, str(file)) == 1
    assert [row["status"].partition(":")[0] for row in results.read(file, "overhead")[1]] == ["skipped", "failed"]


def test_with_count_only_nothing_is_said_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("softmax --count-only --modes forward --providers ours") == 0
    assert "GPU" not in capsys.readouterr().err


def test_where_there_is_no_terminal_a_line_says_what_comes_before_it_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []

    def function(*arguments: Any) -> Any:
        said.append(capsys.readouterr().err)
        raise RuntimeError("not counted")

    monkeypatch.setattr(OPS["softmax"], "function", function)
    monkeypatch.setattr(progress, "LINES_S", 0.0)
    assert _main("softmax --count-only --modes forward,full --providers ours,torch") == 1
    rows = ["ours forward", "ours full", "torch forward", "torch full"]
    assert said == [f"{done}/4 softmax 64x1000 {row}\n" for done, row in enumerate(rows, 1)]


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
        (lambda x, y: x + y, counting.Counts(80, 40, 1, 40, 0)),
        (lambda x, y: x + x, counting.Counts(40, 40, 1, 40, 0)),
        (lambda x, y: x[:1].expand(5), counting.Counts(0, 0, 0, 0, 0)),
        (lambda x, y: x[:1].expand(10) + y, counting.Counts(44, 40, 1, 40, 0)),
        (lambda x, y: x.add_(y), counting.Counts(80, 40, 1, 0, 0)),
        (lambda x, y: x.copy_(y), counting.Counts(40, 40, 1, 0, 0)),
        (lambda x, y: torch.mul(x, y, out=x), counting.Counts(40, 40, 1, 0, 0)),
        (lambda x, y: torch.empty(7), counting.Counts(0, 0, 0, 28, 0)),
        (lambda x, y: x.zero_(), counting.Counts(0, 40, 1, 0, 0)),
        (lambda x, y: x[0].item(), counting.Counts(0, 0, 0, 0, 1)),
        (lambda x, y: torch.equal(x, y), counting.Counts(80, 0, 1, 0, 1)),
    ],
)
def test_an_aten_operation_reads_operands_and_writes_results_once(step: Any, expected: counting.Counts) -> None:
    x, y = torch.ones(10), torch.ones(10)
    with counting.counted() as counts:
        step(x, y)
    assert counts == expected


def test_host_time_is_per_call_between_waiting_and_waiting() -> None:
    device = Device()
    ticks = itertools.cycle([0.0, 8e-6, 0.0, 2e-6, 0.0, 4e-6, 0.0, 6e-6])  # the first is not counted
    timing = overhead.host_us(device, [Steps(device, "a"), Steps(device, "b")], 3, clock=lambda: next(ticks))
    assert timing.median == pytest.approx(2.0)
    once = ["prepare a", "prepare b", "synchronize", "step a", "step b", "synchronize", "clear a", "clear b"]
    assert device.log == 4 * once


def test_launches_and_syncs_are_read_off_the_names_of_what_the_profiler_saw() -> None:
    launches = [
        "cudaLaunchKernel",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
        "cudaLaunchKernelExC",
        "hipModuleLaunchKernel",
    ]
    launches += ["cudaLaunchCooperativeKernel", "hipExtModuleLaunchKernel"]
    syncs = ["cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize"]
    others = ["aten::mul", "cudaMemcpyAsync", "void at::native::launch_kernel<4>()", "cudaStreamIsCapturing"]
    assert overhead.per_call([*launches, *syncs, *others], 1) == (7, 3)
    assert overhead.per_call([*launches * 4, "cudaDeviceSynchronize"], 4) == (7, 0)


def test_what_is_measured_on_a_device_has_times_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "profiled", lambda device, cases: (3, 1))
    monkeypatch.setattr(overhead, "CALLS", 2)
    parser = argparse.ArgumentParser()
    overhead.add_arguments(parser)
    options = parser.parse_args(["softmax", "--shapes=3x5", "--modes=full", "--providers=ours,torch", "--repeats=2"])
    rows = list(overhead.overhead(Device(), selection.points(options), options))
    assert [row["status"] for row in rows] == ["ok", "ok"]
    for row in rows:
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        assert (row["launches"], row["syncs"]) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--shapes target", "argument --shapes: 8192x131072 is no small input, accepted: at most 4,194,304 elements"),
        ("--repeats 0", "argument --repeats: '0' must be a positive integer"),
        ("--repeats 1.5", "argument --repeats: '1.5' must be a positive integer"),
    ],
)
def test_bad_input_of_its_own_is_refused(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = _main(arguments)
    except SystemExit as exit:
        code = exit.code  # type: ignore[assignment]
    assert (code, capsys.readouterr().err) == (2, f"python -m perf overhead: error: {said}\n")
