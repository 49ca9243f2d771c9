"""``python -m perf sweep`` on a made-up GPU whose time is a script: everything but CUDA's own calls."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import lucid.nn.functional as F
from perf import results
from perf.__main__ import main
from perf.environment import COLUMNS as ENV
from perf.measure import cases, rows, sweep, timing
from perf.measure.op import Point, UnsupportedError
from perf.measure.ops import OPS
from triton_kernels.runtime import device_errors

pytestmark = pytest.mark.interpreter_only

CPU = torch.device("cpu")
EMPTY = torch.empty  # as it is where tests do not fill its memory


class FakeGpu:
    """Takes 2 ms for everything."""

    torch = CPU

    def __init__(self) -> None:
        self.measured: list[cases.Case] = []

    def empty_cache(self) -> None: ...

    def measure(self, case: cases.Case, budget_ms: float) -> timing.Timing:
        self.measured.append(case)
        return timing.Timing(2.0, 1.5, 3.0)

    def peak_bytes(self, case: cases.Case) -> int:
        return 3 * 2**20

    def copy_gbps(self, budget_ms: float) -> float:
        return 4000.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu()
    device_errors.buffer(CPU)  # made once in a process
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sweep, "Gpu", lambda: made)
    monkeypatch.setattr("perf.measure.rows.environment", lambda: dict.fromkeys(ENV, "a fake"))
    return made


def _sweep(tmp_path: Path, arguments: str, code: int = 0) -> list[dict[str, str]]:
    file = tmp_path / "rows.csv"
    assert main(["sweep", *arguments.split(), "--csv", str(file)]) == code
    return results.read_csv(file)


def replace(monkeypatch: pytest.MonkeyPatch, op: str, provider: str, function: Any) -> None:
    """Have a provider run another function."""
    real = OPS[op].function
    monkeypatch.setattr(OPS[op], "function", lambda name, point: function if name == provider else real(name, point))


@pytest.mark.usefixtures("gpu")
def test_a_row_says_the_time_and_the_fraction_of_the_roofline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = _sweep(tmp_path, "softmax --shapes 4x1000 --dtypes fp32 --modes forward --providers ours")
    assert tuple(row) == (
        *("format", "op", "variant", "mode", "provider", "n", "v", "d", "dtype", "reduction", "status"),
        *("median_ms", "p20_ms", "p80_ms", "least_bytes", "gbps", "copy_gbps", "roof_fraction"),
        *("peak_mib", "max_error", *ENV),
    )
    assert (row["status"], row["median_ms"], row["p20_ms"], row["peak_mib"]) == ("ok", "2.0", "1.5", "3.0")
    assert int(row["least_bytes"]) == 2 * 4 * 1000 * 4
    assert float(row["roof_fraction"]) == pytest.approx(32000 / 2e-3 / 4000e9)
    assert 0 < float(row["max_error"]) < 1
    assert capsys.readouterr().out.startswith("softmax forward fp32 4x1000 ours: median_ms 2, p20_ms 1.5, ")


@pytest.mark.usefixtures("gpu")
def test_where_there_is_nothing_to_move_there_is_no_fraction_of_the_roofline(tmp_path: Path) -> None:
    arguments = "cross_entropy --shapes 4x1000 --dtypes fp32 --reductions mean --providers lucid.torch,two-launches"
    found = [row for row in _sweep(tmp_path, arguments) if not row["variant"]]
    least = {mode: passes * 4 * 1000 * 4 + small for mode, passes, small in (("forward", 1, 36), ("full", 2, 40))}
    for row in found:
        assert row["status"] == "ok"
        assert int(row["least_bytes"]) == {**least, "backward": 4}[row["mode"]]
        assert (row["roof_fraction"] == row["gbps"] == "") == (row["mode"] == "backward")


def test_the_upstream_gradient_of_a_reduced_loss_is_1_and_others_are_not() -> None:
    point = Point("distillation", "js", 9, 50, torch.float32, "mean")
    assert cases.make_inputs(point, CPU)[1].item() == 1
    _, dloss = cases.make_inputs(dataclasses.replace(point, reduction="none"), CPU)
    assert dloss.shape == (9,)
    assert not (dloss == 1).any()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("dtype", "reduction"), [("bf16", "none"), ("fp16", "mean"), ("fp32", "sum"), ("fp64", "batchmean")]
)
def test_ours_and_torch_are_right_in_every_mode_and_dtype(op: str, dtype: str, reduction: str) -> None:
    right = set()
    for variant in OPS[op].variants:
        d = 33 if OPS[op].from_hidden else 0
        point = Point(op, variant, 5, 257, results.DTYPES[dtype], reduction if OPS[op].reductions else "", d)
        for provider, mode in itertools.product((*rows.OURS, "torch"), cases.MODES):
            try:
                with cases.quiet():
                    inputs, dloss = cases.make_inputs(point, CPU)
                    case = cases.Case(point, provider, mode, inputs, dloss)
                    error = case.check(cases.truth(point, inputs, dloss))
                    assert error is not None
                    assert error < 0.5
            except UnsupportedError:
                continue
            right.add((provider, mode))
    assert right >= set(itertools.product(("ours", "torch"), cases.MODES))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda y: y * 1.01, "failed: WrongResultError: wrong by"),
        (lambda y: y * float("nan"), "failed: WrongResultError: wrong by nan"),
        (lambda y: y[:2], "failed: WrongResultError: of shape (2, 100), expected (3, 100)"),
    ],
)
def test_a_wrong_result_is_reported_and_not_timed(
    wrong: Any, said: str, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(monkeypatch, "softmax", "torch", lambda x: wrong(x.softmax(-1)))
    (row,) = _sweep(tmp_path, "softmax --shapes 3x100 --dtypes fp32 --modes forward --providers torch")
    assert row["status"].startswith(said)
    assert (row["median_ms"], gpu.measured) == ("", [])


@pytest.mark.usefixtures("gpu")
def test_memory_that_a_kernel_does_not_write_is_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", EMPTY)
    replace(monkeypatch, "softmax", "ours", lambda x: torch.empty(x.shape))
    (row,) = _sweep(tmp_path, "softmax --shapes 3x5 --dtypes fp32 --modes forward --providers ours", code=1)
    assert row["status"].startswith("failed: WrongResultError: wrong by nan")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("gpu")
def test_a_wrong_gradient_is_reported_though_the_result_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(monkeypatch, "softmax", "torch", lambda x: x.softmax(-1) + 0.1 * (x - x.detach()))
    arguments = "softmax --shapes 3x100 --dtypes fp32 --modes forward,backward --providers torch"
    forward, backward = _sweep(tmp_path, arguments)
    assert forward["status"] == "ok"
    assert backward["status"].startswith("failed: WrongResultError: wrong by")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("planted\nsecond line"), "failed: RuntimeError: planted"),
        (torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nmore"), "skipped: Tried to allocate 2.00 GiB."),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_a_provider_that_raises_or_needs_too_much_memory_does_not_stop_the_others(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: Any) -> Any:
        raise error

    replace(monkeypatch, "softmax", "torch", raises)
    rows = _sweep(tmp_path, "softmax --shapes 3x100 --dtypes fp32 --modes forward --providers torch,ours")
    assert [row["status"] for row in rows] == [said, "ok"]


@pytest.mark.usefixtures("gpu")
def test_a_provider_without_the_op_is_skipped_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = _sweep(tmp_path, "kl_div --variants log --shapes 3x9 --dtypes bf16 --modes forward --providers liger")
    assert row["status"].startswith("skipped: liger-kernel is not installed")


@pytest.mark.usefixtures("gpu")
def test_the_truth_of_a_point_is_calculated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = Mock(side_effect=cases.truth)
    monkeypatch.setattr(cases, "truth", truth)
    rows = _sweep(tmp_path, "softmax --shapes 3x100,3x50 --dtypes bf16 --providers ours,torch")
    assert [row["status"] for row in rows] == ["ok"] * 12
    assert truth.call_count == 2


@pytest.mark.usefixtures("gpu")
def test_after_the_time_limit_the_rest_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 11.0])
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(ticks))
    arguments = "softmax --shapes 3x5,3x7 --dtypes fp32 --modes forward --providers ours --time-limit 10"
    assert [row["status"] for row in _sweep(tmp_path, arguments)] == [
        "ok",
        "skipped: the time limit of 10 s had passed",
    ]


@pytest.mark.usefixtures("gpu")
def test_a_provider_that_overwrites_its_inputs_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoils(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(x.clone(), target)
        x.data.zero_()
        return loss

    replace(monkeypatch, "cross_entropy", "torch", spoils)
    monkeypatch.setattr(OPS["cross_entropy"], "private", ("torch",))
    arguments = "cross_entropy --shapes 3x100 --dtypes fp32 --reductions mean --providers torch,lucid.torch"
    assert {row["status"] for row in _sweep(tmp_path, arguments) if not row["variant"]} == {"ok"}


def test_backward_times_neither_the_forward_nor_the_clearing_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    softmax = Mock(side_effect=lambda x: F.softmax(x, -1))
    replace(monkeypatch, "softmax", "ours", softmax)
    point = Point("softmax", "", 3, 5, torch.float32, "")
    case = cases.Case(point, "ours", "backward", *cases.make_inputs(point, CPU))
    for times in (1, 2):
        case.prepare()
        case.step()
        assert softmax.call_count == times
        case.clear()


def test_inputs_are_different_for_each_seed_and_the_same_for_one() -> None:
    point = Point("kl_div", "log", 3, 50, torch.bfloat16, "none")
    (a, da), (b, db), (c, _) = (cases.make_inputs(point, CPU, seed) for seed in (0, 0, 1))
    assert torch.equal(a[0], b[0])
    assert torch.equal(da, db)
    assert not torch.equal(a[0], c[0])
    assert not torch.equal(a[0], a[1])


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("op", ["kl_div", "distillation", "softmax"])
def test_the_truth_is_that_of_all_rows_at_once(op: str, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point(op, OPS[op].variants[0], 9, 100, torch.float64, reduction if OPS[op].reductions else "")
    with cases.quiet():
        inputs, dloss = cases.make_inputs(point, CPU)
        monkeypatch.setattr(cases, "CHUNK", 200)
        found, gradient = cases.truth(point, inputs, dloss)
        x, *others = inputs
        whole = OPS[op].torch(point)(x.requires_grad_(), *others)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, x, dloss)[0], rtol=1e-10, atol=1e-15)


LINEAR = "linear_distillation --shapes 9x100x16"


@pytest.mark.usefixtures("gpu")
def test_a_loss_from_hidden_states_has_peak_memory_and_is_compared_with_products_not_with_a_roofline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of others are imported for the interpreter, also where a test before had them for a GPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in [name for name in sys.modules if name.startswith(("liger_kernel", "trl.kernels"))]:
        monkeypatch.delitem(sys.modules, name)
    pytest.importorskip("liger_kernel")
    pytest.importorskip("trl.kernels.chunked_divergence")
    found = _sweep(tmp_path, f"{LINEAR} --providers lucid.torch,torch,liger,trl,products")
    assert [row["provider"] for row in found[::2]] == ["lucid.torch", "torch", "liger", "trl", "products"]
    for row in found:
        assert (row["n"], row["v"], row["d"], row["dtype"], row["status"]) == ("9", "100", "16", "bf16", "ok")
        assert (row["median_ms"], row["peak_mib"], row["gbps"], row["roof_fraction"]) == ("2.0", "3.0", "", "")
        assert (row["max_error"] == "") == (row["provider"] == "products")
        gradients = (9 + 100) * 16 * 2 if row["mode"] == "full" else 0
        assert int(row["least_bytes"]) - gradients == pytest.approx(2 * (9 + 100) * 16 * 2, abs=8)


def test_each_op_has_its_own_shapes_and_providers_where_none_are_named() -> None:
    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    options = parser.parse_args(["softmax", "linear_distillation", "matmul"])
    points = rows.points(options)
    assert {(point.n, point.v, point.d) for point in points if point.op == "softmax"} == {
        (8192, 131072, 0),
        (512, 4096, 0),
    }
    for op, shapes in (("linear_distillation", "linear"), ("matmul", "matmul")):
        found = dict.fromkeys((point.n, point.v, point.d) for point in points if point.op == op)
        assert tuple(found) == results.SHAPE_SETS[shapes]
    assert rows.chosen(options, "softmax", "providers") == ("ours", "torch", "compile", "liger")
    assert rows.chosen(options, "matmul", "providers") == ("ours", "torch")
    assert rows.chosen(options, "linear_distillation", "providers") == (
        *("lucid.torch", "torch", "compile", "liger", "trl", "products"),
    )


@pytest.mark.parametrize(("mode", "count"), [("forward", 2), ("backward", 2), ("full", 4)])
def test_the_products_are_those_of_the_loss(mode: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    product = Mock(side_effect=torch.mm)
    monkeypatch.setattr(torch, "mm", product)
    point = Point("linear_distillation", "forward_kl", 9, 100, torch.float32, "none", 16)
    case = cases.Case(point, "products", mode, *cases.make_inputs(point, CPU))
    case.prepare()
    product.reset_mock()
    case.step()
    assert product.call_count == count
    shapes = {tuple(call.args[0].shape) + tuple(call.args[1].shape) for call in product.call_args_list}
    logits, gradients = {(9, 16, 16, 100)}, {(9, 100, 100, 16), (100, 9, 9, 16)}
    assert shapes == {"forward": logits, "backward": gradients, "full": logits | gradients}[mode]


@pytest.mark.usefixtures("gpu")
def test_a_wrong_gradient_of_a_weight_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point("linear_distillation", "forward_kl", 9, 100, torch.float32, "batchmean", 16)
    right = OPS[point.op].torch(point)

    def wrong(s: torch.Tensor, t: torch.Tensor, w: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return right(s, t, w, u) + 0.1 * (w - w.detach()).sum()

    replace(monkeypatch, point.op, "torch", wrong)
    forward, full = _sweep(tmp_path, f"{LINEAR} --dtypes fp32 --providers torch")
    assert forward["status"] == "ok"
    assert full["status"].startswith("failed: WrongResultError: wrong by")


@pytest.mark.parametrize(
    "kind", [("linear_distillation", "forward_kl", "none"), ("linear_distillation", "forward_kl", "mean"), ("matmul",)]
)
def test_the_truth_of_hidden_states_has_the_gradient_of_the_weight(
    kind: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    op, variant, reduction = (*kind, "", "")[:3]
    point = Point(op, variant, 9, 100, torch.float64, reduction, 16)
    inputs, dloss = cases.make_inputs(point, CPU)
    monkeypatch.setattr(cases, "CHUNK", 200)
    found = cases.truth(point, inputs, dloss)
    assert not any(tensor.requires_grad for tensor in inputs)
    wanted = [inputs[index].requires_grad_() for index in {"matmul": (0, 1)}.get(op, (0, 2))]
    whole = OPS[op].torch(point)(*inputs)
    expected = [whole, *torch.autograd.grad(whole, wanted, dloss)]
    for tensor, known in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, known, rtol=1e-10, atol=1e-15)


@pytest.mark.usefixtures("gpu")
def test_an_interrupted_sweep_has_written_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = itertools.count()

    def measure(*_: Any) -> timing.Timing:
        if next(count) == 2:
            raise KeyboardInterrupt
        return timing.Timing(1, 1, 1)

    monkeypatch.setattr(FakeGpu, "measure", measure)
    arguments = "softmax --shapes 3x5,3x7,3x9 --dtypes fp32 --modes forward --providers ours"
    assert [row["v"] for row in _sweep(tmp_path, arguments, code=130)] == ["5", "7"]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("provider", ["ours", "lucid.torch", "torch"])
def test_the_command_fails_where_ours_or_lucid_torch_is_wrong(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(monkeypatch, "softmax", provider, lambda x: x)
    arguments = f"softmax --shapes 3x5 --dtypes fp32 --modes forward --providers {provider}"
    _sweep(tmp_path, arguments, code=int(provider != "torch"))


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["sweep"]) == 1
    assert capsys.readouterr().err.startswith("no GPU is available")


def test_a_gpu_measures_each_step_between_two_events_after_it_emptied_the_caches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None: ...

        def record(self) -> None:
            log.append("event")

        def elapsed_time(self, other: Any) -> float:
            return 2.0

    class Steps:
        def __getattr__(self, name: str) -> Any:
            return lambda: log.append(name)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("hold"))
    gpu: Any = object.__new__(timing.Gpu)
    gpu._other = Steps()
    assert gpu.measure(Steps(), 100) == (2.0, 2.0, 2.0)
    once = ["prepare", "sum", "hold", "event", "step", "event", "synchronize", "clear"]
    assert log[-len(once) :] == once
    assert log.count("event") // 2 == 1 + 50
    log.clear()
    gpu.measure(Steps(), 1)
    assert log.count("event") // 2 == 1 + timing.LEAST
