"""What the command lines of the examples share: one line for a bad value, how to install an extra."""

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
    """How to install an extra: from the project's folder, since no index has the project."""
    return f'pip install ".[{extra}]", run in the folder of lucid-triton\'s pyproject.toml'


def whole_number(at_least: int, below: int = 2**63) -> Callable[[str], int]:
    """What reads an argument that is a whole number within bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = at_least - 1
        if not at_least <= value < below:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {at_least}, got {text!r}")
        return value

    return parse
