"""Figures of compiled kernels: measured, and compared with those accepted or with a revision's."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import triton

from perf import results
from perf.environment import environment
from perf.results import ROOT, Row, UsageError
from perf.static import worker
from perf.static.chips import CHIPS
from perf.static.shipped import Variant, variants
from triton_kernels.devtools import aot

BASELINE = ROOT / "perf/results/predicted/static.csv"
BASELINE_NAME = str(BASELINE.relative_to(ROOT))

#: The most variants whose machine code is disassembled together.
BATCH_SIZE = 16

#: Identify a row.
KEY = ["kernel", "variant", "dtype", "target"]

#: Figures that machine code tells.
MACHINE_CODE = (*worker.OF_SHIPPED, *worker.OF_ANOTHER)

#: Accepted rows, by `KEY`.
Accepted = dict[tuple[str, ...], dict[str, str]]

#: Figures that a revision is compared by.
FIGURES = ["registers", "spills", "shared", "warps", "load_bits", "store_bits", "instructions", "special", "total"]


def measure(
    tasks: Sequence[tuple[int, str]], jobs: int, keep: Path | None = None, accepted: Accepted | None = None
) -> tuple[list[Row], list[str]]:
    """Rows of variants, by number, on targets; and a line for each that the compiler refused."""
    variant_list, env = variants(), environment()
    work = [
        (target, numbers, keep, {n: _numbers(variant_list[n], target, accepted or {}) for n in numbers})
        for target, numbers in batches(tasks, jobs)
    ]
    found = {
        (n, target): answer for batch in worker.answers(worker.read_variants, work, jobs) for n, target, answer in batch
    }
    rows, errors = [], []
    for number, target in tasks:
        variant, answer = variant_list[number], found[number, target]
        row: Row = dict(zip(KEY, (variant.kernel, variant.name, variant.dtype, target), strict=True))
        if "error" in answer:
            errors.append(f"{_label(row)}: {answer['error']}")
        else:
            row |= answer | {"limit": variant.limit, "special_limit": variant.special_limit}
            rows.append(row | _predicted(target, answer) | env)
    return rows, errors


def _numbers(variant: Variant, target: str, accepted: Accepted) -> dict[str, float]:
    """Accepted figures of a variant, where machine code told all of them; else none."""
    row = accepted.get((variant.kernel, variant.name, variant.dtype, target), {})
    try:
        return {name: json.loads(row[name]) for name in MACHINE_CODE}
    except (KeyError, ValueError):  # not of all variants, and not of older files
        return {}


def batches(tasks: Sequence[tuple[int, str]], jobs: int) -> list[tuple[str, list[int]]]:
    """Targets, each with numbers of variants: few enough that there is work for all jobs."""
    size = min(BATCH_SIZE, -(-len(tasks) // jobs))
    numbers = {target: [n for n, other in tasks if other == target] for _, target in tasks}
    return [(target, all_[i : i + size]) for target, all_ in numbers.items() for i in range(0, len(all_), size)]


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


def baseline() -> Accepted:
    """The accepted figures by `KEY`; of this triton."""
    rows = results.read_csv(BASELINE)
    versions = {row["triton"] for row in rows}
    if versions != {triton.__version__}:
        was = ", ".join(sorted(versions))
        raise UsageError(
            f"--check needs the triton that {BASELINE_NAME} was made with, {was}; this is {triton.__version__}"
        )
    return {tuple(row[name] for name in KEY): row for row in rows}


def regressions(rows: Sequence[Row], accepted: Accepted) -> list[str]:
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


def show(rows: Sequence[Row]) -> None:
    """Print figures as a table."""
    roofs = [f"{chip.name}_roof" for chip in CHIPS]
    print(pd.DataFrame(rows)[[*KEY, *FIGURES, "fixed", "occupancy", *roofs]].to_string(index=False, na_rep=""))
    print("instructions, special, total: per element. Roofs: predicted fraction of the memory roof, without caches.")


def check_revision(revision: str) -> None:
    """Raise a UsageError where git has no such revision."""
    if subprocess.run(
        ["git", "cat-file", "-e", f"{revision}:triton_kernels"], cwd=ROOT, capture_output=True
    ).returncode:
        raise UsageError(f"--diff: git knows no triton_kernels at {revision!r}")


def diff(revision: str, rows: Sequence[Row], arguments: Sequence[str]) -> None:
    """Show where figures differ from those of a revision's kernels, which `arguments` select."""
    archive = subprocess.run(["git", "archive", revision, "triton_kernels"], cwd=ROOT, capture_output=True, check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        # Both are compiled and read in the same manner: today's.
        shutil.copy(aot.__file__, folder / "triton_kernels/devtools")
        (folder / "perf").symlink_to(ROOT / "perf")
        command = [sys.executable, "-m", "perf", "static", *arguments, "--csv", str(folder / "rows.csv")]
        environ = os.environ | {"PYTHONPATH": name}
        subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.DEVNULL)
        before = pd.read_csv(folder / "rows.csv", keep_default_na=False, dtype=str)
    old, new = (_texts(frame) for frame in (before, pd.DataFrame(rows)))
    every = new.index.union(old.index, sort=False)
    old, new = old.reindex(every, fill_value="–"), new.reindex(every, fill_value="–")
    changed = (old + " → " + new).where(old != new, "")[(old != new).any(axis=1)]
    print(f"no figure has changed since {revision}" if changed.empty else changed.reset_index().to_string(index=False))


def _texts(rows: pd.DataFrame) -> pd.DataFrame:
    """Figures as text, by `KEY`."""
    figures = rows.set_index(KEY)[FIGURES].apply(pd.to_numeric, errors="coerce")
    return figures.map(lambda value: "–" if pd.isna(value) else f"{value:g}")
