"""cpu: losses of lucid.torch on CPU tensors beside the plain PyTorch expression of each.

Forward and backward of both take turns in one process; the ratio is that of the shortest times. Plain expressions
convert the logits to float32 first, as language models' training code does. It needs idle cores: with more threads
than those, each operator waits for the last of them.
"""

from __future__ import annotations

import argparse
import itertools
import timeit
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import lucid.torch
from perf import results
from perf.measure import rows
from perf.measure.op import Point
from perf.measure.ops import OPS
from perf.results import DTYPES, UsageError

#: Losses by op and variant, and those with options of their own.
_OPS = {name: ("distillation", name) for name in ("forward_kl", "reverse_kl", "js", "total_variation")}
_OPS |= {"cross_entropy": ("cross_entropy", ""), "kl_div": ("kl_div", "prob"), "kl_div_log": ("kl_div", "log")}
LOSSES = (*_OPS, "temperature", "labels", "hard_labels")

Loss = Callable[[Tensor, Tensor], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("losses", nargs="*", metavar="LOSS", help=f"of {', '.join(LOSSES)} (default: all)")
    rows.add_lists(parser, shapes="64x32000,512x1000,8x128256", dtypes="fp32,bf16")
    parser.add_argument("--threads", type=results.positive, default=1, metavar="N", help="of torch (default: 1)")
    parser.add_argument("--repeats", type=results.positive, default=30, metavar="N", help="timings (default: 30)")


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    for name in options.losses:
        if name not in LOSSES:
            raise UsageError(f"argument LOSS: unknown {name!r}, accepted: {', '.join(LOSSES)}")
    if any(len(shape) == 3 for shape in options.shapes):
        raise UsageError("argument --shapes: losses of logits take NxV")
    torch.set_num_threads(options.threads)
    print("loss, dtype, shape: ms of lucid.torch, ms of torch, ratio")
    for (n, v), dtype, name in itertools.product(options.shapes, options.dtypes, options.losses or LOSSES):
        ours, plain = measure(name, DTYPES[dtype], n, v, options.repeats)
        print(f"{name}, {dtype}, {n}x{v}: {ours:.3f}, {plain:.3f}, {ours / plain:.2f}", flush=True)
    return 0


def measure(name: str, dtype: torch.dtype, n: int, v: int, repeats: int) -> tuple[float, float]:
    """The shortest times in ms of lucid.torch's loss and of the plain expression."""
    s, t = (torch.randn(n, v).to(dtype) for _ in range(2))
    labels = torch.randint(0, v, (n,))
    labels[: n // 2] = -100
    if name.startswith("kl_div"):
        t = t.float().log_softmax(-1)
        t = (t.exp() if name == "kl_div" else t).to(dtype)
    target = labels if name == "cross_entropy" else t
    steps = [partial(_step, loss, s.clone().requires_grad_(), target) for loss in _losses(name, n, v, labels)]
    times = [[timeit.timeit(step, number=1) for step in steps] for _ in range(repeats + 1)]
    ours, plain = (1e3 * min(column[1:]) for column in zip(*times, strict=True))  # the first warms up
    return ours, plain


def _step(loss: Loss, leaf: Tensor, target: Tensor) -> None:
    leaf.grad = None
    loss(leaf, target).backward()


def _losses(name: str, n: int, v: int, labels: Tensor) -> tuple[Loss, Loss]:
    """A loss of lucid.torch, and the plain expression."""
    ours = partial(lucid.torch.distillation_loss, divergence="forward_kl")

    def plain(s: Tensor, t: Tensor, temperature: float = 1.0) -> Tensor:
        log_q, p = (s.float() / temperature).log_softmax(-1), (t.float() / temperature).softmax(-1)
        return F.kl_div(log_q, p, reduction="none").sum(-1) * temperature**2

    def labelled(s: Tensor, t: Tensor) -> Tensor:
        return (plain(s, t) * (labels != -100)).sum() / (labels != -100).sum()

    if name == "temperature":
        return partial(ours, temperature=2.0, temperature_squared=True), lambda s, t: plain(s, t, 2.0).mean()
    if name == "labels":
        return partial(ours, labels=labels), labelled
    if name == "hard_labels":
        hard = partial(ours, labels=labels, hard_label_weight=0.5)
        return hard, lambda s, t: 0.5 * labelled(s, t) + 0.5 * F.cross_entropy(s.float(), labels)
    op, variant = _OPS[name]
    point = Point(op, variant, n, v, torch.float32, "batchmean")
    eager = OPS[op].torch(point)
    return OPS[op].function("lucid.torch", point), lambda s, t: eager(
        s.float(), t.float() if t.is_floating_point() else t
    )
