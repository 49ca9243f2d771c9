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

import torch
from torch import Tensor
from torch.nn import functional as F

from perf import output, selection
from perf.errors import UsageError
from perf.output import Row
from perf.progress import progress

HELP = "lucid.torch on CPU tensors beside plain PyTorch"

COLUMNS = ("loss", "dtype", "n", "v", "threads", "lucid_ms", "plain_ms", "ratio")
SHAPES = "64x32000,512x1000,8x128256"
BETA = 0.5

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("losses", nargs="*", metavar="LOSS", help=f"of {', '.join(_LOSSES)} (default: all)")
    parser.add_argument(
        "--shapes",
        type=selection.shapes,
        default=selection.shapes(SHAPES),
        metavar="LIST",
        help=f"NxV, separated by commas (default: {SHAPES})",
    )
    parser.add_argument(
        "--dtypes",
        type=selection.names("dtype", tuple(selection.DTYPES)),
        default=("fp32", "bf16"),
        metavar="LIST",
        help=f"of {', '.join(selection.DTYPES)}, separated by commas (default: fp32,bf16)",
    )
    parser.add_argument("--threads", type=selection.whole, default=1, metavar="N", help="of torch (default: 1)")
    parser.add_argument("--repeats", type=selection.whole, default=30, metavar="N", help="timings (default: 30)")
    output.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """The subcommand."""
    output.check_writable(options.csv, options.json)
    names = options.losses or list(_LOSSES)
    unknown = [name for name in names if name not in _LOSSES]
    if unknown:
        raise UsageError(f"unknown loss {unknown[0]!r}, accepted: {', '.join(_LOSSES)}")
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
    output.show(title, rows, {name: name for name in COLUMNS if name != "threads"})
    output.write("cpu", rows, options)
    return 0


def measure(name: str, dtype: str, n: int, v: int, threads: int, repeats: int) -> Row:
    """The row of a loss and a shape."""
    s, t = (torch.randn(n, v).to(selection.DTYPES[dtype]) for _ in range(2))
    labels = torch.randint(0, v, (n,))
    labels[: n // 2] = -100
    if name.startswith("kl_div"):
        t = t.float().softmax(-1).to(t.dtype) if name == "kl_div" else t.float().log_softmax(-1).to(t.dtype)
    ours, plain = _shortest([_step(loss, s, t, labels) for loss in _LOSSES[name]], repeats)
    row: Row = dict(zip(COLUMNS, (name, dtype, n, v, threads), strict=False))
    return row | {"lucid_ms": round(ours, 3), "plain_ms": round(plain, 3), "ratio": round(ours / plain, 2)}


def _step(loss: Loss, s: Tensor, t: Tensor, labels: Tensor) -> Callable[[], None]:
    leaf = s.clone().requires_grad_()

    def step() -> None:
        leaf.grad = None
        loss(leaf, t, labels).backward()

    return step


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


def _lucid(divergence: str, *, labelled: bool = False, **options: float) -> Loss:
    def loss(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        import lucid.torch

        given = {"labels": labels} if labelled else {}
        return lucid.torch.distillation_loss(s, t, divergence=divergence, **given, **options)  # type: ignore[arg-type]

    return loss


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _forward_kl(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return F.kl_div(s.float().log_softmax(-1), t.float().softmax(-1), reduction="batchmean")


def _reverse_kl(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return _kl(t.float().log_softmax(-1), s.float().log_softmax(-1)).mean()


def _js(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = s.float().log_softmax(-1), t.float().log_softmax(-1)
    log_m = torch.logaddexp(log_p + math.log(BETA), log_q + math.log(1 - BETA))
    return (BETA * _kl(log_m, log_p) + (1 - BETA) * _kl(log_m, log_q)).mean()


def _total_variation(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return (s.float().softmax(-1) - t.float().softmax(-1)).abs().sum(-1).mean() / 2


def _temperature(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return F.kl_div((s.float() / 2).log_softmax(-1), (t.float() / 2).softmax(-1), reduction="batchmean") * 4


def _labelled(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    each = F.kl_div(s.float().log_softmax(-1), t.float().softmax(-1), reduction="none").sum(-1)
    valid = labels != -100
    return (each * valid).sum() / valid.sum()


def _hard(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * _labelled(s, t, labels) + 0.5 * F.cross_entropy(s.float(), labels)


def _lucid_cross_entropy(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    import lucid.torch

    return lucid.torch.cross_entropy(s, labels)


def _lucid_kl_div(log_target: bool) -> Loss:
    def loss(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        import lucid.torch

        return lucid.torch.kl_div(s, t, reduction="batchmean", log_target=log_target)

    return loss


def _kl_div(log_target: bool) -> Loss:
    return lambda s, t, labels: F.kl_div(s.float(), t.float(), reduction="batchmean", log_target=log_target)


#: A loss of lucid.torch, and the plain expression.
_LOSSES: dict[str, tuple[Loss, Loss]] = {
    "forward_kl": (_lucid("forward_kl"), _forward_kl),
    "reverse_kl": (_lucid("reverse_kl"), _reverse_kl),
    "js": (_lucid("js"), _js),
    "total_variation": (_lucid("total_variation"), _total_variation),
    "temperature": (_lucid("forward_kl", temperature=2.0, temperature_squared=True), _temperature),
    "labels": (_lucid("forward_kl", labelled=True), _labelled),
    "hard_labels": (_lucid("forward_kl", labelled=True, hard_label_weight=0.5), _hard),
    "cross_entropy": (_lucid_cross_entropy, lambda s, t, labels: F.cross_entropy(s.float(), labels)),
    "kl_div": (_lucid_kl_div(False), _kl_div(False)),
    "kl_div_log": (_lucid_kl_div(True), _kl_div(True)),
}
