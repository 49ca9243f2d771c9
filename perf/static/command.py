"""static: what compiled kernels take, read off their machine code; no GPU is needed.

Compiles each shipped kernel for cuda 80, 90 and 100 and for hip gfx942. For cuda it counts, on the path a whole tile
takes through the machine code, instructions and special functions per element (marginal), what a program does once
(fixed), and both together per element (total); a chip's bandwidth, multiprocessors and clock then say what bounds the
kernel, and which fraction of the memory roof it can reach at most: a prediction, not a measurement.

--check compares with the figures accepted before, in perf/results/predicted/static.csv, and fails where one is worse.
Where the shipped tile's are as they were, what takes a second tile, the marginal figures, is not compiled again.
Without --kernels and --dtypes it compiles the launches that users can reach, too, and fails where one is refused,
spills, or has narrow accesses; for cuda 90, and one in eight for another target, or each for all --targets.
--accept writes the figures anew.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from perf import results
from perf.results import UsageError, names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--kernels", metavar="LIST", help="kernels, by the names in the table (default: all)")
    parser.add_argument("--dtypes", type=names(*results.DTYPES), metavar="LIST", help="default: all")
    parser.add_argument("--targets", metavar="LIST", help="such as cuda:90,hip:gfx942 (default: all)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="exit with 1 where a figure is worse than accepted")
    action.add_argument("--accept", action="store_true", help="accept the figures of all kernels: write that file")
    action.add_argument("--diff", metavar="REV", help="show what has changed since a git revision")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write machine code there; > marks what is counted")
    parser.add_argument(
        "--jobs", type=results.positive, default=os.cpu_count() or 1, metavar="N", help="default: one a core"
    )
    parser.add_argument("--csv", type=results.new_file, metavar="FILE", help="write the rows as CSV")


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    # Not before they are needed: they import triton, of which `traffic` wants the interpreter.
    from perf.static import figures, reachable
    from perf.static.shipped import variants
    from triton_kernels.devtools import aot

    if options.accept and (options.kernels or options.dtypes or options.targets):
        raise UsageError("--accept takes all kernels, dtypes and targets: leave --kernels, --dtypes and --targets out")
    kernels = _chosen("kernels", options.kernels, [variant.kernel for variant in variants()])
    targets = _chosen("targets", options.targets, list(aot.TARGETS))
    dtypes = options.dtypes or results.DTYPES
    chosen = [n for n, variant in enumerate(variants()) if variant.kernel in kernels and variant.dtype in dtypes]
    if not chosen:
        raise UsageError("no kernel is shipped for these --kernels and --dtypes")
    accepted = figures.baseline() if options.check else {}
    if options.diff:
        figures.check_revision(options.diff)
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    tasks = [(number, target) for number in chosen for target in targets]
    rows, errors = figures.measure(tasks, options.jobs, options.keep and options.keep.resolve(), accepted)
    for file in (options.csv, figures.BASELINE if options.accept and not errors else None):
        if file and rows:
            results.write_csv(file, "static", rows)
    if options.diff:
        selected = {"kernels": kernels, "targets": targets, "dtypes": dtypes}
        figures.diff(options.diff, rows, [f"--{name}={','.join(values)}" for name, values in selected.items()])
    elif options.check:
        errors += figures.regressions(rows, accepted)
        if not errors:
            print(f"{len(rows)} rows, none worse than accepted in {figures.BASELINE_NAME}")
        if not (options.kernels or options.dtypes):
            errors += reachable.faults(reachable.launches(), targets if options.targets else None, options.jobs)
    elif rows:
        figures.show(rows)
    print(*errors, sep="\n", end="\n" if errors else "", file=sys.stderr)
    return 1 if errors else 0


def _chosen(option: str, given: str | None, accepted: list[str]) -> list[str]:
    """Names that an option has; all that are accepted, each once, where it has none."""
    try:
        return list(names(*accepted)(given)) if given else list(dict.fromkeys(accepted))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"argument --{option}: {error}") from error
