"""Command-line helpers of the examples: one-line errors, bounded integers, exit codes, how to install an extra."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class Parser(argparse.ArgumentParser):
    """Reports a bad value in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def install_extra(extra: str) -> str:
    """Return the command that installs an extra: from the project's folder, since no index has the project."""
    return f'pip install ".[{extra}]", run in the folder of lucid-triton\'s pyproject.toml'


def exit_code(parser: Parser, example: Callable[[], int | None], extra: str, packages: Sequence[str]) -> int:
    """Run an example, and return its exit code: 1 and a line where one of the extra's packages is missing."""
    try:
        return example() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in (*packages, "pydoc_data"):
            raise
        needed = "a Python with pydoc_data" if package == "pydoc_data" else install_extra(extra)
        print(f"{parser.prog}: error: {package} is missing; the example needs {needed}", file=sys.stderr)
        return EXIT_FAILURE


def int_in_range(at_least: int, below: int = 2**63) -> Callable[[str], int]:
    """Return a parser of arguments that are integers in ``[at_least, below)``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = at_least - 1
        if not at_least <= value < below:
            raise argparse.ArgumentTypeError(f"expected an integer from {at_least} to {below - 1}, got {text!r}")
        return value

    return parse
