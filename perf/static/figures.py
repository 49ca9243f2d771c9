"""Figures of compiled kernels: measured by processes of their own, compared with a baseline or with a revision."""

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
BASELINE = ROOT / "perf" / "results" / "predicted" / "static.csv"
BASELINE_NAME = str(BASELINE.relative_to(ROOT))

#: The most variants whose machine code is disassembled together.
BATCH_SIZE = 16

#: Identify a row.
KEY = ("kernel", "variant", "dtype", "target")

Key = tuple[str, ...]


def measure(
    tasks: Sequence[tuple[int, str]], jobs: int, *, keep: Path | None = None, source: Path | None = None
) -> tuple[list[Row], list[str]]:
    """Rows of variants, by number, on targets; and a line for each that the compiler refused.

    `source` is a folder with the ``triton_kernels`` to compile, by default those that are installed.
    """
    variant_list, env = variants(), environment()
    work = [
        (f"{variant_list[numbers[0]].kernel} {target}", [target, numbers]) for target, numbers in _batches(tasks, jobs)
    ]
    command = ["perf.static.worker", *([str(keep.resolve())] if keep else [])]
    answers: dict[tuple[int, str], dict[str, Any]] = {
        (number, target): answer
        for batch in pool.answers(command, work, jobs, source)
        for number, target, answer in batch
    }
    rows, errors = [], []
    for number, target in tasks:
        variant, answer = variant_list[number], answers[number, target]
        row: Row = dict(zip(KEY, (variant.kernel, variant.name, variant.dtype, target), strict=True))
        if "error" in answer:
            errors.append(f"{_label(row)}: {answer['error'].splitlines()[0]}")
        else:
            row |= answer["figures"] | {"limit": variant.limit, "special_limit": variant.special_limit}
            rows.append(row | _predicted(target, answer["figures"]) | env)
    return rows, errors


def _batches(tasks: Sequence[tuple[int, str]], jobs: int) -> list[tuple[str, list[int]]]:
    """Targets, each with numbers of variants: few enough that there is work for all jobs."""
    size = min(BATCH_SIZE, -(-len(tasks) // jobs))
    by_target: dict[str, list[int]] = {}
    for number, target in tasks:
        by_target.setdefault(target, []).append(number)
    return [(t, numbers[i : i + size]) for t, numbers in by_target.items() for i in range(0, len(numbers), size)]


def _predicted(target: str, figures: dict[str, Any]) -> Row:
    """Occupancy on the target's chip; bound and fraction of the roof for every chip of this target, else None."""
    found = Row(occupancy=None)
    for chip in CHIPS:
        found |= {f"{chip.name}_bound": None, f"{chip.name}_roof": None}
        if chip.target != target:
            continue
        found["occupancy"] = chip.occupancy(figures["registers"], figures["shared"], figures["warps"])
        if figures["total"] is not None:
            bound, roof = chip.bound(figures["bytes"], figures["least"], figures["total"], figures["special"])
            found |= {f"{chip.name}_bound": bound, f"{chip.name}_roof": round(roof, 3)}
    return found


def baseline() -> dict[Key, dict[str, str]]:
    """The accepted figures by `KEY`; of this triton."""
    _, rows = results.read(BASELINE, "static")
    versions = {row["triton"] for row in rows}
    if versions != {triton.__version__}:
        raise UsageError(
            f"--check needs the triton that {BASELINE_NAME} was made with, {', '.join(sorted(versions))}; "
            f"this is {triton.__version__}"
        )
    return {tuple(row[name] for name in KEY): row for row in rows}


def regressions(rows: Sequence[Row], accepted: dict[Key, dict[str, str]]) -> list[str]:
    """A line for each figure that is worse than accepted, or than its kernel's limit."""
    found = []
    for row in rows:
        before = accepted.get(tuple(row[name] for name in KEY))
        if before is None:
            found.append(f"{_label(row)}: no accepted figures; --accept writes them")
            continue
        for name in ("spills", "instructions", "special", "total", "load_bits", "store_bits", "occupancy"):
            was, now = float(before[name]) if before[name] else None, row[name]
            less_is_worse = name in ("load_bits", "store_bits", "occupancy")
            if was is not None and (now is None or (now < was if less_is_worse else now > was)):
                found.append(f"{_label(row)}: {name} {'unknown' if now is None else now}, accepted {was:g}")
        for name, limit in (("instructions", row["limit"]), ("special", row["special_limit"])):
            if limit is not None and row["target"] == "cuda:90" and (row[name] is None or row[name] > limit):
                found.append(f"{_label(row)}: {name} {row[name]}, limit {limit:g}")
    return found


def _label(row: Row) -> str:
    return ", ".join(str(row[name]) for name in KEY if row[name])


def show(title: str, rows: Sequence[Row]) -> None:
    """Print figures as a table."""
    columns = {name: name for name in (*KEY, "registers", "spills", "shared", "warps", "occupancy")}
    columns |= {"load_bits": "load", "store_bits": "store", "instructions": "instr.", "special": "special"}
    columns |= {name: name for name in ("fixed", "total", *(chip.name for chip in CHIPS))} | {"registers": "regs"}
    shown = []
    for row in rows:
        bounds = {chip.name: (row[f"{chip.name}_roof"], row[f"{chip.name}_bound"]) for chip in CHIPS}
        shown.append(row | {name: f"{roof:.2f} {bound}" for name, (roof, bound) in bounds.items() if bound})
    results.show(title, shown, columns)
    print("instr., special and total: per element. Chips: predicted fraction of the memory roof, without caches.")


def diff(revision: str, tasks: Sequence[tuple[int, str]], jobs: int, keep: Path | None) -> tuple[list[Row], list[str]]:
    """Show where figures differ from those of a revision's kernels; returns today's."""
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
    after, errors = measure(tasks, jobs, keep=keep)
    for line in refused:
        print(f"at {revision}: {line}", file=sys.stderr)
    rows = _differences(before, after)
    if rows:
        results.show(f"Changed since {revision}", rows, {name: name for name in rows[0]})
    else:
        print(f"no figure has changed since {revision}")
    return after, errors


def _differences(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """Each figure that differs, or is on one side only, as before → after."""
    names = ("registers", "spills", "shared", "warps", "load_bits", "store_bits", "instructions", "special", "total")
    old, new = ({tuple(row[name] for name in KEY): row for row in rows} for rows in (before, after))
    found = []
    for key in {**new, **old}:
        pairs = {name: [rows.get(key, {}).get(name) for rows in (old, new)] for name in names}
        texts = {name: ["–" if value is None else f"{value:g}" for value in pair] for name, pair in pairs.items()}
        changes = {name: " → ".join(pair) if pair[0] != pair[1] else "" for name, pair in texts.items()}
        if any(changes.values()):
            found.append(dict(zip(KEY, key, strict=True)) | changes)
    return found
