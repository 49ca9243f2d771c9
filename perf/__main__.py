"""``python -m perf``: the subcommands, and how their errors are shown."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

#: Modules with add_arguments(parser) and run(options) -> exit code, imported when asked for; and a line of help.
COMMANDS = {
    "sweep": ("perf.measure.sweep", "time providers over shapes, on a GPU"),
    "cpu": ("perf.measure.cpu", "lucid.torch on CPU tensors beside plain PyTorch"),
    "overhead": ("perf.measure.overhead", "host time, launches and host syncs per call"),
    "traffic": ("perf.count.traffic", "count bytes, launches and allocations, without a GPU"),
    "static": ("perf.static.command", "what compiled kernels take, read off their machine code; without a GPU"),
    "linear_distillation": (
        "perf.count.linear_distillation",
        "predict times of losses from hidden states; without a GPU",
    ),
    "plot": ("perf.plot", "draw PNGs from the CSV file of a sweep"),
    "report": ("perf.report", "render the committed results as Markdown"),
    "collect": ("perf.collect", "take what `make gpu` wrote into perf/results"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (path, help_line) in COMMANDS.items():
        command = commands.add_parser(name, help=help_line, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in arguments[:1]:
            if (name == "traffic" or "--count-only" in arguments) and "triton" not in sys.modules:
                os.environ["TRITON_INTERPRET"] = "1"  # read when triton_kernels is imported
            module = importlib.import_module(path)
            command.description = module.__doc__
            module.add_arguments(command)
    options = parser.parse_args(arguments)
    from perf.results import UsageError

    try:
        code: int = module.run(options)
        return code
    except KeyboardInterrupt:
        return 130
    except (UsageError, OSError) as error:
        print(f"{parser.prog} {options.command}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
