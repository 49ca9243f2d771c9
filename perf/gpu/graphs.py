"""CUDA graphs of a loss and its gradient: ``python -m perf.gpu.graphs FILE``.

Each is captured, its inputs are changed, and what a replay gives is compared, bit by bit, with a call; then replays and
calls are timed.
"""

from __future__ import annotations

import csv
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lucid.torch
from perf.environment import environment

N, V = 512, 32000
CALLS, ROUNDS = 20, 10
COLUMNS = ("case", "n", "v", "dtype", "equal", "call_us", "replay_us", "status", "gpu", "commit")

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def losses(labels: torch.Tensor) -> dict[str, Loss]:
    """The losses, of logits and of targets."""
    kl_div = functools.partial(lucid.torch.kl_div, reduction="batchmean", log_target=True)
    found: dict[str, Loss] = {
        "kl_div": lambda s, t: kl_div(s, t),
        "cross_entropy": lambda s, t: lucid.torch.cross_entropy(s, labels),
    }
    for kind in ("forward_kl", "reverse_kl", "js", "total_variation"):
        found[kind] = functools.partial(lucid.torch.distillation_loss, divergence=kind)
    return found


def measure(loss: Loss, dtype: torch.dtype) -> dict[str, Any]:
    """Capture, replay, compare and time."""
    s = torch.randn(N, V, device="cuda").log_softmax(-1).to(dtype).requires_grad_()
    t = torch.randn(N, V, device="cuda").log_softmax(-1).to(dtype)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        value = loss(s, t)
        return value.detach(), torch.autograd.grad(value, s)[0]

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
        s.copy_(torch.randn(N, V, device="cuda").log_softmax(-1))
    graph.replay()
    torch.cuda.synchronize()
    equal = all(torch.equal(got, wanted) for got, wanted in zip(captured, step(), strict=True))
    times = {"call_us": _us(step), "replay_us": _us(graph.replay)}
    return {"equal": equal, "status": "ok" if equal else "failed: a replay gives other bits", **times}


def _us(call: Callable[[], Any]) -> float:
    """Median time per call in µs, the device's work included."""
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / CALLS * 1e6)
    return round(statistics.median(times), 1)


def main(file: str, measured: Callable[[Loss, torch.dtype], dict[str, Any]] = measure) -> int:
    """Write a row for each loss and dtype; returns 1 where one failed."""
    around = environment()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    labels = torch.randint(0, V, (N,), device=device)
    bad = 0
    with Path(file).open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        out.flush()
        for name, loss in losses(labels).items():
            for short, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
                try:
                    found = measured(loss, dtype)
                except Exception as error:  # the others are to run, too
                    found = {"status": f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
                row = {"case": name, "n": N, "v": V, "dtype": short, **found}
                writer.writerow(row | {column: around[column] for column in ("gpu", "commit")})
                out.flush()
                print(row, flush=True)
                bad += found["status"] != "ok"
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
