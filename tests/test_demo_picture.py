"""The demo's loss curve: no text in it covers a curve or other text, however long the training was."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from lucid.examples.char_lm.distil import History, Score

pytest.importorskip("rich")
text = pytest.importorskip("matplotlib.text")
report = pytest.importorskip("lucid.examples.char_lm.report")

UNIGRAM = 3.098


def synthetic(steps: int, floor: float) -> Any:
    """A training whose KL falls from 5 bits to `floor`, with noise."""

    def kl(step: Any) -> Any:
        return floor + (5.1 - floor) * np.exp(-np.asarray(step) / 40)

    noise = np.exp(0.1 * np.random.default_rng(0).standard_normal(steps))
    evaluated_at = sorted(set(np.linspace(0, steps, 6).round().astype(int).tolist()))
    history = History(
        train_kl=(kl(np.arange(1, steps + 1)) * noise).tolist(),
        evaluated_at=evaluated_at,
        scores=[Score(float(kl(step)), 2.0) for step in evaluated_at],
    )
    return report.Results({}, Score(UNIGRAM, 4.6), Score(0.0, 1.8), history, "", "")


def drawn_texts(figure: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where each text that is drawn stands, in pixels."""
    places: dict[str, Any] = {}
    original = text.Text.draw

    def recorded(self: Any, renderer: Any) -> None:
        if self.get_visible() and self.get_text():
            places[f"{self.get_text()!r} at {self.get_position()}"] = self.get_window_extent(renderer)
        original(self, renderer)

    figure.draw_without_rendering()  # lays the figure out
    with monkeypatch.context() as patch:
        patch.setattr(text.Text, "draw", recorded)
        figure.draw_without_rendering()
    return places


def covers(box: Any, line: Any, dpi: float) -> bool:
    """Whether a box covers a part of a line, as thick as it is, or one of its markers."""
    path = line.get_transform().transform_path(line.get_path())
    width = 0.0 if line.get_linestyle() == "None" else line.get_linewidth()
    size = 0.0 if line.get_marker() in (None, "None") else line.get_markersize()
    around = box.padded(max(width, size) / 2 * dpi / 72)
    if width:
        return bool(path.intersects_bbox(around, filled=False))
    return bool(around.count_contains(path.vertices))


@pytest.mark.parametrize("floor", [0.44, UNIGRAM, 0.001])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 330, 450, 2000])
def test_no_text_covers_a_curve_or_another_text_or_leaves_the_picture(
    steps: int, floor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = report.draw(synthetic(steps, floor))
    places = drawn_texts(figure, monkeypatch)
    curves = figure.axes[0].lines
    assert len(curves) == 3
    assert len(places) >= 8  # a title, two labels of axes, three of curves, numbers
    for name, box in places.items():
        for curve in curves:
            assert not covers(box, curve, figure.dpi), (name, curve.get_label())
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, name
    for (first, box), (second, other) in combinations(places.items(), 2):
        assert not box.overlaps(other), (first, second)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_numbers_of_steps_are_whole(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = report.draw(synthetic(steps, 0.44))
    drawn_texts(figure, monkeypatch)
    for label in figure.axes[0].get_xticklabels():
        assert float(label.get_text()).is_integer()
