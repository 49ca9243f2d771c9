"""``python -m perf sweep`` on a device of our own making, whose time is a script: everything but CUDA's own calls."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import lucid.nn.functional as F
from perf import results, selection
from perf.__main__ import main
from perf.environment import COLUMNS as ENV
from perf.measure import cases, sweep, timing
from perf.measure.ops import OPS, Point

pytestmark = pytest.mark.interpreter_only


class Device(timing.Cuda):
    """A device on which everything between two marks takes the next of `times`, over and over; keeps a log."""

    def __init__(self, times: tuple[float, ...] = (2.0,)) -> None:
        self.torch = torch.device("cpu")
        self.cache_bytes = 1000
        self.log: list[str] = []
        self._times = itertools.cycle(times)
        self._now, self._inside = 0.0, False

    def free_bytes(self) -> int:
        return 2**24

    def empty_caches(self) -> None:
        self.log.append("empty caches")

    def hold(self, ms: float) -> None:
        assert 0 < ms <= timing.LONGEST_HOLD
        self.log.append("hold")

    def mark(self) -> float:
        if self._inside:
            self._now += next(self._times)
        self._inside = not self._inside
        self.log.append("mark")
        return self._now

    def elapsed(self, before: float, after: float) -> float:
        return after - before

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def start_peak(self) -> None:
        self.log.append("start peak")

    def peak_bytes(self) -> int:
        return 3 * 2**20


class Steps:
    """A subject that writes what is done with it into a device's log."""

    def __init__(self, device: Device, name: str) -> None:
        self._log, self._name = device.log, name

    def prepare(self) -> None:
        self._log.append(f"prepare {self._name}")

    def step(self) -> None:
        self._log.append(f"step {self._name}")

    def clear(self) -> None:
        self._log.append(f"clear {self._name}")


