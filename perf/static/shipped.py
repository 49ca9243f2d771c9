"""The kernels as they are shipped: one launch of each kind, with what it must move and may take.

`variants()` is what `perf static` compiles. Launches are planned on tensors without memory, so shapes can be those that
matter; only launches that Triton would compile to different code are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import triton_kernels as tk
from perf.selection import DTYPES
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
    number
        Which of the launches that `call` makes it is.
    passes
        How often it reads or writes a tensor of the whole shape; None where costs per element say nothing.
    least
        How often it would if nothing was read twice; None if nothing is.
    limit, special_limit
        The most instructions and special functions per element it may ever take at cuda:90, whatever the budget file
        says.
    """

    kernel: str
    name: str
    dtype: str
    call: Callable[[], Any]
    number: int = 0
    passes: int | None = None
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


def _empty(dtype: str, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=DTYPES[dtype], device="meta")


def _kl_div(dtype: str) -> Iterator[Variant]:
    x, one = _empty(dtype, 8192, 131072), _empty(dtype)
    gated = dtype in MAIN
    for log_target, kind in ((False, "probabilities"), (True, "log-probabilities")):
        for reduce, result in ((True, "summed"), (False, "per element")):
            yield Variant(
                "kl_div",
                f"forward, {kind}, {result}",
                dtype,
                partial(tk.kl_div_forward, x, x, log_target=log_target, reduce=reduce),
                passes=2 if reduce else 3,
                limit=16 if gated else None,
            )
        for wanted, gradients in ((False, "to x"), (True, "to x and target")):
            yield Variant(
                "kl_div",
                f"backward, {kind}, {gradients}",
                dtype,
                partial(
                    tk.kl_div_backward,
                    x if wanted else None,
                    x,
                    one,
                    shape=x.shape,
                    log_target=log_target,
                    dx_dtype=x.dtype,
                    dtarget_dtype=x.dtype if wanted else None,
                ),
                passes=4 if wanted else 2,
                # Both gradients move twice the bytes of one.
                limit=(31 if wanted else 8) if gated else None,
            )


def _softmax(dtype: str, log: bool) -> Iterator[Variant]:
    kernel = "log_softmax" if log else "softmax"
    short, long, few = _empty(dtype, 8192, 8192), _empty(dtype, 8192, 131072), _empty(dtype, 16, 131072)
    limit = 16 if dtype in MAIN else None
    half = 8 if dtype in MAIN else None

    def forward(x: torch.Tensor) -> Callable[[], Any]:
        return partial(tk.softmax_forward, x, 1, log=log)

    def backward(y: torch.Tensor) -> Callable[[], Any]:
        return partial(tk.softmax_backward, y, y, 1, log=log)

    first = 1 if log else 2  # of backward: log-softmax sums dy alone
    yield Variant(kernel, "forward, row on chip", dtype, forward(short), passes=2, limit=limit)
    yield Variant(kernel, "forward, long rows", dtype, forward(long), passes=3, least=2, limit=limit)
    yield Variant(kernel, "forward, few long rows: statistics", dtype, forward(few), passes=1, limit=half)
    yield Variant(
        kernel, "forward, few long rows: results", dtype, forward(few), number=1, passes=2, least=1, limit=half
    )
    yield Variant(kernel, "backward, row on chip", dtype, backward(short), passes=3, limit=limit)
    yield Variant(kernel, "backward, long rows", dtype, backward(long), passes=3 + first, least=3, limit=limit)
    yield Variant(kernel, "backward, few long rows: sums", dtype, backward(few), passes=first, limit=half and 6)
    yield Variant(
        kernel,
        "backward, few long rows: results",
        dtype,
        backward(few),
        number=1,
        passes=3,
        least=3 - first,
        limit=half and 10,
    )


def _distillation(dtype: str, divergence: str) -> Iterator[Variant]:
    """A divergence from logits; its element is a pair of logits."""
    long, short = _empty(dtype, 8192, 131072), _empty(dtype, 65536, 1024)
    twice = divergence in ("js", "total_variation")

    def forward(x: torch.Tensor) -> Callable[[], Any]:
        return partial(tk.divergence_forward, x, x, divergence=divergence)

    def backward(x: torch.Tensor) -> Callable[[], Any]:
        statistics = torch.empty((STATISTICS, x.shape[0]), device="meta")
        dloss = torch.empty((), device="meta")
        return partial(tk.divergence_backward, x, x, statistics, dloss, divergence=divergence, dstudent_dtype=x.dtype)

    most = (None, None) if twice else (16, 2.1)
    yield Variant(
        divergence, "forward, a chunk of a long row", dtype, forward(long), 0, 2, limit=most[0], special_limit=most[1]
    )
    yield Variant(divergence, "forward, merging chunks", dtype, forward(long), number=1)
    if twice:
        yield Variant(divergence, "forward, a chunk again", dtype, forward(long), number=2, passes=2)
        yield Variant(divergence, "forward, adding up chunks", dtype, forward(long), number=3)
    yield Variant(divergence, "forward, short rows", dtype, forward(short), passes=2)
    most = (None, None) if twice else (14, 2.1)
    yield Variant(
        divergence, "backward, a chunk of a long row", dtype, backward(long), 0, 3, limit=most[0], special_limit=most[1]
    )
    yield Variant(divergence, "backward, short rows", dtype, backward(short), passes=3)


