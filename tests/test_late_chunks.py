"""A program that computes the statistics of another's chunk too late: its gradient has been written over the logits.

Triton's interpreter runs programs one after another; here the second one runs as a whole within the first one, as soon
as that begins to load the second one's chunk.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import triton_kernels as tk

pytestmark = pytest.mark.interpreter_only

V, COLUMNS = 9001, 4096  # of a row, and of a chunk


@contextmanager
def _second_program_runs_when_the_first_loads_its_chunk(logits: Tensor) -> Iterator[list[bool]]:
    """Yield a list that is not empty once it did."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, interpreter_builder

    execute, load = GridExecutor.__call__, InterpreterBuilder.create_masked_load
    first = logits.data_ptr() + COLUMNS * logits.itemsize
    last = first + COLUMNS * logits.itemsize
    kernel: Any = None
    done: list[bool] = []

    def executed(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal kernel
        fn = self.fn

        def program(**given: Any) -> None:
            nonlocal kernel
            kernel = functools.partial(fn, **given)
            if not (done and interpreter_builder.grid_idx[0] == 1):  # it has run
                fn(**given)

        program.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
        program.__annotations__ = fn.__annotations__
        self.fn = program
        execute(self, *args, **kwargs)

    def loaded(self: Any, pointers: Any, *rest: Any) -> Any:
        waiting = kernel and not done and interpreter_builder.grid_idx[0] == 0
        if waiting and first <= pointers.data.min() and pointers.data.max() < last:
            done.append(True)
            interpreter_builder.set_grid_idx(1, 0, 0)
            kernel()
            interpreter_builder.set_grid_idx(0, 0, 0)
        return load(self, pointers, *rest)

    patched = mock.patch.object(GridExecutor, "__call__", executed)
    with patched, mock.patch.object(InterpreterBuilder, "create_masked_load", loaded):
        yield done


@pytest.mark.parametrize("both", [False, True], ids=["student", "both"])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "js", "total_variation", "cross_entropy"])
def test_statistics_of_logits_that_a_gradient_was_written_over_are_not_stored(kind: str, both: bool) -> None:
    """Of the student's logits, or the teacher's, too."""
    s, t = torch.randn(1, V), torch.randn(1, V)

    def loss_and_gradient(logits: Tensor) -> tuple[Tensor, Tensor]:
        with tk.tile_configs.use_tile_configs(interpreted=False):
            if kind == "cross_entropy":
                return tk.cross_entropy_forward(logits, torch.tensor([5]), dx=logits, polls=0)[0], logits
            teacher = t.clone()
            to_teacher = teacher if both else None
            losses, _ = tk.divergence_forward(
                logits, teacher, divergence=kind, dstudent=logits, dteacher=to_teacher, polls=0
            )
            return losses, torch.cat((logits, teacher))

    wanted, given = loss_and_gradient(s.clone()), s.clone()
    with _second_program_runs_when_the_first_loads_its_chunk(given) as done:
        found = loss_and_gradient(given)
    assert done
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
