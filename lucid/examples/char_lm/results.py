"""The demo's output: a table, two sampled lines, a picture and the numbers as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lucid.examples.char_lm.distil import History, Score

PICTURE = "loss.png"
NUMBERS = "metrics.json"

_LUCID_COLOR = "#9db4c8"
_TORCH_COLOR = "#14507a"
_UNIGRAM_COLOR = "#b5532a"


@dataclass(frozen=True)
class Results:
    """Everything that the demo measured."""

    facts: dict[str, Any]
    """Settings and sizes, by name, for the JSON file."""
    unigram: Score
    teacher: Score
    history: History
    """Of the student in lucid."""
    torch_history: History
    """Of the student in PyTorch."""
    teacher_sample: str
    student_sample: str

    @property
    def rows(self) -> list[tuple[str, Score]]:
        """The table's rows: a model's name and its score."""
        steps = self.history.evaluated_at[-1]
        return [
            ("unigram", self.unigram),
            ("student, untrained", self.history.scores[0]),
            (f"student, after {steps:,} step{'s' if steps > 1 else ''}", self.history.scores[-1]),
            ("the same in PyTorch", self.torch_history.scores[-1]),
            ("teacher", self.teacher),
        ]

    @property
    def tolerance(self) -> float:
        """Difference of the two students' held-out KL after training that rounding explains, in bits per character.

        Training amplifies rounding. In 330 steps, initial weights changed by a relative 1e-7 move the result by 0.0009
        (root mean square over 12 seeds; 0.0017 at most), in more steps by more.
        """
        return 0.005 * max(1.0, self.history.evaluated_at[-1] / 330)

    @property
    def kl_difference(self) -> float:
        """Absolute difference of the two students' held-out KL after training."""
        return abs(self.history.scores[-1].kl - self.torch_history.scores[-1].kl)

    @property
    def agree(self) -> bool:
        """Return whether the two students agree up to rounding."""
        return self.kl_difference <= self.tolerance


def print_results(console: Console, results: Results) -> None:
    """Print the table, the sampled lines and whether the two students agree."""
    table = Table(title="Held-out text, bits per character", title_justify="left", title_style="bold")
    table.add_column("model")
    table.add_column("KL(teacher||model)", justify="right")
    table.add_column("cross-entropy", justify="right")
    for name, score in results.rows:
        style = "bold" if name.startswith("student, after") else None
        table.add_row(name, f"{score.kl:.3f}", f"{score.cross_entropy:.3f}", style=style)
    console.print(table)
    for name, sample in (("teacher", results.teacher_sample), ("student", results.student_sample)):
        console.print(f"{name} writes: {sample}", markup=False, highlight=False, soft_wrap=True)
    lucid_kl, torch_kl = results.history.scores[-1].kl, results.torch_history.scores[-1].kl
    verdict = "they agree within" if results.agree else "they differ by more than"
    comparison = (
        f"held-out KL {lucid_kl:.5f} in lucid, {torch_kl:.5f} in PyTorch: {verdict} {results.tolerance:.3f} bits"
    )
    console.print(comparison, markup=False, highlight=False, soft_wrap=True)


def save_results(directory: Path, results: Results) -> None:
    """Write the picture and the numbers."""
    draw(results).savefig(directory / PICTURE)
    models = {
        "unigram": results.unigram,
        "student_before": results.history.scores[0],
        "student_after": results.history.scores[-1],
        "torch_student_after": results.torch_history.scores[-1],
        "teacher": results.teacher,
    }
    numbers = {
        **results.facts,
        "held_out_bits_per_character": {
            name: {"kl_from_teacher": score.kl, "cross_entropy": score.cross_entropy} for name, score in models.items()
        },
        "samples": {"teacher": results.teacher_sample, "student": results.student_sample},
        "history": asdict(results.history),
        "torch_history": asdict(results.torch_history),
    }
    text = json.dumps(numbers, indent=2, ensure_ascii=False)
    (directory / NUMBERS).write_text(text + "\n", encoding="utf-8")


def draw(results: Results) -> Figure:
    """Draw the loss of every step and the held-out scores; text is outside the axes, so that it covers no curve."""
    # A figure of its own, not pyplot's: it is drawn by Agg, whatever display there is.
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    # PyTorch's are thinner, and drawn later: where the two agree, one lies on the other.
    for name, history, color, width, style, size in (
        ("lucid", results.history, _LUCID_COLOR, 4.5, "-", 9.0),
        ("PyTorch", results.torch_history, _TORCH_COLOR, 1.3, "--", 4.0),
    ):
        steps = np.arange(1, len(history.train_kl) + 1)
        axes.plot(
            steps,
            _smooth(np.array(history.train_kl)),
            color=color,
            lw=width,
            ls=style,
            marker="s" if len(steps) == 1 else None,  # one point makes no line
            markersize=size,
            label=f"{name}, training, smoothed",
        )
        held_out = [score.kl for score in history.scores]
        axes.plot(
            history.evaluated_at,
            held_out,
            color=color,
            ls="none",
            marker="o",
            markersize=size,
            clip_on=False,
            label=f"{name}, held-out text: {held_out[-1]:.2f}",
        )
    axes.axhline(
        results.unigram.kl, color=_UNIGRAM_COLOR, ls="--", lw=1.4, label=f"unigram model, {results.unigram.kl:.2f}"
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel("KL(teacher ‖ student), bits per character")
    axes.set_title("A 5-gram teacher distilled into a small network", loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    return figure


def _smooth(values: NDArray[np.float64], decay: float = 0.9) -> NDArray[np.float64]:
    """Exponential moving average, weighted so that its start is not drawn towards 0."""
    average, weight = 0.0, 0.0
    smoothed = np.empty_like(values)
    for i, value in enumerate(values):
        average = decay * average + (1.0 - decay) * value
        weight = decay * weight + (1.0 - decay)
        smoothed[i] = average / weight
    return smoothed
