"""The steps of ``make gpu``, in order: shell commands with their time limits.

The shell knows PYTHON, OUT (the folder of results), BUNDLE, SITE (the folder that wheels are installed into), CACHE,
SHAPE and ROWS (the headline shape, and its number of rows), and SECONDS_LEFT, at which a step stops by itself.
"""

from __future__ import annotations

from typing import NamedTuple

#: Triton names files of compiled kernels by absolute paths, so the bundle's cache is made and used at one.
CACHE = "/tmp/lucid-triton-cache"

#: Test files that say nothing of compiled kernels: what is counted, compiled offline, drawn or reported.
IGNORED = (
    *("aot", "namesakes", "packaging", "variants", "demo", "layers"),
    *("torch_distributed", "torch_examples", "torch_gkd", "torch_linear_trainer", "torch_transformers", "torch_trl"),
    *(
        "perf_collect",
        "perf_gpu",
        "perf_linear",
        "perf_make",
        "perf_output",
        "perf_overhead",
        "perf_peak_memory",
        "perf_plot",
    ),
    *("perf_report", "perf_static", "perf_sweep", "perf_traffic"),
)


class Step(NamedTuple):
    """Seconds after which it is stopped, its command, and a program or a file without which it is skipped."""

    limit: float
    command: str
    needs: str = "sh"


def _sweep(
    what: str, shapes: str, modes: str, providers: str = "ours,lucid.torch,torch,liger", dtypes: str = "bf16"
) -> str:
    options = f"--shapes {shapes} --dtypes {dtypes} --providers {providers} --modes {modes} --budget-ms 40"
    return f"$PYTHON -m perf sweep {what} {options} --time-limit $SECONDS_LEFT --csv $OUT/sweep.csv --append"


def _sanitizer(tool: str) -> Step:
    # Without torch's cache every tensor is an allocation of its own: an access one element beyond it is found.
    command = f"compute-sanitizer --tool {tool} --error-exitcode 9 --print-limit 20 $PYTHON -m perf.gpu.every_kernel"
    return Step(60, f"PYTORCH_NO_CUDA_MEMORY_CACHING=1 {command}", "compute-sanitizer")


_IGNORE = " ".join(f"--ignore=tests/test_{name}.py" for name in IGNORED)
_PYTEST = "-n 13 --dist worksteal -q -p no:benchmark -p no:cacheprovider --tb=short --maxfail=100"
_SOME, _KL, _JS = "--variants log,forward_kl,js", "kl_div --variants log", "--variants forward_kl,js"
#: Losses of logits, whose gradient may be computed with the loss, are compared in both together; others in each.
_BOTH, _EACH = "forward,full", "forward,backward"
#: Many rows, long and short and not aligned; and one.
_LAUNCHES = "8192x32000,8192x128256,8192x32001,8192x128257,65536x1024,1x262144"
_ODD = "${ROWS}x32001,${ROWS}x50257"  # rows that are not aligned: one column more than a multiple of 32, and GPT-2's
_OVERHEAD = (
    "kl_div distillation softmax cross_entropy pointwise matmul --shapes 64x1000,64x1000x64 "
    "--variants prob,log,forward_kl,js,gelu,mul --modes forward,full --repeats 15"
)

STEPS = {
    "wheels": Step(40, "$PYTHON -m perf.gpu.install $BUNDLE/wheels $SITE", "$BUNDLE/wheels"),
    "cache": Step(20, "mkdir -p $CACHE && tar -xJf $BUNDLE/cache.tar.xz -C $CACHE", "$BUNDLE/cache.tar.xz"),
    "versions": Step(30, "$PYTHON -m torch.utils.collect_env && $PYTHON -m perf.environment"),
    "tests": Step(110, f"$PYTHON -m pytest {_PYTEST} tests {_IGNORE}"),
    "stress": Step(30, "$PYTHON -m perf.gpu.stress $OUT/stress.csv $SECONDS_LEFT"),
    "sweep": Step(50, _sweep("kl_div softmax log_softmax", "$SHAPE", _EACH)),
    "sweep-logits": Step(70, _sweep("distillation cross_entropy", "$SHAPE", _BOTH)),
    "sweep-launches": Step(
        60,
        _sweep(f"distillation cross_entropy {_JS}", _LAUNCHES, "full", "lucid.torch,two-launches", "bf16,fp32"),
    ),
    "sweep-linear": Step(
        90, _sweep("linear_distillation", "linear", _BOTH, "lucid.torch,products,torch,liger,compile,trl")
    ),
    "sweep-odd": Step(45, _sweep(f"kl_div distillation cross_entropy softmax {_SOME}", _ODD, _BOTH)),
    "sweep-compile": Step(60, _sweep(f"distillation cross_entropy {_JS}", "$SHAPE", _BOTH, "ours,compile")),
    "sweep-compile-kl": Step(30, _sweep(_KL, "$SHAPE", _EACH, "ours,compile")),
    "sweep-facade": Step(45, _sweep("matmul pointwise", "matmul,$SHAPE", _EACH, "ours,torch", "bf16,fp32")),
    "sweep-fp32": Step(50, _sweep(f"distillation cross_entropy {_JS}", "$SHAPE", _BOTH, dtypes="fp32")),
    "sweep-fp32-kl": Step(30, _sweep(f"softmax {_KL}", "$SHAPE", _EACH, dtypes="fp32")),
    "overhead": Step(55, f"$PYTHON -m perf overhead {_OVERHEAD} --csv $OUT/overhead.csv"),
    "graphs": Step(25, "$PYTHON -m perf.gpu.graphs $OUT/graphs.csv"),
    "dram": Step(130, "$PYTHON -m perf.gpu.dram $OUT/dram.csv $SHAPE", "ncu"),
    "memcheck": _sanitizer("memcheck"),
    "racecheck": _sanitizer("racecheck"),
    "tiles": Step(60, "$PYTHON -m perf.gpu.tiles $OUT/tiles.csv"),
}

#: What every run needs, and steps that are run together, each group within 530 seconds: what is right, how fast the
#: headline shapes are, and how fast others are.
_FIRST = ("wheels", "cache")
GROUPS = {
    "checks": (*_FIRST, "versions", "tests", "stress", "graphs", "dram", "memcheck", "racecheck"),
    "speed": (
        *_FIRST,
        *("sweep", "sweep-logits", "sweep-linear", "sweep-compile", "sweep-compile-kl", "sweep-facade", "overhead"),
    ),
    "more": (*_FIRST, "sweep-launches", "sweep-odd", "sweep-fp32", "sweep-fp32-kl", "tiles"),
}
