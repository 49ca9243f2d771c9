"""Launch what the steps of ``make gpu`` launch, so that Triton compiles it, on a stand-in for a GPU that runs nothing.

Tensors are not initialized: no kernel reads them there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from perf import selection
from perf.errors import UnsupportedError
from perf.gpu import every_kernel, graphs, steps, tiles
from perf.measure import cases, overhead, sweep
from perf.measure.ops import OPS, Point
from triton_kernels.runtime import backend


def points() -> Iterator[tuple[Point, tuple[str, ...], tuple[str, ...]]]:
    """Points of all sweeps and of `overhead`, with the modes and the providers whose kernels Triton compiles."""
    settings = steps.Settings(Path(), Path(), Path(), Path(), (), "8192x131072")
    for step in steps.steps(settings):
        if step.name.startswith("sweep") or step.name == "overhead":
            parser = argparse.ArgumentParser()
            (overhead if step.name == "overhead" else sweep).add_arguments(parser)
            options = parser.parse_args(step.command(100)[4:])
            known = tuple(name for name in options.providers if name in ("ours", "lucid.torch", "liger"))
            for point in selection.points(options):
                yield point, options.modes, known


def launch(point: Point, mode: str, provider: str) -> None:
    """One step."""
    device = backend.default_device()
    inputs, dloss = cases.empty_inputs(point, device)
    case = cases.BenchCase(provider, OPS[point.op].function(provider, point), point, mode, inputs, dloss)
    case.prepare()
    case.step()


def tried_tiles(device: torch.device) -> None:
    """Launches of the step `tiles`, of few rows."""
    for dtype in (torch.bfloat16, torch.float32):
        for shape in tiles.SHAPES.split(","):
            for _, table, _, call in tiles.cases(4, int(shape.partition("x")[2]), dtype, device):
                for _ in tiles.tried(table, call):
                    call()


def main() -> int:
    """Launch everything; returns 1 where most of it fails."""
    done = failed = 0
    every_kernel.main(("bf16", "fp32", "fp64"))
    with cases.quiet():
        for point, modes, known in dict.fromkeys(points()):
            for provider in known:
                for mode in modes:
                    try:
                        launch(point, mode, provider)
                        done += 1
                    except UnsupportedError:
                        pass
                    except Exception as error:  # the others are to be compiled, too
                        failed += 1
                        print(f"{provider} {mode} {point}: {type(error).__name__}: {error}"[:300], flush=True)
        labels = torch.empty(graphs.N, dtype=torch.int64, device=backend.default_device())
        for loss in graphs.losses(labels).values():
            for dtype in (torch.bfloat16, torch.float32):
                s, t = (torch.empty(graphs.N, graphs.V, dtype=dtype, device=labels.device) for _ in range(2))
                loss(s.requires_grad_(), t).backward()
        tried_tiles(labels.device)
    print(f"launched: {done}, failed: {failed}")
    return 1 if failed > done else 0


if __name__ == "__main__":
    sys.exit(main())
