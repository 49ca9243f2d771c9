"""Plant each fault in a copy of the repository and run the tests there; see CONTRIBUTING.md."""

from __future__ import annotations

import argparse
import csv
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.faults import FAULTS, ROOT, Fault

MISSED, TIMED_OUT = "missed", "timed out"
COLUMNS = ("fault", "file", "caught_before", "caught_now")

#: The table that is committed: the test that caught each fault last, which is run first, and the one that caught it
#: before the code was restructured.
RESULTS = Path(__file__).parent / "results.csv"

#: Default timeouts in seconds: of a fault's own test files, and of all others.
OWN, WHOLE = 300, 3600

PACKAGES = ("lucid", "perf", "tests", "triton_kernels")

#: Looks for the texts that faults replace, so it fails with any fault.
NOT_ASKED = "tests/test_mutants.py"

#: pytest's exit status: all tests passed; some failed; a file could not be imported; a test is not there any more.
PASSED, FAILED, INTERRUPTED, GONE = 0, 1, 2, 4


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a fault: the test that failed first, `MISSED` or `TIMED_OUT`; and the seconds it took."""

    fault: Fault
    caught_by: str
    seconds: float

    @property
    def missed(self) -> bool:
        """Return True if no test failed."""
        return self.caught_by == MISSED


class Copy:
    """A copy of the repository's files that git tracks, with its tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        # Without files of bytecode: Python takes one for fresh where a source keeps its size within a second.
        self.environ = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self._check_imports()

    def _check_imports(self) -> None:
        """Raise unless the copy's packages are imported here, not those that are installed."""
        names = ", ".join(PACKAGES)
        command = [sys.executable, "-c", f"import {names}\nfor package in {names}: print(package.__file__)"]
        done = subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=True)
        strangers = [line for line in done.stdout.splitlines() if not Path(line).is_relative_to(self.folder)]
        if strangers:
            raise RuntimeError(f"other packages than the copy's are imported: {', '.join(strangers)}")

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        """Plant the fault in its file, within."""
        file = self.folder / fault.file
        sound = file.read_text()
        file.write_text(fault.planted(sound))
        try:
            yield
        finally:
            file.write_text(sound)

    def run(self, arguments: Sequence[str], limit: float) -> str:
        """Run tests; return the one that fails first, `TIMED_OUT`, or `MISSED` where none does."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *arguments]
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                return TIMED_OUT
            finally:
                _end(process)
        if process.returncode in (PASSED, GONE):
            return MISSED
        if process.returncode < 0:
            return _interrupted(output) or f"crash (signal {-process.returncode})"
        if process.returncode not in (FAILED, INTERRUPTED):
            raise RuntimeError(f"pytest ended with {process.returncode}:\n{output}")
        return _first_failure(output)


def _end(process: subprocess.Popen[str]) -> None:
    """End the process of a run of tests, and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _first_failure(output: str) -> str:
    """Return the id of a test, or of a file that cannot be imported, from pytest's summary."""
    for line in output.splitlines():
        kind, _, rest = line.partition(" ")
        if kind in ("FAILED", "ERROR") and rest:
            return rest.partition(" - ")[0]
    raise RuntimeError(f"pytest failed without a test that did:\n{output}")


def _interrupted(output: str) -> str | None:
    """Return the test that ran when Python crashed, from the output of `faulthandler`."""
    found = re.search(r'File ".*?/(tests/test_\w+\.py)", line \d+ in (test_\w+)', output)
    return f"{found[1]}::{found[2]}" if found else None


def try_fault(fault: Fault, copy: Copy, known: str, whole: bool, limit: float) -> Result:
    """Plant a fault, and run the test that is known to fail, its own test files, and if `whole` all others.

    Each only where those before pass.
    """
    before = time.monotonic()
    with copy.planted(fault):
        caught_by = copy.run([known], limit) if "::" in known else MISSED
        if caught_by == MISSED:
            caught_by = copy.run(fault.test_files, limit)
        if caught_by == MISSED and whole:
            caught_by = copy.run([f"--ignore={file}" for file in (NOT_ASKED, *fault.test_files)], WHOLE)
    return Result(fault, caught_by, time.monotonic() - before)