def _options(arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    return parser.parse_args(arguments.split())


def _sweep(device: Device, arguments: str, **keywords: Any) -> list[results.Row]:
    options = _options("--budget-ms 1 " + arguments)
    return list(sweep.sweep(device, selection.points(options), options, **keywords))


def _replace(monkeypatch: pytest.MonkeyPatch, op: str, provider: str, function: Any) -> None:
    """Have a provider run another function."""
    real = OPS[op].function
    monkeypatch.setattr(OPS[op], "function", lambda name, point: function if name == provider else real(name, point))


def test_a_round_prepares_first_then_empties_the_caches_and_times_each_subject_once() -> None:
    device = Device((1.0, 3.0))
    timing.measure(device, [Steps(device, "a"), Steps(device, "b")], 1)
    warm = ["prepare a", "synchronize", "step a", "synchronize", "clear a"]
    timed = ["mark", "step a", "mark", "mark", "step b", "mark"]
    once = [
        "prepare a",
        "prepare b",
        "synchronize",
        "empty caches",
        "hold",
        *timed,
        "synchronize",
        "clear a",
        "clear b",
    ]
    assert device.log == 2 * warm + (1 + timing.LEAST // 2) * once


@pytest.mark.parametrize(("budget", "steps"), [(1, timing.LEAST), (100, 50), (1e6, timing.MOST)])
def test_the_budget_says_how_often_within_limits(budget: float, steps: int) -> None:
    device = Device((2.0,))
    timing.measure(device, [Steps(device, "a")], budget)
    assert device.log.count("mark") // 2 == 1 + steps


def test_quantiles_are_of_all_timings_but_the_first_round() -> None:
    device = Device((100.0, *map(float, range(1, 11))))
    found = timing.measure(device, [Steps(device, "a")], 1)
    assert (found.median, found.p20, found.p80) == (5.5, 2.8, 8.2)


def test_copied_bytes_count_as_read_and_as_written() -> None:
    assert timing.copy_gbps(Device((2.0,)), 1, most=10**6) == pytest.approx(2 * 1e6 / 2e-3 / 1e9)


def test_a_row_says_the_time_and_the_fraction_of_the_roofline() -> None:
    (row,) = _sweep(Device((2.0,)), "softmax --shapes 4x1000 --dtypes fp32 --modes forward --providers ours")
    assert tuple(row) == (
        *("op", "variant", "mode", "provider", "n", "v", "dtype", "reduction", "status"),
        *("median_ms", "p20_ms", "p80_ms", "least_bytes", "gbps", "copy_gbps", "roof_fraction"),
        *("peak_mib", "max_error", *ENV),
    )
    assert row["status"] == "ok"
    assert (row["median_ms"], row["p20_ms"], row["p80_ms"], row["peak_mib"]) == (2.0, 2.0, 2.0, 3.0)
    assert row["least_bytes"] == 2 * 4 * 1000 * 4
    assert row["gbps"] == pytest.approx(32000 / 2e-3 / 1e9)
    assert row["copy_gbps"] == pytest.approx(2 * 2**22 / 2e-3 / 1e9)
    assert row["roof_fraction"] == pytest.approx(32000 / 2**23)
    assert 0 < row["max_error"] < 1


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("dtype", "reduction"), [("bf16", "none"), ("fp16", "mean"), ("fp32", "none"), ("fp64", "mean")]
)
def test_ours_and_torch_are_right_in_every_mode_and_dtype(op: str, dtype: str, reduction: str) -> None:
    arguments = f"{op} --shapes 5x257 --dtypes {dtype} --reductions {reduction} --providers ours,lucid.torch,torch"
    options = _options(arguments)
    work = cases.Workload(torch.device("cpu"), options.modes)

    def fill(values: results.Row, point: Point, provider: str, mode: str) -> None:
        values["max_error"] = work.check(work.cases(point, provider, mode)[0])

    rows = [row for row in cases.rows(selection.points(options), options, ["max_error"], fill) if row["max_error"]]
    assert {row["mode"] for row in rows} == set(selection.MODES)
    assert {row["provider"] for row in rows} >= {"ours", "torch"}
    assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda y: y * 1.01, "failed: wrong by"),
        (lambda y: y * float("nan"), "failed: wrong by inf"),
        (lambda y: y / 0, "failed: wrong by inf"),
        (lambda y: y[:2], "failed: ValueError: output has shape (2, 100), expected (3, 100)"),
    ],
)
def test_a_wrong_result_is_reported_and_not_timed(wrong: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, "softmax", "torch", lambda x: wrong(x.softmax(-1)))
    device = Device()
    timing.copy_gbps(device, 1)
    for_copy = device.log.count("mark")
    device.log.clear()
    (row,) = _sweep(device, "softmax --shapes 3x100 --dtypes fp32 --modes forward --providers torch")
    assert row["status"].startswith(said)
    assert row["median_ms"] is None
    assert device.log.count("mark") == for_copy


def test_a_wrong_gradient_is_reported_though_the_result_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, "softmax", "torch", lambda x: x.softmax(-1) + 0.1 * (x - x.detach()))
    arguments = "softmax --shapes 3x100 --dtypes fp32 --modes forward,backward --providers torch"
    forward, backward = _sweep(Device(), arguments)
    assert forward["status"] == "ok"
    assert backward["status"].startswith("failed: wrong by")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("planted\nsecond line"), "failed: RuntimeError: planted"),
        (torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nmore"), "skipped: Tried to allocate 2.00 GiB."),
    ],
)
@pytest.mark.parametrize("when", ["called", "made"])
def test_a_provider_that_raises_or_needs_too_much_memory_does_not_stop_the_others(
    when: str, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OPS["softmax"].function

    def raises(*_: Any) -> Any:
        raise error

    def function(provider: str, point: Point) -> Any:
        return real(provider, point) if provider != "torch" else raises() if when == "made" else raises

    monkeypatch.setattr(OPS["softmax"], "function", function)
    rows = _sweep(Device(), "softmax --shapes 3x100 --dtypes fp32 --modes forward --providers torch,ours")
    assert [row["status"] for row in rows] == [said, "ok"]


def test_a_provider_without_the_op_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "kl_div --variants log --shapes 3x100 --dtypes bf16 --modes forward --providers liger"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _sweep(Device(), arguments)[0]["status"].startswith("skipped: liger-kernel is not installed")


def test_the_truth_of_a_point_is_calculated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = OPS["softmax"].truth, itertools.count()

    def counted(*arguments: Any) -> Any:
        next(count)
        return real(*arguments)

    monkeypatch.setattr(OPS["softmax"], "truth", counted)
    rows = _sweep(Device(), "softmax --shapes 3x100 --dtypes bf16 --providers ours,torch")
    assert [row["status"] for row in rows] == ["ok"] * 6
    assert next(count) == 1


def test_copied_bytes_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, source: copied.append(source))
    timing.copy_gbps(Device(), 1, most=10**5)
    assert len(copied[0].unique()) == 256


