"""cpu: losses of lucid.torch on CPU tensors beside the plain PyTorch expression of each.

Forward and backward of both take turns in one process; the ratio is that of the shortest times. Plain expressions
convert the logits to float32 first, as language models' training code does. It needs idle cores: with more threads
than those, each operator waits for the last of them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import lucid.torch
from perf import results, selection
from perf.errors import UsageError
from perf.measure.ops import OPS, Point
from perf.progress import progress
from perf.results import Row

COLUMNS = ("loss", "dtype", "n", "v", "threads", "lucid_ms", "plain_ms", "ratio")
SHAPES = "64x32000,512x1000,8x128256"

#: Losses by op and variant, and those with options of their own.
_OPS = {name: ("distillation", name) for name in ("forward_kl", "reverse_kl", "js", "total_variation")}
_OPS |= {"cross_entropy": ("cross_entropy", ""), "kl_div": ("kl_div", "prob"), "kl_div_log": ("kl_div", "log")}
LOSSES = (*_OPS, "temperature", "labels", "hard_labels")

Loss = Callable[[Tensor, Tensor], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("losses", nargs="*", metavar="LOSS", help=f"of {', '.join(LOSSES)} (default: all)")
    selection.add_lists(parser, shapes=SHAPES, dtypes="fp32,bf16")
    parser.add_argument("--threads", type=selection.whole, default=1, metavar="N", help="of torch (default: 1)")
    parser.add_argument("--repeats", type=selection.whole, default=30, metavar="N", help="timings (default: 30)")
    results.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    results.check_writable(options.csv, options.json)
    names = options.losses or LOSSES
    for name in names:
        if name not in LOSSES:
            raise UsageError(f"unknown loss {name!r}, accepted: {', '.join(LOSSES)}")
    cases = [(name, dtype, n, v) for n, v in options.shapes for dtype in options.dtypes for name in names]
    rows = []
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with progress(len(cases)) as advance:
            for name, dtype, n, v in cases:
                advance(f"{name} {dtype} {n}x{v}")
                rows.append(measure(name, dtype, n, v, options.threads, options.repeats))
    finally:
        torch.set_num_threads(before)
    title = f"torch {torch.__version__}, {options.threads} threads, forward and backward"
    results.show(title, rows, {name: name for name in COLUMNS if name != "threads"})
    results.write("cpu", rows, options)
    return 0


def measure(name: str, dtype: str, n: int, v: int, threads: int, repeats: int) -> Row:
    """The row of a loss and a shape."""
    s, t = (torch.randn(n, v).to(selection.DTYPES[dtype]) for _ in range(2))
    labels = torch.randint(0, v, (n,))
    labels[: n // 2] = -100
    if name.startswith("kl_div"):
        t = t.float().softmax(-1).to(t.dtype) if name == "kl_div" else t.float().log_softmax(-1).to(t.dtype)
    ours, plain = _losses(name, n, v, labels)
    target = labels if name == "cross_entropy" else t
    steps = [partial(_step, loss, s.clone().requires_grad_(), target) for loss in (ours, plain)]
    lucid_ms, plain_ms = _shortest(steps, repeats)
    values = (name, dtype, n, v, threads, round(lucid_ms, 3), round(plain_ms, 3), round(lucid_ms / plain_ms, 2))
    return dict(zip(COLUMNS, values, strict=True))


def _losses(name: str, n: int, v: int, labels: Tensor) -> tuple[Loss, Loss]:
    """A loss of lucid.torch, and the plain expression."""

    def labelled(s: Tensor, t: Tensor) -> Tensor:
        each = F.kl_div(s.float().log_softmax(-1), t.float().softmax(-1), reduction="none").sum(-1)
        return (each * (labels != -100)).sum() / (labels != -100).sum()

    def temperature(s: Tensor, t: Tensor) -> Tensor:
        return F.kl_div((s.float() / 2).log_softmax(-1), (t.float() / 2).softmax(-1), reduction="batchmean") * 4

    ours = partial(lucid.torch.distillation_loss, divergence="forward_kl")
    if name == "temperature":
        return partial(ours, temperature=2.0, temperature_squared=True), temperature
    if name == "labels":
        return partial(ours, labels=labels), labelled
    if name == "hard_labels":
        hard = partial(ours, labels=labels, hard_label_weight=0.5)
        return hard, lambda s, t: 0.5 * labelled(s, t) + 0.5 * F.cross_entropy(s.float(), labels)
    op, variant = _OPS[name]
    point = Point(op, variant, n, v, torch.float32, "batchmean")
    plain = OPS[op].function("torch", point)
    as_float = name != "cross_entropy"
    return OPS[op].function("lucid.torch", point), lambda s, t: plain(s.float(), t.float() if as_float else t)


def _step(loss: Loss, leaf: Tensor, target: Tensor) -> None:
    leaf.grad = None
    loss(leaf, target).backward()


def _shortest(steps: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Milliseconds of each step, which take turns."""
    shortest = [math.inf] * len(steps)
    for repeat in range(repeats + 1):
        for number, step in enumerate(steps):
            start = time.perf_counter()
            step()
            if repeat:  # the first warms up
                shortest[number] = min(shortest[number], 1e3 * (time.perf_counter() - start))
    return shortest
