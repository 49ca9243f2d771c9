"""``python -m perf``: the subcommands, and how their errors are shown."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from perf.errors import UsageError

#: Subcommands, each a module of this package with HELP, add_arguments(parser) and run(options) -> exit code.
COMMANDS = ("sweep", "cpu", "overhead", "traffic", "static", "plot", "report", "collect")

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reports a bad value in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    parser = _Parser(
        prog="python -m perf", description="Measure kernels on a GPU, and prove what can be proved without."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    runners = {}
    for name in COMMANDS:
        try:
            module = importlib.import_module(f"perf.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("rich", "matplotlib"):
                raise
            print(f'{parser.prog}: error: {error.name} is missing: pip install ".[perf]"', file=sys.stderr)
            return EXIT_FAILURE
        description = (module.__doc__ or "").partition("\n\n")[2].strip() or module.HELP
        subparser = commands.add_parser(
            name, help=module.HELP, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(subparser)
        runners[name] = module.run
    options = parser.parse_args(arguments)
    try:
        return runners[options.command](options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except UsageError as error:
        print(f"{parser.prog} {options.command}: error: {error}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
