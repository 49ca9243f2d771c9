"""``python -m perf.gpu``: the runner with tiny steps and made-up tools, and its steps' parts that need no GPU."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from perf import environment
from perf.gpu import __main__ as command_line
from perf.gpu import (
    bundle,
    counters,
    every_kernel,
    graphs,
    headline,
    install,
    runner,
    steps,
    tiles,
    unpack,
)
from perf.gpu.runner import Step
from perf.measure.timing import Cuda, Timing
from triton_kernels.runtime import launch, tile_configs

pytestmark = pytest.mark.interpreter_only

ROOT = Path(command_line.__file__).parents[2]


def _python(name: str, code: str, limit: float = 20.0, **more: Any) -> Step:
    return Step(name, limit, lambda seconds: [sys.executable, "-S", "-c", code], **more)


def _run(folder: Path, chosen: list[Step], total: float = 60.0) -> tuple[bool, list[dict[str, str]]]:
    good = runner.run(
        chosen, folder, total, dict(os.environ), {"gpu": "a gpu", "commit": "0123456789ab"}, lambda _: None
    )
    return good, _rows(folder / runner.SUMMARY)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_step_that_fails_does_not_keep_the_next_from_running(tmp_path: Path) -> None:
    chosen = [
        _python("one", "print('from one'); raise SystemExit(3)"),
        _python("two", "print('from two')"),
        Step("three", 20, lambda seconds: ["/no/such/program"]),
        Step("four", 20, lambda seconds: []),
        _python("five", "pass", needs="no-such-program"),
    ]
    good, rows = _run(tmp_path, chosen)
    assert not good
    assert [(row["step"], row["status"]) for row in rows] == [
        ("one", "failed: exit status 3"),
        ("two", "ok"),
        ("three", "failed: /no/such/program: No such file or directory"),
        ("four", "skipped: not in the bundle"),
        ("five", "skipped: no-such-program is not on PATH"),
    ]
    assert {(row["gpu"], row["commit"]) for row in rows} == {("a gpu", "0123456789ab")}
    log = (tmp_path / runner.LOG).read_text()
    assert log.index("==== one: ") < log.index("from one") < log.index("==== two: ") < log.index("from two")


def test_steps_that_end_well_or_are_skipped_are_a_success(tmp_path: Path) -> None:
    assert _run(tmp_path, [_python("one", "pass"), Step("two", 20, lambda seconds: [])])[0]


def test_a_step_is_stopped_at_its_limit_with_the_processes_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LEAST", 0.0)
    child = tmp_path / "child"
    code = f"""
