"""Hardware counters of the headline kernels, by ncu: ``python -m perf.gpu.counters dram|kernels FILE``.

`dram` writes the bytes that each launch moved to and from memory, beside those that it should move; `kernels` writes
what limits it. ncu runs once for each dtype, and FILE has the rows of a run when that ends.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perf.environment import environment

Row = dict[str, Any]

DTYPES = ("bf16", "fp32")

#: Metrics of each kind, by column; times come in ns, bytes in bytes.
METRICS = {
    "dram": {
        "dram_read_bytes": "dram__bytes_read.sum",
        "dram_written_bytes": "dram__bytes_write.sum",
        "time_us": "gpu__time_duration.sum",
    },
    "kernels": {
        "time_us": "gpu__time_duration.sum",
        "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
        "sm_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
        "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
        "l2_hit_percent": "lts__t_sector_hit_rate.pct",
        "instructions": "smsp__inst_executed.sum",
        "registers": "launch__registers_per_thread",
    },
}
CASE = ("case", "n", "v", "dtype", "kernel")
COLUMNS = {
    "dram": (*CASE, "predicted_bytes", "dram_read_bytes", "dram_written_bytes", "dram_over_predicted", "time_us"),
    "kernels": (*CASE, *METRICS["kernels"]),
}
ABOUT = ("gpu", "commit")


def command(kind: str, log: Path, script: Sequence[str]) -> list[str]:
    """ncu's command line; only launches between profiler marks, of kernels named as ours are."""
    options = "--profile-from-start off --clock-control none --print-units base --csv --kernel-name-base function"
    metrics = ",".join(METRICS[kind].values())
    named = ["--kernel-name", "regex:^_.*_kernel$", "--metrics", metrics, "--log-file", str(log)]
    return ["ncu", *options.split(), *named, *script]


def launches(lines: Iterable[str]) -> list[Row]:
    """What ncu's log says of each launch, in order: the kernel, and values by metric.

    >>> log = ['==PROF== Connected', '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    >>> launches([*log, '"0","_a_kernel","dram__bytes_read.sum","byte","4,096"'])
    [{'kernel': '_a_kernel', 'dram__bytes_read.sum': 4096.0}]
    """
    found: dict[str, Row] = {}
    for cells in csv.DictReader(line for line in lines if line.startswith('"')):
        row = found.setdefault(cells["ID"], {"kernel": cells["Kernel Name"].partition("(")[0]})
        try:
            row[cells["Metric Name"]] = float(cells["Metric Value"].replace(",", ""))
        except ValueError:  # a metric that this GPU does not have
            row[cells["Metric Name"]] = None
    return list(found.values())


def rows(kind: str, expected: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """A row for each launch that was expected and measured, in order; launches of others are left out."""
    out, waiting = [], iter(measured)
    for launch in expected:
        match = next((row for row in waiting if row["kernel"] == launch["kernel"]), None)
        if match is None:
            break
        values = {column: match.get(metric) for column, metric in METRICS[kind].items()}
        if values["time_us"] is not None:
            values["time_us"] = round(values["time_us"] / 1e3, 1)
        row = {**launch, **values}
        read, written = values.get("dram_read_bytes"), values.get("dram_written_bytes")
        if launch["predicted_bytes"] and read is not None and written is not None:
            row["dram_over_predicted"] = round((read + written) / launch["predicted_bytes"], 4)
        out.append(row)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ncu and write the rows; returns 1 where a run gave none."""
    parser = argparse.ArgumentParser(prog="python -m perf.gpu.counters")
    parser.add_argument("kind", choices=tuple(METRICS))
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", default="8192x131072")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for all runs")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.limit
    around = environment()
    columns = (*COLUMNS[options.kind], *ABOUT)
    with options.file.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(columns)
    empty = False
    for dtype in DTYPES:
        found = _run(options.kind, options.shape, dtype, deadline - time.monotonic())
        n, _, v = options.shape.partition("x")
        with options.file.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writerows({**row, "n": n, "v": v, "dtype": dtype} | {c: around[c] for c in ABOUT} for row in found)
        print(f"{options.kind} {dtype}: {len(found)} launches", flush=True)
        empty |= not found
    return 1 if empty else 0


def _run(kind: str, shape: str, dtype: str, seconds: float) -> list[Row]:
    if seconds <= 0:
        return []
    with tempfile.TemporaryDirectory() as name:
        log, expected = Path(name) / "ncu.csv", Path(name) / "expected.jsonl"
        script = [sys.executable, "-m", "perf.gpu.headline", shape, dtype, str(expected)]
        try:
            subprocess.run(command(kind, log, script), timeout=seconds)
        except subprocess.TimeoutExpired:
            print(f"{kind} {dtype}: stopped after {seconds:.0f} s", flush=True)
        if not (log.exists() and expected.exists()):
            return []
        text = log.read_text(errors="replace")
        found = launches(text.splitlines())
        if not found:
            print(text[-2000:])
        return rows(kind, [json.loads(line) for line in expected.read_text().splitlines()], found)


if __name__ == "__main__":
    sys.exit(main())
