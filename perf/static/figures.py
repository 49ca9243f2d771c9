"""Figures of compiled kernels: made by processes of their own, compared with those accepted or with a revision's."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton

from perf import results
from perf.chips import CHIPS
from perf.environment import environment
from perf.errors import UsageError
from perf.results import Row
from perf.static import pool
from perf.static.shipped import variants
from triton_kernels.devtools import aot

ROOT = Path(__file__).parents[2]
BUDGET = ROOT / "perf" / "results" / "predicted" / "static.csv"
BUDGET_NAME = str(BUDGET.relative_to(ROOT))

#: The most variants whose machine code is disassembled together.
TOGETHER = 16

#: What names a row.
KEY = ("kernel", "variant", "dtype", "target")

#: A target, and the numbers of variants.
Batch = tuple[str, list[int]]


def measure(
    tasks: Sequence[tuple[int, str]], jobs: int, *, keep: Path | None = None, source: Path | None = None
) -> tuple[list[Row], list[str]]:
    """Rows of variants, by number, on targets; and a line for each that the compiler refused.

    `source` is a folder with the ``triton_kernels`` to compile, by default those that are installed.
    """
    batches = _batches(tasks, jobs)
    tasks_of = [(f"{variants()[numbers[0]].kernel} {target}", [target, numbers]) for target, numbers in batches]
    command = ["perf.static.worker", *([str(keep.resolve())] if keep else [])]
    answers: dict[tuple[int, str], dict[str, Any]] = {
        (number, target): answer
        for found in pool.answers(command, tasks_of, jobs, source)
        for number, target, answer in found
    }
    known, around = variants(), environment()
    rows, faults = [], []
    for number, target in tasks:
        variant, answer = known[number], answers[number, target]
        named = dict(zip(KEY, (variant.kernel, variant.name, variant.dtype, target), strict=True))
        if "error" in answer:
            faults.append(f"{_label(named)}: {answer['error'].splitlines()[0]}")
        else:
            limits = {"limit": variant.limit, "special_limit": variant.special_limit}
            rows.append(named | answer["figures"] | limits | _predicted(target, answer) | around)
    return rows, faults


def _batches(tasks: Sequence[tuple[int, str]], jobs: int) -> list[Batch]:
    """Tasks of one target at a time, few enough that there is work for all jobs."""
    together = min(TOGETHER, -(-len(tasks) // jobs))
    by_target: dict[str, list[int]] = {}
    for number, target in tasks:
        by_target.setdefault(target, []).append(number)
    return [
        (target, numbers[start : start + together])
        for target, numbers in by_target.items()
        for start in range(0, len(numbers), together)
    ]


def _predicted(target: str, answer: dict[str, Any]) -> Row:
    """Occupancy on the target's chip, and bound and fraction of the roof for every chip, where they are its."""
    figures, found = answer["figures"], Row(occupancy=None)
    for chip in CHIPS:
        found |= {f"{chip.name}_bound": None, f"{chip.name}_roof": None}
        if chip.target != target:
            continue
        found["occupancy"] = chip.occupancy(figures["registers"], figures["shared"], figures["warps"])
        if figures["total"] is not None:
            bound, roof = chip.bound(figures["bytes"], figures["least"], figures["total"], figures["special"])
            found |= {f"{chip.name}_bound": bound, f"{chip.name}_roof": round(roof, 3)}
    return found


def accepted() -> dict[tuple[str, ...], dict[str, str]]:
    """The accepted figures, by what names a row; of this triton."""
    _, rows = results.read(BUDGET, "static")
    versions = {row["triton"] for row in rows}
    if versions != {triton.__version__}:
        raise UsageError(
            f"--check needs the triton that {BUDGET_NAME} was made with, {', '.join(sorted(versions))}; "
            f"this is {triton.__version__}"
        )
    return {tuple(row[name] for name in KEY): row for row in rows}


def worse(rows: Sequence[Row], budgets: dict[tuple[str, ...], dict[str, str]]) -> list[str]:
    """A line for each figure that is worse than accepted, or than its kernel's limit."""
    faults = []
    for row in rows:
        budget = budgets.get(tuple(row[name] for name in KEY))
        if budget is None:
            faults.append(f"{_label(row)}: no accepted figures; --accept writes them")
            continue
        for name, more_is_worse in (
            *((name, True) for name in ("spills", "instructions", "special", "total")),
            *((name, False) for name in ("load_bits", "store_bits", "occupancy")),
        ):
            was, now = float(budget[name]) if budget[name] else None, row[name]
            if was is not None and (now is None or (now > was if more_is_worse else now < was)):
                faults.append(f"{_label(row)}: {name} {'unknown' if now is None else now}, accepted {was:g}")
        for name, limit in (("instructions", row["limit"]), ("special", row["special_limit"])):
            if limit is not None and row["target"] == "cuda:90" and (row[name] is None or row[name] > limit):
                faults.append(f"{_label(row)}: {name} {row[name]}, limit {limit:g}")
    return faults


def _label(row: Row) -> str:
    return ", ".join(str(row[name]) for name in KEY if row[name])


def show(title: str, rows: Sequence[Row]) -> None:
    """Print figures as a table."""
    columns = dict(zip(KEY, KEY, strict=True))
    columns |= {"registers": "regs", "spills": "spills", "shared": "shared", "warps": "warps", "occupancy": "occ."}
    columns |= {"load_bits": "load", "store_bits": "store", "instructions": "instr.", "special": "special"}
    columns |= {"fixed": "fixed", "total": "total"} | {chip.name: chip.name for chip in CHIPS}
    shown = [
        row
        | {
            chip.name: f"{row[f'{chip.name}_roof']:.2f} {row[f'{chip.name}_bound']}"
            for chip in CHIPS
            if row[f"{chip.name}_bound"]
        }
        for row in rows
    ]
    results.show(title, shown, columns)
    print("instr., special and total: per element. Chips: predicted fraction of the memory roof, without caches.")


def diff(revision: str, tasks: Sequence[tuple[int, str]], jobs: int, keep: Path | None) -> tuple[list[Row], list[str]]:
    """Show the figures of a revision's kernels beside those of today's, where they differ; returns today's."""
    archive = subprocess.run(["git", "archive", revision, "triton_kernels"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise UsageError(f"--diff: git knows no triton_kernels at {revision!r}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        # Both are compiled and read in the same manner: today's.
        compiler = Path(aot.__file__)
        (Path(folder) / "triton_kernels/devtools" / compiler.name).write_bytes(compiler.read_bytes())
        before, refused = measure(tasks, jobs, source=Path(folder))
    after, faults = measure(tasks, jobs, keep=keep)
    for fault in refused:
        print(f"at {revision}: {fault}", file=sys.stderr)
    rows = differences(before, after)
    if rows:
        results.show(f"Changed since {revision}", rows, {name: name for name in rows[0]})
    else:
        print(f"no figure has changed since {revision}")
    return after, faults


def differences(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """Each figure that differs, or is on one side only, as before → after."""
    names = ("registers", "spills", "shared", "warps", "load_bits", "store_bits", "instructions", "special", "total")
    old, new = ({tuple(row[name] for name in KEY): row for row in rows} for rows in (before, after))
    found = []
    for key in dict.fromkeys((*new, *old)):
        was, now = old.get(key, {}), new.get(key, {})
        changes = {
            name: f"{_figure(was.get(name))} → {_figure(now.get(name))}" if was.get(name) != now.get(name) else ""
            for name in names
        }
        if any(changes.values()):
            found.append(dict(zip(KEY, key, strict=True)) | changes)
    return found


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
