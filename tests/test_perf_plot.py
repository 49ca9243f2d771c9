"""perf plot: which pictures come of which rows, what they show, and that they come out the same each time."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from perf import charts, plot, points
from perf.__main__ import main
from tests import synthetic

ROWS_FAMILY = [(n, 4096) for n in (1, 16, 256)]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    rows = [row for row in synthetic.sweep(shapes=ROWS_FAMILY) if row["op"] == "softmax"]
    return synthetic.write(tmp_path / "sweep.csv", "sweep", rows)


def _plot(*arguments: object) -> int:
    return main(["plot", *map(str, arguments)])


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error with which the arguments are refused."""
    try:
        code: Any = _plot(*arguments)
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.count("\n") == 1
    return printed.err


def test_a_sweep_gives_a_picture_of_time_roof_and_speed_up_and_prints_their_paths(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _plot(sweep) == 0
    paths = [sweep.parent / f"softmax-{metric}-v4096.png" for metric in ("time", "roof", "speedup")]
    assert capsys.readouterr().out.split() == list(map(str, paths))
    for path in paths:
        height, width = matplotlib.image.imread(path).shape[:2]
        assert width == 1440
        assert height > 500


def test_the_same_rows_give_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    for kind in ("png", "svg"):
        for folder in ("once", "twice"):
            assert _plot(sweep, "--out", tmp_path / folder, "--format", kind, "--modes", "forward") == 0
    made = sorted((tmp_path / "once").iterdir())
    assert len(made) == 6
    assert all(path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes() for path in made)


def test_a_picture_names_the_gpu_the_versions_the_commit_and_what_is_left_out(sweep: Path) -> None:
    assert _plot(sweep, "--format", "svg") == 0
    drawn = (sweep.parent / "softmax-roof-v4096.svg").read_text()
    for text in ("SYNTHETIC GPU", "driver 1.2.3", "CUDA 0.1", "torch 2.13.0", "triton 3.7.1", "commit 0123456789ab"):
        assert text in drawn
    assert "Left out: Liger 18 × skipped: not offered" in drawn
    assert "backward, bf16" in drawn
    assert "rows N, at V = 4,096" in drawn


def test_rows_that_are_not_ok_are_left_out_with_a_note(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _plot(sweep) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert notes == ["sweep of softmax: left out: Liger 18 × skipped: not offered"]


def test_filters_keep_what_they_name(sweep: Path) -> None:
    assert _plot(sweep, "--format", "svg", "--dtypes", "fp32", "--modes", "forward,full", "--ops", "softmax") == 0
    drawn = (sweep.parent / "softmax-time-v4096.svg").read_text()
    assert "forward, fp32" in drawn
    assert "full, fp32" in drawn
    assert "bf16" not in drawn
    assert "backward" not in drawn


@pytest.mark.parametrize(("option", "there"), [("ops", "softmax"), ("modes", "forward"), ("dtypes", "bf16, fp32")])
def test_a_filter_for_what_is_not_there_is_refused_in_one_line(
    option: str, there: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _refused(capsys, sweep, f"--{option}", "nonsense")
    assert f"argument --{option}: 'nonsense' is not in the files, which have {there}" in message


def test_a_file_that_is_no_measurement_of_these_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    static = synthetic.write(tmp_path / "static.csv", "static", synthetic.static())
    assert "has format lucid-triton/static/1, accepted: lucid-triton/sweep/1" in _refused(capsys, static)


def test_rows_without_a_second_shape_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in synthetic.sweep(shapes=[(8, 4096)]) if row["op"] == "softmax"]
    for row in rows:
        if row["status"] != "ok":
            row["status"] = "failed: two\nlines"
    file = synthetic.write(tmp_path / "sweep.csv", "sweep", rows)
    left_out = "left out: Liger 6 × failed: two lines, sweep of softmax: left out: 8x4096, alone on every axis"
    assert _refused(capsys, file).endswith(f"sweep.csv: nothing to draw; sweep of softmax: {left_out}\n")
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_drawn(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert _plot(sweep, "--out", tmp_path / "file") == 2
    assert "cannot be made: File exists" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.png"))


def test_pictures_of_two_gpus_do_not_overwrite_each_other(tmp_path: Path) -> None:
    files = []
    for gpu in ("Left GPU", "Right GPU"):
        rows = [row for row in synthetic.sweep(gpu, ROWS_FAMILY) if row["op"] == "softmax"]
        files.append(synthetic.write(tmp_path / f"{plot.slug(gpu)}.csv", "sweep", rows))
    assert _plot(*files, "--modes", "forward") == 0
    names = {path.name for path in tmp_path.glob("*roof*")}
    assert names == {"left-gpu-softmax-roof-v4096.png", "right-gpu-softmax-roof-v4096.png"}


def test_traffic_and_overhead_give_bars_per_op(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        synthetic.write(tmp_path / "traffic.csv", "traffic", synthetic.traffic()),
        synthetic.write(tmp_path / "overhead.csv", "overhead", synthetic.overhead("")),
    ]
    assert _plot(*files, "--ops", "kl_div", "--format", "svg") == 0
    names = [Path(line).name for line in capsys.readouterr().out.split()]
    assert names == [
        "overhead-kl_div-bf16-64x1000.svg",
        "overhead-kl_div-fp32-64x1000.svg",
        "traffic-kl_div-8x32000.svg",
        "traffic-kl_div-41x1271.svg",
    ]
    traffic = (tmp_path / names[2]).read_text()
    for text in ("backward, log target, mean", "4.50", "failed", "read", "written", "no GPU", "torch eager"):
        assert f">{text}" in traffic
    overhead = (tmp_path / names[0]).read_text()
    assert "launches" in overhead
    assert "median µs per call" not in overhead


def test_shapes_are_sorted_into_the_axes_they_share() -> None:
    rows = {(n, 4096) for n in (1, 16, 256)}
    vocabulary = {(2**20 // v, v) for v in (1024, 2048, 8192)} | {(8, 128256)}
    lonely = {(3, 5)}
    found, alone = plot.families(rows | vocabulary | lonely)
    by_name = {family.name: family for family in found}
    assert set(by_name) == {"v4096", "e1Mi"}
    assert by_name["v4096"].shapes == rows
    assert by_name["e1Mi"].shapes == vocabulary | {(256, 4096)}
    assert alone == lonely


@pytest.mark.parametrize(
    ("shapes", "labels"),
    [
        ({(41, 1271), (8, 32000), (64, 1000)}, ["41\n×1271", "64\n×1000", "8\n×32000"]),
        ({(16, 4096), (8, 4096)}, ["8\n×4096", "16\n×4096"]),
        ({(8, 1000), (4, 2200), (2, 4800)}, ["8\n×1000", "4\n×2200", "2\n×4800"]),
    ],
)
def test_shapes_that_share_no_axis_stand_side_by_side_by_size(shapes: set[tuple[int, int]], labels: list[str]) -> None:
    found, alone = plot.families(shapes)
    assert [list((family.places or {}).values()) for family in found] == [labels]
    assert not alone


def test_bars_that_are_all_zero_have_an_axis_that_can_be_read(tmp_path: Path) -> None:
    rows = [{**row, "syncs": 0} for row in synthetic.overhead("") if row["status"] == "ok"]
    file = synthetic.write(tmp_path / "overhead.csv", "overhead", rows)
    assert _plot(file, "--ops", "softmax", "--format", "svg") == 0
    assert "e-" not in "".join(
        re.findall(r"<text[^>]*>([^<]*)", (tmp_path / "overhead-softmax-bf16-64x1000.svg").read_text())
    )


def _timed(tmp_path: Path, **changes: Any) -> list[Any]:
    rows = [row for row in synthetic.sweep(shapes=ROWS_FAMILY) if row["op"] == "softmax" and row["mode"] == "full"]
    rows = [{**row, **(changes if row["provider"] == "torch" and row["n"] == 16 else {})} for row in rows]
    file = synthetic.write(tmp_path / "s.csv", "sweep", [row for row in rows if row["dtype"] == "bf16"])
    return [row for row in points.load([file])[0][1] if row["status"] == "ok"]


def test_speed_up_is_the_time_of_the_other_over_ours_with_the_widest_band(tmp_path: Path) -> None:
    rows = _timed(tmp_path, median_ms=6.0, p20_ms=5.0, p80_ms=8.0)
    ours = next(row for row in rows if row["provider"] == "ours" and row["n"] == 16)
    ours.update(median_ms=2.0, p20_ms=1.6, p80_ms=2.5)
    family = plot.families(set(ROWS_FAMILY))[0][0]
    torch = next(line for line in plot._series(rows, "speedup", family) if line.name == "torch eager")
    assert (torch.x[1], torch.y[1], torch.low[1], torch.high[1]) == (16, 3.0, 2.0, 5.0)


def test_the_band_of_the_roof_is_the_roof_at_the_quantiles_of_the_time(tmp_path: Path) -> None:
    rows = _timed(tmp_path, median_ms=6.0, p20_ms=5.0, p80_ms=8.0, roof_fraction=0.4)
    family = plot.families(set(ROWS_FAMILY))[0][0]
    torch = next(line for line in plot._series(rows, "roof", family) if line.name == "torch eager")
    assert (torch.y[1], torch.low[1], torch.high[1]) == pytest.approx((0.4, 0.3, 0.48))


def test_a_size_that_a_provider_misses_breaks_its_line(tmp_path: Path) -> None:
    rows = [row for row in _timed(tmp_path) if (row["provider"], row["n"]) != ("torch", 16)]
    family = plot.families(set(ROWS_FAMILY))[0][0]
    torch = next(line for line in plot._series(rows, "time", family) if line.name == "torch eager")
    assert [math.isnan(y) for y in torch.y] == [False, True, False]


def test_of_two_rows_about_the_same_the_later_counts(tmp_path: Path) -> None:
    rows = _timed(tmp_path)
    again = {**rows[0], "median_ms": 123.0}
    kept = points.latest([*rows, again])
    assert len(kept) == len(rows)
    assert again in kept


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 5.6, [1, 2, 3, 5]),
        (0.95, 1.3, [1, 1.2]),
        (0.003, 40, [0.01, 0.1, 1, 10]),
        (1e-3, 1e12, [1e-3, 1, 1e3, 1e6, 1e9, 1e12]),
    ],
)
def test_ticks_of_a_log_axis_are_few_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert charts.log_ticks(low, high) == ticks


def test_a_size_is_short_where_that_is_exact() -> None:
    shown = [charts.size_text(size) for size in (1, 1000, 1024, 65536, 128256, 151936, 2**20, 3 * 2**30)]
    assert shown == ["1", "1,000", "1Ki", "64Ki", "128,256", "151,936", "1Mi", "3Gi"]


def test_labels_of_sizes_keep_their_distance_and_the_ends() -> None:
    assert charts.spread([1, 4, 16, 64, 256, 1024, 4096, 16384, 65536], 4) == [1, 16, 256, 4096, 65536]
    assert charts.spread([1, 1000, 1001], 4) == [1, 1001]


def test_times_have_the_unit_that_reads_best() -> None:
    assert [plot.AXES["time"].text(ms) for ms in (2e-4, 0.01, 0.5, 1.0, 5000.0)] == [
        "200 ns",
        "10 µs",
        "500 µs",
        "1 ms",
        "5000 ms",
    ]


def test_every_provider_has_its_own_colour_and_marker() -> None:
    names = [*map(points.provider_name, points.PROVIDERS), "one more", "and another"]
    assert len({charts.style(name, names)[0] for name in names}) == len(names)
    assert len({charts.style(name, names)[1] for name in names}) == len(names)
