"""Time losses and softmax with other tiles than those of `tile_configs`: ``python -m perf.gpu.tiles FILE``.

FILE gets a row for each tile as it is measured; `chosen` is true for the tables' own. A tile has one row.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import triton_kernels as tk
from perf.environment import environment
from perf.measure.timing import Cuda, measure
from perf.selection import DTYPES
from triton_kernels.devtools import trace
from triton_kernels.runtime import replay, tile_configs
from triton_kernels.runtime.tile_configs import Config

#: BLOCK_V and warps, by the table of `tile_configs` that they replace.
TILES = {
    "logits": ((1024, 1), (2048, 2), (2048, 4), (4096, 2), (4096, 4), (4096, 8), (8192, 8), (8192, 16)),
    "rows": ((4096, 4), (8192, 8), (16384, 16), (16384, 32), (32768, 16), (32768, 32)),
}
SHAPES = "8192x131072,8192x32000,8192x50257"
HELP = "Time losses and softmax with other tiles than those in the tables."
COLUMNS = ("case", "n", "v", "dtype", "block_v", "num_warps", "chosen", "time_ms", "least_bytes", "status")
ABOUT = ("gpu", "commit")

Case = tuple[str, str, int, Callable[[], Any]]


def cases(n: int, v: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """A case: its name, its table, how many times it should read or write a whole tensor, and the call."""
    s, t = (torch.randn(n, v, device=device, dtype=dtype) for _ in range(2))
    dloss = torch.ones((), device=device)
    labels = torch.randint(0, v, (n,), device=device)
    for kind in ("forward_kl", "js"):
        options: dict[str, Any] = {"divergence": kind}
        yield f"{kind} forward", "logits", 2, partial(tk.divergence_forward, s, t, **options)
        _, stats = tk.divergence_forward(s, t, **options)
        options["dstudent_dtype"] = dtype
        yield f"{kind} backward", "logits", 3, partial(tk.divergence_backward, s, t, stats, dloss, **options)
    yield "cross_entropy forward", "logits", 1, partial(tk.cross_entropy_forward, s, labels)
    _, rows = tk.cross_entropy_forward(s, labels)
    yield "cross_entropy backward", "logits", 2, partial(tk.cross_entropy_backward, s, labels, rows, dloss)
    for log in (False, True):
        name = "log_softmax" if log else "softmax"
        yield f"{name} forward", "rows", 2, partial(tk.softmax_forward, s, 1, log=log)
        yield f"{name} backward", "rows", 3, partial(tk.softmax_backward, s, t, 1, log=log)


class _Call:
    """A call as what can be timed."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call, self._result = call, None

    def prepare(self) -> None:
        pass

    def step(self) -> None:
        self._result = self._call()

    def clear(self) -> None:
        self._result = None


def tried(table: str, call: Callable[[], Any]) -> Iterator[tuple[Config, bool]]:
    """The tile in a table, and then the others, each of them in force until the next is asked for."""
    replay.clear()
    with trace.launches() as made:
        call()
    chosen = made[0].config
    made.clear()  # it holds the results
    yield chosen, True
    for block_v, warps in TILES[table]:
        config = Config({"BLOCK_N": 1, "BLOCK_V": block_v}, num_warps=warps)
        if config == chosen:
            continue
        replay.clear()
        with mock.patch.object(tile_configs, table, lambda *_, config=config, **__: config):
            yield config, False
    replay.clear()


def rows(n: int, v: int, short: str, device: Cuda, budget_ms: float) -> Iterator[dict[str, Any]]:
    """A row for each case and tile."""
    dtype = DTYPES[short]
    for name, table, passes, call in cases(n, v, dtype, device.torch):
        for config, chosen in tried(table, call):
            row = {"case": name, "n": n, "v": v, "dtype": short, "least_bytes": passes * n * v * dtype.itemsize}
            row |= {"block_v": config["BLOCK_V"], "num_warps": config.num_warps, "chosen": chosen}
            try:
                row |= {"time_ms": round(measure(device, [_Call(call)], budget_ms).median, 4), "status": "ok"}
            except Exception as error:  # a tile that does not fit the GPU: the others are to be timed, too
                row["status"] = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            yield row


def main(arguments: Sequence[str] | None = None, device: Cuda | None = None) -> int:
    """Write the rows; returns 1 where none was measured."""
    parser = argparse.ArgumentParser(prog="python -m perf.gpu.tiles", description=HELP)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shapes", default=SHAPES, help=f"NxV, separated by commas (default: {SHAPES})")
    parser.add_argument("--dtypes", default="bf16,fp32", help="separated by commas (default: bf16,fp32)")
    parser.add_argument("--budget-ms", type=float, default=20.0, help="device time for each tile (default: 20)")
    options = parser.parse_args(arguments)
    around = {column: environment()[column] for column in ABOUT}
    device = device or Cuda()
    measured = 0
    with options.file.open("w", newline="") as out, tile_configs.use_tile_configs(interpreted=False):
        writer = csv.DictWriter(out, (*COLUMNS, *ABOUT), lineterminator="\n")
        writer.writeheader()
        out.flush()
        for short in options.dtypes.split(","):
            for shape in options.shapes.split(","):
                n, v = map(int, shape.split("x"))
                for row in rows(n, v, short, device, options.budget_ms):
                    writer.writerow(row | around)
                    out.flush()
                    measured += row["status"] == "ok"
    print(f"tiles measured: {measured}")
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
