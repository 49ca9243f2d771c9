"""``python -m perf sweep`` on a device of our own making, whose time is a script: everything but CUDA's own calls."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import lucid.nn.functional as F
from perf import cases, errors, output, providers, selection, sweep, timing
from perf.__main__ import main
from perf.environment import COLUMNS as ENV

pytestmark = pytest.mark.interpreter_only


class Device:
    """A device on which everything between two marks takes the next of `times`, over and over; keeps a log."""

    def __init__(self, times: tuple[float, ...] = (2.0,), free: int = 2**27) -> None:
        self.torch = torch.device("cpu")
        self.cache_bytes = 1000
        self.log: list[str] = []
        self._times, self._free = itertools.cycle(times), free
        self._now, self._inside = 0.0, False

    def free_bytes(self) -> int:
        return self._free

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


def _sweep(device: Device, arguments: str, **keywords: Any) -> list[output.Row]:
    options = _options("--budget-ms 1 " + arguments)
    return list(sweep.sweep(device, selection.points(options), options, {"gpu": "a fake"}, **keywords))


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


def test_a_row_says_the_time_and_the_fraction_of_the_roof() -> None:
    (row,) = _sweep(
        Device((2.0,), free=2**24), "softmax --shapes 4x1000 --dtypes fp32 --modes forward --providers ours"
    )
    assert tuple(row) == (
        *(
            "op",
            "variant",
            "mode",
            "provider",
            "n",
            "v",
            "dtype",
            "reduction",
            "status",
            "median_ms",
            "p20_ms",
            "p80_ms",
        ),
        *("least_bytes", "gbps", "copy_gbps", "roof_fraction", "peak_mib", "max_error", "gpu"),
    )
    assert row["status"] == "ok"
    assert (row["median_ms"], row["p20_ms"], row["p80_ms"], row["peak_mib"]) == (2.0, 2.0, 2.0, 3.0)
    assert row["least_bytes"] == 2 * 4 * 1000 * 4
    assert row["gbps"] == pytest.approx(32000 / 2e-3 / 1e9)
    assert row["copy_gbps"] == pytest.approx(2 * 2**22 / 2e-3 / 1e9)
    assert row["roof_fraction"] == pytest.approx(32000 / 2**23)
    assert 0 < row["max_error"] < 1


@pytest.mark.parametrize("op", ["kl_div", "softmax", "log_softmax", "cross_entropy"])
@pytest.mark.parametrize("mode", selection.MODES)
@pytest.mark.parametrize("dtype", selection.DTYPES)
def test_ours_and_torch_are_right_in_every_mode_and_dtype(op: str, mode: str, dtype: str) -> None:
    with cases.quiet():
        for point in selection.points(_options(f"{op} --shapes 5x257 --dtypes {dtype} --reductions none,mean")):
            inputs, dloss = cases.make_inputs(point, torch.device("cpu"), 0)
            for provider in ("ours", "torch"):
                function = providers.function(provider, point)
                results = providers.Subject(provider, function, point, mode, inputs, dloss).results()
                assert set(results) == ({"output"} if mode == "forward" else {"output", "x"})
                assert cases.largest_error(point, inputs, dloss, results) < 1


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
    spoilt = dataclasses.replace(cases.OPS["softmax"], torch=lambda point: lambda x: wrong(x.softmax(-1)))
    monkeypatch.setitem(cases.OPS, "softmax", spoilt)
    device = Device()
    timing.copy_gbps(device, 1)
    for_copy = device.log.count("mark")
    device.log.clear()
    (row,) = _sweep(device, "softmax --shapes 3x100 --dtypes fp32 --modes forward --providers torch")
    assert row["status"].startswith(said)
    assert row["median_ms"] is None
    assert device.log.count("mark") == for_copy


def test_a_wrong_gradient_is_reported_though_the_result_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.softmax(-1) + 0.1 * (x - x.detach())

    monkeypatch.setitem(cases.OPS, "softmax", dataclasses.replace(cases.OPS["softmax"], torch=lambda point: function))
    forward, backward = _sweep(
        Device(), "softmax --shapes 3x100 --dtypes fp32 --modes forward,backward --providers torch"
    )
    assert forward["status"] == "ok"
    assert backward["status"].startswith("failed: wrong by")


def test_a_provider_that_raises_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(x: Any) -> Any:
        raise RuntimeError("planted\nsecond line")

    monkeypatch.setitem(cases.OPS, "softmax", dataclasses.replace(cases.OPS["softmax"], ours=lambda point: raises))
    rows = _sweep(Device(), "softmax --shapes 3x100 --dtypes fp32 --modes forward --providers ours,torch")
    assert [row["status"] for row in rows] == ["failed: RuntimeError: planted", "ok"]


def test_a_provider_that_cannot_be_made_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmade(point: cases.Point) -> Any:
        raise ImportError("planted")

    monkeypatch.setitem(cases.OPS, "softmax", dataclasses.replace(cases.OPS["softmax"], liger=unmade))
    rows = _sweep(Device(), "softmax --shapes 3x100 --dtypes fp32 --modes forward --providers liger,ours")
    assert [row["status"] for row in rows] == ["failed: ImportError: planted", "ok"]


def test_a_provider_without_the_op_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "kl_div --variants log --shapes 3x100 --dtypes bf16 --modes forward --providers liger"
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    assert "is not installed" in _sweep(Device(), arguments)[0]["status"]
    assert _sweep(Device(), arguments)[0]["status"].startswith("skipped: ")


def test_what_does_not_fit_is_skipped_and_says_what_it_needs() -> None:
    arguments = "softmax --shapes 1024x4096 --dtypes fp32 --modes forward --providers ours,torch"
    rows = _sweep(Device(free=2**24), arguments)
    assert len(rows) == 2
    assert {row["status"] for row in rows} == {"skipped: needs 0.5 GiB, 0.0 free"}


def test_a_provider_that_needs_more_is_skipped_alone() -> None:
    arguments = (
        "distillation --variants js --shapes 20x1000 --dtypes fp32 --modes backward --providers torch,lucid.torch"
    )
    theirs, ours = _sweep(Device(free=3_000_000), arguments)
    assert theirs["status"].startswith("skipped: needs 0.0 GiB")
    assert ours["status"] == "ok"


def test_the_truth_of_a_point_is_calculated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = cases.OPS["softmax"].truth, itertools.count()

    def counted(*arguments: Any) -> Any:
        next(count)
        return real(*arguments)

    monkeypatch.setitem(cases.OPS, "softmax", dataclasses.replace(cases.OPS["softmax"], truth=counted))
    rows = _sweep(Device(), "softmax --shapes 3x100 --dtypes bf16 --providers ours,torch")
    assert [row["status"] for row in rows] == ["ok"] * 6
    assert next(count) == 1


def test_copied_bytes_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Tensor] = []
    real = timing._Copy.step

    def step(self: Any) -> None:
        copied.append(self.source)
        real(self)

    monkeypatch.setattr(timing._Copy, "step", step)
    timing.copy_gbps(Device(), 1, most=10**5)
    assert len(copied[0].unique()) == 256


def test_after_the_time_limit_the_rest_is_skipped() -> None:
    ticks = iter([0.0, 1.0, 11.0])
    arguments = "softmax --shapes 3x5,3x7 --dtypes fp32 --modes forward --providers ours --time-limit 10"
    rows = _sweep(Device(), arguments, clock=lambda: next(ticks))
    assert [row["status"] for row in rows] == ["ok", "skipped: the time limit of 10 s had passed"]


def test_a_provider_that_overwrites_its_inputs_gets_them_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoils(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(x.clone(), labels)
        x.data.zero_()
        return loss

    op = dataclasses.replace(cases.OPS["cross_entropy"], torch=lambda point: spoils, overwritten=("torch",))
    monkeypatch.setitem(cases.OPS, "cross_entropy", op)
    rows = _sweep(
        Device(), "cross_entropy --shapes 3x100 --dtypes fp32 --reductions mean --providers torch,lucid.torch"
    )
    assert {row["status"] for row in rows} == {"ok"}


def test_backward_times_neither_the_forward_nor_the_clearing_of_gradients() -> None:
    calls: list[str] = []

    def function(x: Any) -> Any:
        calls.append("forward")
        return F.softmax(x, -1)

    point = cases.Point("softmax", "", 3, 5, torch.float32, "")
    subject = providers.Subject("ours", function, point, "backward", *cases.make_inputs(point, torch.device("cpu"), 0))
    for _ in range(2):
        subject.prepare()
        prepared = len(calls)
        subject.step()
        assert len(calls) == prepared
        subject.clear()
    assert len(calls) == 2


def test_a_round_goes_through_inputs_that_exceed_the_cache_twice_over() -> None:
    device = Device()
    device.cache_bytes = 100_000
    point = cases.Point("kl_div", "prob", 10, 1000, torch.float32, "mean")  # 80,004 bytes with dloss
    assert sweep._sets(device, point) == 3
    assert sweep._sets(device, dataclasses.replace(point, n=10000)) == 2
    assert sweep._sets(device, dataclasses.replace(point, n=1, v=1)) == sweep.MOST_SETS


def test_inputs_are_different_for_each_seed_and_the_same_for_one() -> None:
    point = cases.Point("kl_div", "log", 3, 50, torch.bfloat16, "none")
    (a, da), (b, db), (c, _) = (cases.make_inputs(point, torch.device("cpu"), seed) for seed in (0, 0, 1))
    assert torch.equal(a["x"], b["x"])
    assert torch.equal(da, db)
    assert not torch.equal(a["x"], c["x"])
    assert not torch.equal(a["x"], a["target"])


def test_large_results_are_compared_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "CHUNK", 200)
    for reduction in ("none", "mean"):
        point = cases.Point("kl_div", "prob", 9, 100, torch.float32, reduction)
        inputs, dloss = cases.make_inputs(point, torch.device("cpu"), 0)
        with cases.quiet():
            subject = providers.Subject("torch", providers.function("torch", point), point, "full", inputs, dloss)
            results = subject.results()
        assert cases.largest_error(point, inputs, dloss, results) < 1
        results["x"][8, 99] *= 1.001
        assert cases.largest_error(point, inputs, dloss, results) > 1


def _main(arguments: str, *more: str) -> int:
    return main(["sweep", *arguments.split(), *more])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the command believe in a GPU, which is a `Device`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(timing, "compiled", lambda: True)
    monkeypatch.setattr(timing, "Cuda", lambda: Device())
    monkeypatch.setattr(sweep, "environment", lambda: dict.fromkeys(ENV, "a fake"))


SMALL = "softmax --shapes 3x5 --dtypes fp32 --modes forward --providers ours,torch --budget-ms 1"


@pytest.mark.usefixtures("gpu")
def test_the_command_shows_a_table_and_writes_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    assert _main(SMALL, "--csv", str(file)) == 0
    kind, rows = output.read(file, "sweep")
    assert (kind, len(rows), rows[0]["median_ms"], rows[0]["gpu"]) == ("sweep", 2, "2.0", "a fake")
    captured = capsys.readouterr()
    assert "softmax forward fp32 3x5" in captured.out
    assert "points: 1; about 0 min, none started after 420 s" in captured.err


@pytest.mark.usefixtures("gpu")
def test_an_interrupted_sweep_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = sweep._point, iter([False, True])

    def interrupted(*arguments: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(sweep, "_point", interrupted)
    file = tmp_path / "rows.csv"
    arguments = "softmax --shapes 3x5,3x7 --dtypes fp32 --modes forward --providers ours --csv"
    assert _main(arguments, str(file)) == 130
    assert [row["v"] for row in output.read(file, "sweep")[1]] == ["5"]


@pytest.mark.usefixtures("gpu")
def test_each_row_is_in_the_file_before_the_next_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, file, found = sweep._measured, tmp_path / "rows.csv", []

    def measured(*arguments: Any) -> Any:
        found.append(len(file.read_text().splitlines()) if file.exists() else 0)
        return real(*arguments)

    monkeypatch.setattr(sweep, "_measured", measured)
    assert _main(SMALL, "--csv", str(file)) == 0
    assert found == [0, 2]


@pytest.mark.usefixtures("gpu")
def test_append_adds_rows_below_one_header(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for shape in ("3x5", "3x7"):
        assert _main(SMALL.replace("3x5", shape), "--append", "--csv", str(file)) == 0
    assert [row["v"] for row in output.read(file, "sweep")[1]] == ["5", "5", "7", "7"]
    assert _main(SMALL, "--csv", str(file)) == 0
    assert [row["v"] for row in output.read(file, "sweep")[1]] == ["5", "5"]


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
def test_the_command_fails_where_lucid_torch_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = dataclasses.replace(cases.OPS["softmax"], lucid_torch=lambda point: lambda x: x)
    monkeypatch.setitem(cases.OPS, "softmax", spoilt)
    assert _main(SMALL.replace("ours,torch", "lucid.torch")) == 1


@pytest.mark.usefixtures("gpu")
def test_the_command_fails_where_ours_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = dataclasses.replace(cases.OPS["softmax"], ours=lambda point: lambda x: F.softmax(x, 0))
    monkeypatch.setitem(cases.OPS, "softmax", spoilt)
    assert _main(SMALL) == 1


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
    assert f"argument {option}: {value!r} is no number above 0" in capsys.readouterr().err


def test_the_default_sweep_is_expected_to_end_within_its_time_limit() -> None:
    options = _options("")
    points = len(selection.points(options))
    assert points == 10 * 2 * 2
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
