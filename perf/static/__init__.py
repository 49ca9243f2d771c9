"""static: what compiled kernels take, read off their machine code; no GPU is needed.

Compiles each shipped kernel for cuda 80, 90 and 100 and for hip gfx942. For cuda it counts, on the path a whole tile
takes through the machine code, instructions and special functions per element (marginal), what a program does once
(fixed), and both together per element (total); a chip's bandwidth, multiprocessors and clock then say what bounds the
kernel, and which fraction of the memory roof it can reach at most: a prediction, not a measurement.

--check compares with the figures accepted before, in perf/results/predicted/static.csv, and fails where one is worse.
Without --kernels and --dtypes it compiles the launches that users can reach, too, and fails where one is refused,
spills, or has narrow accesses; for cuda 90, and one in four for another target, or each for all --targets.
--accept writes the figures anew.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perf import results, selection
from perf.errors import UsageError

HELP = "what compiled kernels take, read off their machine code; without a GPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    for name, meaning in (
        ("kernels", "kernels, by the names in the table"),
        ("dtypes", f"of {', '.join(selection.DTYPES)}"),
        ("targets", "such as cuda:90,hip:gfx942"),
    ):
        parser.add_argument(f"--{name}", type=_list, metavar="LIST", help=f"{meaning} (default: all)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="exit with 1 where a figure is worse than accepted")
    action.add_argument("--accept", action="store_true", help="accept the figures of all kernels: write that file")
    action.add_argument("--diff", metavar="REV", help="show what has changed since a git revision")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write machine code there; > marks what is counted")
    parser.add_argument(
        "--jobs", type=selection.whole, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)"
    )
    results.add_arguments(parser)


def _list(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    # Not before they are needed: they import triton, of which `traffic` wants the interpreter.
    from perf.static import figures, matrix
    from perf.static.shipped import variants
    from triton_kernels.devtools import aot

    results.check_writable(options.csv, options.json, figures.BASELINE if options.accept else None)
    kernels = _chosen("kernels", options.kernels, [variant.kernel for variant in variants()])
    dtypes = _chosen("dtypes", options.dtypes, tuple(selection.DTYPES))
    targets = _chosen("targets", options.targets, tuple(aot.TARGETS))
    if options.accept and (options.kernels or options.dtypes or options.targets):
        raise UsageError("--accept takes all kernels, dtypes and targets: leave --kernels, --dtypes and --targets out")
    chosen = [n for n, variant in enumerate(variants()) if variant.kernel in kernels and variant.dtype in dtypes]
    if not chosen:
        raise UsageError("no kernel is shipped for these --kernels and --dtypes")
    tasks = [(number, target) for number in chosen for target in targets]
    accepted = figures.baseline() if options.check else {}
    if options.keep:
        try:
            options.keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--keep {options.keep} cannot be made: {error.strerror}") from error
    if options.diff:
        rows, errors = figures.diff(options.diff, tasks, options.jobs, options.keep)
    else:
        rows, errors = figures.measure(tasks, options.jobs, keep=options.keep)
        figures.show("Shipped kernels, as compiled", rows)
    results.write("static", rows, options)
    if options.accept and not errors:
        results.write("static", rows, argparse.Namespace(csv=figures.BASELINE, json=None))
        print(f"wrote {figures.BASELINE_NAME}")
    if options.check:
        errors += figures.regressions(rows, accepted)
        if not errors:
            print(f"{len(rows)} rows, none worse than accepted in {figures.BASELINE_NAME}")
        if not (options.kernels or options.dtypes):
            errors += matrix.faults(matrix.launches(), options.targets, options.jobs)
    for line in errors:
        print(line, file=sys.stderr)
    return 1 if errors else 0


def _chosen(option: str, given: Sequence[str] | None, accepted: Sequence[str]) -> Sequence[str]:
    for name in given or ():
        if name not in accepted:
            known = ", ".join(dict.fromkeys(accepted))
            raise UsageError(f"argument --{option}: unknown {option.rstrip('s')} {name!r}, accepted: {known}")
    return given or accepted
