"""Processes that answer a line of JSON with a line of JSON: in them Triton's interpreter is off, and they compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from perf.errors import UsageError
from perf.progress import progress

ROOT = Path(__file__).parents[2]


def answers(
    module: Sequence[str], tasks: Sequence[tuple[str, Any]], jobs: int, source: Path | None = None
) -> list[Any]:
    """The answers of a module's processes to tasks, each with a label to show, in the order of the tasks.

    `source` is a folder with the ``triton_kernels`` to compile, by default those that are installed.
    """
    path = [*([str(source)] if source else []), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(path)}
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in range(len(tasks)):
        waiting.put(number)
    found: list[Any] = [None] * len(tasks)
    lock = threading.Lock()
    with progress(len(tasks)) as advance, ThreadPoolExecutor(jobs) as pool:

        def work() -> None:
            command = [sys.executable, "-P", "-m", *module]
            with subprocess.Popen(
                command, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                while True:
                    try:
                        number = waiting.get_nowait()
                    except Empty:
                        return
                    label, task = tasks[number]
                    with lock:
                        advance(label)
                    try:
                        print(json.dumps(task), file=process.stdin, flush=True)
                        found[number] = json.loads(process.stdout.readline())
                    except (BrokenPipeError, json.JSONDecodeError):
                        code = process.wait()
                        raise UsageError(f"the process that compiles {label} ended with {code}, see above") from None

        for done in [pool.submit(work) for _ in range(min(jobs, len(tasks)))]:
            done.result()
    return found