def check_sound(copy: Copy, faults: Sequence[Fault], whole: bool) -> None:
    """Raise unless the faults' test files, or if `whole` all tests, pass without any fault."""
    files = list(dict.fromkeys(file for fault in faults for file in fault.test_files))
    failed = copy.run([f"--ignore={NOT_ASKED}"] if whole else files, WHOLE)
    if failed != MISSED:
        raise SystemExit(f"without a fault the tests do not pass: {failed}")


def try_all(
    faults: Sequence[Fault], known: dict[str, str], workers: int, whole: bool, limit: float, baseline: bool
) -> Iterator[Result]:
    """Yield results as they come, from workers with a copy each; `known` are tests that caught faults before."""
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        made = [Copy(Path(folder).resolve() / str(number)) for number in range(min(workers, len(faults)))]
        for copy in made:
            copies.put(copy)
        if baseline:
            check_sound(made[0], faults, whole)

        def one(fault: Fault) -> Result:
            copy = copies.get()
            try:
                return try_fault(fault, copy, known.get(fault.name, ""), whole, limit)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(len(made)) as pool:
            yield from pool.map(one, faults)


def read(file: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a table by fault; none where there is no table."""
    if not file.exists():
        return {}
    with file.open(newline="") as table:
        return {row["fault"]: row for row in csv.DictReader(table)}


def write(results: Sequence[Result], file: Path) -> None:
    """Write a table, sorted by place; faults that were not tried keep their rows."""
    rows = read(file)
    now = {result.fault.name: result.caught_by for result in results}
    with file.open("w", newline="") as new:
        writer = csv.DictWriter(new, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for fault in sorted(FAULTS, key=lambda fault: (fault.file, fault.name)):
            row = rows.get(fault.name, dict.fromkeys(COLUMNS, "")) | {"fault": fault.name, "file": fault.file}
            writer.writerow(row | ({"caught_now": now[fault.name]} if fault.name in now else {}))


def known_tests(file: Path) -> dict[str, str]:
    """Return the test that caught each fault last, by a table."""
    return {name: row["caught_now"] or row["caught_before"].partition("[")[0] for name, row in read(file).items()}


def selected(words: Sequence[str]) -> list[Fault]:
    """Return the faults with one of the words in their name or file; all of them without a word."""
    return [fault for fault in FAULTS if not words or any(word in f"{fault.name} {fault.file}" for word in words)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults with one of these in their name or file")
    parser.add_argument("-n", "--workers", type=int, default=2, help="faults that are tried at once (default 2)")
    parser.add_argument("--output", type=Path, help="write results to this table, where rows of other faults stay")
    parser.add_argument("--whole", action="store_true", help="where a fault's own test files pass, run all others, too")
    parser.add_argument("--timeout", type=float, default=OWN, help=f"seconds for its own test files (default {OWN})")
    parser.add_argument("--no-baseline", action="store_true", help="do not see first that tests pass without a fault")
    parser.add_argument("--list", action="store_true", help="name the faults and plant none")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a fault is missed")
    options = parser.parse_args(arguments)
    faults = selected(options.words)
    if not faults:
        parser.error(f"no fault has one of {options.words} in its name or file")
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    wrong = [error for fault in faults if (error := fault.error())]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    if options.list:
        print("\n".join(f"{fault.file}: {fault.name}" for fault in faults))
        return 0
    results: list[Result] = []
    known = known_tests(options.output or RESULTS)
    for result in try_all(faults, known, options.workers, options.whole, options.timeout, not options.no_baseline):
        results.append(result)
        print(f"{result.seconds:5.0f} s  {result.fault.file}: {result.fault.name}: {result.caught_by}", flush=True)
        if options.output is not None:
            write(results, options.output)
    missed = [result.fault.name for result in results if result.missed]
    print(f"{len(results) - len(missed)} of {len(results)} faults are caught")
    if missed:
        print("missed:", *missed, sep="\n  ")
    return int(bool(options.check and missed))


if __name__ == "__main__":
    sys.exit(main())
