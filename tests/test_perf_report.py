"""perf report: what the README and the page of results say of which files, and that the check finds what is stale."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pandas")

from pandas import DataFrame

from perf import report, results
from perf.__main__ import main
from perf.count import linear_distillation
from tests import synthetic

MARKERS = f"Above.\n\n{report.BEGIN}\nold\n{report.END}\n\nBelow.\n"
PICTURE = "kl_div-mean-roof-v32768.png"
SHAPES = [(1, 1024), (64, 1024), (8, 1024)]
#: What the synthetic kl_div is called here, as the table of the README has no softmax.
FORWARD = ("kl_div", "forward, log target")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All kinds of files, of one made-up GPU."""
    made = tmp_path / "results"
    monkeypatch.setattr(report, "RESULTS", made)
    for inner in ("synthetic-gpu", "predicted"):
        (made / inner).mkdir(parents=True)
    synthetic.write(made / "synthetic-gpu/sweep.csv", "sweep", synthetic.sweep(shapes=SHAPES))
    synthetic.write(made / "synthetic-gpu/overhead.csv", "overhead", synthetic.overhead())
    (made / "synthetic-gpu" / PICTURE).write_bytes(b"a picture")
    for kind, rows in (
        ("static", synthetic.static()),
        ("traffic", synthetic.traffic()),
        ("overhead", synthetic.overhead("")),
    ):
        synthetic.write(made / f"predicted/{kind}.csv", kind, rows)
    return made


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    file = tmp_path / "README.md"
    file.write_text(MARKERS)
    return file


def _report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def _cells(text: str, heading: str) -> list[list[str]]:
    """The cells below the line of headings that holds `heading`."""
    block = next(block for block in text.split("\n\n") if block.startswith("|") and heading in block.partition("\n")[0])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]


def _headline() -> dict[tuple[str, ...], list[str]]:
    return {tuple(row[:2]): row[2:] for row in _cells(report.section(), "of roofline")}


def _sweep(folder: Path, change: Any) -> None:
    """Write the sweep anew, with changes to rows of the log target, forward, in bf16."""
    rows = [dict(row) for row in synthetic.sweep(shapes=SHAPES)]
    for row in rows:
        if (row["variant"], row["mode"], row["dtype"]) == ("log", "forward", "bf16"):
            change(row)
    synthetic.write(folder / "synthetic-gpu/sweep.csv", "sweep", rows)


