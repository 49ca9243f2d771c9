"""Launch the headline kernels, each call between profiler marks: ``python -m perf.gpu.headline NxV DTYPE FILE``.

FILE gets a JSON line for each launch, in order: the case, the kernel and the bytes that it should move.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import triton_kernels as tk
from perf.selection import DTYPES
from triton_kernels.devtools import trace
from triton_kernels.runtime import backend, tile_configs

#: A case: its name, the call, and for each launch how many times it should read or write a whole tensor; None for
#: launches that move little.
Case = tuple[str, Callable[[], Any], tuple[int | None, ...]]


def cases(n: int, v: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """The headline kernels on random tensors."""
    a, b = (torch.randn(n, v, device=device, dtype=dtype) for _ in range(2))
    dloss = torch.ones((), device=device)
    labels = torch.randint(0, v, (n,), device=device)
    gradient = {"shape": b.shape, "dx_dtype": dtype}
    yield "kl_div forward, log", lambda: tk.kl_div_forward(a, b, log_target=True), (2, None)
    yield "kl_div forward, probabilities", lambda: tk.kl_div_forward(a, b), (2, None)
    yield "kl_div backward", lambda: tk.kl_div_backward(None, b, dloss, log_target=True, **gradient), (2,)
    yield "forward_kl forward", lambda: tk.divergence_forward(a, b), (2, None)
    yield "js forward", lambda: tk.divergence_forward(a, b, divergence="js"), (2, None, 2, None)
    _, stats = tk.divergence_forward(a, b)
    yield "forward_kl backward", lambda: tk.divergence_backward(a, b, stats, dloss, dstudent_dtype=dtype), (3,)
    yield "cross_entropy forward", lambda: tk.cross_entropy_forward(a, labels), (1, None)
    _, rows = tk.cross_entropy_forward(a, labels)
    yield "cross_entropy backward", lambda: tk.cross_entropy_backward(a, labels, rows, dloss), (2,)
    yield "softmax forward", lambda: tk.softmax_forward(a, 1), (3,)
    yield "softmax backward", lambda: tk.softmax_backward(a, b, 1), (5,)


def _mark(mark: Callable[[], None]) -> None:
    """Set a profiler mark, where the driver has such marks."""
    try:
        mark()
    except torch.cuda.CudaError as error:
        print(f"no profiler marks: {error}", file=sys.stderr)


def main(shape: str, dtype: str, file: str) -> int:
    """Launch each case twice, the second time between profiler marks."""
    n, v = map(int, shape.split("x"))
    device = backend.default_device()
    cuda = device.type == "cuda"
    with Path(file).open("w") as out, tile_configs.use_tile_configs(interpreted=False):
        for name, call, passes in cases(n, v, DTYPES[dtype], device):
            if cuda:
                call()  # compiles
                torch.cuda.synchronize()
                _mark(torch.cuda.profiler.start)
            with trace.launches() as made:
                call()
            if cuda:
                torch.cuda.synchronize()
                _mark(torch.cuda.profiler.stop)
            for number, launched in enumerate(made):
                times = passes[number] if number < len(passes) and len(made) == len(passes) else None
                bytes_ = None if times is None else times * n * v * DTYPES[dtype].itemsize
                print(
                    json.dumps({"case": name, "kernel": launched.kernel.__name__, "predicted_bytes": bytes_}),
                    file=out,
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
