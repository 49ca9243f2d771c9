"""Launch each kernel at least once on small inputs, for compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m perf.gpu.every_kernel

Without torch's cache of allocations every tensor is an allocation of its own, so that an access one element beyond it
is found. The exit status is 1 where a call failed or a kernel was not launched. The dtypes are bf16, fp32 and fp64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

import triton_kernels as tk
from perf.selection import DTYPES
from triton_kernels.runtime import backend, launch, tile_configs

#: Short rows, and rows of several chunks; neither a multiple of a tile.
SHAPES = ((3, 1000), (2, 9001))

DIVERGENCES = ("forward_kl", "reverse_kl", "js", "total_variation")

Call = tuple[str, Callable[[], Any]]


def kernels() -> set[str]:
    """Names of all kernels: the jit functions that launchers start."""
    found = set()
    for name, module in list(sys.modules.items()):
        if name.startswith("triton_kernels."):
            found |= {key for key in vars(module) if key.startswith("_") and key.endswith("_kernel")}
    return found


def calls(dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """Calls of all launchers on tensors of a dtype."""
    compute = torch.float64 if dtype is torch.float64 else torch.float32

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=compute).to(dtype)

    for shape in SHAPES:
        yield from _losses(shape, dtype, compute, device)
    wide = random(3, 2000)
    yield "strided kl_div", lambda: tk.kl_div_forward(wide[:, 1::2], wide[:, ::2])
    yield "strided softmax", lambda: tk.softmax_forward(wide[:, ::2], 1)
    yield "strided divergence", lambda: tk.divergence_forward(wide[:, ::2], wide[:, 1::2])
    yield "softmax of columns", lambda: tk.softmax_forward(random(1000, 3), 0)
    for op, count in (("add", 2), ("div", 2), ("exp", 1), ("log", 1), ("tanh", 1), ("where", 3), ("pow", 2)):
        operands = [random(7, 333) for _ in range(count)]
        yield f"pointwise {op}", partial(tk.pointwise, op, *operands, dtype=dtype)
    for dims in ([0], [1], [0, 1]):
        yield f"sum {dims}", partial(tk.sum, random(70, 333), dims)
    yield "matmul", lambda: tk.matmul(random(33, 70), random(70, 45), random(45))
    indices = torch.randint(0, 97, (50,), device=device)
    yield "embedding", lambda: tk.embedding_forward(indices, random(97, 33))
    yield "embedding backward", lambda: tk.embedding_backward(indices, random(50, 33), 97)
    weights, gradient = random(33, 21), random(33, 21)
    first, second = (torch.zeros(33, 21, device=device, dtype=compute) for _ in range(2))
    yield "sgd", lambda: tk.sgd_step(weights, gradient, first, lr=0.1, momentum=0.9, nesterov=True)
    yield (
        "adam",
        lambda: tk.adam_step(weights, gradient, first, second, step=1, lr=0.1, betas=(0.9, 0.99), eps=1e-8),
    )
    tokens = torch.rand(20000, device=device, dtype=compute)
    yield "token_mean", lambda: tk.token_mean(tokens, weights=tokens)


def _losses(shape: tuple[int, int], dtype: torch.dtype, compute: torch.dtype, device: torch.device) -> Iterator[Call]:
    logits, other = (torch.randn(shape, device=device, dtype=compute) for _ in range(2))
    x, p, s, t = (tensor.to(dtype) for tensor in (logits.log_softmax(-1), logits.softmax(-1), logits, other))
    dloss = torch.ones((), device=device, dtype=compute)
    labels = torch.randint(0, shape[1] - 10, (shape[0],), device=device)

    def kl_div(log_target: bool) -> None:
        y = x if log_target else p
        for reduce in (True, False):
            tk.kl_div_forward(x, y, log_target=log_target, reduce=reduce)
        tk.kl_div_backward(x, y, dloss, shape=x.shape, log_target=log_target, dx_dtype=dtype, dtarget_dtype=dtype)

    def softmax(dim: int, log: bool) -> None:
        tk.softmax_backward(tk.softmax_forward(s, dim, log=log), t, dim, log=log)

    def divergence(kind: str, **options: Any) -> None:
        weight = torch.arange(shape[0], device=device, dtype=compute)
        losses, stats = tk.divergence_forward(s, t, divergence=kind, weight=weight, **options)
        tk.token_mean(losses, weights=stats[0])
        tk.divergence_backward(
            s, t, stats, dloss, divergence=kind, dstudent_dtype=dtype, dteacher_dtype=dtype, **options
        )

    def cross_entropy(**options: Any) -> None:
        _, stats = tk.cross_entropy_forward(s, labels, **options)
        tk.cross_entropy_backward(s, labels, stats, dloss, **options)

    def soft_cross_entropy(**options: Any) -> None:
        _, stats = tk.soft_cross_entropy_forward(s, p, **options)
        tk.soft_cross_entropy_backward(s, p, stats, dloss, dx_dtype=dtype, dy_dtype=dtype, **options)

    for log_target in (False, True):
        yield f"kl_div {log_target} {shape}", partial(kl_div, log_target)
    for dim in (0, 1):
        for log in (False, True):
            yield f"softmax {dim} {log} {shape}", partial(softmax, dim, log)
    hard = {"labels": labels, "hard_label_weight": 0.3, "inv_temperature": 0.5}
    options: dict[str, Any]
    for kind in DIVERGENCES:
        for options in ({}, hard, {"vocab_size": shape[1] - 3}):
            yield f"{kind} {[*options]} {shape}", partial(divergence, kind, **options)
    weights = torch.rand(shape[1], device=device)
    for options in ({}, {"label_smoothing": 0.1, "class_weight": weights}):
        yield f"cross_entropy {[*options]} {shape}", partial(cross_entropy, **options)
        yield f"soft_cross_entropy {[*options]} {shape}", partial(soft_cross_entropy, **options)


def main(dtypes: Sequence[str]) -> int:
    """Make all calls; returns 1 where one failed, or where a kernel was not launched."""
    device = backend.default_device()
    launched: set[str] = set()
    failed = 0
    observed = launch.launch_hook(lambda made: launched.add(made.kernel.__name__))
    with tile_configs.use_tile_configs(interpreted=False), observed:
        for dtype in dtypes:
            for name, call in calls(DTYPES[dtype], device):
                try:
                    call()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                except Exception as error:  # the others are to run, too
                    failed += 1
                    print(f"failed: {dtype} {name}: {type(error).__name__}: {error}", flush=True)
        tk.raise_pending_errors(device)
    left = sorted(kernels() - launched)
    print(f"kernels launched: {len(launched)}; not launched: {', '.join(left) or 'none'}; calls failed: {failed}")
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ("bf16", "fp32", "fp64")))
