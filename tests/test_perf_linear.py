"""``python -m perf linear_distillation``: predicted times and memory of a loss from hidden states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lucid.torch
from lucid.torch import products
from perf import results
from perf.__main__ import main
from perf.count import counting
from perf.count.linear_distillation import TBPS, TFLOPS, predicted

ROOT = Path(__file__).parents[1]


def test_products_take_eight_operations_for_each_row_column_and_feature() -> None:
    row = predicted(8192, 128256, 4096)
    assert row["products_ms"] == pytest.approx(8 * 8192 * 128256 * 4096 / (TFLOPS * 1e12) * 1e3)


def test_one_chunk_has_no_float32_sum_and_overlaps_nothing() -> None:
    row = predicted(512, 128256, 4096)
    assert (row["chunks"], row["accumulator_ms"]) == (1, 0)
    assert row["sum_ms"] == row["overlap_ms"] == row["products_ms"] + row["logits_ms"]
    assert row["logits_ms"] == pytest.approx(7 * 512 * 128256 * 2 / (TBPS * 1e12) * 1e3)


def test_each_chunk_but_the_first_reads_and_writes_the_float32_sum() -> None:
    row = predicted(1024, 151936, 4096, chunk_rows=384)
    assert (row["chunk_rows"], row["chunks"]) == (384, 3)
    assert row["accumulator_ms"] == pytest.approx(2 * 2 * 151936 * 4096 * 4 / (TBPS * 1e12) * 1e3)


@pytest.mark.parametrize(("n", "chunks"), [(8192, 1), (8193, 3), (32768, 8)])
def test_chunks_are_few_by_default(n: int, chunks: int) -> None:
    """Of all rows up to 2·d, else of d."""
    assert predicted(n, 151936, 4096)["chunks"] == chunks


@pytest.mark.parametrize("shape", results.SHAPE_SETS["linear"])
def test_overlap_saves_at_most_the_time_of_the_sum_or_of_its_product(shape: tuple[int, ...]) -> None:
    row = predicted(*shape)
    saved = row["sum_ms"] - row["overlap_ms"]
    assert 0 <= saved <= min(row["accumulator_ms"], row["products_ms"] / 4) * (1 + 1e-9)
    assert 1 < row["overlap_ratio"] <= row["sum_ratio"] < 2


def test_a_sum_that_is_moved_faster_than_its_product_is_computed_costs_nothing() -> None:
    row = predicted(16384, 1000, 4096, chunk_rows=8192)
    assert row["accumulator_ms"] > 0
    assert row["overlap_ms"] == pytest.approx(row["products_ms"] + row["logits_ms"])


@pytest.mark.interpreter_only
@pytest.mark.parametrize("chunk_rows", [16, 64])
def test_the_peak_is_what_is_counted(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n, v, d = 64, 4096, 64
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(rows, d, generator=generator).bfloat16() for rows in (n, v, n, v)]
    student, weight, teacher, teacher_weight = made
    leaves = student.requires_grad_(), weight.requires_grad_()
    # A GPU adds a product in bf16 to a float32 sum without memory of its own.
    monkeypatch.setattr(products, "_in_wider_dtype", lambda *_: None)
    with lucid.torch.kernels_on_cpu(), counting.counted(collect=True) as counts:
        loss = lucid.torch.linear_distillation_loss(*leaves, teacher, teacher_weight, chunk_rows=chunk_rows)
        torch.autograd.grad(loss, leaves)
    assert counts.peak / 2**20 == pytest.approx(predicted(n, v, d, chunk_rows)["peak_mib"], rel=0.02)


def test_readme_has_the_committed_predictions() -> None:
    rows = results.read_csv(ROOT / "perf/results/predicted/linear_distillation.csv")
    ratios = {int(row["n"]): f"{float(row['sum_ratio']):.2f}" for row in rows}
    assert ratios == {512: "1.07", 1024: "1.07", 8192: "1.07", 32768: "1.11"}
    gib = [float(row["peak_mib"]) / 1024 for row in rows]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "to take 1.07 times as long as its products for 512 to 8,192 tokens, and 1.11 times for 32,768" in readme
    assert f"in {min(gib):.1f} to {max(gib):.1f} GiB (`python -m perf linear_distillation`)" in readme


def test_the_command_writes_a_row_for_each_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    assert main(["linear_distillation", "--shapes", "linear-small,512x1000x64", "--csv", str(file)]) == 0
    rows = results.read_csv(file)
    assert [(row["n"], row["v"], row["d"]) for row in rows] == [
        ("9", "100", "16"),
        ("20", "257", "33"),
        ("512", "1000", "64"),
    ]
    assert {row["format"] for row in rows} == {"lucid-triton/linear_distillation/1"}
    assert len(capsys.readouterr().out.splitlines()) == 3