def test_writing_keeps_what_is_around_the_markers_and_check_finds_what_is_stale(
    folder: Path, readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--readme", readme, "--output", folder / "README.md")

    def stale() -> list[str]:
        code, said = _report("--check", *files), capsys.readouterr().err.splitlines()
        assert code == bool(said)
        return [line.partition(" ")[0] for line in said]

    assert stale() == [str(folder / "README.md"), str(readme)]
    assert _report(*files) == 0
    assert capsys.readouterr().out.split() == [str(folder / "README.md"), str(readme)]
    once = readme.read_text()
    assert once.startswith(f"Above.\n\n{report.BEGIN}\n<!-- Written by `python -m perf report")
    assert once.endswith(f"are in `perf/results/README.md`.\n{report.END}\n\nBelow.\n")
    assert "old" not in once
    assert stale() == []
    readme.write_text(once.replace(report.END, f"\n{report.END}"))
    assert stale() == [str(readme)]
    readme.write_text(once)
    rows = [{**row, "instructions": 99.0} for row in synthetic.static()]
    synthetic.write(folder / "predicted/static.csv", "static", rows)
    assert stale() == [str(folder / "README.md")]


@pytest.mark.parametrize("text", ["none", report.BEGIN, report.END + report.BEGIN, MARKERS + MARKERS])
def test_a_readme_without_the_two_markers_is_refused_and_kept(
    text: str, folder: Path, readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme.write_text(text)
    assert _report("--readme", readme) == 2
    assert f"{readme} needs the lines {report.BEGIN} and {report.END}" in capsys.readouterr().err
    assert readme.read_text() == text


def test_without_results_of_a_gpu_both_say_that_nothing_is_measured(folder: Path) -> None:
    for file in (folder / "synthetic-gpu").iterdir():
        file.unlink()
    text = report.section()
    assert "**Measured on a GPU:** nothing yet." in text
    assert "| " not in text
    page = report.page()
    assert "Measured on SYNTHETIC" not in page
    assert "Counted without a GPU" in page


def test_any_of_the_files_may_be_missing(folder: Path) -> None:
    for file in sorted(folder.rglob("*.csv")):
        file.unlink()
        assert report.page().startswith("# Results")
        assert "are in `perf/results/README.md`." in report.section()


def test_the_readmes_table_has_six_rows_below_its_command_and_says_what_was_measured_with_what(folder: Path) -> None:
    *_, about, command, table, last = report.section().split("\n\n")
    measured = "**Measured on SYNTHETIC GPU** (driver 1.2.3, CUDA 0.1, torch 2.13.0, triton 3.7.1, liger-kernel 0.8.5, "
    assert about.startswith(measured + "commit 0123456789ab)")
    assert re.fullmatch(r"    python -m perf sweep .*--csv \S+/sweep.csv", command)
    assert len(table.splitlines()) == 2 + 6
    assert "`perf/results/README.md`" in last


def test_a_speed_up_stands_at_the_largest_shape_with_the_least_of_all(folder: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        row["roof_fraction"] = 0.25
        row["median_ms"] = 1.0 if row["provider"] == "ours" else {1: 4.0, 8: 0.5, 64: 3.0}[row["n"]]
        if row["provider"] == "compile" and row["n"] == 64:
            row["status"] = "failed: whatever"

    _sweep(folder, change)
    assert _headline()[FORWARD] == ["64 × 1,024", "1", "0.25", "3.00 (0.50)", "– (0.50)", "–"]


@pytest.mark.parametrize("measured", ["full", "backward"])
def test_a_loss_whose_gradient_is_computed_with_it_shows_both_together(measured: str, folder: Path) -> None:
    rows = [row for row in synthetic.sweep(shapes=SHAPES) if row["variant"] == "log"]
    rows = [row | {"op": "distillation", "variant": "js"} for row in rows if row["mode"] in ("forward", measured)]
    synthetic.write(folder / "synthetic-gpu/sweep.csv", "sweep", rows)
    found = _headline()
    assert all(found["distillation", f"{mode}, js"][1] != "–" for mode in ("forward", measured))
    assert ("distillation", "backward, js" if measured == "full" else "full, js") not in found


def test_a_row_without_a_roofline_shows_the_time(folder: Path) -> None:
    _sweep(folder, lambda row: row.update(median_ms=2.0 if row["provider"] == "ours" else 5.0, roof_fraction=None))
    forward = next(row for row in _cells(report.page(), "kl_div") if row[0] == FORWARD[1] and row[2] == "bf16")
    assert forward[4:6] == ["2", "5 (2.50)"]


def test_a_case_in_which_ours_failed_shows_no_figure(folder: Path) -> None:
    def fail(row: dict[str, Any]) -> None:
        if row["provider"] == "ours":
            row.update(status="failed: wrong", median_ms=None, roof_fraction=None)

    _sweep(folder, fail)
    assert set(_headline()[FORWARD]) == {"–"}


def test_the_page_shows_every_case_and_the_pictures(folder: Path) -> None:
    text = report.page()
    assert f"![kl_div mean roof v32768](synthetic-gpu/{PICTURE})" in text
    assert "Without figures: Liger 9 × failed: CompilationError in the kernel; Liger 18 × skipped: not offered." in text
    parts = dict(re.findall(r"### (\w+)\.csv\n(.*?)(?=\n##|$)", text, re.DOTALL))
    for kind, rows in (
        ("sweep", synthetic.sweep(shapes=SHAPES)),
        ("overhead", synthetic.overhead()),
        ("traffic", synthetic.traffic()),
    ):
        cases = {tuple(row[name] for name in results.CASE) for row in rows}
        assert len(re.findall(r"\n\| (?:forward|backward|full)", parts[kind])) == len(cases)
        assert f"    python -m perf {kind}" in parts[kind]


def test_cells_show_times_bytes_and_counts_of_each_provider(folder: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        row.update(median_ms=2.0 if row["provider"] == "ours" else 5.0, roof_fraction=0.25)

    _sweep(folder, change)
    rows = [dict(row) for row in synthetic.traffic() if row["op"] == "softmax" and row["mode"] == "backward"]
    for row in rows:
        if row["status"] == "ok":
            row.update(read=3000, written=10, least_read=1500, least_written=5, launches=2)
            row.update(allocated=row["n"] * row["v"] * synthetic.ITEMSIZE[row["dtype"]] * 3)
    synthetic.write(folder / "predicted/traffic.csv", "traffic", rows)
    text = report.page()
    forward = next(row for row in _cells(text, "kl_div") if row[0] == FORWARD[1] and row[2] == "bf16")
    assert forward[3:] == ["1 × 1,024", "2 (0.25)", "5 (0.25; 2.50)", "5 (0.25; 2.50)", "failed"]
    traffic = text.partition("### traffic.csv")[2]
    moved = "3,000 + 10 (2.00), 2, 3.00"
    assert _cells(traffic, "softmax")[0][3:] == ["8 × 32,000", moved, moved, "skipped", "skipped"]
    counted = traffic.partition("### overhead.csv")[2]
    assert _cells(counted, "kl_div")[0][4:6] == ["1, 0, 31", "4, 0, 31"]
    timed = text.partition("### overhead.csv")[2]
    assert _cells(timed, "kl_div")[0][4:6] == ["20, 1, 0, 31", "90, 4, 0, 31"]


def test_losses_from_hidden_states_show_multiples_of_their_products_and_peak_memory(folder: Path) -> None:
    synthetic.write(folder / "synthetic-gpu/sweep.csv", "sweep", synthetic.linear())
    cells = _cells(report.page(), "N × V × D")[0]
    assert cells[3:] == ["8 × 100 × 16", "10 (1.25), 1,250 MiB", "24 (3.00), 3,000 MiB", "8, 1,000 MiB"]
    file = folder / "synthetic-gpu/sweep.csv"
    command = report.command("sweep", file, results.load(file, "sweep"))
    assert "sweep linear_distillation --shapes 8x100x16,8x200x16,64x100x16,64x200x16 --modes full " in command


def test_predictions_of_a_loss_from_hidden_states_are_called_so(folder: Path) -> None:
    rows = [linear_distillation.predicted(1024, 128256, 4096) | synthetic.environment("")]
    synthetic.write(folder / "predicted/linear_distillation.csv", "linear_distillation", rows)
    text = report.page()
    predicted = text.partition("## Predicted without a GPU")[2].partition("### linear_distillation.csv")[2]
    assert "    python -m perf linear_distillation --csv " in predicted
    assert "Predictions, not measurements, of a training step" in predicted
    assert _cells(text, "without overlap") == [
        ["1,024 × 128,256 × 4,096", "1,024", "5.72", "6.15 (1.07)", "6.15 (1.07)", "1,511"]
    ]


def test_a_prediction_says_what_bounds_the_kernel_on_each_chip_of_its_target(folder: Path) -> None:
    rows = [dict(row) for row in synthetic.static()]
    row = next(row for row in rows if row["target"] == "cuda:90")
    row.update(instructions=34.25, h100_bound="issue", h100_roof=0.9, h200_roof=0.5)
    synthetic.write(folder / "predicted/static.csv", "static", rows)
    lines = _cells(report.page(), "special")
    assert len(lines) == len(rows)
    assert lines[1][:4] == ["`_kl_div_kernel`", "forward, probabilities, summed", "bf16", "cuda:90"]
    assert lines[1][11:] == ["34.2", "1", "155", "4", "–", "0.90 issue", "0.50 memory", "–"]


def test_a_command_names_only_what_differs_from_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = synthetic.sweep(shapes=[(8192, 131072), (3, 7)])
    rows = [row for row in rows if row["mode"] != "full" and row["op"] == "kl_div" and row["provider"] != "liger"]
    file = synthetic.write(tmp_path / "s.csv", "sweep", rows)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.command("sweep", file, results.load(file, "sweep")) == (
        "python -m perf sweep kl_div --shapes target,3x7 --modes forward,backward --reductions mean "
        "--providers ours,torch,compile --csv s.csv"
    )


def test_cells_cannot_break_a_table_and_numbers_are_right_aligned() -> None:
    text = report.table(DataFrame({"a": ["x|y", "two\nlines"], "b": ["1", None], "c": ["", ""]}))
    assert text.splitlines()[1:] == [
        "|:----------|----:|:----|",
        "| x\\|y      |   1 |     |",
        "| two lines |   – |     |",
    ]
