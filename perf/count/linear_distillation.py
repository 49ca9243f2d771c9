"""linear_distillation: predicted times of lucid.torch.linear_distillation_loss, without a GPU.

For a training step in bf16 that gives the loss and the gradients of the student's hidden states and weight, at the
default size of a chunk. The rate of its four matrix products is what others published of cuBLAS on an H200. Beyond them
the step moves, at the rate that an H200 copies at,

    logits        of student and teacher: written by their products and read by the loss, which writes the gradient of
                  the student's; both products of the gradient read it: seven times n·v elements
    accumulator   the float32 sum of the weight's gradient, where there are several chunks: read and written by each but
                  the first. The fewer chunks use the memory of this sum, and of what it is rounded to

`sum_ms` adds up everything, which is pessimistic. `overlap_ms` has the accumulator move while its own product is
computed, at no cost where that takes longer. Launches and kernels that are slower than memory are not in it.
Peak memory is what the step needs beyond its inputs: the logits of chunks, and the gradients.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from lucid._linear_args import chunk_of_rows
from lucid.ops.from_hidden import LinearLoss
from perf import results
from perf.environment import environment
from perf.results import Row, UsageError, number_text
from triton_kernels.losses.from_hidden import Linear

#: An H200's rates: of products in bf16 by cuBLAS, and of bytes that a copy reads and writes.
TFLOPS, TBPS = 752, 4.3

#: Bytes of an element of bf16 and of the accumulator.
ITEMSIZE, ACCUMULATED = 2, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    shapes = "NxVxD or sets of such, separated by commas (default: linear)"
    parser.add_argument(
        "--shapes", type=results.shapes, default=results.SHAPE_SETS["linear"], metavar="LIST", help=shapes
    )
    parser.add_argument("--csv", type=results.new_file, metavar="FILE", help="write the rows as CSV")


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    if any(len(shape) != 3 for shape in options.shapes):
        raise UsageError("argument --shapes: losses from hidden states take NxVxD")
    rows = [predicted(*shape) for shape in options.shapes]
    for row in rows:
        print(", ".join(f"{name} {number_text(value)}" for name, value in row.items()))
    if options.csv:
        _write(options.csv, rows)
    return 0


def _write(file: Path, rows: list[Row]) -> None:
    made_with = environment()
    results.write_csv(file, "linear_distillation", [row | made_with for row in rows])


def predicted(n: int, v: int, d: int, chunk_rows: int | None = None) -> Row:
    """The row of a shape; `chunk_rows` and `chunks` are of the student, whose weight's gradient is summed over them.

    >>> row = predicted(16384, 128256, 4096)
    >>> row["chunks"], f"{row['products_ms']:.2f}", f"{row['sum_ms']:.2f}"
    (4, '91.57', '101.34')
    """
    chunk_rows, of_teacher = _chunk_rows(n, v, d, chunk_rows)
    chunks = math.ceil(n / chunk_rows)
    products = 4 * _product_ms(n, v, d)
    logits = _moved_ms(7 * n * v * ITEMSIZE)
    accumulator = _moved_ms(2 * v * d * ACCUMULATED)
    of_chunks = [min(chunk_rows, n - start) for start in range(chunk_rows, n, chunk_rows)]
    exposed = sum(max(0.0, accumulator - _product_ms(rows, v, d)) for rows in of_chunks)
    total, overlapped = products + logits + accumulator * (chunks - 1), products + logits + exposed
    logits_bytes = (chunk_rows + of_teacher) * v * ITEMSIZE
    to_weight, accumulated = v * d * ITEMSIZE, v * d * ACCUMULATED
    # One chunk's product is the gradient; a sum of several is rounded after logits are gone.
    peak = n * d * ITEMSIZE + (
        max(logits_bytes + accumulated, accumulated + to_weight) if chunks > 1 else logits_bytes + to_weight
    )
    return {
        **{"n": n, "v": v, "d": d, "chunk_rows": chunk_rows, "chunks": chunks},
        **{"products_ms": products, "logits_ms": logits, "accumulator_ms": accumulator * (chunks - 1)},
        **{"sum_ms": total, "sum_ratio": total / products},
        **{"overlap_ms": overlapped, "overlap_ratio": overlapped / products, "peak_mib": peak / 2**20},
    }


def _chunk_rows(n: int, v: int, d: int, given: int | None) -> tuple[int, int]:
    """The rows of a chunk of the student's logits, and of the teacher's."""
    hidden = torch.empty(n, d, dtype=torch.bfloat16, device="meta")
    layer = Linear(hidden, torch.empty(v, d, dtype=torch.bfloat16, device="meta"), None, torch.bfloat16)
    of: Any = None  # what the size of chunks does not depend on
    loss = LinearLoss(of, v, of, of, chunk_of_rows(given, None), of, of)
    of_student, of_teacher = loss.chunk_sizes(n, layer, layer, True)
    return min(n, of_student), min(n, of_teacher)


def _product_ms(n: int, v: int, d: int) -> float:
    return 2 * n * v * d / TFLOPS / 1e9


def _moved_ms(size: float) -> float:
    return size / TBPS / 1e9
