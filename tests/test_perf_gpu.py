"""``python -m perf.gpu``: the runner with tiny steps, and its steps' parts that need no GPU."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from perf.environment import environment
from perf.gpu import __main__ as command_line
from perf.gpu import bundle, dram, every_kernel, graphs, headline, install, stress, tiles
from perf.gpu.steps import GROUPS, IGNORED, STEPS, Step
from perf.measure import overhead, rows, sweep
from perf.measure.timing import Timing
from triton_kernels.runtime import launch, tile_configs

pytestmark = pytest.mark.interpreter_only

ROOT = Path(command_line.__file__).parents[2]


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def _run(folder: Path, steps: dict[str, Step], total: float = 60) -> tuple[int, list[str]]:
    code = command_line.run(steps, folder, total, os.environ, ("a gpu", "0123456789ab"))
    return code, [row["status"] for row in _rows(folder / "summary.csv")]


def test_a_step_that_fails_does_not_keep_the_next_from_running(tmp_path: Path) -> None:
    steps = {
        "one": Step(20, "echo from one; exit 3"),
        "two": Step(20, "echo from two"),
        "three": Step(20, "true", needs="no-such-program"),
        "four": Step(20, "true", needs=str(tmp_path)),
    }
    skipped = "skipped: there is no no-such-program"
    assert _run(tmp_path, steps) == (1, ["failed: exit status 3", "ok", skipped, "ok"])
    row = _rows(tmp_path / "summary.csv")[0]
    assert (row["step"], row["gpu"], row["commit"]) == ("one", "a gpu", "0123456789ab")
    log = (tmp_path / "log.txt").read_text()
    assert log.index("==== one: ") < log.index("\nfrom one") < log.index("==== two: ") < log.index("\nfrom two")
    assert _run(tmp_path, {"two": steps["two"], "three": steps["three"]})[0] == 0


def test_a_step_is_stopped_at_its_limit_with_the_processes_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "LEAST", 0.0)
    monkeypatch.setattr(command_line, "GRACE", 0.5)
    child = tmp_path / "child"
    steps = {"slow": Step(1, f"trap '' TERM; sleep 60 & echo $! > {child}; wait; sleep 60"), "next": Step(9, "true")}
    start = time.monotonic()
    assert _run(tmp_path, steps) == (1, ["failed: stopped after 1 s", "ok"])
    assert time.monotonic() - start < 15
    state = Path(f"/proc/{child.read_text().strip()}/stat")
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":  # a killed process takes a moment
        assert time.monotonic() - start < 15
        time.sleep(0.05)


def test_no_step_runs_beyond_the_total(tmp_path: Path) -> None:
    steps = {"a": Step(50, "sleep 1; echo $SECONDS_LEFT"), "b": Step(50, "true")}
    assert _run(tmp_path, steps, total=5.5)[1] == ["ok", "skipped: no time left"]
    assert _rows(tmp_path / "summary.csv")[0]["limit"] in ("5", "6")


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """An environment in which nvidia-smi names a GPU, and compute-sanitizer prints its arguments."""
    for name, code in {"nvidia-smi": "NVIDIA Made-up 9000", "compute-sanitizer": 'sanitizing "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho {code}\n")
        (tmp_path / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "OUT"}
    return kept | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def _command(machine: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perf.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=machine, capture_output=True, text=True, timeout=60)


def test_the_command_prints_a_line_for_each_step_and_writes_few_files(tmp_path: Path, machine: dict[str, str]) -> None:
    out = tmp_path / "out"
    done = _command(
        machine | {"OUT": str(out)}, "--steps", "memcheck,racecheck", "--commit", "0123456789ab", "--scale=2"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["memcheck", "racecheck", "total"]
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "summary.csv"]
    found = {(row["gpu"], row["commit"], row["limit"]) for row in _rows(out / "summary.csv")}
    assert found == {("NVIDIA Made-up 9000", "0123456789ab", "120")}
    assert (
        f"sanitizing --tool racecheck --error-exitcode 9 --print-limit 20 {sys.executable} -m perf.gpu.every_kernel"
        in (out / "log.txt").read_text()
    )


def test_only_a_run_that_sweeps_replaces_the_sweep_that_is_there(tmp_path: Path, machine: dict[str, str]) -> None:
    (tmp_path / "sweep.csv").write_text("rows")
    assert _command(machine, "--steps", "memcheck", "--output", tmp_path).returncode == 0
    assert (tmp_path / "sweep.csv").read_text() == "rows"
    assert _command(machine, "--steps", "sweep", "--total", "1", "--output", tmp_path).returncode == 0
    assert not (tmp_path / "sweep.csv").exists()


def test_a_command_that_is_ended_ends_its_step_and_leaves_what_it_had(tmp_path: Path, machine: dict[str, str]) -> None:
    (tmp_path / "compute-sanitizer").write_text(
        "#!/bin/sh\necho started; [ $2 = racecheck ] && exec sleep 60; exit 0\n"
    )
    out, command = tmp_path / "out", [sys.executable, "-m", "perf.gpu", "--steps", "memcheck,racecheck"]
    with subprocess.Popen(
        [*command, "--output", str(out)], cwd=ROOT, env=machine, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if (out / "log.txt").exists() and (out / "log.txt").read_text().count("started") == 2:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert [(row["step"], row["status"]) for row in _rows(out / "summary.csv")] == [("memcheck", "ok")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--steps tests,nothing", "argument --steps: tests,nothing, accepted: wheels, cache, "),
        ("--total soon", "argument --total: invalid float value: 'soon'"),
        ("", "no GPU available: nvidia-smi names none"),
    ],
)
def test_a_bad_argument_is_named(arguments: str, said: str, tmp_path: Path, machine: dict[str, str]) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    done = _command(machine, *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_every_step_is_in_a_group_and_each_group_fits_into_one_run(
    tmp_path: Path, machine: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert {step for steps in GROUPS.values() for step in steps} == set(STEPS)
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    total = int(re.search(r"seconds for all steps \(default: (\d+)\)", " ".join(capsys.readouterr().out.split()))[1])
    assert all(sum(STEPS[step].limit for step in steps) <= total for steps in GROUPS.values())
    ran = _command(machine, "--steps", "checks,memcheck", "--total", "1", "--output", tmp_path).stdout
    assert [line.split()[0] for line in ran.splitlines()] == [*filter(GROUPS["checks"].__contains__, STEPS), "total"]


def test_commands_of_perf_get_arguments_that_they_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SHAPE": "64x4096", "ROWS": "64", "SECONDS_LEFT": "22", "OUT": "."}.items():
        monkeypatch.setenv(name, value)
    for name, step in STEPS.items():
        if name.startswith(("sweep", "overhead")):
            parser = argparse.ArgumentParser()
            (overhead if name == "overhead" else sweep).add_arguments(parser)
            options = parser.parse_args(shlex.split(os.path.expandvars(step.command))[4:])
            assert rows.points(options)
            assert name == "overhead" or (options.time_limit, options.append) == (22, True)


def test_every_test_file_that_steps_leave_out_exists() -> None:
    assert all((ROOT / f"tests/test_{name}.py").is_file() for name in IGNORED)


def test_a_commit_that_is_named_is_what_rows_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUCID_PERF_COMMIT", "0123456789ab")
    assert environment()["commit"] == "0123456789ab"


def test_only_wheels_of_missing_packages_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pytest_xdist-1.0-py3-none-any.whl", "no_such_package-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    run = Mock(return_value=SimpleNamespace(returncode=0))
    monkeypatch.setattr(subprocess, "run", run)
    assert install.main(str(tmp_path), "target") == 0
    assert run.call_args.args[0][-2:] == ["target", str(tmp_path / "no_such_package-1.0-py3-none-any.whl")]


def test_the_bundle_has_wheels_and_what_a_stand_in_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin, cache = tmp_path / "run", tmp_path / "cache"
    standin.write_text('#!/bin/sh\nmkdir -p $TRITON_CACHE_DIR/KEY; echo "$*" > $TRITON_CACHE_DIR/KEY/a.cubin\n')
    standin.chmod(0o755)
    monkeypatch.setattr(bundle, "STANDIN", standin)
    monkeypatch.setattr(bundle, "CACHE", str(cache))
    monkeypatch.setattr(sys, "argv", ["bundle", "--output", str(tmp_path / "out")])
    real, asked = subprocess.run, []

    def run(command: list[str], **options: Any) -> Any:
        if "pip" in command:
            asked.extend(command)
            (tmp_path / "out/wheels").mkdir(parents=True)
            return None
        return real(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    bundle.main()
    assert {"--no-deps", "numpy", "liger-kernel"} <= set(asked)
    listed = real(["tar", "-tf", tmp_path / "out/cache.tar.xz"], capture_output=True, text=True).stdout
    assert "./KEY/a.cubin" in listed.split()


NCU = """==PROF== Connected to process 7
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","_a_kernel","dram__bytes_read.sum","byte","3,000"
"0","_a_kernel","dram__bytes_write.sum","byte","1,100"
"0","_a_kernel","gpu__time_duration.sum","ns","2,500"
"1","_foreign_kernel","gpu__time_duration.sum","ns","1"
"2","_b_kernel","gpu__time_duration.sum","ns","1,000"
"""


def test_launches_are_matched_with_what_they_should_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [("first", "_a_kernel", 4000), ("first", "_b_kernel", None), ("never ran", "_a_kernel", 1)]

    def ran(command: list[str]) -> None:
        Path(command[command.index("--log-file") + 1]).write_text(NCU)
        lines = [json.dumps(dict(zip(("case", "kernel", "predicted_bytes"), row, strict=True))) for row in expected]
        Path(command[-1]).write_text("\n".join(lines))

    monkeypatch.setattr(dram.subprocess, "run", ran)
    monkeypatch.setattr(dram, "environment", lambda: {"gpu": "a gpu", "commit": "0123456789ab"})
    assert dram.main(str(tmp_path / "rows.csv"), "10x100") == 0
    first, second, *others = _rows(tmp_path / "rows.csv")
    assert [row["dtype"] for row in (first, *others)] == ["bf16", "fp32", "fp32"]
    assert (first["dram_over_predicted"], first["time_ns"], first["n"], first["gpu"]) == (
        "1.025",
        "2500",
        "10",
        "a gpu",
    )
    assert (second["kernel"], second["dram_read_bytes"], second["time_ns"]) == ("_b_kernel", "", "1000")


def test_headline_launches_as_many_kernels_as_have_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "launch_hook", launch.dry_run)  # a dry run executes nothing
    file = tmp_path / "expected.jsonl"
    headline.main("2x40000", "fp32", str(file))
    found = [json.loads(line) for line in file.read_text().splitlines()]
    cases = {row["case"] for row in found}
    assert len(cases) == 16
    predicted = {row["case"] for row in found if row["predicted_bytes"]}
    few_rows = {"softmax forward", "softmax backward"}  # which take two launches
    assert cases - predicted <= few_rows | {"scale_gradient by 1"}
    passes = {row["case"]: row["predicted_bytes"] // (2 * 40000 * 4) for row in found if row["predicted_bytes"]}
    both = [passes[f"{kind} loss and gradient"] for kind in ("forward_kl", "js", "cross_entropy")]
    assert both == [3, 3, 2]


def test_every_kernel_is_launched(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "launch_hook", launch.dry_run)  # a dry run executes nothing
    assert every_kernel.main() == 0, capsys.readouterr().out
    assert "not launched: none; calls failed: 0" in capsys.readouterr().out


def test_graphs_writes_a_row_for_each_loss_and_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(point: Any) -> dict[str, Any]:
        if point.dtype is torch.float32:
            raise RuntimeError("planted\nsecond line")
        return {"equal": True, "status": "ok", "call_us": 2.0, "replay_us": 1.0}

    monkeypatch.setattr(graphs, "measure", measured)
    assert graphs.main(str(tmp_path / "graphs.csv")) == 1
    found = _rows(tmp_path / "graphs.csv")
    assert len(found) == 2 * 8
    assert {row["status"] for row in found} == {"ok", "failed: RuntimeError: planted"}


@pytest.mark.parametrize("fault", [False, True])
def test_stress_finds_results_that_differ_beside_other_work(
    fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [stress.Case("js", torch.bfloat16, 2, 5000), stress.Case("cross_entropy", torch.float32, 2, 5000)]
    monkeypatch.setattr(stress.OtherWork, "KINDS", ("none",) if fault else stress.OtherWork.KINDS)
    for name, value in {"CASES": cases, "LEAST": 4, "SIZE": 32, "STREAMS": 1}.items():
        monkeypatch.setattr(stress, name, value)
    real = stress.loss_and_gradient

    def wrong(case: stress.Case, given: Any, in_place: bool, polls: int | None) -> Any:
        losses, gradient = real(case, given, in_place, polls)
        if in_place and case.kind == "js":
            gradient[-1, -1] += 1
        return losses, gradient

    monkeypatch.setattr(stress, "loss_and_gradient", wrong if fault else real)
    assert stress.main(str(tmp_path / "stress.csv"), "0") == int(fault)
    found = _rows(tmp_path / "stress.csv")
    assert [(row["other_work"], row["case"]) for row in found[:2]] == [("none", "js"), ("none", "cross_entropy")]
    assert [row["calls"] for row in found] == ["4"] * 2 * len(stress.OtherWork.KINDS)
    assert [row["different"] for row in found] == ["2" if fault else "0", "0"] * len(stress.OtherWork.KINDS)
    assert found[0]["status"] == ("failed: other bits than on an idle GPU" if fault else "ok")


def test_tiles_times_each_tile_once_and_writes_those_that_fail_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tile_configs.Config] = []

    def measure(subject: Any, budget_ms: float) -> Timing:
        with launch.launch_hook(lambda made: launched.append(made.config)):
            subject.step()
        if launched[-1].num_warps == 16:
            raise RuntimeError("out of resources\nmore")
        return Timing(1.5, 1.0, 2.0)

    monkeypatch.setattr(tiles, "TILES", {"logits": ((512, 1), (1024, 16)), "rows": ((256, 1), (512, 16))})
    monkeypatch.setattr(tiles, "ROWS", 2)
    monkeypatch.setattr(tiles, "COLUMNS", (1000,))
    assert tiles.main(str(tmp_path / "tiles.csv"), SimpleNamespace(torch=torch.device("cpu"), measure=measure)) == 0
    found = _rows(tmp_path / "tiles.csv")
    # Six calls in which programs of a row may wait for each other, of which a GPU's registers are bounded, and five.
    assert len(found) == (6 * (3 + 3) + 5 * 3) * 2
    assert {row["status"] for row in found if row["num_warps"] != "16"} == {"ok"}
    own, _, failed, *bounded = found[:6]
    assert (own["chosen"], own["time_ms"], own["status"]) == ("True", "1.5", "ok")
    assert (failed["num_warps"], failed["status"]) == ("16", "failed: RuntimeError: out of resources")
    assert [row["max_registers"] for row in (own, *bounded)] == ["128", "96", "168", "255"]
    assert {c.max_registers for c in launched} >= {None, 96, 128, 168, 255}
    assert {(c["BLOCK_V"], c.num_warps) for c in launched if "BLOCK_V" in c.tiles} >= {(512, 1), (256, 1)}
