"""CUDA graphs of a loss and its gradient: ``python -m perf.gpu.graphs FILE``.

Each is captured, its inputs are changed, and what a replay gives is compared, bit by bit, with a call; then replays and
calls are timed, the device's work included.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from perf.environment import environment
from perf.measure import cases
from perf.measure.op import Point
from perf.measure.ops import OPS

COLUMNS = ("case", "n", "v", "dtype", "equal", "call_us", "replay_us", "status", "gpu", "commit")
POINTS = [
    Point(op, variant, 512, 32000, dtype, "batchmean")
    for op in ("kl_div", "cross_entropy", "distillation")
    for variant in OPS[op].variants
    for dtype in (torch.bfloat16, torch.float32)
    if variant != "two_line"
]


def measure(point: Point) -> dict[str, Any]:
    """Capture, replay, compare and time."""
    (x, *others), _ = cases.make_inputs(point, torch.device("cuda"))
    loss = OPS[point.op].function("lucid.torch", point)
    x.requires_grad_()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        value = loss(x, *others)
        return value.detach(), torch.autograd.grad(value, x)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(cases.make_inputs(point, x.device, seed=1)[0][0])
    graph.replay()
    equal = all(torch.equal(got, wanted) for got, wanted in zip(captured, step(), strict=True))
    call, replay = (Timer("f()", globals={"f": f}).timeit(200).median * 1e6 for f in (step, graph.replay))
    status = "ok" if equal else "failed: a replay gives other bits"
    return {"equal": equal, "call_us": round(call, 1), "replay_us": round(replay, 1), "status": status}


def main(file: str) -> int:
    """Write a row for each loss and dtype; returns 1 where one failed."""
    around, bad = environment(), 0
    with Path(file).open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for point in POINTS:
            row: dict[str, Any] = {"case": f"{point.op} {point.variant}", "n": point.n, "v": point.v}
            row |= {"dtype": str(point.dtype), "gpu": around["gpu"], "commit": around["commit"]}
            try:
                row |= measure(point)
            except Exception as error:  # the others are to run, too
                row["status"] = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            writer.writerow(row)
            out.flush()
            print(row, flush=True)
            bad |= row["status"] != "ok"
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
