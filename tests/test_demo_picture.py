"""The demo's loss curve: no text in it covers a curve or other text, however long the training was."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from lucid.examples.char_lm.distil import History, Score

pytest.importorskip("rich")
text = pytest.importorskip("matplotlib.text")
results = pytest.importorskip("lucid.examples.char_lm.results")

UNIGRAM = 3.098


def synthetic(steps: int, floor: float) -> Any:
    """Two trainings whose KL falls from 5 bits to `floor`, with noise that is nearly the same."""

    def kl(step: Any) -> Any:
        return floor + (5.1 - floor) * np.exp(-np.asarray(step) / 40)

    noise = np.exp(0.1 * np.random.default_rng(0).standard_normal(steps))
    evaluated_at = sorted(set(np.linspace(0, steps, 6).round().astype(int).tolist()))
    history, torch_history = (
        History(
            train_kl=(kl(np.arange(1, steps + 1)) * noise * factor).tolist(),
            evaluated_at=evaluated_at,
            scores=[Score(float(kl(step)) * factor, 2.0) for step in evaluated_at],
        )
        for factor in (1.0, 1.001)
    )
    return results.Results({}, Score(UNIGRAM, 4.6), Score(0.0, 1.8), history, torch_history, "", "")


def drawn_texts(figure: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Draw once; return the extent of each text that is drawn, in pixels."""
    extents: dict[str, Any] = {}
    original = text.Text.draw

    def recorded(self: Any, renderer: Any) -> None:
        if self.get_visible() and self.get_text():
            extents[f"{self.get_text()!r} at {self.get_position()}"] = self.get_window_extent(renderer)
        original(self, renderer)

    monkeypatch.setattr(text.Text, "draw", recorded)
    figure.draw_without_rendering()
    return extents


def covers(box: Any, line: Any, dpi: float) -> bool:
    """Return whether a box covers a part of a line, as thick as it is, or one of its markers."""
    path = line.get_transform().transform_path(line.get_path())
    width = 0.0 if line.get_linestyle() == "None" else line.get_linewidth()
    size = 0.0 if line.get_marker() in (None, "None") else line.get_markersize()
    around = box.padded(max(width, size) / 2 * dpi / 72)
    if width:
        return bool(path.intersects_bbox(around, filled=False))
    return bool(around.count_contains(path.vertices))


@pytest.mark.parametrize(
    ("steps", "floor"),
    [(1, 0.44), (2, UNIGRAM), (3, 0.001), (10, 0.44), (50, 0.001), (330, 0.44), (450, UNIGRAM), (2000, 0.001)],
)
def test_no_text_covers_a_curve_or_another_text_or_leaves_the_picture_and_steps_are_whole(
    steps: int, floor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = results.draw(synthetic(steps, floor))
    extents = drawn_texts(figure, monkeypatch)
    curves = figure.axes[0].lines
    assert len(curves) == 5
    assert len(extents) >= 10  # a title, two labels of axes, five of curves, numbers
    for name, box in extents.items():
        for curve in curves:
            assert not covers(box, curve, figure.dpi), (name, curve.get_label())
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, name
    for (first, box), (second, other) in combinations(extents.items(), 2):
        assert not box.overlaps(other), (first, second)
    for label in figure.axes[0].get_xticklabels():
        assert float(label.get_text()).is_integer()
    lucid_curve, lucid_scores, torch_curve, torch_scores, _ = curves
    assert torch_curve.get_linewidth() < lucid_curve.get_linewidth()  # drawn later, it leaves the other visible
    assert torch_scores.get_markersize() < lucid_scores.get_markersize()
