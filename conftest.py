"""Shared by all tests, doctests included: poisoned buffers, and the record of launches that is compiled at the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.torch
import triton_kernels
from tests import pairs
from tests.compiling import Compiler, some_targets
from tests.device import DEVICE
from triton_kernels.devtools import aot, trace
from triton_kernels.runtime import backend, replay
from triton_kernels.runtime.launch import Launch

#: These import transformers' Trainer and TRL, which takes seconds; their docstrings have nothing to run.
collect_ignore = ["lucid/examples/gkd.py", "lucid/examples/trainer.py"]

IMPLEMENTATIONS = ("kernels", "torch's operators")
TILES = ("interpreter's tiles", "GPU's tiles")
COMPILED_AT_THE_END = "test_every_recorded_launch"

_compiler: Compiler | None = None
_seen: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-target",
        action="store_true",
        help="compile each recorded launch for every target, not only for cuda:90 and one in four for another",
    )
    parser.addoption(
        "--every-combination",
        action="store_true",
        help="run tests with every combination of their parameters, not only with every pair of values",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests of compiled launches last, when all launches are known; skip what needs the interpreter.

    Tiles say nothing to torch's own operators, which run with one table of them only.
    """
    items[:] = [item for item in items if not {IMPLEMENTATIONS[1], TILES[0]} <= _parameters(item)]
    if not config.getoption("--every-combination"):
        pairs.thin(items, config)
    items.sort(key=lambda item: COMPILED_AT_THE_END in item.name)
    if not backend.INTERPRETED:
        reason = "counts bytes in Triton's interpreter; run with TRITON_INTERPRET=1"
        for item in items:
            if item.get_closest_marker("interpreter_only"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def compiler() -> Compiler:
    """The process that compiles what was recorded, at work since the first launch."""
    assert _compiler is not None, "no launch was recorded: run the whole suite, or more than this test"
    return _compiler


@pytest.fixture(scope="session", autouse=True)
def _record_launches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Send each distinct launch, as a GPU would get it, to a compiler in another process, if a test asks for it."""
    global _compiler
    if not any(COMPILED_AT_THE_END in item.name for item in request.session.items):
        yield
        return
    _compiler = Compiler()
    every = request.config.getoption("--every-target")
    one_at_a_time = threading.Lock()

    def record(launched: Launch) -> None:
        description = json.dumps(aot.describe(launched))
        with one_at_a_time:
            if description not in _seen:
                _seen.add(description)
                assert _compiler is not None
                _compiler.send(description, tuple(aot.TARGETS) if every else some_targets(description))

    with trace.gpu_launches(record):
        yield
    _compiler.stop()


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh floating buffers with NaN, and others with a large number: what is not written shows."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        buffer = empty(*args, **kwargs)
        if torch.compiler.is_compiling() or buffer.numel() > 2**26:  # no memory, or so much that it would be filled
            return buffer
        if buffer.dtype.is_floating_point:
            buffer.detach().fill_(float("nan"))
        elif buffer.dtype is not torch.bool and not buffer.dtype.is_complex:
            buffer.fill_(torch.iinfo(buffer.dtype).max)
        return buffer

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def _forget_recordings() -> None:
    """No launch of a test before, which may have changed tile sizes, is repeated."""
    replay.clear()


def _parameters(item: pytest.Item) -> set[str]:
    callspec = getattr(item, "callspec", None)
    return {value for value in callspec.params.values() if isinstance(value, str)} if callspec else set()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of losses with each implementation, but one of kernels with kernels only."""
    for fixture in ("implementation", "launchers"):
        if fixture in metafunc.fixturenames:
            kernels_only = not backend.INTERPRETED or metafunc.definition.get_closest_marker("kernels_only")
            metafunc.parametrize(fixture, IMPLEMENTATIONS[:1] if kernels_only else IMPLEMENTATIONS, indirect=True)


@pytest.fixture
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """What lucid.torch runs on CPU tensors. Where kernels are compiled, tests are of GPU tensors, which this leaves."""
    with lucid.torch.kernels_on_cpu(request.param == "kernels" and backend.INTERPRETED):
        yield request.param


@pytest.fixture
def launchers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace the launchers of losses in `triton_kernels` by the implementation under test."""
    if request.param != "kernels":
        for name in lucid.torch.cpu.__all__:
            monkeypatch.setattr(triton_kernels, name, getattr(lucid.torch.cpu, name))
    return request.param


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers without the planning that records launches: for tests that count what Python or the allocator does."""
    for name in triton_kernels.__all__:
        launcher = getattr(triton_kernels, name)
        monkeypatch.setattr(triton_kernels, name, getattr(launcher, "without_dry_run", launcher))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    lucid.manual_seed(0)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    """Names that examples of the kernel package use: they run on any device."""
    doctest_namespace.update(torch=torch, np=np, DEVICE=DEVICE, triton_kernels=triton_kernels)


@pytest.fixture(params=TILES)
def tiles(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with each table of tile sizes; where kernels are compiled, the interpreter's would not fit."""
    gpu = request.param == "GPU's tiles"
    if not gpu and not backend.INTERPRETED:
        pytest.skip("the interpreter's tiles are too large for a GPU")
    with triton_kernels.tile_configs.use_tile_configs(interpreted=not gpu):
        yield request.param
