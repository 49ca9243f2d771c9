"""Draw peak memory against V: ``python -m perf.peak_memory`` writes ``perf/results/peak_memory.png``.

One training step of the forward KL divergence of bf16 logits: the loss, and its gradient to the student. Lines are
counted on the CPU, for a few rows: bytes of live storages, without the logits. Markers are `peak_mib` of the committed
sweep of a GPU, the larger of forward and backward.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

RESULTS = Path(__file__).parent / "results"
OUTPUT = RESULTS / "peak_memory.png"
SWEEP = RESULTS / "nvidia-h200/sweep.csv"
GPU = "H200"

N, COUNTED_ROWS = 8192, 16
VOCABULARIES = (32_000, 64_000, 128_256, 152_064)
TORCH, TRL, LIGER, OURS, IN_PLACE = "PyTorch", "TRL", "Liger", "lucid.torch", "lucid.torch, inplace_gradient"
COLORS = {TORCH: "#c44e52", TRL: "#dd8452", LIGER: "#8172b3", OURS: "#2a7f62", IN_PLACE: "#7fbf9f"}
COMPILED = "torch.compile"

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Live(TorchDispatchMode):
    """Bytes of the live storages that operations made: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.now = self.peak = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from lucid.torch.operators import KERNELS

        if func in KERNELS:  # one of our operators: count what it allocates inside
            with self:
                return KERNELS[func](*args)
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in () if self.paused else tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), given)
        return result

    def _add(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key not in given and key not in self._live:
            self._live[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._live.pop(key)


@contextmanager
def _counted() -> Iterator[_Live]:
    """Count what is made within, without the copies of arguments that Triton's interpreter makes for a launch."""
    from triton.runtime.interpreter import GridExecutor

    live, execute = _Live(), GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        live.paused = True
        try:
            execute(self, *args, **kwargs)
            gc.collect()  # of what the interpreter holds in cycles
        finally:
            live.paused = False

    GridExecutor.__call__ = launch
    try:
        with live:
            yield live
    finally:
        GridExecutor.__call__ = execute


def losses() -> dict[str, Loss]:
    """Forward KL from logits, by provider."""
    from liger_kernel.ops.jsd import LigerJSDFunction
    from torch.nn.functional import kl_div
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    import lucid.torch

    return {
        TRL: lambda s, t: GKDTrainer.generalized_jsd_loss(s, t, beta=0),
        TORCH: lambda s, t: kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean"),
        LIGER: lambda s, t: LigerJSDFunction.apply(s.log_softmax(-1), t.log_softmax(-1), None, 0.0),
        OURS: lambda s, t: lucid.torch.distillation_loss(s, t, reduction="batchmean"),
        IN_PLACE: lambda s, t: lucid.torch.distillation_loss(s, t, reduction="batchmean", inplace_gradient=True),
    }


def peak_gib(loss: Loss, vocabulary: int) -> float:
    """Count the peak of one step over the logits' own memory, scaled from COUNTED_ROWS to N rows, in GiB."""
    import lucid.torch

    generator = torch.Generator().manual_seed(0)
    shape = (COUNTED_ROWS, vocabulary)
    student, teacher = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
    logits = student.requires_grad_() * 1  # no leaf: its gradient may replace it
    with lucid.torch.kernels_on_cpu(), _counted() as live:
        torch.autograd.grad(loss(logits, teacher), logits)
    return live.peak * N / COUNTED_ROWS / 2**30


def measured() -> dict[str, dict[int, float]]:
    """Peaks in GiB that a GPU's sweep has at N rows, by provider and V."""
    names = {"torch": TORCH, "liger": LIGER, "lucid.torch": OURS, "ours": OURS, "compile": COMPILED}
    found: dict[str, dict[int, float]] = {}
    with SWEEP.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["op"], row["variant"], row["dtype"], row["n"]) == ("distillation", "forward_kl", "bf16", str(N)):
                peaks = found.setdefault(names[row["provider"]], {})
                peaks[int(row["v"])] = max(peaks.get(int(row["v"]), 0), float(row["peak_mib"]) / 1024)
    return found


def main() -> int:
    """Count, draw, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m perf.peak_memory", description=(__doc__ or "").partition("\n")[2])
    parser.parse_args()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    points = measured()
    for name, loss in losses().items():
        peaks = [peak_gib(loss, vocabulary) for vocabulary in VOCABULARIES]
        print(f"{name:32s}", *(f"{peak:6.2f}" for peak in peaks))
        style = (0, (3, 3)) if name == LIGER else "-"  # it covers PyTorch's line
        axes.plot(VOCABULARIES, peaks, color=COLORS[name], ls=style, lw=2, label=f"{name}, {peaks[-2]:.1f} GiB")
        if name in points:
            axes.plot(*zip(*points[name].items(), strict=True), color=COLORS[name], ls="none", marker="o", ms=6)
    axes.plot(*zip(*points[COMPILED].items(), strict=True), "kx", ms=8, label=COMPILED)
    axes.set_xlabel("vocabulary V")
    axes.set_ylabel("peak memory beside the logits, GiB")
    axes.set_title(f"Forward KL of {N:,} tokens of bf16 logits, loss and gradient", loc="left", fontsize=11)
    axes.set_xticks(VOCABULARIES, [f"{v:,}" for v in VOCABULARIES])
    axes.set_xlim(0, None)
    axes.set_ylim(-0.2, None)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        frameon=False,
        title=f"lines: counted, with GiB at V = {VOCABULARIES[-2]:,}\nmarks: measured on an {GPU}",
        alignment="left",
    )
    figure.savefig(OUTPUT, metadata={"Software": None})
    print(OUTPUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
