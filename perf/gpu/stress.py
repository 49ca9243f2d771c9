"""Kernels whose programs wait for each other, beside other work on the GPU: ``python -m perf.gpu.stress FILE SECONDS``.

FILE gets a row for each loss, dtype and kind of other work. Loss and gradient must have the bits that they have on an
idle GPU, however often a program looks for the others' statistics, in place or not. `beside_ms` is the median time of a
call beside the other work, `alone_ms` that of one without.
"""

from __future__ import annotations

import csv
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import triton_kernels as tk
from perf.environment import environment
from triton_kernels.runtime import backend, tile_configs

COLUMNS = ("case", "n", "v", "dtype", "other_work", "calls", "different", "alone_ms", "beside_ms", "status")
ABOUT = ("gpu", "commit")

#: How often a program looks: never, once, a few times, often, and as by default. And the least calls of a case.
POLLS = (0, 1, 20, 200, None)
LEAST = 6 * len(POLLS)

#: Streams of other work, and the size of its matrices.
STREAMS, SIZE = 3, 4096


class Case(NamedTuple):
    """A divergence, or cross_entropy, of rows of several chunks: more programs than fit the GPU at once."""

    kind: str
    dtype: torch.dtype
    n: int = 300
    v: int = 128257


CASES = [
    Case(kind, dtype)
    for kind in ("forward_kl", "reverse_kl", "js", "total_variation", "cross_entropy")
    for dtype in (torch.bfloat16, torch.float32)
]

Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(case: Case, device: torch.device) -> Inputs:
    """Student, teacher and labels: of three rows one diverges much, one little, and one not at all."""
    generator = torch.Generator(device).manual_seed(0)
    teacher, noise = (torch.randn(case.n, case.v, device=device, generator=generator) for _ in range(2))
    scale = torch.tensor([1.0, 1e-3, 0.0], device=device).repeat(case.n)[: case.n, None]
    labels = torch.randint(0, case.v, (case.n,), device=device, generator=generator)
    return (teacher + scale * noise).to(case.dtype), teacher.to(case.dtype), labels


def loss_and_gradient(case: Case, given: Inputs, in_place: bool, polls: int | None) -> tuple[Tensor, Tensor]:
    """Losses of rows, and the gradient to the student."""
    student, teacher, labels = given
    gradient = student.clone() if in_place else torch.empty_like(student)
    s = gradient if in_place else student
    if case.kind == "cross_entropy":
        losses, _ = tk.cross_entropy_forward(s, labels, label_smoothing=0.1, dx=gradient, polls=polls)
    else:
        losses, _ = tk.divergence_forward(s, teacher, divergence=case.kind, dstudent=gradient, polls=polls)
    return losses, gradient


class OtherWork:
    """Work on streams of its own: none, matrix products, small kernels, or the same loss of other logits."""

    KINDS = ("none", "matrix products", "small kernels", "the same")

    def __init__(self, kind: str, case: Case, given: Inputs) -> None:
        device, count = given[0].device, 0 if kind == "none" else STREAMS
        cuda = device.type == "cuda"
        self._streams = [torch.cuda.stream(torch.cuda.Stream()) if cuda else nullcontext() for _ in range(count)]
        matrix = torch.ones(SIZE, SIZE, dtype=torch.bfloat16, device=device)
        self._step: Callable[[], Any] = {
            "none": lambda: None,
            "matrix products": lambda: matrix @ matrix,
            "small kernels": lambda: [matrix[i].mul_(1) for i in range(32)],
            "the same": lambda: loss_and_gradient(case, given, False, None),
        }[kind]

    def enqueue(self) -> None:
        """Enqueue a few milliseconds of it; it is not waited for."""
        for stream in self._streams:
            with stream:
                for _ in range(4):
                    self._step()


def measure(case: Case, kind: str, seconds: float, device: torch.device) -> dict[str, Any]:
    """Call a loss beside other work for some seconds, and count results that differ from those of an idle GPU."""
    given = inputs(case, device)
    expected = [_bits(result) for result in loss_and_gradient(case, given, False, None)]
    work, end = OtherWork(kind, case, given), time.monotonic() + seconds
    times: dict[str, list[float]] = {"alone_ms": [], "beside_ms": []}
    different = calls = 0
    while calls < LEAST or time.monotonic() < end:
        beside = calls % 3 != 0
        _wait(device)
        if beside:
            work.enqueue()
        before = time.perf_counter()
        # With numbers that have no common factor, all combinations come.
        found = loss_and_gradient(case, given, bool(calls % 2), POLLS[calls % len(POLLS)])
        _wait(device, of_stream=True)
        times["beside_ms" if beside else "alone_ms"].append((time.perf_counter() - before) * 1e3)
        different += not all(torch.equal(_bits(result), bits) for result, bits in zip(found, expected, strict=True))
        calls += 1
    medians = {name: round(statistics.median(ms), 4) for name, ms in times.items()}
    status = "failed: other bits than on an idle GPU" if different else "ok"
    return {"calls": calls, "different": different, "status": status, **medians}


def _bits(result: Tensor) -> Tensor:
    return result.view({2: torch.int16, 4: torch.int32}[result.itemsize])


def _wait(device: torch.device, of_stream: bool = False) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream().synchronize() if of_stream else torch.cuda.synchronize()


def main(file: str, seconds: str) -> int:
    """Write the rows, within `seconds`; returns 1 where one failed."""
    device, bad = backend.default_device(), 0
    about = {name: value for name, value in environment().items() if name in ABOUT}
    end, left = time.monotonic() + float(seconds), len(CASES) * len(OtherWork.KINDS)
    with Path(file).open("w", newline="") as out, tile_configs.use_tile_configs(interpreted=False):
        writer = csv.DictWriter(out, (*COLUMNS, *ABOUT), lineterminator="\n")
        writer.writeheader()
        for kind, case in itertools.product(OtherWork.KINDS, CASES):
            row: dict[str, Any] = {"case": case.kind, "n": case.n, "v": case.v, "dtype": str(case.dtype)}
            row |= {"other_work": kind, **about}
            try:
                row |= measure(case, kind, 0.8 * max(0.0, end - time.monotonic()) / left, device)
            except Exception as error:  # the others are to run, too
                row["status"] = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            left -= 1
            writer.writerow(row)
            out.flush()
            print(row, flush=True)
            bad |= row["status"] != "ok"
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