def test_after_the_time_limit_the_rest_is_skipped() -> None:
    ticks = iter([0.0, 1.0, 11.0])
    arguments = "softmax --shapes 3x5,3x7 --dtypes fp32 --modes forward --providers ours --time-limit 10"
    rows = _sweep(Device(), arguments, clock=lambda: next(ticks))
    assert [row["status"] for row in rows] == ["ok", "skipped: the time limit of 10 s had passed"]


def test_a_provider_that_overwrites_its_inputs_gets_them_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoils(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(x.clone(), target)
        x.data.zero_()
        return loss

    _replace(monkeypatch, "cross_entropy", "torch", spoils)
    monkeypatch.setattr(OPS["cross_entropy"], "overwriting", ("torch",))
    arguments = "cross_entropy --shapes 3x100 --dtypes fp32 --reductions mean --providers torch,lucid.torch"
    assert {row["status"] for row in _sweep(Device(), arguments) if not row["variant"]} == {"ok"}


def _case(point: Point, provider: str, mode: str, function: Any = None) -> cases.BenchCase:
    function = function or OPS[point.op].function(provider, point)
    return cases.BenchCase(provider, function, point, mode, *cases.make_inputs(point, torch.device("cpu"), 0))


def test_backward_times_neither_the_forward_nor_the_clearing_of_gradients() -> None:
    calls: list[str] = []

    def function(x: Any) -> Any:
        calls.append("forward")
        return F.softmax(x, -1)

    case = _case(Point("softmax", "", 3, 5, torch.float32, ""), "ours", "backward", function)
    for _ in range(2):
        case.prepare()
        prepared = len(calls)
        case.step()
        assert len(calls) == prepared
        case.clear()
    assert len(calls) == 2


def test_a_round_goes_through_inputs_that_exceed_the_cache_twice_over() -> None:
    device = Device()
    device.cache_bytes = 100_000
    point = Point("kl_div", "prob", 10, 1000, torch.float32, "mean")  # 80,004 bytes with dloss
    assert sweep.input_sets(device, point) == 3
    assert sweep.input_sets(device, dataclasses.replace(point, n=10000)) == 2
    assert sweep.input_sets(device, dataclasses.replace(point, n=1, v=1)) == sweep.MOST_SETS


def test_inputs_are_different_for_each_seed_and_the_same_for_one() -> None:
    point = Point("kl_div", "log", 3, 50, torch.bfloat16, "none")
    (a, da), (b, db), (c, _) = (cases.make_inputs(point, torch.device("cpu"), seed) for seed in (0, 0, 1))
    assert torch.equal(a["x"], b["x"])
    assert torch.equal(da, db)
    assert not torch.equal(a["x"], c["x"])
    assert not torch.equal(a["x"], a["target"])


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_large_results_are_compared_chunk_by_chunk(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "CHUNK", 200)
    point = Point("kl_div", "prob", 9, 100, torch.float32, reduction)
    with cases.quiet():
        found = _case(point, "torch", "full").results()
    truth = cases.Truth(point, *cases.make_inputs(point, torch.device("cpu"), 0), found)
    assert truth.error(found) < 1
    found["x"][8, 99] *= 1.001
    assert truth.error(found) > 1


def _main(arguments: str, *more: str) -> int:
    return main(["sweep", *arguments.split(), *more])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the command believe in a GPU, which is a `Device`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(timing, "compiled", lambda: True)
    monkeypatch.setattr(timing, "Cuda", lambda: Device())
    monkeypatch.setattr(cases, "environment", lambda: dict.fromkeys(ENV, "a fake"))


SMALL = "softmax --shapes 3x5 --dtypes fp32 --modes forward --providers ours,torch --budget-ms 1"


@pytest.mark.usefixtures("gpu")
def test_the_command_shows_a_table_and_writes_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    assert _main(SMALL, "--csv", str(file)) == 0
    kind, rows = results.read(file, "sweep")
    assert (kind, len(rows), rows[0]["median_ms"], rows[0]["gpu"]) == ("sweep", 2, "2.0", "a fake")
    captured = capsys.readouterr()
    assert "softmax forward fp32 3x5" in captured.out
    assert "points: 1; about 0 min, none started after 420 s" in captured.err


@pytest.mark.usefixtures("gpu")
def test_an_interrupted_sweep_has_written_and_shows_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, file, found = timing.measure, tmp_path / "rows.csv", []

    def measure(*arguments: Any) -> Any:
        found.append(len(file.read_text().splitlines()) if file.exists() else 0)
        if len(found) == 4:  # the first is of the copy
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(timing, "measure", measure)
    arguments = "softmax --shapes 3x5,3x7,3x9 --dtypes fp32 --modes forward --providers ours --csv"
    assert _main(arguments, str(file)) == 130
    assert found == [0, 0, 2, 3]
    assert [row["v"] for row in results.read(file, "sweep")[1]] == ["5", "7"]
    assert "softmax forward fp32 3x7" in capsys.readouterr().out


@pytest.mark.usefixtures("gpu")
def test_append_adds_rows_below_one_header(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for shape in ("3x5", "3x7"):
        assert _main(SMALL.replace("3x5", shape), "--append", "--csv", str(file)) == 0
    assert [row["v"] for row in results.read(file, "sweep")[1]] == ["5", "5", "7", "7"]
    assert _main(SMALL, "--csv", str(file)) == 0
    assert [row["v"] for row in results.read(file, "sweep")[1]] == ["5", "5"]


@pytest.mark.parametrize(
    ("content", "said"), [(None, "needs --csv FILE"), ("format,op\n", "rows.csv has other columns: format, op")]
)
@pytest.mark.usefixtures("gpu")
def test_append_needs_a_file_of_the_same_columns(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    if content:
        file.write_text(content)
    assert _main(SMALL, "--append", *(["--csv", str(file)] if content else [])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("python -m perf sweep: error: argument --append: ")
    assert error.endswith(said)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("provider", ["ours", "lucid.torch", "torch"])
def test_the_command_fails_where_ours_or_lucid_torch_is_wrong(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, "softmax", provider, lambda x: x)
    assert _main(SMALL.replace("ours,torch", provider)) == (provider in selection.OURS)


def test_without_a_gpu_it_says_so_and_names_what_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["sweep"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == sweep.NO_GPU + "\n"


@pytest.mark.parametrize("value", ["0", "-3", "nan", "inf", "soon"])
@pytest.mark.parametrize("option", ["--budget-ms", "--time-limit"])
def test_a_budget_is_a_number_above_0(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["sweep", f"{option}={value}"])
    assert exit.value.code == 2
    assert f"argument {option}: {value!r} must be > 0" in capsys.readouterr().err


def test_the_default_sweep_is_expected_to_end_within_its_time_limit() -> None:
    options = _options("")
    points = len(selection.points(options))
    assert points == 11 * 2 * 2
    seconds = sweep.estimate(points, len(options.modes), options.providers, options.budget_ms)
    assert seconds < options.time_limit <= 600 - 180  # what comes after it in `make perf`


def test_sets_of_shapes_are_what_they_say() -> None:
    sets = selection.SHAPE_SETS
    assert {v for _, v in sets["llama"]} == {128256}
    assert {v for _, v in sets["qwen"]} == {151936}
    assert [n for n, _ in sets["rows"]] == [4**k for k in range(9)]
    assert len({v for _, v in sets["rows"]}) == 1
    assert {n * v for n, v in sets["vocab"]} == {2**27}
    assert (sets["vocab"][0][1], sets["vocab"][-1][1]) == (2**10, 2**20)
