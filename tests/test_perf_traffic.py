"""``python -m perf traffic``: what is counted, what it is compared with, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lucid.nn.functional as F
from perf import results
from perf.__main__ import main
from perf.environment import COLUMNS as ENV
from perf.measure.ops import OPS, Point
from tests.test_perf_sweep import replace
from triton_kernels.runtime import tile_configs

pytestmark = pytest.mark.interpreter_only

N = 41 * 1271


@pytest.fixture(autouse=True)
def _poison() -> None:
    """Fresh buffers are left as they are: filling them would count."""


def _rows(tmp_path: Path, arguments: str, code: int = 0) -> list[dict[str, str]]:
    file = tmp_path / "rows.csv"
    assert main(["traffic", *arguments.split(), "--csv", str(file)]) == code
    return results.read_csv(file)


def test_ours_moves_the_least_possible_bytes(tmp_path: Path) -> None:
    arguments = "--shapes 5x1271 --dtypes bf16 --modes forward,backward,full --providers ours --check"
    rows = _rows(tmp_path, f"kl_div softmax log_softmax {arguments}")
    assert {row["status"] for row in rows} == {"ok"}
    assert {(row["op"], row["variant"]) for row in rows} == {
        ("kl_div", "prob"),
        ("kl_div", "log"),
        ("softmax", ""),
        ("log_softmax", ""),
    }
    assert len(rows) == (2 * 2 + 2) * 3
    for row in rows:
        extra = int(row["read"]) + int(row["written"]) - int(row["least_read"]) - int(row["least_written"])
        assert 0 <= extra < 1000
        assert 0 <= int(row["allocated"]) - int(row["least_allocated"]) < 1000


def test_every_divergence_from_logits_moves_the_least_and_numbers_about_rows(tmp_path: Path) -> None:
    rows = _rows(tmp_path, "distillation --shapes 5x1271 --dtypes bf16 --reductions mean --providers ours --check")
    assert {row["status"] for row in rows} == {"ok"}
    variants = ["forward_kl", "two_line", "reverse_kl", "js", "total_variation"]
    assert [row["variant"] for row in rows] == [variant for variant in variants for _ in range(2)]


def test_lucid_torch_is_held_to_the_same_and_leaves_softmax_to_torch(tmp_path: Path) -> None:
    arguments = "--shapes 5x1271 --dtypes bf16 --reductions mean --modes full --providers ours,lucid.torch --check"
    rows = _rows(tmp_path, arguments)
    theirs = {(row["op"], row["variant"]): row for row in rows if row["provider"] == "lucid.torch"}
    left_out = {key for key, row in theirs.items() if row["status"] != "ok"}
    assert left_out == {("softmax", ""), ("log_softmax", ""), ("distillation", "two_line")}
    for row in rows:
        other = theirs[(row["op"], row["variant"])]
        if other["status"] == "ok":
            assert [row[key] for key in ("read", "written")] == [other[key] for key in ("read", "written")]
            assert row["launches"] == other["launches"]


def test_a_result_of_exactly_0_is_right(tmp_path: Path) -> None:
    rows = _rows(tmp_path, "kl_div --variants log --dtypes fp32 --reductions sum --shapes 1x1 --providers ours")
    assert {row["status"] for row in rows} == {"ok"}


def test_append_adds_rows_to_those_of_another_run(tmp_path: Path) -> None:
    arguments = "--shapes 3x5 --dtypes fp32 --modes forward --providers ours --append"
    assert [row["op"] for row in _rows(tmp_path, f"softmax {arguments}")] == ["softmax"]
    assert [row["op"] for row in _rows(tmp_path, f"log_softmax {arguments}")] == ["softmax", "log_softmax"]


def test_the_rows_have_the_agreed_columns(tmp_path: Path) -> None:
    (row,) = _rows(tmp_path, "softmax --shapes 3x5 --dtypes fp32 --modes forward --providers ours")
    assert tuple(row) == (
        *("format", "op", "variant", "mode", "provider", "n", "v", "dtype", "reduction", "status"),
        *("read", "written", "launches", "allocated", "least_read", "least_written", "least_allocated"),
        *ENV,
    )
    assert (row["read"], row["written"], row["launches"], row["allocated"]) == ("60", "60", "1", "60")
    assert row["torch"] == torch.__version__
    assert row["commit"]


def test_eager_torch_makes_nine_passes_of_a_mean_and_allocates_its_temporaries(tmp_path: Path) -> None:
    arguments = "kl_div --variants prob --shapes 41x1271 --dtypes fp32 --reductions mean --modes forward"
    (row,) = _rows(tmp_path, arguments + " --providers torch")
    # y·log y reads one and writes one, the product and the difference read two and write one, the mean reads one
    assert (int(row["read"]) + int(row["written"])) // (N * 4) == 9
    assert int(row["allocated"]) // (N * 4) == 3
    assert row["launches"] == "4"


def test_a_provider_that_cannot_run_here_is_skipped_with_a_reason(tmp_path: Path) -> None:
    arguments = "log_softmax --shapes 3x5 --dtypes fp32 --modes forward --providers compile,liger"
    compiled, liger = _rows(tmp_path, arguments)
    assert compiled["status"].startswith("skipped: what torch.compile makes for a GPU")
    assert liger["status"].startswith("skipped: ")
    assert compiled["read"] == ""


def _planted(kind: str) -> Callable[[Any], Any]:
    def function(x: Any) -> Any:
        if kind == "an error":
            raise RuntimeError("planted\nwith a second line")
        result = F.softmax(x.clone() if kind == "a copy" else x.clone().clone() if kind == "two copies" else x, -1)
        return result * 2 if kind == "a wrong result" else result

    return function


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("a copy", "reduction='') forward: read 120,000, at most 60,048; written 120,000, at most 60,048; alloc"),
        ("two copies", "launches 3, at most 2"),
        ("a second pass", "reduction='') forward: read 12,"),
        ("an error", "failed: RuntimeError: planted"),
        ("a wrong result", "failed: WrongResultError: wrong by"),
    ],
)
def test_check_fails_where_ours_does_more_than_it_must(
    kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "a second pass":
        monkeypatch.setattr(tile_configs, "rows", lambda *a, **k: tile_configs.Config({"BLOCK_N": 1, "BLOCK_V": 256}))
    else:
        replace(monkeypatch, "softmax", "ours", _planted(kind))
    shape = "1x1500" if kind == "a second pass" else "3x5000"
    _rows(tmp_path, f"softmax --shapes {shape} --dtypes fp32 --modes forward --providers ours --check", code=1)
    printed = "".join(capsys.readouterr())
    assert said in printed
    assert "second line" not in printed


def test_without_check_the_same_is_shown_and_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, "softmax", "ours", _planted("a copy"))
    assert _rows(tmp_path, "softmax --shapes 3x5000 --dtypes fp32 --modes forward --providers ours")


def test_long_rows_may_be_read_twice_and_not_three_times(tmp_path: Path) -> None:
    arguments = "log_softmax --shapes 2x70000 --dtypes bf16 --modes backward --providers ours --check"
    (row,) = _rows(tmp_path, arguments)
    assert int(row["least_read"]) == 2 * 2 * 70000 * 2
    assert 0 <= int(row["read"]) - int(row["least_read"]) <= 2 * 70000 * 2 * 1.01


def test_only_rows_that_do_not_fit_on_chip_may_be_read_twice() -> None:
    point = Point("softmax", "", 2, 32769, torch.bfloat16, "")
    once = 2 * 32769 * 2
    assert [OPS["softmax"].rereads(point, mode) for mode in ("forward", "backward", "full")] == [
        once,
        2 * once,
        3 * once,
    ]
    assert OPS["log_softmax"].rereads(dataclasses.replace(point, op="log_softmax"), "full") == 2 * once
    assert OPS["softmax"].rereads(dataclasses.replace(point, v=16384), "full") == 0
    assert OPS["softmax"].rereads(dataclasses.replace(point, v=16384, dtype=torch.float64), "forward") > 0
    assert OPS["kl_div"].rereads(point, "full") == 0
