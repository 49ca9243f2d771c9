"""The example's table and picture."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lucid.examples.distill_transformer.training import Training

_COLORS = ("#1f77b4", "#d62728")


def parameters_of(training: Training) -> int:
    """Return the number of parameters of a training's model."""
    return sum(math.prod(parameter.shape) for parameter in training.model.parameters())


def print_table(console: Console, teacher: Training, students: Mapping[str, Training]) -> None:
    """Print the scores of all models on held-out text."""
    table = Table(title="Held-out text, bits per token", title_justify="left", title_style="bold")
    table.add_column("model")
    for title in ("parameters", "steps", "cross-entropy", "KL(teacher||model)"):
        table.add_column(title, justify="right")
    for name, training in {"teacher": teacher, **students}.items():
        history = training.history
        divergence = f"{history.divergences[-1]:.3f}" if history.divergences else "0"
        cells = (f"{parameters_of(training):,}", f"{training.step:,}", f"{history.cross_entropies[-1]:.3f}", divergence)
        table.add_row(name, *cells)
    console.print(table)


def draw(teacher: Training, students: Mapping[str, Training]) -> Figure:
    """Draw the students' held-out scores by training step."""
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, training), color in zip(students.items(), _COLORS, strict=True):
        history = training.history
        options = {"color": color, "marker": "o", "label": name}
        left.plot(history.evaluated_at, history.cross_entropies, **options)
        right.plot(history.evaluated_at, history.divergences, **options)
    left.axhline(teacher.history.cross_entropies[-1], color="gray", ls="--", label="teacher")
    left.set_ylabel("cross-entropy, bits per token")
    right.set_ylabel("KL(teacher ‖ student), bits per token")
    for axes in (left, right):
        axes.set_xlabel("training step")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Held-out text: a student of labels, and one of a teacher", x=0.02, ha="left")
    left.legend(frameon=False)
    return figure
