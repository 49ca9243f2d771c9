"""The kernels as they are shipped: one launch of each kind, with what it must move and may take.

Launches are recorded on tensors without memory, so shapes can be those that matter; only launches that Triton would
compile to different code are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import triton_kernels as tk
from perf.results import DTYPES
from triton_kernels.losses.distillation.terms import STATISTICS
from triton_kernels.losses.soft_cross_entropy import STATISTICS as SOFT_STATISTICS
from triton_kernels.runtime import launch

MAIN = ("bf16", "fp32")


@dataclass(frozen=True)
class Variant:
    """A launch.

    Attributes
    ----------
    call
        Makes the launch, and perhaps others.
    passes
        How often it reads or writes a tensor of the whole shape; None where costs per element say nothing.
    number
        Which of the launches that `call` makes it is.
    least
        How often it would read or write one if nothing was read twice; None if nothing is.
    limit, special_limit
        The most instructions and special functions per element that it may ever take at cuda:90, whatever was accepted.
    """

    kernel: str
    dtype: str
    name: str
    call: Callable[[], Any]
    passes: int | None = None
    number: int = 0
    least: int | None = None
    limit: float | None = None
    special_limit: float | None = None

    def launched(self) -> launch.Launch:
        """The launch as a GPU would get it."""
        made: list[launch.Launch] = []
        with launch.dry_run(made.append):
            self.call()
        return made[self.number]

    @property
    def bytes(self) -> int | None:
        """Bytes per element that it moves."""
        return None if self.passes is None else self.passes * DTYPES[self.dtype].itemsize

    @property
    def least_bytes(self) -> int | None:
        """Bytes per element that it must move."""
        return self.bytes if self.least is None else self.least * DTYPES[self.dtype].itemsize


def _empty(dtype: str, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=DTYPES[dtype], device="meta")


def _kl_div(dtype: str) -> Iterator[Variant]:
    x, one = _empty(dtype, 8192, 131072), _empty(dtype)
    gated = dtype in MAIN
    for log, kind in ((False, "probabilities"), (True, "log-probabilities")):
        variant = partial(Variant, "kl_div", dtype)
        for reduce, result in ((True, "summed"), (False, "per element")):
            forward = partial(tk.kl_div_forward, x, x, log_target=log, reduce=reduce)
            yield variant(f"forward, {kind}, {result}", forward, 2 if reduce else 3, limit=16 if gated else None)
        # Both gradients move twice the bytes of one.
        for both, gradients, passes, limit in ((False, "to x", 2, 8), (True, "to x and target", 4, 31)):
            options = {"shape": x.shape, "log_target": log, "dx_dtype": x.dtype}
            options["dtarget_dtype"] = x.dtype if both else None
            backward = partial(tk.kl_div_backward, x if both else None, x, one, **options)
            yield variant(f"backward, {kind}, {gradients}", backward, passes, limit=limit if gated else None)


def _softmax(dtype: str, log: bool) -> Iterator[Variant]:
    variant = partial(Variant, "log_softmax" if log else "softmax", dtype)
    short, long = _empty(dtype, 8192, 8192), _empty(dtype, 8192, 131072)

    def forward(x: Tensor) -> Callable[[], Any]:
        return partial(tk.softmax_forward, x, 1, log=log)

    def backward(y: Tensor) -> Callable[[], Any]:
        return partial(tk.softmax_backward, y, y, 1, log=log)

    yield variant("forward, row on chip", forward(short), 2, limit=16)
    yield variant("forward, long rows", forward(long), 2, limit=16)
    yield variant("backward, row on chip", backward(short), 3, limit=16)
    yield variant("backward, long rows", backward(long), 3, limit=16)


#: Of instructions and special functions per pair of logits: loss and gradient, the loss alone, the gradient alone.
_LIMITS: dict[str, tuple[tuple[float, float], ...]] = {
    "forward_kl": ((30, 4), (20, 2), (14, 2)),
    "reverse_kl": ((34, 3), (20, 2), (16, 2)),
    "js": ((80, 7), (76, 6), (40, 3)),
    "total_variation": ((44, 5), (40, 4), (24, 2)),
}


def _distillation(dtype: str, divergence: str) -> Iterator[Variant]:
    """A divergence from logits; its element is a pair of logits."""
    variant = partial(Variant, divergence, dtype)
    long, short = _empty(dtype, 8192, 131072), _empty(dtype, 65536, 1024)

    def forward(x: Tensor, gradient: bool = False) -> Callable[[], Any]:
        return partial(tk.divergence_forward, x, x, divergence=divergence, dstudent=x if gradient else None)

    def backward(x: Tensor) -> Callable[[], Any]:
        rows, dloss = _empty("fp32", STATISTICS, x.shape[0]), _empty("fp32")
        return partial(tk.divergence_backward, x, x, rows, dloss, divergence=divergence, dstudent_dtype=x.dtype)

    def limits(instructions: float, special: float) -> dict[str, Any]:
        return {"limit": instructions, "special_limit": special + 0.1}

    both, loss, gradient = _LIMITS[divergence]
    yield variant("loss and gradient, long rows", forward(long, True), 3, **limits(*both))
    yield variant("loss and gradient, short rows", forward(short, True), 3)
    yield variant("forward, long rows", forward(long), 2, **limits(*loss))
    yield variant("forward, short rows", forward(short), 2)
    yield variant("backward, a chunk of a long row", backward(long), 3, **limits(*gradient))
    yield variant("backward, short rows", backward(short), 3)


def _cross_entropy(dtype: str) -> Iterator[Variant]:
    variant = partial(Variant, "cross_entropy", dtype)
    long, dloss = _empty(dtype, 8192, 131072), _empty("fp32")
    labels = torch.empty(8192, dtype=torch.int64, device="meta")
    forward = partial(tk.cross_entropy_forward, long, labels)

    def backward() -> None:
        with torch.device("meta"):
            tk.cross_entropy_backward(long, labels, forward()[1], dloss)

    yield variant("loss and gradient, long rows", partial(forward, dx=long), 2)
    yield variant("forward, long rows", forward, 1)
    yield variant("backward, a chunk of a long row", backward, 2, 1)


def _scale_gradient(dtype: str) -> Iterator[Variant]:
    """What is left to do in backward, where the gradient was computed with the loss."""
    long, one, per_row = _empty(dtype, 8192, 131072), _empty("fp32"), _empty("fp32", 8192)
    for dloss, of in ((one, "a number"), (per_row, "of rows")):
        for in_place in (True, False):
            call = partial(tk.scale_gradient, long, dloss, in_place=in_place)
            yield Variant("scale_gradient", dtype, f"{of}, {'in place' if in_place else 'new tensor'}", call, 2)


def _soft_cross_entropy(dtype: str) -> Iterator[Variant]:
    variant = partial(Variant, "soft_cross_entropy", dtype)
    long, dloss, statistics = _empty(dtype, 8192, 131072), _empty("fp32"), _empty("fp32", SOFT_STATISTICS, 8192)
    forward = partial(tk.soft_cross_entropy_forward, long, long)
    backward = partial(tk.soft_cross_entropy_backward, long, long, statistics, dloss, dx_dtype=long.dtype)
    yield variant("loss and gradient to logits, long rows", partial(forward, dx=long), 3)
    yield variant("forward, long rows", forward, 2)
    yield variant("backward, a chunk of a long row, to logits", partial(backward, dy_dtype=None), 3)
    yield variant("backward, a chunk of a long row, to both", partial(backward, dy_dtype=long.dtype), 4)


def _products(dtype: str) -> Iterator[Variant]:
    matrix = _empty(dtype, 4096, 4096)
    for name, a, b in (
        ("", matrix, matrix),
        ("b transposed", matrix, matrix.t()),
        ("a transposed", matrix.t(), matrix),
    ):
        yield Variant("matmul", dtype, name, partial(tk.matmul, a, b))
    for columns in (64, 128):
        variant = partial(Variant, "attention", dtype)
        # heads in columns, as a linear layer leaves them
        q, lse = _empty(dtype, 4, 4096, 16, columns).transpose(1, 2), _empty("fp32", 4, 16, 4096)
        options = {"scale": 0.125, "causal": True}
        backward = partial(tk.attention_backward, q, q, q, q, lse, q, **options)
        name = f"heads of {columns}"
        yield variant(f"forward, {name}", partial(tk.attention_forward, q, q, q, **options))
        yield variant(f"backward, {name}, to queries", backward)
        yield variant(f"backward, {name}, to keys and values", backward, number=1)


def _others(dtype: str) -> Iterator[Variant]:
    """What the facade needs beside the losses."""
    x, matrix, losses = _empty(dtype, 2**24), _empty(dtype, 4096, 4096), _empty("fp32", 65536)
    table, gradient = _empty(dtype, 50304, 1024), _empty(dtype, 8192, 1024)
    indices = torch.empty(8192, dtype=torch.int64, device="meta")
    state = x.to(launch.compute_dtype(x.dtype))
    mean = partial(tk.token_mean, losses, weights=losses)
    pointwise = (("add", 2), ("mul", 2), ("div", 2), ("exp", 1), ("log", 1), ("tanh", 1), ("gelu", 1), ("gelu_grad", 2))
    for op, count in (*pointwise, ("where", 3)):
        call = partial(tk.pointwise, op, *[x] * count, dtype=x.dtype)
        yield Variant("pointwise", dtype, op, call, count + 1)
    yield Variant("sum", dtype, "rows", partial(tk.sum, matrix, [1]))
    yield Variant("sum", dtype, "columns", partial(tk.sum, matrix, [0]))
    reductions: dict[str, Callable[..., Any]] = {"max": tk.extreme, "argmax": tk.extreme_index, "prod": tk.prod}
    for name, reduction in reductions.items():
        yield Variant(name, dtype, "rows", partial(reduction, matrix, [1]))
    for name, fill in (("uniform", tk.random.fill_uniform), ("normal", tk.random.fill_normal)):
        yield Variant(name, dtype, "", partial(fill, x, 0, 0), 1)
    integers = torch.empty(2**24, dtype=torch.int64, device="meta")
    yield Variant("randint", dtype, "int64", partial(tk.random.fill_randint, integers, 0, 0, 0, 100))
    yield Variant("dropout", dtype, "", partial(tk.random.dropout, x, 0.1, 1 / 0.9, 0, 0), 2)
    yield Variant("finalize", dtype, "", partial(tk.kl_div_forward, x, x), number=1)
    yield Variant("token_weights", dtype, "", partial(tk.token_weights, losses[:, None], weight=losses))
    yield Variant("token_mean", dtype, "a part", mean)
    yield Variant("token_mean", dtype, "all", mean, number=1)
    yield Variant("embedding", dtype, "forward", partial(tk.embedding_forward, indices, table))
    yield Variant("embedding", dtype, "backward", partial(tk.embedding_backward, indices, gradient, 50304))
    yield Variant("sgd", dtype, "momentum", partial(tk.sgd_step, x, x, state, lr=0.1, momentum=0.9))
    adam = partial(tk.adam_step, x, x, state, state, step=1, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
    yield Variant("adam", dtype, "", adam)
    hidden, row, column = _empty(dtype, 8192, 4096), _empty("fp32", 8192), _empty(dtype, 4096)
    normalize = partial(tk.normalize_backward, hidden, hidden, column, None, row, columns=4096)
    forward = partial(tk.normalize_forward, hidden, column, None, columns=4096, eps=1e-5, centred=False)
    yield Variant("rms_norm", dtype, "forward", forward)
    yield Variant("rms_norm", dtype, "backward", partial(normalize, to_weight=True, to_bias=False))
    norm, scalar = partial(tk.total_norm, [x]), _empty("fp32")
    yield Variant("gradient_norm", dtype, "a part", norm)
    yield Variant("gradient_norm", dtype, "all", norm, number=1)
    yield Variant("clip_by_norm", dtype, "", partial(tk.clip_by_norm, [x], scalar, 1.0))
    yield Variant("clip_by_value", dtype, "", partial(tk.clip_by_value, [x], 1.0))
    yield Variant("unscale", dtype, "", partial(tk.unscale, [x], scalar, scalar))
    options: dict[str, Any] = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    tracker = scalar.to(torch.int32)
    yield Variant("update_scale", dtype, "", partial(tk.update_scale, scalar, tracker, _empty("fp32", 2), **options))


def variants() -> list[Variant]:
    """All of them, the losses' first."""
    made = [_kl_div(dtype) for dtype in DTYPES]
    made += [_softmax(dtype, log) for log in (False, True) for dtype in MAIN]
    for divergence in ("forward_kl", "reverse_kl", "js", "total_variation"):
        made += [_distillation(dtype, divergence) for dtype in MAIN]
    made += [_cross_entropy(dtype) for dtype in MAIN] + [_soft_cross_entropy(dtype) for dtype in MAIN]
    made += [_scale_gradient(dtype) for dtype in MAIN] + [_products(dtype) for dtype in MAIN]
    return [variant for kind in (*made, _others("fp32")) for variant in kind]
