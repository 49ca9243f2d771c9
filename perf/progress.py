"""Progress on standard error, for work that takes a while: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

#: Seconds from one line to the next where there is no terminal.
LINES_S = 10.0


@contextmanager
def progress(total: int, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with what comes next, `total` times."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        started, due = 0, clock()

        def advance(description: str) -> None:
            nonlocal started, due
            bar.update(task, description=description, completed=started)
            started += 1
            if not console.is_terminal and clock() >= due:
                print(f"{started}/{total} {description}", file=sys.stderr, flush=True)
                due = clock() + LINES_S

        yield advance
