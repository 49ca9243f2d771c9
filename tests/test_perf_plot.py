"""perf plot: which pictures come of which rows, and what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")

from pandas import DataFrame

from perf import plot, results
from perf.__main__ import main
from tests import synthetic

SHAPES = [(256, 4096), (1, 4096), (16, 4096)]


def _rows(**where: Any) -> list[dict[str, Any]]:
    return [row for row in synthetic.sweep(shapes=SHAPES) if all(row[name] == value for name, value in where.items())]


def _texts(figure: Any) -> str:
    texts = [text.get_text() for text in (figure._suptitle, figure._supxlabel, figure._supylabel)]
    texts += [axes.get_title(loc="left") for axes in figure.axes]
    return "\n".join([*texts, *(text.get_text() for text in figure.legends[0].get_texts())])


def test_a_sweep_gives_pictures_of_ops_with_two_shapes_the_same_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _rows(op="softmax", mode="forward") + _rows(op="kl_div", n=16)
    file = synthetic.write(tmp_path / "sweep.csv", "sweep", rows)
    assert main(["plot", str(file)]) == 0
    paths = [tmp_path / f"softmax-{metric}-shapes.png" for metric in plot.METRICS]
    assert capsys.readouterr().out.split() == list(map(str, paths))
    before = [path.read_bytes() for path in paths]
    assert main(["plot", str(file)]) == 0
    assert [path.read_bytes() for path in paths] == before


def test_without_two_shapes_it_says_that_there_is_nothing_to_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = synthetic.write(tmp_path / "sweep.csv", "sweep", _rows(n=16))
    assert main(["plot", str(file)]) == 2
    assert capsys.readouterr().err.endswith("sweep.csv: nothing to draw, no op has two shapes\n")


@pytest.mark.parametrize("metric", plot.METRICS)
def test_a_picture_names_its_panels_providers_shapes_and_what_is_left_out(metric: str) -> None:
    rows = DataFrame(_rows(op="kl_div"))
    good = rows[rows["status"] == "ok"]
    figure = plot.draw(plot.values(good, metric), metric, results.environment_line(good), results.left_out(rows))
    texts = _texts(figure)
    for text in (
        "SYNTHETIC GPU, driver 1.2.3",
        "forward, log target, bf16",
        "torch eager",
        "Left out: Liger 9 × failed",
    ):
        assert text in texts
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["1×4096", "16×4096", "256×4096"]


def test_losses_from_hidden_states_have_panels_by_v_over_n_and_no_picture_of_a_roofline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = synthetic.write(tmp_path / "sweep.csv", "sweep", synthetic.linear())
    assert main(["plot", str(file)]) == 0
    names = [Path(path).name for path in capsys.readouterr().out.split()]
    assert names == [f"linear_distillation-batchmean-{metric}-shapes.png" for metric in ("time", "memory")]
    figure = plot.draw(plot.values(DataFrame(synthetic.linear()), "memory"), "memory", "", "")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"full, forward_kl, V = {v}, D = 16, bf16" for v in (100, 200)]
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["8", "64"]
    lines = {line.get_color(): np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines}
    assert lines[plot.STYLES["trl"][0]] == [3000, 3000]


def _values(metric: str, *, ours: dict[str, float], others: dict[str, float]) -> Any:
    rows = DataFrame(_rows(op="softmax", mode="full", dtype="bf16", n=16))
    for provider, changes in (("ours", ours), ("torch", others)):
        rows.loc[rows["provider"] == provider, list(changes)] = list(changes.values())
    found = plot.values(rows[rows["status"] == "ok"], metric)
    return found[found["provider"] == "torch"][["y", "low", "high"]].iloc[0].tolist()


def test_bands_are_the_metric_at_the_quantiles_of_the_time() -> None:
    ours = dict(median_ms=2.0, p20_ms=1.6, p80_ms=2.5)
    others = dict(median_ms=6.0, p20_ms=5.0, p80_ms=8.0, roof_fraction=0.4)
    assert _values("time", ours=ours, others=others) == [6, 5, 8]
    assert _values("roof", ours=ours, others=others) == pytest.approx([0.4, 0.3, 0.48])
    assert _values("speedup", ours=ours, others=others) == [3, 2, 5]  # the widest band


def test_a_size_that_a_provider_misses_breaks_its_line() -> None:
    rows = _rows(op="softmax", mode="full", dtype="bf16", status="ok")
    rows = [row for row in rows if (row["provider"], row["n"]) != ("torch", 16)]
    figure = plot.draw(plot.values(DataFrame(rows), "time"), "time", "", "")
    lines = {line.get_color(): line.get_ydata() for line in figure.axes[0].lines}
    assert [y == y for y in lines[plot.STYLES["torch"][0]]] == [True, False, True]
    assert [y == y for y in lines[plot.STYLES["ours"][0]]] == [True, True, True]


def test_every_provider_has_its_own_colour_and_marker() -> None:
    assert set(plot.STYLES) == set(results.PROVIDERS)
    for styles in zip(*plot.STYLES.values(), strict=True):
        assert len(set(styles)) == len(plot.STYLES)
