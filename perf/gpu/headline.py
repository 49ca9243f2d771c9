"""The headline kernels; launched between profiler marks by ``python -m perf.gpu.headline NxV DTYPE FILE``.

FILE gets a JSON line for each launch, in order: the case, the kernel and the bytes that it should move.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import triton_kernels as tk
from perf.results import DTYPES
from triton_kernels.devtools import trace
from triton_kernels.runtime import backend, tile_configs

#: A case: its name, the call, and for each launch how many times it should read or write a whole tensor; None for
#: launches that move little.
Case = tuple[str, Callable[[], Any], tuple[int | None, ...]]


def cases(n: int, v: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """The headline kernels on random tensors."""
    a, b = (torch.randn(n, v, device=device, dtype=dtype) for _ in range(2))
    dloss, two = (torch.full((), number, device=device) for number in (1.0, 2.0))
    labels = torch.randint(0, v, (n,), device=device)
    gradient = {"shape": b.shape, "dx_dtype": dtype}
    written = torch.empty_like(a)
    yield "kl_div forward, log", partial(tk.kl_div_forward, a, b, log_target=True), (2, None)
    yield "kl_div forward, probabilities", partial(tk.kl_div_forward, a, b), (2, None)
    yield "kl_div backward", partial(tk.kl_div_backward, None, b, dloss, log_target=True, **gradient), (2,)
    for kind in ("forward_kl", "js"):
        forward = partial(tk.divergence_forward, a, b, divergence=kind)
        yield f"{kind} loss and gradient", partial(forward, dstudent=written), (3,)
        yield f"{kind} forward", forward, (2,)
        _, stats = forward()
        backward = partial(tk.divergence_backward, a, b, stats, dloss, divergence=kind, dstudent_dtype=dtype)
        yield f"{kind} backward", backward, (3,)
    yield "cross_entropy loss and gradient", partial(tk.cross_entropy_forward, a, labels, dx=written), (2,)
    yield "cross_entropy forward", partial(tk.cross_entropy_forward, a, labels), (1,)
    _, rows = tk.cross_entropy_forward(a, labels)
    yield "cross_entropy backward", partial(tk.cross_entropy_backward, a, labels, rows, dloss), (2,)
    yield "scale_gradient by 1", partial(tk.scale_gradient, written, dloss, in_place=True), (None,)
    yield "scale_gradient by 2", partial(tk.scale_gradient, written, two, in_place=True), (2,)
    yield "softmax forward", partial(tk.softmax_forward, a, 1), (2,)
    yield "softmax backward", partial(tk.softmax_backward, a, b, 1), (3,)


def main(shape: str, dtype: str, file: str) -> None:
    """Launch each case twice, the second time between profiler marks."""
    n, v = map(int, shape.split("x"))
    device = backend.default_device()
    with Path(file).open("w") as out, tile_configs.use_tile_configs(interpreted=False):
        for name, call, passes in cases(n, v, DTYPES[dtype], device):
            if device.type == "cuda":
                call()  # compiles
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
            with trace.launches() as made:
                call()
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()
            for number, launched in enumerate(made):
                times = passes[number] if len(made) == len(passes) else None
                predicted = times and times * n * v * DTYPES[dtype].itemsize
                row = {"case": name, "kernel": launched.kernel.__name__, "predicted_bytes": predicted}
                print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
