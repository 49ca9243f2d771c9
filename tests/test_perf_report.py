"""perf report: what the README and the page of results say of which files, and that the check finds what is stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perf import points, render, report
from perf.__main__ import main
from tests import synthetic

MARKERS = f"Above.\n\n{report.BEGIN}\nold\n{report.END}\n\nBelow.\n"
PICTURE = "kl_div-mean-roof-v32768.png"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """All kinds of files, of one made-up GPU."""
    folder = tmp_path / "results"
    for inner in ("synthetic-gpu", "predicted"):
        (folder / inner).mkdir(parents=True)
    synthetic.write(folder / "synthetic-gpu/sweep.csv", "sweep", synthetic.sweep())
    synthetic.write(folder / "synthetic-gpu/overhead.csv", "overhead", synthetic.overhead())
    (folder / "synthetic-gpu" / PICTURE).write_bytes(b"a picture")
    for kind, rows in (
        ("static", synthetic.static()),
        ("traffic", synthetic.traffic()),
        ("overhead", synthetic.overhead("")),
    ):
        synthetic.write(folder / f"predicted/{kind}.csv", kind, rows)
    return folder


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    file = tmp_path / "README.md"
    file.write_text(MARKERS)
    return file


def _report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def _section(results: Path) -> str:
    return render.section(report.load(results), "results/README.md")


def _table(text: str, heading: str) -> list[list[str]]:
    """The cells below the line of headings that holds `heading`."""
    block = next(block for block in text.split("\n\n") if block.startswith("|") and heading in block.partition("\n")[0])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]


def test_the_readme_keeps_what_is_around_the_markers(results: Path, readme: Path) -> None:
    assert _report(results, "--readme", readme) == 0
    text = readme.read_text()
    assert text.startswith(f"Above.\n\n{report.BEGIN}\n<!-- Written by `python -m perf report")
    assert text.endswith(f"\n{report.END}\n\nBelow.\n")
    assert "old" not in text
    assert "All rows are in `results/README.md`." in text


def test_writing_twice_changes_nothing(results: Path, readme: Path) -> None:
    page = results / "README.md"
    assert _report(results, "--readme", readme, "--output", page) == 0
    once = readme.read_text(), page.read_text()
    assert _report(results, "--readme", readme, "--output", page) == 0
    assert (readme.read_text(), page.read_text()) == once


def test_the_page_goes_to_standard_output_by_default(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(results.rglob("*"))
    assert _report(results) == 0
    assert capsys.readouterr().out == render.page(report.load(results), results)
    assert sorted(results.rglob("*")) == before


def test_check_is_silent_where_all_is_up_to_date_and_writes_nothing(
    results: Path, readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (results, "--readme", readme, "--output", results / "README.md")
    assert _report(*arguments) == 0
    capsys.readouterr()
    assert _report(*arguments, "--check") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stale", ["readme", "page", "missing page", "new results"])
def test_check_fails_in_one_line_that_names_what_is_out_of_date(
    stale: str, results: Path, readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = results / "README.md"
    arguments = (results, "--readme", readme, "--output", page)
    assert _report(*arguments) == 0
    capsys.readouterr()
    if stale == "readme":
        readme.write_text(readme.read_text().replace("4.50", "4.51"))
    elif stale == "page":
        page.write_text(page.read_text() + "\n")
    elif stale == "missing page":
        page.unlink()
    else:
        rows = [{**row, "instructions": 99.0} for row in synthetic.static()]
        synthetic.write(results / "predicted/static.csv", "static", rows)
    before = readme.read_text()
    assert _report(*arguments, "--check") == 1
    printed = capsys.readouterr()
    named = {"readme": f"{readme}", "page": f"{page}", "missing page": f"{page}", "new results": f"{page} and {readme}"}
    assert printed.err.startswith(f"out of date with {results}: {named[stale]}; run python -m perf report ")
    assert printed.err.count("\n") == 1
    assert readme.read_text() == before


def test_check_alone_compares_the_page_of_the_results_and_the_readme_of_the_project(
    results: Path, readme: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "ROOT", readme.parent)
    assert _report(results, "--check") == 1
    remedy = "python -m perf report --output results/README.md --readme README.md"
    line = f"out of date with {results}: {results}/README.md and {readme}; run {remedy}\n"
    assert capsys.readouterr().err == line
    assert _report(results, "--readme", readme, "--output", results / "README.md") == 0
    assert _report(results, "--check") == 0


@pytest.mark.parametrize("text", ["none", report.BEGIN, report.END + report.BEGIN, MARKERS + MARKERS])
def test_a_readme_without_the_two_markers_is_refused_and_kept(
    text: str, results: Path, readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme.write_text(text)
    assert _report(results, "--readme", readme) == 2
    assert f"{readme} needs the lines {report.BEGIN} and {report.END}" in capsys.readouterr().err
    assert readme.read_text() == text


def test_what_is_no_folder_of_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _report(tmp_path / "nowhere") == 2
    assert capsys.readouterr().err == f"python -m perf report: error: {tmp_path}/nowhere is no folder of results\n"


def test_a_file_of_another_kind_in_its_place_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write(results / "predicted/traffic.csv", "static", synthetic.static())
    assert _report(results) == 2
    assert "predicted/traffic.csv has format lucid-triton/static/1" in capsys.readouterr().err


def test_counts_without_a_gpu_are_refused_as_measured(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write(results / "synthetic-gpu/overhead.csv", "overhead", synthetic.overhead(""))
    assert _report(results) == 2
    assert "has rows that name no GPU" in capsys.readouterr().err


def test_without_results_of_a_gpu_the_readme_says_that_nothing_is_measured(results: Path) -> None:
    for file in (results / "synthetic-gpu").iterdir():
        file.unlink()
    text = _section(results)
    assert "No results of a GPU are committed: no figure here is a measured time." in text
    assert "Measured on SYNTHETIC" not in text
    assert "Counted without a GPU" in text


def test_any_of_the_files_may_be_missing(results: Path) -> None:
    for file in sorted(results.rglob("*.csv")):
        file.unlink()
        loaded = report.load(results)
        assert render.page(loaded, results).startswith("# Results")
        assert "Every figure stands" in render.section(loaded, "page")
    text = _section(results)
    assert "no counts of bytes are committed" in text
    assert "no predictions are committed" in text
    assert "| " not in text


def test_every_table_of_the_readme_stands_below_a_command(results: Path) -> None:
    blocks = _section(results).split("\n\n")
    tables = [place for place, block in enumerate(blocks) if block.startswith("|")]
    assert len(tables) == 3
    for place in tables:
        assert re.match(r"    python -m perf (sweep|traffic|static) .*--csv \S+/\w+\.csv$", blocks[place - 1])


def test_the_readme_says_on_which_gpu_and_with_what_was_measured(results: Path) -> None:
    measured = "**Measured on SYNTHETIC GPU** (driver 1.2.3, CUDA 0.1, torch 2.13.0, triton 3.7.1, liger-kernel 0.8.5, "
    assert measured + "commit 0123456789ab)" in _section(results)


def test_bytes_are_shown_in_multiples_of_the_least_possible_and_memory_of_a_tensor_at_the_largest_shape(
    results: Path,
) -> None:
    rows = [dict(row) for row in synthetic.traffic()]
    for row in rows:
        if (row["op"], row["mode"], row["provider"], row["dtype"]) == ("softmax", "backward", "ours", "bf16"):
            row.update(read=30, written=10, least_read=15, least_written=5 if row["n"] == 8 else 50)
            row.update(allocated=row["n"] * row["v"] * 2 * 3)
    synthetic.write(results / "predicted/traffic.csv", "traffic", rows)
    cells = {(op, what): rest for op, what, *rest in _table(_section(results), "ours, bf16")}
    assert cells["softmax", "backward"] == ["2.00 (3.00)", "4.50 (1.00)", "–", "1.00 (1.00)", "4.50 (1.00)", "–"]
    assert cells["kl_div, mean", "forward, log target"] == [
        "1.00 (0.00)",
        "4.50 (0.00)",
        "–",
        "1.00 (0.00)",
        "4.50 (0.00)",
        "1.25 (0.00)",
    ]


def test_a_speed_up_stands_at_the_largest_shape_with_the_least_of_all(results: Path) -> None:
    rows = [dict(row) for row in synthetic.sweep(shapes=[(1, 1024), (64, 1024), (8, 1024)])]
    for row in rows:
        if (row["op"], row["mode"], row["dtype"]) == ("softmax", "forward", "fp32"):
            row["roof_fraction"] = 0.25
            row["median_ms"] = 1.0 if row["provider"] == "ours" else {1: 4.0, 8: 0.5, 64: 3.0}[row["n"]]
    ours = [row for row in rows if row["provider"] != "liger" or row["op"] != "softmax"]
    synthetic.write(results / "synthetic-gpu/sweep.csv", "sweep", ours)
    cells = {tuple(row[:3]): row[3:] for row in _table(_section(results), "of copy")}
    assert cells["softmax", "forward", "fp32"] == ["64 × 1,024", "0.25", "3.00 (0.50)", "3.00 (0.50)", "–"]
    assert ("softmax", "full", "fp32") not in cells


def test_a_case_in_which_ours_failed_shows_no_figure(results: Path) -> None:
    rows = [dict(row) for row in synthetic.sweep(shapes=[(8, 1024)])]
    for row in rows:
        if row["provider"] == "ours" and row["op"] == "softmax":
            row.update(status="failed: wrong", median_ms=None, roof_fraction=None)
    synthetic.write(results / "synthetic-gpu/sweep.csv", "sweep", rows)
    cells = {tuple(row[:3]): row[3:] for row in _table(_section(results), "of copy")}
    assert set(cells["softmax", "backward", "bf16"]) == {"–"}


def test_predictions_stand_for_both_dtypes_with_what_bounds_them(results: Path) -> None:
    rows = [dict(row) for row in synthetic.static()]
    for row in rows:
        if row["dtype"] == "bf16" and row["kernel"] == "_kl_div_kernel" and row["target"] == "cuda:90":
            row.update(instructions=34.25, h100_bound="issue", h100_roof=0.9, h200_roof=0.5)
    rows += [{**row, "kernel": "_matmul_kernel"} for row in rows]
    synthetic.write(results / "predicted/static.csv", "static", rows)
    table = _table(_section(results), "special")
    assert table[0] == [
        "`_kl_div_kernel`",
        "forward, probabilities, summed",
        "34.2 / 15",
        "1",
        "0.97 memory",
        "0.90 issue / 0.97 memory",
        "0.50 / 0.97 memory",
        "0.97 memory",
    ]
    assert [row[0] for row in table] == ["`_kl_div_kernel`", "`_softmax_kernel`"]


def test_a_prediction_that_is_no_number_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "h100_roof": "high"} for row in synthetic.static()]
    synthetic.write(results / "predicted/static.csv", "static", rows)
    assert _report(results) == 2
    assert "static.csv, row 2: h100_roof is 'high', a number is needed" in capsys.readouterr().err


def test_the_page_holds_every_row_and_shows_the_pictures(results: Path) -> None:
    text = render.page(report.load(results), results)
    assert f"![kl_div mean roof v32768](synthetic-gpu/{PICTURE})" in text
    assert (
        "Without figures: Liger 33 × failed: CompilationError in the kernel; Liger 66 × skipped: not offered." in text
    )
    for kind, rows in (
        ("sweep", synthetic.sweep()),
        ("overhead", synthetic.overhead()),
        ("traffic", synthetic.traffic()),
    ):
        part = text.partition(f"### {kind}.csv")[2].partition("\n###")[0].partition("\n## ")[0]
        cases = {points.case(row) for row in rows}
        assert part.count("\n| forward") + part.count("\n| backward") + part.count("\n| full") == len(cases)
    assert text.count("\n| `_kl_div_kernel`") == 8
    assert "| 20, 1, 0, 31 | 90, 4, 0, 31 |" in text
    assert f"{4 * 41 * 1271 + 64:,} + 4 (1.00), 2" in text


def test_pictures_are_found_from_where_the_page_lies(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "elsewhere/page.md"
    page.parent.mkdir()
    assert _report(results, "--output", page) == 0
    assert f"](../results/synthetic-gpu/{PICTURE})" in page.read_text()


def test_a_command_names_only_what_differs_from_its_defaults(tmp_path: Path) -> None:
    rows = synthetic.sweep(shapes=[(8192, 131072), (3, 7)])
    rows = [row for row in rows if row["mode"] != "full" and row["op"] == "kl_div" and row["provider"] != "liger"]
    file = synthetic.write(tmp_path / "s.csv", "sweep", rows)
    line = render.command("sweep", "here/s.csv", points.load([file])[0][1])
    assert line == (
        "python -m perf sweep kl_div --shapes target,3x7 --modes forward,backward --reductions mean "
        "--providers ours,torch,compile --csv here/s.csv"
    )


def test_cells_cannot_break_a_table() -> None:
    assert render.table(["a", "b", "c"], [["x|y", "1", ""], ["two\nlines", "–", ""]]).splitlines() == [
        "| a | b | c |",
        "| --- | --: | --- |",
        "| x\\|y | 1 |  |",
        "| two lines | – |  |",
    ]
