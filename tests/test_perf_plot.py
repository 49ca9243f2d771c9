"""perf plot: which pictures come of which rows, what they show, and that they come out the same each time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pandas")

import matplotlib.image
from pandas import DataFrame

from perf import plot, results
from perf.__main__ import main
from tests import synthetic

ROWS_FAMILY = [(n, 4096) for n in (1, 16, 256)]
Drawn = tuple[Path, list[str]]


def _plot(*arguments: object) -> int:
    return main(["plot", *map(str, arguments)])


def _rows(op: str = "softmax", **keywords: Any) -> list[dict[str, Any]]:
    return [row for row in synthetic.sweep(**{"shapes": ROWS_FAMILY, **keywords}) if row["op"] == op]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep, with its pictures in PNG and SVG beside it."""
    rows = [row for row in _rows() if row["mode"] != "full"]
    file = synthetic.write(tmp_path_factory.mktemp("sweep") / "sweep.csv", "sweep", rows)
    assert _plot(file, "--format", "svg") == 0
    return file


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of pictures of bytes and of calls."""
    folder = tmp_path_factory.mktemp("bars")
    calls = [{**row, "syncs": row["syncs"] and 0} for row in synthetic.overhead("")]
    files = [
        synthetic.write(folder / "traffic.csv", "traffic", synthetic.traffic()),
        synthetic.write(folder / "overhead.csv", "overhead", calls),
    ]
    assert _plot(*files, "--ops", "kl_div", "--format", "svg") == 0
    return folder


def _texts(file: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)", file.read_text())


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error with which the arguments are refused."""
    assert _plot(*arguments) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    return printed.err


def test_a_sweep_gives_a_picture_of_time_roofline_and_speed_up_the_same_each_time(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"softmax-{metric}-v4096" for metric in ("time", "roof", "speedup")]
    assert _plot(sweep, "--out", tmp_path, "--format", "svg") == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / f"{name}.svg") for name in names]
    assert "sweep of softmax: left out: Liger 12 × skipped: not offered\n" in printed.err
    for name in names:
        assert (tmp_path / f"{name}.svg").read_bytes() == (sweep.parent / f"{name}.svg").read_bytes()


def test_filters_keep_what_they_name_and_pngs_are_the_same_each_time(sweep: Path, tmp_path: Path) -> None:
    for folder in ("once", "twice"):
        filters = ("--modes", "forward", "--dtypes", "fp32", "--ops", "softmax")
        assert _plot(sweep, "--out", tmp_path / folder, *filters) == 0
    for path in sorted((tmp_path / "once").iterdir()):
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes()
        height, width = matplotlib.image.imread(path).shape[:2]
        assert (width, height > 500) == (1440, True)


def test_a_picture_names_the_gpu_the_versions_the_commit_and_what_is_left_out(sweep: Path) -> None:
    drawn = _texts(sweep.parent / "softmax-roof-v4096.svg")
    about = "SYNTHETIC GPU, driver 1.2.3, CUDA 0.1, torch 2.13.0, triton 3.7.1, liger-kernel 0.8.5, commit 0123456789ab"
    assert {about, "Left out: Liger 12 × skipped: not offered", "rows N, at V = 4,096"} <= set(drawn)
    assert {"forward, bf16", "forward, fp32", "backward, bf16", "backward, fp32"} <= set(drawn)
    assert {"ours", "torch eager", "torch.compile", "20th to 80th percentile"} <= set(drawn)
    assert {"1", "16", "256"} <= set(drawn)


@pytest.mark.parametrize("metric", ["time", "speedup"])
def test_ticks_of_a_log_axis_are_few_round_numbers(metric: str, sweep: Path) -> None:
    unit = r" (?:µs|ms)" if metric == "time" else "×"
    ticks = [text for text in _texts(sweep.parent / f"softmax-{metric}-v4096.svg") if re.fullmatch(rf"\d+{unit}", text)]
    assert all(re.match("[125]0*[^0]", tick) for tick in ticks)
    assert 2 <= len(set(ticks)) <= 9


