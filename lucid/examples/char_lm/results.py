"""What the demo shows: a table, two sampled lines, a picture and the numbers as JSON."""

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

_TRAIN_COLOR = "#9db4c8"
_STUDENT_COLOR = "#14507a"
_UNIGRAM_COLOR = "#b5532a"


@dataclass(frozen=True)
class Results:
    """Everything the demo found out."""

    facts: dict[str, Any]
    """Settings and sizes, by name, for the JSON file."""
    unigram: Score
    teacher: Score
    history: History
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
            ("teacher", self.teacher),
        ]


def print_results(console: Console, results: Results) -> None:
    """Print the table and the sampled lines."""
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


def save_results(directory: Path, results: Results) -> None:
    """Write the picture and the numbers."""
    draw(results).savefig(directory / PICTURE)
    models = {
        "unigram": results.unigram,
        "student_before": results.history.scores[0],
        "student_after": results.history.scores[-1],
        "teacher": results.teacher,
    }
    numbers = {
        **results.facts,
        "held_out_bits_per_character": {
            name: {"kl_from_teacher": score.kl, "cross_entropy": score.cross_entropy} for name, score in models.items()
        },
        "samples": {"teacher": results.teacher_sample, "student": results.student_sample},
        "history": asdict(results.history),
    }
    text = json.dumps(numbers, indent=2, ensure_ascii=False)
    (directory / NUMBERS).write_text(text + "\n", encoding="utf-8")


def draw(results: Results) -> Figure:
    """Draw the loss of every step and the held-out scores; text is outside the axes, so that it covers no curve."""
    history = results.history
    steps = np.arange(1, len(history.train_kl) + 1)
    held_out = [score.kl for score in history.scores]

    # A figure of its own, not pyplot's: it is drawn by Agg, whatever display there is.
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(
        steps,
        _smooth(np.array(history.train_kl)),
        color=_TRAIN_COLOR,
        lw=2.5,
        marker="o" if len(steps) == 1 else None,  # one point makes no line
        label="training batches, smoothed",
    )
    axes.plot(
        history.evaluated_at,
        held_out,
        color=_STUDENT_COLOR,
        ls="none",
        marker="o",
        clip_on=False,
        label=f"held-out text, {held_out[-1]:.2f} at the end",
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