import subprocess, time
child = subprocess.Popen(["sleep", "60"])
open({str(child)!r}, "w").write(str(child.pid))
print("half of it", flush=True)
time.sleep(60)
"""
    start = time.monotonic()
    good, rows = _run(tmp_path, [_python("slow", code, 1.0), _python("next", "print('after it')")])
    assert time.monotonic() - start < 15
    assert not good
    assert [row["status"] for row in rows] == ["failed: stopped after 1 s", "ok"]
    text = (tmp_path / runner.LOG).read_text()
    assert "half of it" in text
    assert "after it" in text
    state = Path(f"/proc/{child.read_text()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_no_step_runs_beyond_the_total(tmp_path: Path) -> None:
    limits: list[float] = []
    now = iter([0.0, 0.0, 90.0, 90.0, 97.0, 97.0, 97.0, 97.0])

    def step(name: str) -> Step:
        return Step(name, 50, lambda seconds: limits.append(seconds) or [sys.executable, "-S", "-c", ""])  # type: ignore[func-returns-value]

    runner.run(
        [step("a"), step("b"), step("c")], tmp_path, 100, dict(os.environ), {}, lambda _: None, lambda: next(now)
    )
    assert limits == [50, 10]
    assert [row["status"] for row in _rows(tmp_path / runner.SUMMARY)] == ["ok", "ok", "skipped: no time left"]


def test_a_long_log_loses_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOG_BYTES", 1000)
    _run(tmp_path, [_python("one", "print('begin', 'x' * 5000, 'end')"), _python("two", "print('whole')")])
    log = (tmp_path / runner.LOG).read_text()
    assert len(log) < 1500
    for text in ("==== one", "begin", " bytes left out …", "end", "==== two", "whole"):
        assert text in log


def _tool(folder: Path, name: str, code: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{code}\n")
    file.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """An environment in which nvidia-smi names a GPU, and python, ncu and compute-sanitizer print their arguments."""
    tools = tmp_path / "tools"
    tools.mkdir()
    _tool(tools, "nvidia-smi", 'echo "NVIDIA Made-up 9000"')
    for name in ("ncu", "compute-sanitizer"):
        _tool(tools, name, f'echo {name} "$@"')
    kept = {name: value for name, value in os.environ.items() if name not in ("OUT", command_line.COMMIT)}
    return kept | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}


def _command(machine: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perf.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=machine, capture_output=True, text=True, timeout=60)


def test_the_command_prints_a_line_for_each_step_and_writes_few_files(tmp_path: Path, machine: dict[str, str]) -> None:
    out = tmp_path / "out"
    done = _command(machine | {"OUT": str(out)}, "--steps", "cache,memcheck,racecheck", "--commit", "0123456789abcdef")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["cache", "memcheck", "racecheck", "total"]
    assert sorted(path.name for path in out.iterdir()) == [runner.LOG, runner.SUMMARY]
    rows = _rows(out / runner.SUMMARY)
    assert {(row["gpu"], row["commit"]) for row in rows} == {("NVIDIA Made-up 9000", "0123456789ab")}
    assert "compute-sanitizer --tool racecheck --error-exitcode 9" in (out / runner.LOG).read_text()


def test_limits_of_steps_are_scaled(tmp_path: Path, machine: dict[str, str]) -> None:
    done = _command(machine, "--steps", "memcheck", "--scale", "2.5", "--output", tmp_path / "out")
    assert done.returncode == 0
    assert _rows(tmp_path / "out" / runner.SUMMARY)[0]["limit"] == "150"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_command_that_is_ended_leaves_what_it_had(
    number: int, code: int, tmp_path: Path, machine: dict[str, str]
) -> None:
    _tool(tmp_path / "tools", "compute-sanitizer", "echo started; [ $2 = racecheck ] && exec sleep 60; exit 0")
    out, command = tmp_path / "out", [sys.executable, "-m", "perf.gpu", "--steps", "memcheck,racecheck"]
    with subprocess.Popen(
        [*command, "--output", str(out)], cwd=ROOT, env=machine, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            log = out / runner.LOG
            if log.exists() and log.read_text().count("started") == 2:
                break
            time.sleep(0.05)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=20)
    assert process.returncode == code
    assert complaint == (b"interrupted\n" if number == signal.SIGINT else b"")
    assert [(row["step"], row["status"]) for row in _rows(out / runner.SUMMARY)] == [("memcheck", "ok")]


def test_only_a_run_that_sweeps_replaces_the_sweep_that_is_there(tmp_path: Path, machine: dict[str, str]) -> None:
    (tmp_path / "sweep.csv").write_text("rows")
    assert _command(machine, "--steps", "cache", "--output", tmp_path).returncode == 0
    assert (tmp_path / "sweep.csv").read_text() == "rows"
    assert _command(machine, "--steps", "sweep", "--total", "1", "--output", tmp_path).returncode == 0
    assert not (tmp_path / "sweep.csv").exists()


def test_a_stubborn_process_is_killed_although_an_interrupt_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-S", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        really = process.wait

        def wait(timeout: float | None = None) -> int:
            if timeout is not None:
                raise KeyboardInterrupt
            return really()

        monkeypatch.setattr(process, "wait", wait)
        with pytest.raises(KeyboardInterrupt):
            runner.end(process)
    assert process.returncode == -signal.SIGKILL


def test_without_a_gpu_and_a_folder_it_says_so_in_one_line(tmp_path: Path, machine: dict[str, str]) -> None:
    _tool(tmp_path / "tools", "nvidia-smi", "exit 9")
    done = _command(machine)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "python -m perf.gpu: error: no GPU available: nvidia-smi names none\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--steps tests,nothing", "argument --steps: unknown step 'nothing', accepted: wheels, cache, "),
        ("--total 0", "argument --total: '0' must be a number above 0"),
        ("--total soon", "argument --total: 'soon' must be a number above 0"),
        ("--scale -1", "argument --scale: '-1' must be a number above 0"),
        ("--commit HEAD", "argument --commit: 'HEAD' must be 7 to 40 hexadecimal digits"),
        ("--bundle /no/such", "argument --bundle: '/no/such' is not a folder; `make gpu-bundle` makes it"),
        ("--shape 3", "argument --shape: '3' must be NxV with N and V at least 1"),
        ("--output /dev/null/x", "argument --output: /dev/null/x: Not a directory"),
        ("--nothing", "unrecognized arguments: --nothing"),
    ],
)
def test_a_bad_argument_is_named_in_one_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line.signal, "signal", lambda *_: None)
    try:
        code = command_line.main(arguments.split())
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith(f"python -m perf.gpu: error: {said}")
    assert printed.err.count("\n") == 1


def _settings(tmp_path: Path) -> steps.Settings:
    out, bundle, site, cache = (tmp_path / name for name in ("out", "bundle", "site", "cache"))
    return steps.Settings(out, bundle, site, cache, steps.TESTS, "64x4096")


def test_steps_use_the_bundle_where_it_is_there(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    wheels, cache = steps.steps(settings)[:2]
    assert wheels.command(9) == cache.command(9) == []
    (settings.bundle / "wheels").mkdir(parents=True)
    (settings.bundle / "cache.tar.xz").touch()
    assert wheels.command(9)[1:3] == ["-m", "perf.gpu.install"]
    assert cache.command(9)[1:3] == ["-m", "perf.gpu.unpack"]


def test_every_sweep_adds_to_one_file_and_ends_before_its_limit(tmp_path: Path) -> None:
    from perf import selection
    from perf.__main__ import _Parser
    from perf.measure import sweep

    for step in steps.steps(_settings(tmp_path)):
        if step.name.startswith("sweep"):
            parser = _Parser()
            sweep.add_arguments(parser)
            options = parser.parse_args(step.command(30)[4:])
            assert (options.csv, options.append) == (tmp_path / "out/sweep.csv", True)
            assert options.time_limit < 30
            assert selection.points(options)


def test_overhead_gets_arguments_that_it_accepts(tmp_path: Path) -> None:
    from perf import selection
    from perf.__main__ import _Parser
    from perf.measure import overhead

    (step,) = (step for step in steps.steps(_settings(tmp_path)) if step.name == "overhead")
    parser = _Parser()
    overhead.add_arguments(parser)
    options = parser.parse_args(step.command(30)[4:])
    assert options.csv == tmp_path / "out/overhead.csv"
    assert {point.op for point in selection.points(options)} == {"kl_div", "distillation", "softmax", "cross_entropy"}


def test_every_test_file_that_steps_leave_out_exists() -> None:
    for argument in steps.TESTS[1:]:
        assert (ROOT / argument.removeprefix("--ignore=")).is_file()


def test_a_commit_that_is_named_is_what_rows_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(command_line.COMMIT, "0123456789ab")
    assert environment.environment()["commit"] == "0123456789ab"


def test_only_wheels_of_missing_packages_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pytest-1.0-py3-none-any.whl", "no_such_package-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    ran: list[list[str]] = []

    def ran_well(command: list[str]) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(install.subprocess, "run", ran_well)
    assert install.main(str(tmp_path), "target") == 0
    assert ran[0][-2:] == ["target", str(tmp_path / "no_such_package-1.0-py3-none-any.whl")]
    assert "--no-index" in ran[0]


def test_an_unpacked_cache_names_files_where_they_are_now(tmp_path: Path) -> None:
    archive, target = tmp_path / "cache.tar.xz", tmp_path / "cache"
    files = {
        "KEY/__grp___a_kernel.json": json.dumps({"child_paths": {"_a_kernel.cubin": "/elsewhere/KEY/_a_kernel.cubin"}}),
        "KEY/_a_kernel.cubin": "code",
    }
    with tarfile.open(archive, "w:xz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    assert unpack.unpack(archive, target) == 1
    (path,) = json.loads((target / "KEY/__grp___a_kernel.json").read_text())["child_paths"].values()
    assert Path(path).read_text() == "code"


NCU = """==PROF== Connected to process 7
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","_a_kernel","dram__bytes_read.sum","byte","3,000"
"0","_a_kernel","dram__bytes_write.sum","byte","1,100"
"0","_a_kernel","gpu__time_duration.sum","ns","2,500"
"1","_foreign_kernel","gpu__time_duration.sum","ns","1"
"2","_b_kernel","dram__bytes_read.sum","byte","n/a"
"2","_b_kernel","gpu__time_duration.sum","ns","1,000"
"""


def test_launches_are_matched_with_what_they_should_move() -> None:
    expected = [
        {"case": "first", "kernel": "_a_kernel", "predicted_bytes": 4000},
        {"case": "first", "kernel": "_b_kernel", "predicted_bytes": None},
        {"case": "never ran", "kernel": "_a_kernel", "predicted_bytes": 1},
    ]
    first, second = counters.rows("dram", expected, counters.launches(NCU.splitlines()))
    assert (first["dram_over_predicted"], first["time_us"], first["dram_read_bytes"]) == (1.025, 2.5, 3000)
    assert (second["kernel"], second["dram_read_bytes"], second["time_us"]) == ("_b_kernel", None, 1.0)


@pytest.mark.parametrize("kind", ["dram", "kernels"])
def test_counters_writes_a_row_for_each_launch(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(command: list[str], timeout: float) -> None:
        assert 0 < timeout <= 9
        Path(command[command.index("--log-file") + 1]).write_text(NCU)
        line = json.dumps({"case": "first", "kernel": "_a_kernel", "predicted_bytes": 4000})
        Path(command[-1]).write_text(line + "\n")

    monkeypatch.setattr(counters.subprocess, "run", ran)
    monkeypatch.setattr(counters, "environment", lambda: {"gpu": "a gpu", "commit": "0123456789ab"})
    file = tmp_path / "rows.csv"
    assert counters.main([kind, str(file), "--shape", "10x100", "--limit", "9"]) == 0
    rows = _rows(file)
    assert tuple(rows[0]) == (*counters.COLUMNS[kind], "gpu", "commit")
    assert [(row["dtype"], row["n"], row["time_us"], row["gpu"]) for row in rows] == [
        ("bf16", "10", "2.5", "a gpu"),
        ("fp32", "10", "2.5", "a gpu"),
    ]


def test_headline_launches_as_many_kernels_as_have_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "launch_hook", launch.dry_run)  # a dry run executes nothing
    file = tmp_path / "expected.jsonl"
    assert headline.main("2x40000", "fp32", str(file)) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    cases = {row["case"] for row in rows}
    assert len(cases) == 10
    predicted = {row["case"] for row in rows if row["predicted_bytes"]}
    assert cases - predicted <= {"softmax forward", "softmax backward"}  # of few rows, which take two launches


def test_every_kernel_is_launched(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "launch_hook", launch.dry_run)  # a dry run executes nothing
    assert every_kernel.main(["bf16", "fp32", "fp64"]) == 0, capsys.readouterr().out
    assert "not launched: none; calls failed: 0" in capsys.readouterr().out


def test_graphs_writes_a_row_for_each_loss_and_dtype(tmp_path: Path) -> None:
    def measured(loss: graphs.Loss, dtype: torch.dtype) -> dict[str, Any]:
        if dtype is torch.float32:
            raise RuntimeError("planted\nsecond line")
        return {"equal": True, "status": "ok", "call_us": 2.0, "replay_us": 1.0}

    file = tmp_path / "graphs.csv"
    assert graphs.main(str(file), measured) == 1
    rows = _rows(file)
    assert len(rows) == 2 * 6
    assert {row["status"] for row in rows} == {"ok", "failed: RuntimeError: planted"}


def _wheel(folder: Path, name: str, *needs: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", *(f"Requires-Dist: {need}" for need in needs)]
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n")


def test_the_bundle_has_what_packages_need_on_that_machine_but_neither_torch_nor_triton(tmp_path: Path) -> None:
    needs = {
        "top": ("torch>=2", "triton", "Mid_dle>=1; python_version >= '3.12'", "old; python_version < '3.12'"),
        "mid-dle": ("leaf", "more; extra == 'dev'", "top"),
        "leaf": (),
    }
    asked: list[Sequence[str]] = []

    def download(names: Sequence[str]) -> None:
        asked.append(names)
        for name in names:
            _wheel(tmp_path, name.replace("-", "_"), *needs[name])

    bundle.closure(["top"], tmp_path, download)
    assert asked == [["top"], ["mid-dle"], ["leaf"]]


def test_a_bundle_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundle, "wheels", lambda folder, packages: (tmp_path / "a.whl").write_bytes(b"x" * 100))
    monkeypatch.setattr(bundle, "cache", lambda archive: False)
    monkeypatch.setattr(bundle.signal, "signal", lambda *_: None)
    assert bundle.main(["--output", str(tmp_path)]) == 0
    assert "compiled kernels: skipped, ../shared/fakegpu is not there" in capsys.readouterr().out
    monkeypatch.setattr(bundle, "MOST", 99)
    assert bundle.main(["--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bundle_that_fails_leaves_the_wheels_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/old.whl").touch()

    def download(folder: Path, packages: object) -> None:
        (folder / "new.whl").touch()
        raise subprocess.CalledProcessError(1, ["pip", "download"])

    monkeypatch.setattr(bundle, "_download", download)
    monkeypatch.setattr(bundle.signal, "signal", lambda *_: None)
    assert bundle.main(["--output", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.rglob("*.whl")] == ["old.whl"]
    assert bundle.main(["--output", "/dev/null/x"]) == 2
    assert "error: argument --output: /dev/null/x: Not a directory\n" in capsys.readouterr().err


def test_the_cache_is_what_a_stand_in_compiled(tmp_path: Path) -> None:
    archive, target = tmp_path / "cache.tar.xz", tmp_path / "unpacked"
    assert not bundle.cache(archive, tmp_path / "missing")
    compiled = "mkdir $TRITON_CACHE_DIR/KEY; echo code > $TRITON_CACHE_DIR/KEY/_a_kernel.cubin\n"
    group = json.dumps({"child_paths": {"_a_kernel.cubin": "/elsewhere"}})
    _tool(tmp_path, "run", f"{compiled}echo '{group}' > $TRITON_CACHE_DIR/KEY/__grp___a_kernel.json")
    assert bundle.cache(archive, tmp_path / "run")
    assert unpack.unpack(archive, target) == 1
    assert (target / "KEY/_a_kernel.cubin").read_text() == "code\n"


def test_tiles_times_each_tile_once_and_writes_those_that_fail_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tile_configs.Config] = []

    def measure(device: Any, subjects: Sequence[Any], budget_ms: float) -> Timing:
        with launch.launch_hook(lambda made: launched.append(made.config)):
            subjects[0].step()
        if launched[-1].num_warps == 16:
            raise RuntimeError("out of resources\nmore")
        return Timing(1.5, 1.0, 2.0)

    monkeypatch.setattr(tiles, "measure", measure)
    monkeypatch.setattr(tiles, "TILES", {"logits": ((512, 1), (1024, 16)), "rows": ((256, 1), (512, 16))})
    file, device = tmp_path / "tiles.csv", cast(Cuda, SimpleNamespace(torch=torch.device("cpu")))
    assert tiles.main([str(file), "--shapes", "2x1000", "--dtypes", "fp32"], device) == 0
    rows = _rows(file)
    assert len(rows) == 10 * 3
    assert len({row["case"] for row in rows}) == 10
    for case in {row["case"] for row in rows}:
        own, _, failed = [row for row in rows if row["case"] == case]
        assert (own["chosen"], own["time_ms"], own["status"]) == ("True", "1.5", "ok")
        assert (failed["num_warps"], failed["time_ms"]) == ("16", "")
        assert failed["status"] == "failed: RuntimeError: out of resources"
    assert {(c["BLOCK_V"], c.num_warps) for c in launched if "BLOCK_V" in c.tiles} >= {(512, 1), (256, 1)}
    assert rows[0]["least_bytes"] == str(2 * 2 * 1000 * 4)
