"""Hardware counters of the headline kernels, by ncu: ``python -m perf.gpu.dram FILE NxV``.

FILE has for each launch the bytes that it moved to and from memory, beside those that it should move, and what limits
it. ncu runs once for each dtype.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perf.environment import environment

#: Metrics by column; times come in ns, bytes in bytes.
METRICS = {
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_written_bytes": "dram__bytes_write.sum",
    "time_ns": "gpu__time_duration.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "l2_hit_percent": "lts__t_sector_hit_rate.pct",
    "instructions": "smsp__inst_executed.sum",
    "registers": "launch__registers_per_thread",
}
COLUMNS = ("case", "n", "v", "dtype", "kernel", "predicted_bytes", "dram_over_predicted", *METRICS, "gpu", "commit")

#: Only launches between profiler marks, of kernels named as ours are.
NCU = (
    *("ncu", "--profile-from-start", "off", "--clock-control", "none", "--print-units", "base", "--csv"),
    *("--kernel-name-base", "function", "--kernel-name", "regex:^_.*_kernel$", "--metrics", ",".join(METRICS.values())),
)

Row = dict[str, Any]


def launches(lines: Iterable[str]) -> list[Row]:
    """What ncu's log says of each launch, in order: the kernel, and values by metric.

    >>> log = ['==PROF== Connected', '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    >>> launches([*log, '"0","_a_kernel","dram__bytes_read.sum","byte","4,096"'])
    [{'kernel': '_a_kernel', 'dram__bytes_read.sum': '4096'}]
    """
    found: dict[str, Row] = {}
    for cells in csv.DictReader(line for line in lines if line.startswith('"')):
        row = found.setdefault(cells["ID"], {"kernel": cells["Kernel Name"].partition("(")[0]})
        row[cells["Metric Name"]] = cells["Metric Value"].replace(",", "")
    return list(found.values())


def rows(expected: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """A row for each launch that was expected and measured, in order; launches of others are left out."""
    found, waiting = [], iter(measured)
    for launch in expected:
        match = next((row for row in waiting if row["kernel"] == launch["kernel"]), None)
        if match is None:
            break
        row = launch | {column: match.get(metric, "") for column, metric in METRICS.items()}
        if launch["predicted_bytes"] and row["dram_read_bytes"]:
            moved = float(row["dram_read_bytes"]) + float(row["dram_written_bytes"])
            row["dram_over_predicted"] = round(moved / launch["predicted_bytes"], 4)
        found.append(row)
    return found


def main(file: str, shape: str) -> int:
    """Run ncu and write the rows; returns 1 where a run gave none."""
    about = {name: value for name, value in environment().items() if name in ("gpu", "commit")}
    about["n"], _, about["v"] = shape.partition("x")
    empty = False
    with Path(file).open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for dtype in ("bf16", "fp32"):
            with tempfile.TemporaryDirectory() as name:
                log, expected = Path(name) / "ncu.csv", Path(name) / "expected.jsonl"
                script = [sys.executable, "-m", "perf.gpu.headline", shape, dtype, str(expected)]
                subprocess.run([*NCU, "--log-file", str(log), *script])
                text = log.read_text(errors="replace") if log.exists() else ""
                lines = expected.read_text().splitlines() if expected.exists() else []
            found = rows([json.loads(line) for line in lines], launches(text.splitlines()))
            writer.writerows(row | about | {"dtype": dtype} for row in found)
            out.flush()
            print(f"{dtype}: {len(found)} launches", "" if found else text[-2000:], flush=True)
            empty |= not found
    return int(empty)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
