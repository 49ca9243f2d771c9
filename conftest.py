"""Fixtures of all tests, doctests included: poisoned buffers, seeds, implementations and tile sizes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.torch
import triton_kernels
from tests import pairs
from tests.device import DEVICE
from triton_kernels.devtools.memcheck import memcheck
from triton_kernels.runtime import backend, replay

#: These import transformers' Trainer and TRL, which takes seconds; their docstrings have nothing to run.
collect_ignore = ["lucid/examples/gkd.py", "lucid/examples/linear_trainer.py", "lucid/examples/trainer.py"]

IMPLEMENTATIONS = ("kernels", "torch's operators")
TILES = ("interpreter's tiles", "GPU's tiles")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-combination",
        action="store_true",
        help="run tests with every combination of their parameters, not only with every pair of values",
    )
    parser.addoption(
        "--memcheck", action="store_true", help="fail at accesses outside of tensors; in Triton's interpreter, slow"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check accesses until the end, where that is asked for."""
    if config.getoption("--memcheck"):
        if not backend.INTERPRETED:
            raise pytest.UsageError("--memcheck: kernels are compiled; accepted in Triton's interpreter")
        until_the_end = ExitStack()
        until_the_end.enter_context(memcheck())
        config.add_cleanup(until_the_end.close)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select cases that cover all pairs of parameters; skip tests that need the interpreter.

    Torch's own operators have no tiles, so they run with one of the two only.
    """
    items[:] = [item for item in items if not {IMPLEMENTATIONS[1], TILES[0]} <= _parameters(item)]
    if not config.getoption("--every-combination"):
        pairs.thin(items, config)
    if not backend.INTERPRETED:
        reason = "counts bytes in Triton's interpreter; run with TRITON_INTERPRET=1"
        for item in items:
            if item.get_closest_marker("interpreter_only"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill uninitialized floating buffers with NaN, others with a large number, so that unwritten elements show."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        buffer = empty(*args, **kwargs)
        if torch.compiler.is_compiling() or buffer.numel() > 2**26:  # without memory, or too large to fill
            return buffer
        if buffer.dtype.is_floating_point:
            buffer.detach().fill_(float("nan"))
        elif buffer.dtype is not torch.bool and not buffer.dtype.is_complex:
            buffer.fill_(torch.iinfo(buffer.dtype).max)
        return buffer

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def _forget_recordings() -> None:
    """Drop recordings of earlier tests, which may have changed tile sizes."""
    replay.clear()


def _parameters(item: pytest.Item) -> set[str]:
    callspec = getattr(item, "callspec", None)
    return {value for value in callspec.params.values() if isinstance(value, str)} if callspec else set()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of losses with each implementation, those marked `kernels_only` with kernels only."""
    for fixture in ("implementation", "launchers"):
        if fixture in metafunc.fixturenames:
            kernels_only = not backend.INTERPRETED or metafunc.definition.get_closest_marker("kernels_only")
            metafunc.parametrize(fixture, IMPLEMENTATIONS[:1] if kernels_only else IMPLEMENTATIONS, indirect=True)


@pytest.fixture
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Select what lucid.torch runs on CPU tensors; compiled kernels take GPU tensors, which this does not affect."""
    with lucid.torch.kernels_on_cpu(request.param == "kernels" and backend.INTERPRETED):
        yield request.param


@pytest.fixture
def launchers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace the launchers of losses in `triton_kernels` by the implementation under test."""
    if request.param != "kernels":
        for name in lucid.torch.cpu.__all__:
            monkeypatch.setattr(triton_kernels, name, getattr(lucid.torch.cpu, name))
    return request.param


@pytest.fixture(params=[True, False], ids=["one launch", "two launches"])
def forms(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute the gradients of losses of logits with the loss, or in a launch of their own."""
    with lucid.gradient_in_forward(request.param):
        yield


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Free memory by reference counts only: cycles stay."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """Make new tensors in CPU memory, which NumPy can share."""
    before = lucid.get_default_device()
    lucid.set_default_device("cpu")
    yield
    lucid.set_default_device(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    lucid.manual_seed(0)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    """Define the names that doctests of the kernel package use."""
    doctest_namespace.update(torch=torch, np=np, DEVICE=DEVICE, triton_kernels=triton_kernels)


@pytest.fixture(params=TILES)
def tiles(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with each table of tile sizes; the interpreter's are too large for compiled kernels."""
    gpu = request.param == "GPU's tiles"
    if not gpu and not backend.INTERPRETED:
        pytest.skip("the interpreter's tiles are too large for a GPU")
    with triton_kernels.tile_configs.use_tile_configs(interpreted=not gpu):
        yield request.param
