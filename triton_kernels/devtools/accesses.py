"""Loads, stores and launches of Triton's interpreter, as they happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def observed(access: Callable[[str, Any, Any], None], launch: Callable[..., None]) -> Iterator[None]:
    """Call `access` before each load and store, and `launch` in place of each launch, of all threads.

    Parameters
    ----------
    access
        Gets "loads" or "stores", the pointers and the mask.
    launch
        Gets the function that executes a launch, and its arguments: the executor, those of the kernel.
    """
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    execute = GridExecutor.__call__

    def observed_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        access("loads", pointers, mask)
        return load(self, pointers, mask, *rest)

    def observed_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        access("stores", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def executed(self: Any, *args: Any, **kwargs: Any) -> None:
        launch(execute, self, *args, **kwargs)

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = observed_load, observed_store
    GridExecutor.__call__ = executed
    try:
        yield
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store
        GridExecutor.__call__ = execute
