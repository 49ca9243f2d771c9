"""Launch what the steps of ``make gpu`` launch, so that Triton compiles it, on a stand-in for a GPU that runs nothing.

Tensors are not initialized: no kernel reads them there.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Iterator

import torch

from perf.gpu import every_kernel, graphs, stress, tiles
from perf.gpu.steps import STEPS
from perf.measure import cases, overhead, rows, sweep
from perf.measure.op import Point, UnsupportedError
from triton_kernels.runtime import backend


def points() -> Iterator[tuple[Point, str, str]]:
    """Points, providers whose kernels Triton compiles, and modes of the steps that are commands of `perf`."""
    os.environ |= {"SHAPE": "8192x131072", "ROWS": "8192", "SECONDS_LEFT": "1", "OUT": "."}
    for name, step in STEPS.items():
        if name.startswith(("sweep", "overhead")):
            parser = argparse.ArgumentParser()
            (overhead if name == "overhead" else sweep).add_arguments(parser)
            options = parser.parse_args(shlex.split(os.path.expandvars(step.command))[4:])
            providers = [name for name in options.providers if name in (*rows.OURS, "liger")]
            yield from itertools.product(rows.points(options), providers, options.modes)


def launch(point: Point, provider: str, mode: str) -> None:
    """One step; its memory is free when it returns."""
    case = cases.Case(point, provider, mode, *cases.empty_inputs(point, backend.default_device()))
    case.prepare()
    case.step()


def main() -> int:
    """Launch everything; returns 1 where most of it fails."""
    device, done, failed = backend.default_device(), 0, 0
    every_kernel.main()
    with cases.quiet():
        for point, provider, mode in dict.fromkeys(points()):
            try:
                launch(point, provider, mode)
                done += 1
            except UnsupportedError:
                pass
            except Exception as error:  # the others are to be compiled, too
                failed += 1
                print(f"{provider} {mode} {point}: {type(error).__name__}: {error}"[:300], flush=True)
        for point in graphs.POINTS:
            launch(point, "lucid.torch", "full")
        for case in stress.CASES:
            stress.loss_and_gradient(case, stress.inputs(case, device), in_place=False, polls=None)
        for dtype, v in itertools.product((torch.bfloat16, torch.float32), tiles.COLUMNS):
            for _, table, call in tiles.calls(4, v, dtype, device):
                for _ in tiles.tried(table, call):
                    call()
    print(f"launched: {done}, failed: {failed}")
    return 1 if failed > done else 0


if __name__ == "__main__":
    sys.exit(main())
