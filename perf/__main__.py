"""``python -m perf``: the subcommands, and how their errors are shown."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from perf.errors import UsageError

#: Modules with add_arguments(parser) and run(options) -> exit code, imported when asked for; and a line of help.
COMMANDS = {
    "sweep": ("perf.measure.sweep", "time providers over shapes, on a GPU"),
    "cpu": ("perf.measure.cpu", "lucid.torch on CPU tensors beside plain PyTorch"),
    "overhead": ("perf.measure.overhead", "host time, launches and host syncs per call"),
    "traffic": ("perf.count.traffic", "count bytes, launches and allocations, without a GPU"),
    "static": ("perf.static", "what compiled kernels take, read off their machine code; without a GPU"),
    "plot": ("perf.plot", "draw PNGs from the CSV files of the others"),
    "report": ("perf.report", "render the committed results as Markdown"),
    "collect": ("perf.collect", "take what `make gpu` wrote into perf/results"),
}
EXTRA = ("rich", "matplotlib", "pandas", "tabulate")

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """Reports a bad value in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    description = "Measure kernels on a GPU, and count and predict without one."
    parser = _Parser(prog="python -m perf", description=description)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    module = None
    for name, (path, help_line) in COMMANDS.items():
        command = commands.add_parser(name, help=help_line, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name not in arguments[:1]:
            continue
        if (name == "traffic" or "--count-only" in arguments) and "triton" not in sys.modules:
            os.environ["TRITON_INTERPRET"] = "1"  # read when triton_kernels is imported
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in EXTRA:
                raise
            print(f'{parser.prog}: error: {error.name} is missing: pip install ".[perf]"', file=sys.stderr)
            return EXIT_FAILURE
        command.description = (module.__doc__ or "").partition("\n\n")[2].strip() or help_line
        module.add_arguments(command)
    options = parser.parse_args(arguments)
    assert module is not None
    try:
        code: int = module.run(options)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except UsageError as error:
        print(f"{parser.prog} {options.command}: error: {error}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
