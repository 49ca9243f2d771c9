"""Kernels access nothing but the elements of their tensors, whatever the layouts and the tiles."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import pytest
import torch
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpretedFunction

import triton_kernels as tk
from perf.gpu import every_kernel
from perf.static.matrix_ops import CALLS
from tests import broken_kernels
from triton_kernels.devtools.memcheck import memcheck
from triton_kernels.runtime import backend, tile_configs

pytestmark = pytest.mark.interpreter_only

#: Cases of a launcher, of the smallest shapes.
MOST = 12

#: Optimizers' kernels reach tensors by addresses in a table.
OF_TABLE = ("adam_step", "sgd_step", "total_norm", "clip_by_norm", "clip_by_value", "unscale")


@pytest.mark.parametrize("interpreted", [True, False], ids=["interpreter's tiles", "GPU's tiles"])
@pytest.mark.parametrize("name", [name for name in CALLS if name not in OF_TABLE])
def test_a_launcher_reaches_elements_of_its_arguments_alone(name: str, interpreted: bool) -> None:
    call, cases = CALLS[name]
    chosen = [case for case in cases if every_kernel.small(case) and case.get("shape") != "odd chunks"][:MOST]
    with tile_configs.use_tile_configs(interpreted=interpreted), memcheck():
        for case in chosen:
            call(case)


def test_steps_over_several_tensors_reach_these_alone() -> None:
    params, grads, firsts, seconds = ([torch.ones(n) for n in (1, 5, 300)] for _ in range(4))
    step, scale, found = [torch.zeros(()) for _ in params], torch.ones(()), torch.zeros(())
    with memcheck(*params, *grads, *firsts, *seconds, *step):
        tk.adam_step(params, grads, firsts, seconds, step=step, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
        tk.sgd_step(params, grads, firsts, None, lr=0.1, momentum=0.9)
        tk.clip_by_norm(grads, tk.total_norm(grads), 1.0)
        tk.clip_by_value(grads, 0.5)
        tk.unscale(grads, scale, found)
    with memcheck(*params), pytest.raises(IndexError, match="_clamp_kernel loads"):
        tk.clip_by_value(grads, 0.5)


@pytest.mark.parametrize("interpreted", [True, False], ids=["interpreter's tiles", "GPU's tiles"])
@pytest.mark.parametrize(("n", "v"), [(1, 1), (5, 2), (3, 33), (2, 9001)])
def test_labels_that_are_ignored_or_out_of_range_reach_nothing(n: int, v: int, interpreted: bool) -> None:
    x, dx, dloss = torch.randn(n, v), torch.empty(n, v), torch.ones(())
    with tile_configs.use_tile_configs(interpreted=interpreted), memcheck():
        for label, ignored in ((0, -100), (v - 1, 0), (v, -100), (-1, -100), (2**40, v - 1)):
            labels = torch.full((n,), label)
            hard: dict[str, Any] = {"labels": labels, "hard_label_weight": 0.5}
            tk.divergence_forward(x, x, dstudent=dx, ignore_index=ignored, **hard)
            _, statistics = tk.divergence_forward(x, x, ignore_index=ignored, **hard)
            tk.divergence_backward(x, x, statistics, dloss, dstudent_dtype=x.dtype, **hard)
            tk.cross_entropy_forward(x, labels, ignore_index=ignored, dx=dx)
            _, statistics = tk.cross_entropy_forward(x, labels, ignore_index=ignored)
            tk.cross_entropy_backward(x, labels, statistics, dloss, ignore_index=ignored)
    with pytest.raises(IndexError, match="label"):
        tk.raise_pending_errors(x.device)


@pytest.mark.parametrize(
    ("x", "y", "what"),
    [
        (torch.zeros(8), torch.zeros(8), None),
        (torch.zeros(16)[::2], torch.zeros(8), "loads 4 elements"),
        (torch.zeros(8, 1).expand(8, 3), torch.zeros(2, 4), None),
        (torch.zeros(2, 5)[:, :4], torch.zeros(2, 4), "loads 1 elements"),
        (torch.zeros(2, 4).t(), torch.zeros(7), "stores 1 elements"),
        (torch.zeros(7), torch.zeros(8), r"loads 1 elements outside of its tensors: \(7,\), \(8,\)"),
        (torch.zeros(8), torch.zeros(0), "stores 8 elements"),
        (torch.zeros(()), torch.zeros(8), "loads 7 elements"),
        (torch.zeros(8).unfold(0, 4, 2), torch.zeros(8), None),
        (torch.zeros(20).as_strided((3, 4), (4, 2)), torch.zeros(8), "loads 4 elements"),
    ],
)
def test_what_is_no_element_of_a_tensor_is_found(x: torch.Tensor, y: torch.Tensor, what: str | None) -> None:
    with memcheck(), contextlib.nullcontext() if what is None else pytest.raises(IndexError, match=f"copy {what}"):
        InterpretedFunction(broken_kernels.copy.fn)[(1,)](x, y, BLOCK=8)


@pytest.mark.parametrize(("dtype", "found"), [(torch.int32, False), (torch.int16, True)])
def test_an_access_that_begins_in_an_element_and_ends_beyond_it_is_found(dtype: torch.dtype, found: bool) -> None:
    x, y = torch.zeros(2, dtype=dtype), torch.zeros(1, dtype=torch.int32)
    error = pytest.raises(IndexError, match="wider loads 1 elements") if found else contextlib.nullcontext()
    with memcheck(), error:
        InterpretedFunction(broken_kernels.wider.fn)[(1,)](x, y, BLOCK=1)


def test_another_error_is_as_it_is_and_nothing_is_kept_of_a_launch() -> None:
    x, y = torch.zeros(8), torch.zeros(8)
    with memcheck():
        with pytest.raises(InterpreterError) as error:
            InterpretedFunction(broken_kernels.copy.fn)[(1,)](x, y, BLOCK=7)
        assert error.value.__cause__ is not None
        del error
        InterpretedFunction(broken_kernels.copy.fn)[(1,)](x, y, BLOCK=8)
        kept = weakref.ref(x)
        del x
        gc.collect()
        assert kept() is None


def test_compiled_kernels_are_not_checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), memcheck():
        pass
