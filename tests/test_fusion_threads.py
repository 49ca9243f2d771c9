"""Threads and what is deferred: each has its own switch, and any of them may be the first to look."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import lucid
import lucid.nn.functional as F
from tests.fusing import FORWARD, SCALE, Case, kernels
from triton_kernels.devtools import trace
from triton_kernels.runtime import launch


def test_each_thread_has_its_own_switch() -> None:
    def loss() -> Any:
        return F.kl_div(F.log_softmax(lucid.randn(3, 5)), F.softmax(lucid.randn(3, 5)))

    with lucid.fusion(False), ThreadPoolExecutor(1) as thread:
        assert FORWARD in thread.submit(kernels, loss).result()
    with lucid.gradient_in_forward(False), ThreadPoolExecutor(1) as thread:
        assert SCALE in thread.submit(kernels, lambda: Case(False).loss().backward()).result()


def test_backward_in_another_thread_takes_the_gradients_that_were_computed_with_the_loss() -> None:
    case = Case(False)
    loss = case.loss()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(kernels, loss.backward).result() == [SCALE] * 2
    twin = Case(False)
    twin.student, twin.teacher = (x.detach().clone().requires_grad_() for x in (case.student, case.teacher))
    twin.loss().backward()
    assert case.student.grad.tolist() == twin.student.grad.tolist()


def test_threads_that_look_at_once_see_the_same_memory() -> None:
    y = F.softmax(lucid.randn(300, 50))
    barrier = threading.Barrier(4)

    def look(_: int) -> int:
        barrier.wait()
        return y._buffer.data_ptr()

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(look, range(4)))) == 1


@pytest.mark.parametrize("which", ["student", "teacher", "scaled"])
def test_a_thread_may_look_while_another_is_about_to_do_without(which: str) -> None:
    student, teacher = lucid.randn(3, 5), lucid.randn(3, 5)
    barrier = threading.Barrier(3)
    planned: list[launch.Launch] = []

    def at_once(run: Callable[[], Any]) -> Any:
        # Planning is a switch of the thread, too.
        with launch.dry_run(planned.append):
            barrier.wait()
            return run()

    every = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        # Nothing is calculated, so that threads meet more often.
        with trace.launches() as launched, ThreadPoolExecutor(3) as threads:
            for _ in range(1000):
                scaled = teacher / 2
                made = {"student": F.log_softmax(student), "teacher": F.softmax(scaled), "scaled": scaled}
                runs = [
                    lambda: F.kl_div(made["student"], made["teacher"], reduction="sum"),  # noqa: B023
                    lambda: F.softmax(made["scaled"]),  # noqa: B023
                    lambda: made[which].tolist(),  # noqa: B023
                ]
                assert len(list(threads.map(at_once, runs))) == 3
        assert len(planned) > 1000
        assert not launched
    finally:
        sys.setswitchinterval(every)
