"""Draw peak memory against V: ``python -m perf.peak_memory`` writes ``perf/results/peak_memory.png``.

One training step of the forward KL divergence of bf16 logits: the loss, and its gradient to the student. Lines are
counted on the CPU, for a few rows: bytes of live storages, without the logits. Markers are `peak_mib` of the committed
sweep of a GPU, the larger of forward and backward.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch

import lucid.torch
from perf import results
from perf.count.counting import counted
from perf.measure.op import Point
from perf.measure.ops import OPS

OUTPUT = results.ROOT / "perf/results/peak_memory.png"
SWEEP, GPU = results.ROOT / "perf/results/nvidia-h200/sweep.csv", "H200"

N, COUNTED_ROWS = 8192, 16
VOCABULARIES = (32_000, 64_000, 128_256, 152_064)
TORCH, TRL, LIGER, OURS, IN_PLACE = "PyTorch", "TRL", "Liger", "lucid.torch", "lucid.torch, inplace_gradient"
COLORS = {TORCH: "#c44e52", TRL: "#dd8452", LIGER: "#8172b3", OURS: "#2a7f62", IN_PLACE: "#7fbf9f"}
COMPILED = "torch.compile"
NAMES = {"torch": TORCH, "liger": LIGER, "lucid.torch": OURS, "compile": COMPILED}

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def losses() -> dict[str, Loss]:
    """Forward KL from logits, by provider."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    point = Point("distillation", "forward_kl", COUNTED_ROWS, 1, torch.bfloat16, "batchmean")
    return {
        TRL: lambda s, t: GKDTrainer.generalized_jsd_loss(s, t, beta=0),
        **{NAMES[name]: OPS[point.op].function(name, point) for name in ("torch", "liger", "lucid.torch")},
        IN_PLACE: lambda s, t: lucid.torch.distillation_loss(s, t, reduction="batchmean", inplace_gradient=True),
    }


def peak_gib(loss: Loss, vocabulary: int) -> float:
    """Count the peak of one step over the logits' own memory, scaled from COUNTED_ROWS to N rows, in GiB."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(COUNTED_ROWS, vocabulary, generator=generator).bfloat16() for _ in range(2))
    logits = student.requires_grad_() * 1  # no leaf: its gradient may replace it
    with lucid.torch.kernels_on_cpu(), counted(collect=True) as counts:
        torch.autograd.grad(loss(logits, teacher), logits)
    return counts.peak * N / COUNTED_ROWS / 2**30


def measured() -> dict[str, dict[int, float]]:
    """Peaks in GiB that a GPU's sweep has at N rows, by provider and V; lucid's allocate what lucid.torch's do."""
    rows = results.load(SWEEP, "sweep")
    rows = rows[(rows["op"] == "distillation") & (rows["variant"] == "forward_kl") & (rows["dtype"] == "bf16")]
    rows = rows[rows["n"] == N].assign(provider=rows["provider"].replace("ours", "lucid.torch"))
    peaks = (rows.groupby(["provider", "v"])["peak_mib"].max() / 1024).unstack()
    return {NAMES[name]: peaks.loc[name].dropna().to_dict() for name in NAMES if name in peaks.index}


def main() -> None:
    """Count, draw, and print the counts."""
    from matplotlib.figure import Figure

    description = "Counts the peak memory of losses at several vocabularies, and draws it beside what was measured."
    parser = argparse.ArgumentParser(prog="python -m perf.peak_memory", description=description)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="picture (default: README's)")
    output = parser.parse_args().output

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
    axes.set(xlabel="vocabulary V", ylabel="peak memory beside the logits, GiB", xlim=(0, None), ylim=(-0.2, None))
    axes.set_title(f"Forward KL of {N:,} tokens of bf16 logits, loss and gradient", loc="left", fontsize=11)
    axes.set_xticks(VOCABULARIES, [f"{v:,}" for v in VOCABULARIES])
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    lines = f"lines: counted, with GiB at V = {VOCABULARIES[-2]:,}\nmarks: measured on an {GPU}"
    axes.legend(frameon=False, title=lines, alignment="left")
    figure.savefig(output, metadata={"Software": None})
    print(output)


if __name__ == "__main__":
    main()
