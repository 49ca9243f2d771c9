"""Time losses and softmax with other tiles than those of `tile_configs`: ``python -m perf.gpu.tiles FILE``.

FILE gets a row for each tile as it is measured; `chosen` is true for the tables' own. Where programs of a row wait for
each other, the chosen tile is timed with other bounds of registers, too.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from perf.environment import environment
from perf.gpu import headline
from perf.measure.timing import Call, Gpu
from perf.results import DTYPES
from triton_kernels.devtools import trace
from triton_kernels.runtime import replay, tile_configs
from triton_kernels.runtime.tile_configs import Config

#: BLOCK_V and warps, by the table of `tile_configs` that they replace.
TILES = {
    "logits": ((1024, 1), (2048, 2), (2048, 4), (4096, 2), (4096, 4), (4096, 8), (8192, 8), (8192, 16)),
    "rows": ((2048, 2), (4096, 4), (8192, 8), (16384, 16), (16384, 32), (32768, 16), (32768, 32)),
}
#: The most registers per thread, in place of those of a divergence.
REGISTERS = (96, 128, 168, 255)
ROWS, COLUMNS = 8192, (131072, 32000, 50257)
NAMES = ("case", "n", "v", "dtype", "block_v", "num_warps", "max_registers", "chosen", "time_ms", "status")
ABOUT = ("gpu", "commit")


def calls(n: int, v: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """The headline kernels that have tables: the name, the table and the call."""
    for name, call, _ in headline.cases(n, v, dtype, device):
        if not name.startswith(("kl_div", "scale_gradient")):
            yield name, "rows" if name.startswith("softmax") else "logits", call


def tried(table: str, call: Callable[[], Any]) -> Iterator[tuple[Config, bool]]:
    """The tile in a table, and then the others, each of them in force until the next is asked for."""
    replay.clear()
    with trace.launches() as made:
        call()
    chosen = made[0].config
    made.clear()  # it holds the results
    yield chosen, True
    for block_v, warps in TILES[table]:
        sizes = {"BLOCK_N": 1, "BLOCK_V": block_v} | ({"BLOCK_C": 1} if table == "rows" else {})
        config = Config(sizes, warps, chosen.max_registers)
        if (block_v, warps) != (chosen["BLOCK_V"], chosen.num_warps):
            replay.clear()
            with mock.patch.object(tile_configs, table, lambda *_, config=config, **__: config):
                yield config, False
    meeting = tile_configs.meeting
    for registers in REGISTERS if chosen.max_registers else ():
        if registers != chosen.max_registers:
            replay.clear()
            with mock.patch.object(tile_configs, "meeting", partial(_bounded, meeting, registers)):
                yield replace(chosen, max_registers=registers), False
    replay.clear()


def _bounded(meeting: Callable[..., Any], registers: int, config: Config, itemsize: int, tiles: int, _: int) -> Any:
    """Call `tile_configs.meeting` with another bound of registers."""
    return meeting(config, itemsize, tiles, registers)


def main(file: str, gpu: Any = None) -> int:
    """Write the rows; returns 1 where none was measured."""
    about = {name: value for name, value in environment().items() if name in ABOUT}
    gpu, measured = gpu or Gpu(), 0
    with Path(file).open("w", newline="") as out, tile_configs.use_tile_configs(interpreted=False):
        writer = csv.DictWriter(out, (*NAMES, *ABOUT), lineterminator="\n")
        writer.writeheader()
        for dtype, v in itertools.product(("bf16", "fp32"), COLUMNS):
            for name, table, call in calls(ROWS, v, DTYPES[dtype], gpu.torch):
                for config, chosen in tried(table, call):
                    row = {"case": name, "n": ROWS, "v": v, "dtype": dtype, "chosen": chosen, "status": "ok", **about}
                    row |= {"block_v": config["BLOCK_V"], "num_warps": config.num_warps}
                    row["max_registers"] = config.max_registers
                    try:
                        row["time_ms"] = round(gpu.measure(Call(call), 20).median, 4)
                    except Exception as error:  # a tile that does not fit the GPU: the others are to be timed, too
                        row["status"] = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
                    writer.writerow(row)
                    out.flush()
                    measured += row["status"] == "ok"
    print(f"tiles measured: {measured}")
    return int(not measured)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