def _cross_entropy(dtype: str) -> Iterator[Variant]:
    long, labels = _empty(dtype, 8192, 131072), torch.empty(8192, dtype=torch.int64, device="meta")
    dloss = torch.empty((), device="meta")

    def backward() -> None:
        with torch.device("meta"):
            tk.cross_entropy_backward(long, labels, tk.cross_entropy_forward(long, labels)[1], dloss)

    forward = partial(tk.cross_entropy_forward, long, labels)
    yield Variant("cross_entropy", "forward, a chunk of a long row", dtype, forward, passes=1)
    yield Variant("cross_entropy", "forward, merging chunks", dtype, forward, number=1)
    yield Variant("cross_entropy", "backward, a chunk of a long row", dtype, backward, number=2, passes=2)


def _soft_cross_entropy(dtype: str) -> Iterator[Variant]:
    long, dloss = _empty(dtype, 8192, 131072), torch.empty((), device="meta")

    def backward(both: bool) -> Callable[[], Any]:
        statistics = torch.empty((SOFT_STATISTICS, 8192), device="meta")
        wanted = {"dx_dtype": long.dtype, "dy_dtype": long.dtype if both else None}
        return partial(tk.soft_cross_entropy_backward, long, long, statistics, dloss, **wanted)

    forward = partial(tk.soft_cross_entropy_forward, long, long)
    yield Variant("soft_cross_entropy", "forward, a chunk of a long row", dtype, forward, passes=2)
    yield Variant("soft_cross_entropy", "forward, merging chunks", dtype, forward, number=1)
    yield Variant("soft_cross_entropy", "backward, a chunk of a long row, to logits", dtype, backward(False), passes=3)
    yield Variant("soft_cross_entropy", "backward, a chunk of a long row, to both", dtype, backward(True), passes=4)


def _others(dtype: str) -> Iterator[Variant]:
    """What the facade needs beside the losses."""
    torch_dtype = DTYPES[dtype]
    x, matrix = _empty(dtype, 2**24), _empty(dtype, 4096, 4096)
    table, gradient = _empty(dtype, 50304, 1024), _empty(dtype, 8192, 1024)
    indices = torch.empty(8192, dtype=torch.int64, device="meta")
    state = torch.empty(2**24, dtype=launch.compute_dtype(torch_dtype), device="meta")
    for op, count in (("add", 2), ("mul", 2), ("div", 2), ("exp", 1), ("log", 1), ("tanh", 1), ("where", 3)):
        yield Variant(
            "pointwise",
            op,
            dtype,
            partial(tk.pointwise, op, *[x] * count, dtype=torch_dtype),
            passes=count + 1,
        )
    yield Variant("sum", "rows", dtype, partial(tk.sum, matrix, [1]))
    yield Variant("sum", "columns", dtype, partial(tk.sum, matrix, [0]))
    yield Variant("finalize", "", dtype, partial(tk.kl_div_forward, x, x), number=1)
    losses = torch.empty(65536, device="meta")
    yield Variant("token_mean", "a part", dtype, lambda: tk.token_mean(losses, weights=losses))
    yield Variant("token_mean", "all", dtype, lambda: tk.token_mean(losses, weights=losses), number=1)
    yield Variant("matmul", "", dtype, partial(tk.matmul, matrix, matrix))
    yield Variant("embedding", "forward", dtype, partial(tk.embedding_forward, indices, table))
    yield Variant("embedding", "backward", dtype, partial(tk.embedding_backward, indices, gradient, 50304))
    yield Variant("sgd", "momentum", dtype, partial(tk.sgd_step, x, x, state, lr=0.1, momentum=0.9))
    yield Variant(
        "adam", "", dtype, partial(tk.adam_step, x, x, state, state, step=1, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
    )


def variants() -> list[Variant]:
    """All of them, the losses' first."""
    found: list[Variant] = []
    for dtype in DTYPES:
        found += _kl_div(dtype)
    for log in (False, True):
        for dtype in MAIN:
            found += _softmax(dtype, log)
    for divergence in ("forward_kl", "reverse_kl", "js", "total_variation"):
        for dtype in MAIN:
            found += _distillation(dtype, divergence)
    for dtype in MAIN:
        found += _cross_entropy(dtype)
    for dtype in MAIN:
        found += _soft_cross_entropy(dtype)
    found += _others("fp32")
    return found
