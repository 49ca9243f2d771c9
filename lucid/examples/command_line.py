"""Command-line helpers of the examples: one-line errors, bounded integers, how to install an extra."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

EXIT_USAGE = 2


class Parser(argparse.ArgumentParser):
    """Reports a bad value in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def install_extra(extra: str) -> str:
    """Return the command that installs an extra: from the project's folder, since no index has the project."""
    return f'pip install ".[{extra}]", run in the folder of lucid-triton\'s pyproject.toml'


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