@pytest.mark.parametrize(
    ("option", "known"), [("ops", "softmax"), ("modes", "forward, backward"), ("dtypes", "bf16, fp32")]
)
def test_a_filter_for_what_is_not_there_is_refused_in_one_line(
    option: str, known: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _refused(capsys, sweep, f"--{option}", "nonsense")
    assert f"argument --{option}: 'nonsense' is not in the files, which have {known}\n" in message


def test_what_cannot_be_drawn_is_refused_in_one_line_before_anything_is_drawn(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    static = synthetic.write(tmp_path / "file.csv", "static", synthetic.static())
    assert "has format lucid-triton/static/1, accepted: lucid-triton/sweep/1" in _refused(capsys, static)
    assert _plot(sweep, "--out", static) == 2
    assert capsys.readouterr().err.endswith("cannot be made: File exists\n")
    rows = _rows(shapes=[(8, 4096)])
    rows = [{**row, "status": row["status"].replace("skipped: not", "failed: two\nlines")} for row in rows]
    synthetic.write(static, "sweep", rows)
    left_out = "Liger 6 × failed: two lines offered, sweep of softmax: left out: 8x4096, alone on every axis"
    assert _refused(capsys, static).endswith(f"file.csv: nothing to draw; sweep of softmax: left out: {left_out}\n")
    assert list(tmp_path.iterdir()) == [static]


def test_pictures_of_two_gpus_do_not_overwrite_each_other() -> None:
    rows = DataFrame([row for gpu in ("Left GPU", "Right GPU") for row in _rows(gpu=gpu)]).assign(kind="sweep")
    names = [name for name, _ in plot.plan(rows)[0]]
    metrics = ("time", "roof", "speedup")
    assert names == [f"{gpu}-gpu-softmax-{metric}-v4096" for gpu in ("left", "right") for metric in metrics]


def test_traffic_and_overhead_give_bars_per_op(bars: Path) -> None:
    calls = [bars / f"overhead-kl_div-{dtype}-64x1000.svg" for dtype in ("bf16", "fp32")]
    moved = [bars / f"traffic-kl_div-{shape}.svg" for shape in ("41x1271", "8x32000")]
    assert sorted(bars.glob("*.svg")) == [*calls, *moved]
    drawn = " ".join(_texts(moved[1]))
    for text in ("backward, log target, mean", "4.50", "failed", "read", "written", "no GPU", "torch eager"):
        assert text in drawn
    counted = _texts(calls[0])
    assert "launches per call" in counted
    assert "host time, median µs per call" not in counted
    assert not [text for text in counted if "e-" in text]  # all syncs are 0


@pytest.mark.parametrize(
    ("shapes", "labels", "alone"),
    [
        ({(3, 5)}, [], {(3, 5)}),
        ({(41, 1271), (8, 32000), (64, 1000)}, ["41\n×1271", "64\n×1000", "8\n×32000"], set()),
        ({(16, 4096), (8, 4096)}, ["8\n×4096", "16\n×4096"], set()),
        ({(8, 1000), (4, 2200), (2, 4800)}, ["8\n×1000", "4\n×2200", "2\n×4800"], set()),
    ],
)
def test_shapes_share_an_axis_where_they_can_and_stand_side_by_side_by_size_otherwise(
    shapes: set[tuple[int, int]], labels: list[str], alone: set[tuple[int, int]]
) -> None:
    found, left = plot.families(shapes)
    assert ([list(family.labels) for family in found], left) == ([labels] if labels else [], alone)
    vocabulary = {(2**20 // v, v) for v in (1024, 2048, 8192)} | {(8, 128256)}
    by_name = {family.name: set(family.positions) for family in plot.families(set(ROWS_FAMILY) | vocabulary)[0]}
    assert by_name == {"v4096": set(ROWS_FAMILY), "e1Mi": vocabulary | {(256, 4096)}}


def _values(metric: str, *, ours: dict[str, float], others: dict[str, float]) -> Any:
    rows = DataFrame([row for row in _rows(shapes=[(16, 4096)]) if row["mode"] == "full" and row["dtype"] == "bf16"])
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
    rows = [row for row in _rows() if row["mode"] == "full" and row["dtype"] == "bf16"]
    rows = [row for row in rows if (row["provider"], row["n"]) != ("torch", 16)]
    ((_, draw), *_), _ = plot.plan(DataFrame(rows).assign(kind="sweep"))
    lines = {line.get_color(): line.get_ydata() for line in draw().axes[0].lines}
    assert [y == y for y in lines[plot.STYLES["torch"][0]]] == [True, False, True]
    assert [y == y for y in lines[plot.STYLES["ours"][0]]] == [True, True, True]


def test_of_two_rows_about_the_same_the_later_counts() -> None:
    rows = _rows()
    again = {**rows[0], "median_ms": 123.0}
    kept = results.latest(DataFrame([*rows, again])).to_dict("records")
    assert len(kept) == len(rows)
    assert rows[0] not in kept
    assert again in kept


def test_sizes_and_times_are_short_where_that_is_exact() -> None:
    sizes = [plot.size_text(size) for size in (1, 1000, 1024, 65536, 128256, 151936, 2**20, 3 * 2**30)]
    assert sizes == ["1", "1,000", "1Ki", "64Ki", "128,256", "151,936", "1Mi", "3Gi"]
    times = [plot.time_text(ms) for ms in (2e-4, 0.01, 0.5, 1.0, 5000.0)]
    assert times == ["200 ns", "10 µs", "500 µs", "1 ms", "5000 ms"]


def test_every_provider_has_its_own_colour_and_marker() -> None:
    assert set(plot.STYLES) == set(results.PROVIDERS)
    for styles in zip(*plot.STYLES.values(), strict=True):
        assert len(set(styles)) == len(plot.STYLES)
