"""Compiled or interpreted kernels, and the errors where they cannot run; each case is a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import lucid
import triton_kernels as tk
from tests.device import DEVICE
from triton_kernels.runtime import backend, interpreter, launch, tile_configs

without_gpu = pytest.mark.skipif(backend.HAS_GPU, reason="about machines without a GPU")
with_gpu = pytest.mark.skipif(not backend.HAS_GPU, reason="about machines with a GPU")


def _run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**clean, **env})


def test_new_tensors_are_made_where_kernels_run() -> None:
    assert lucid.get_default_device() == str(backend.default_device())
    done = _run("import lucid; print(lucid.get_default_device(), (lucid.ones(2) + 1).tolist())", TRITON_INTERPRET="1")
    assert done.stdout.strip() == "cpu [2.0, 2.0]", done.stderr


#: Imports that leave triton for us to import, or have it imported.
NOTHING, TRITON, INDUCTOR = "pass", "import triton, triton.language", "import torch._dynamo, torch._inductor.config"
INTERPRET = {"TRITON_INTERPRET": "1"}


@without_gpu
@pytest.mark.parametrize(
    ("package", "before", "environment"),
    [
        *(
            ("triton_kernels", before, environment)
            for before in (NOTHING, TRITON, INDUCTOR)
            for environment in ({}, INTERPRET)
        ),
        ("lucid", TRITON, {}),
        ("lucid.torch", TRITON, {}),
        ("lucid.torch", INDUCTOR, INTERPRET),
    ],
)
def test_kernels_are_interpreted_whatever_was_imported_before_and_the_environment_stays_as_it_is(
    package: str, before: str, environment: dict[str, str]
) -> None:
    program = f"""
import os
{before}
environment = dict(os.environ)
import {package}, torch, triton_kernels
print(triton_kernels.runtime.backend.INTERPRETED, triton_kernels.sum(torch.ones(300), [0]).item(), end=" ")
print(dict(os.environ) == environment)
"""
    done = _run(program, **environment)
    assert done.stdout.split() == ["True", "300.0", "True"], done.stderr


@without_gpu
def test_what_others_see_of_triton_is_as_it_was() -> None:
    """Between launches, and in one that fails."""
    program = """
import textwrap, triton, triton.language as tl
from triton.runtime import JITFunction
seen = [tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype]
before = [dict(vars(namespace)) for namespace in seen]
import torch, triton_kernels
x = torch.randn(3, 300)
triton_kernels.divergence_forward(x, x, divergence="js")
try:
    triton_kernels.divergence_forward(x, x, weight=torch.tensor("a"))
except Exception:
    pass
theirs = triton.jit(textwrap.dedent)
changed = [name for n, b in zip(seen, before) for name in b if vars(n).get(name) is not b[name]]
print(changed, isinstance(theirs, JITFunction), isinstance(tl.sum, JITFunction), triton.knobs.runtime.interpret)
"""
    assert _run(program).stdout.strip() == "[] True True False"


@without_gpu
def test_an_environment_that_keeps_kernels_compiled_gives_an_error_that_says_what_to_do() -> None:
    program = "import lucid\ntry: lucid.ones(2) + 1\nexcept RuntimeError as e: print(e)"
    assert "TRITON_INTERPRET=0 keeps kernels compiled" in _run(program, TRITON_INTERPRET="0").stdout


@without_gpu
def test_a_cpu_tensor_where_kernels_are_compiled_gives_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(backend, "HAS_GPU", True)
    with pytest.raises(RuntimeError, match=r"cannot read a CPU tensor: move it with .to\('cuda'\), or set TRITON_INT"):
        backend.check_device(torch.device("cpu"))
    backend.check_device(torch.device("cuda"))


@with_gpu
def test_a_cpu_tensor_on_a_machine_with_a_gpu_gives_an_error_that_says_what_to_do() -> None:
    done = _run("import lucid\ntry: lucid.ones(2, device='cpu') + 1\nexcept RuntimeError as e: print(e)")
    assert "move it with .to('cuda')" in done.stdout, done.stderr


def test_launches_from_several_threads_do_not_meet() -> None:
    rows = torch.randn(4, 3, 12000).to(DEVICE)

    def run(x: torch.Tensor) -> list[float]:
        with tile_configs.use_tile_configs(interpreted=False):
            return [tk.divergence_forward(x, 2 * x)[0].sum().item() for _ in range(3)]

    every = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor() as threads:
            expected = [run(x) for x in rows]
            assert list(threads.map(run, rows)) == expected
    finally:
        sys.setswitchinterval(every)


def test_launches_that_one_thread_plans_are_executed_by_the_others() -> None:
    x = torch.ones(8, device=DEVICE)
    planning, planned = threading.Event(), threading.Event()
    shown: list[launch.Launch] = []

    def plan() -> None:
        with launch.dry_run(shown.append):
            planning.set()
            planned.wait()
            tk.sum(x, [0])

    thread = threading.Thread(target=plan)
    thread.start()
    planning.wait()
    executed = tk.sum(x, [0])
    planned.set()
    thread.join()
    assert (executed.item(), len(shown)) == (8, 1)
    assert tk.sum(x, [0]).item() == 8


@pytest.mark.interpreter_only
def test_the_interpreter_skips_integer_overflow_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import interpreter_semantic

    checks: list[str] = []
    monkeypatch.setattr(interpreter_semantic, "device_assert", lambda condition, message, mask: checks.append(message))
    assert tk.sum(torch.ones(8, device=DEVICE), [0]).item() == 8
    assert checks == []


class TestBfloat16InTheInterpreter:
    """The one named place where the interpreter's faults are worked around."""

    def test_rounding_is_that_of_torch_for_every_kind_of_float32(self) -> None:
        bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
        edges = np.array([0, 0x80000000, 1, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x3F808000], np.uint32)
        values = np.concatenate([bits, edges]).view(np.float32)
        ours = torch.from_numpy(interpreter.bfloat16_bits(values).astype(np.int32)).to(torch.int16).view(torch.bfloat16)
        theirs = torch.from_numpy(values).to(torch.bfloat16)
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())

    def test_every_bfloat16_survives_the_way_to_float32_and_back(self) -> None:
        every = np.arange(2**16, dtype=np.uint16)
        values = interpreter.bfloat16_values(every)
        back = interpreter.bfloat16_bits(values)
        np.testing.assert_array_equal(back[~np.isnan(values)], every[~np.isnan(values)])
        assert np.isnan(interpreter.bfloat16_values(back[np.isnan(values)])).all()
