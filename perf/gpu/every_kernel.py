"""Launch each kernel, with small tensors of `perf.static.matrix`, for compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m perf.gpu.every_kernel

The exit status is 1 where a call failed or a kernel was not launched.
"""

from __future__ import annotations

import sys

import torch

import triton_kernels as tk
from perf.static.matrix import Case
from perf.static.matrix_ops import CALLS
from triton_kernels.runtime import backend, launch, tile_configs

#: Of those of the matrix, several rows a program, the last of them fewer; rows of one chunk and of several, none a
#: multiple of a tile; and sizes to leave out.
SHAPES, LARGE = ("one", "batch", "odd", "odd chunks"), {1024, 4096, 8192, 50304}

#: Calls of a launcher.
MOST = 25


def kernels() -> set[str]:
    """Names of all kernels: the jit functions that launchers start."""
    modules = [module for name, module in sys.modules.items() if name.startswith("triton_kernels.")]
    return {key for module in modules for key in vars(module) if key.startswith("_") and key.endswith("_kernel")}


def small(case: Case) -> bool:
    """Whether no tensor of a case is large."""
    sizes = {value for value in case.values() if isinstance(value, int)}
    return case.get("shape", "odd") in SHAPES and not sizes & LARGE


def main() -> int:
    """Make all calls; returns 1 where one failed, or where a kernel was not launched."""
    device = backend.default_device()
    launched: set[str] = set()
    failed = 0
    observed = launch.launch_hook(lambda made: launched.add(made.kernel.__name__))
    with tile_configs.use_tile_configs(interpreted=False), observed, device:
        for name, (call, cases) in CALLS.items():
            for case in list(filter(small, cases))[:MOST]:
                try:
                    call(case)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                except Exception as error:  # the others are to run, too
                    failed += 1
                    print(f"failed: {name} {case}: {type(error).__name__}: {error}", flush=True)
        tk.raise_pending_errors(device)
    left = sorted(kernels() - launched)
    print(f"kernels launched: {len(launched)}; not launched: {', '.join(left) or 'none'}; calls failed: {failed}")
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
