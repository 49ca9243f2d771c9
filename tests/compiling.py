"""Processes that compile launches for GPUs that are not there, while the tests run."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from typing import Any

from triton_kernels.devtools import aot

#: The target that every launch is compiled for.
MAIN = "cuda:90"


#: One launch in so many is compiled for another target, too.
OTHERS = 4


def some_targets(description: str) -> tuple[str, ...]:
    """`MAIN`, and for some launches one of the others, always the same: launches that are alike see all of them."""
    number, others = zlib.crc32(description.encode()), [target for target in aot.TARGETS if target != MAIN]
    return (MAIN,) if number % OTHERS else (MAIN, others[number // OTHERS % len(others)])


class Compiler:
    """Takes descriptions of launches and collects reports, from a few processes with the interpreter off."""

    def __init__(self, processes: int = 2) -> None:
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._answers: list[dict[str, Any]] = []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(processes)]
        for thread in self._threads:
            thread.start()
        self.sent = 0

    def send(self, description: str, targets: Sequence[str] = tuple(aot.TARGETS)) -> None:
        """Have one launch compiled for these targets."""
        self._queue.put({**json.loads(description), "targets": targets})
        self.sent += len(targets)

    def answers(self) -> list[dict[str, Any]]:
        """All reports and errors, when the last one is there; nothing can be sent afterwards."""
        self.stop()
        return self._answers

    def stop(self) -> None:
        """Let the processes finish what was sent, and end."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self) -> None:
        """Hand one description at a time to a process of its own."""
        command = [sys.executable, "-m", "triton_kernels.devtools.aot"]
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            while (description := self._queue.get()) is not None:
                print(json.dumps(description), file=process.stdin, flush=True)
                for _ in description["targets"]:
                    # A process that died leaves an empty line, and the count of answers short.
                    line = process.stdout.readline()
                    self._answers += [json.loads(line)] if line else []
