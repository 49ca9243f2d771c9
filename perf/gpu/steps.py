"""The steps of ``make gpu``, in order."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf.gpu.runner import Step

#: Tests that compiled kernels pass or fail: all but those of what is counted, compiled offline, drawn or reported.
TESTS = (
    "tests",
    *(
        f"--ignore=tests/test_{name}.py"
        for name in (
            "aot",
            "namesakes",
            "packaging",
            "variants",
            "demo",
            "layers",
            "torch_distributed",
            "torch_examples",
            "torch_gkd",
            "torch_transformers",
            "torch_trl",
            "perf_gpu",
            "perf_make",
            "perf_output",
            "perf_overhead",
            "perf_plot",
            "perf_report",
            "perf_static",
            "perf_sweep",
            "perf_traffic",
        )
    ),
)

#: Vocabularies whose rows are not aligned: one column more than a multiple of 32, and GPT-2's.
ODD = (32001, 50257)

#: Seconds before its limit at which a step stops by itself, to end with what it has.
MARGIN = 8.0


@dataclass(frozen=True)
class Settings:
    """What steps depend on: where results go, the bundle, tests and the headline shape."""

    folder: Path
    bundle: Path
    site: Path
    cache: Path
    tests: Sequence[str]
    shape: str


def steps(settings: Settings) -> list[Step]:
    """All steps."""
    n, _, _ = settings.shape.partition("x")
    odd = ",".join(f"{n}x{v}" for v in ODD)
    four = "ours,lucid.torch,torch,liger"
    some = "--variants log,forward_kl,js"
    sanitized = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Step("wheels", 40, lambda s: _if_there(settings.bundle / "wheels", "install", settings.site)),
        Step("cache", 20, lambda s: _if_there(settings.bundle / "cache.tar.xz", "unpack", settings.cache)),
        Step("versions", 20, lambda s: _module("versions")),
        Step("tests", 110, lambda s: _tests(settings)),
        _sweep(settings, "sweep", 80, "kl_div distillation softmax log_softmax", settings.shape, "bf16", four),
        _sweep(settings, "sweep-labels", 40, "cross_entropy", settings.shape, "bf16", four),
        _sweep(settings, "sweep-odd", 45, f"kl_div distillation cross_entropy softmax {some}", odd, "bf16", four),
        _sweep(
            settings,
            "sweep-compile",
            70,
            f"kl_div distillation cross_entropy {some}",
            settings.shape,
            "bf16",
            "ours,compile",
        ),
        _sweep(settings, "sweep-fp32", 60, f"kl_div distillation softmax {some}", settings.shape, "fp32", four),
        Step("overhead", 45, lambda s: _overhead(settings)),
        Step("graphs", 25, lambda s: _module("graphs", settings.folder / "graphs.csv")),
        Step("dram", 70, lambda s: _counters(settings, "dram", s), needs="ncu"),
        Step("kernels", 60, lambda s: _counters(settings, "kernels", s), needs="ncu"),
        Step("memcheck", 60, lambda s: _sanitizer("memcheck"), sanitized, "compute-sanitizer"),
        Step("racecheck", 60, lambda s: _sanitizer("racecheck"), sanitized, "compute-sanitizer"),
        Step("tiles", 60, lambda s: _module("tiles", settings.folder / "tiles.csv")),
    ]


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"perf.gpu.{name}", *map(str, arguments)]


def _perf(command: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "perf", command, *map(str, arguments)]


def _if_there(source: Path, module: str, target: Path) -> list[str]:
    return _module(module, source, target) if source.exists() else []


def _tests(settings: Settings) -> list[str]:
    workers = ["-n", "13", "--dist", "worksteal"]
    options = ["-q", "-p", "no:benchmark", "-p", "no:cacheprovider", "--tb=short", "--maxfail=100"]
    return [sys.executable, "-m", "pytest", *workers, *options, *settings.tests]


def _sweep(settings: Settings, name: str, limit: float, what: str, shapes: str, dtype: str, providers: str) -> Step:
    options = f"--shapes {shapes} --dtypes {dtype} --providers {providers} --modes forward,backward --budget-ms 40"
    file = settings.folder / "sweep.csv"

    def command(seconds: float) -> list[str]:
        time_limit = f"{max(seconds - MARGIN, 1):.0f}"
        return _perf("sweep", *what.split(), *options.split(), "--time-limit", time_limit, "--csv", file, "--append")

    return Step(name, limit, command)


def _overhead(settings: Settings) -> list[str]:
    what = (
        "kl_div distillation softmax cross_entropy --variants prob,log,forward_kl,js --modes forward,full --repeats 15"
    )
    return _perf("overhead", *what.split(), "--csv", settings.folder / "overhead.csv")


def _counters(settings: Settings, kind: str, seconds: float) -> list[str]:
    limit = f"{max(seconds - MARGIN, 1):.0f}"
    return _module("counters", kind, settings.folder / f"{kind}.csv", "--shape", settings.shape, "--limit", limit)


def _sanitizer(tool: str) -> list[str]:
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    return ["compute-sanitizer", *options, *_module("every_kernel")]


#: Names of all steps.
NAMES = tuple(step.name for step in steps(Settings(Path(), Path(), Path(), Path(), (), "1x1")))
