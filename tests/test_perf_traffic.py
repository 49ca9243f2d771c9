"""``python -m perf traffic``: what is counted, what it is compared with, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lucid.nn.functional as F
import triton_kernels
from perf import results
from perf.__main__ import main
from perf.environment import COLUMNS as ENV
from tests.test_perf_sweep import replace
from triton_kernels.devtools import trace
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
    rows = _rows(tmp_path, f"kl_div softmax log_softmax pointwise {arguments}")
    assert {row["status"] for row in rows} == {"ok"}
    assert {(row["op"], row["variant"]) for row in rows} == {
        ("kl_div", "prob"),
        ("kl_div", "log"),
        ("softmax", ""),
        ("log_softmax", ""),
        ("pointwise", "gelu"),
        ("pointwise", "mul"),
    }
    assert len(rows) == (2 * 2 + 2 + 2) * 3
    for row in rows:
        extra = int(row["read"]) + int(row["written"]) - int(row["least_read"]) - int(row["least_written"])
        assert 0 <= extra < 1000
        assert 0 <= int(row["allocated"]) - int(row["least_allocated"]) < 1000


def test_a_matrix_product_of_one_tile_reads_its_operands_once_and_of_two_tiles_one_of_them_twice(
    tmp_path: Path,
) -> None:
    arguments = "matmul --shapes 41x50x60,41x100x60 --dtypes fp32 --modes forward --providers ours"
    one, two = _rows(tmp_path, arguments)
    assert [int(row["read"]) - int(row["least_read"]) for row in (one, two)] == [0, 41 * 60 * 4]
    assert [int(row["written"]) - int(row["least_written"]) for row in (one, two)] == [0, 0]
    assert int(one["least_read"]) == (41 + 50) * 60 * 4
    _rows(tmp_path, f"{arguments} --check", code=1)


def test_ops_of_hidden_states_are_not_counted_unless_shapes_are_given(tmp_path: Path) -> None:
    found = _rows(tmp_path, "--dtypes fp32 --reductions mean --modes forward --providers compile")
    assert {"softmax", "pointwise"} <= {row["op"] for row in found}
    assert not {"matmul", "linear_distillation"} & {row["op"] for row in found}


#: Bytes that may be moved about rows: of numbers, and of their chunks.
FEW = 400


def _passes(row: dict[str, str], what: str) -> float:
    """Bytes in tensors of the logits' size; what is moved about rows must be little."""
    passes, few = divmod(int(row[what]), int(row["n"]) * int(row["v"]) * results.DTYPES[row["dtype"]].itemsize)
    assert few <= FEW
    return passes


@pytest.mark.parametrize(("op", "read"), [("distillation", 2), ("cross_entropy", 1)])
def test_loss_and_gradient_of_logits_are_one_pass_and_backward_by_1_is_none(op: str, read: int, tmp_path: Path) -> None:
    arguments = "--shapes 5x1271 --reductions mean,none --modes forward,backward,full --check"
    dtype = {"distillation": "bf16", "cross_entropy": "fp32"}[op]
    rows = _rows(tmp_path, f"{op} {arguments} --dtypes {dtype} --providers ours,lucid.torch")
    rows = [row for row in rows if row["status"] == "ok" and row["variant"] != "prob"]
    assert len(rows) == {"distillation": 4 * 12 + 3, "cross_entropy": 12}[op]
    in_one_launch = {"forward": (read, 0, 0), "backward": (0, 0, 0), "full": (read, 1, 1)}
    scaled = {"forward": (read, 0, 0), "backward": (1, 1, 0), "full": (read + 1, 2, 1)}
    for row in rows:
        moved = (in_one_launch if row["reduction"] == "mean" else scaled)[row["mode"]]
        assert tuple(_passes(row, what) for what in ("read", "written", "allocated")) == moved
        least = ("least_read", "least_written", "least_allocated")
        assert tuple(_passes(row, what) for what in least) == moved


def test_two_launches_read_the_logits_again(tmp_path: Path) -> None:
    arguments = "--shapes 5x1271 --dtypes bf16 --reductions mean --modes full --providers two-launches"
    rows = {row["op"] + row["variant"]: row for row in _rows(tmp_path, arguments)}
    assert (_passes(rows["distillationjs"], "read"), _passes(rows["distillationjs"], "written")) == (4, 1)
    assert (_passes(rows["cross_entropy"], "read"), _passes(rows["cross_entropy"], "written")) == (2, 1)
    assert (_passes(rows["cross_entropyprob"], "read"), _passes(rows["cross_entropyprob"], "written")) == (4, 1)
    left_out = {"kl_divprob", "kl_divlog", "softmax", "log_softmax", "distillationtwo_line"}
    left_out |= {"pointwisegelu", "pointwisemul"}
    assert {name for name, row in rows.items() if row["status"].startswith("skipped: ")} == left_out


def test_float16_has_its_gradient_in_backward(tmp_path: Path) -> None:
    arguments = "--variants js --shapes 5x1271 --dtypes fp16 --reductions mean --providers ours,lucid.torch --check"
    rows = _rows(tmp_path, f"distillation {arguments}")
    moved = [(row["mode"], _passes(row, "read"), _passes(row, "written")) for row in rows]
    assert sorted(moved) == [("backward", 2, 1)] * 2 + [("forward", 2, 0)] * 2


@pytest.mark.parametrize("kind", ["forward_kl", "js", "cross_entropy"])
def test_what_a_program_computes_in_place_of_another_does_not_count(kind: str) -> None:
    """The interpreter, which runs one program after another, cannot wait; a GPU waits."""
    rows, columns = 2, 9001
    x, t = torch.randn(rows, columns), torch.randn(rows, columns)
    labels = torch.tensor([3, 9000])

    def loss(x: torch.Tensor, dx: torch.Tensor) -> torch.Tensor:
        with tile_configs.use_tile_configs(interpreted=False):
            if kind == "cross_entropy":
                return triton_kernels.cross_entropy_forward(x, labels, dx=dx)[0]
            return triton_kernels.divergence_forward(x, t, divergence=kind, dstudent=dx)[0]

    gradient, written = torch.empty_like(x), x.clone()
    expected = loss(x, gradient)
    with trace.traffic() as moved:
        assert torch.equal(loss(written, written), expected)
    assert torch.equal(written, gradient)
    once = x.nbytes if kind == "cross_entropy" else 2 * x.nbytes
    assert 0 <= moved.read - once < 0.03 * once
    assert 0 <= moved.written - x.nbytes < 0.03 * x.nbytes
    assert moved.launches == 1


def test_every_divergence_from_logits_moves_the_least_and_numbers_about_rows(tmp_path: Path) -> None:
    rows = _rows(tmp_path, "distillation --shapes 5x1271 --dtypes bf16 --reductions mean --providers ours --check")
    assert {row["status"] for row in rows} == {"ok"}
    variants = ["forward_kl", "two_line", "reverse_kl", "js", "total_variation"]
    assert [row["variant"] for row in rows] == [variant for variant in variants for _ in range(2)]


def test_lucid_torch_is_held_to_the_same_and_leaves_what_is_no_loss_to_torch(tmp_path: Path) -> None:
    arguments = "--shapes 5x1271 --dtypes bf16 --reductions mean --modes full --providers ours,lucid.torch --check"
    rows = _rows(tmp_path, arguments)
    theirs = {(row["op"], row["variant"]): row for row in rows if row["provider"] == "lucid.torch"}
    left_out = {key for key, row in theirs.items() if row["status"] != "ok"}
    softmax = {("softmax", ""), ("log_softmax", "")}
    assert left_out == {*softmax, ("distillation", "two_line"), ("pointwise", "gelu"), ("pointwise", "mul")}
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
        *("format", "op", "variant", "mode", "provider", "n", "v", "d", "dtype", "reduction", "status"),
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
        ("a copy", "d=0) forward: read 120,000, at most 60,048; written 120,000, at most 60,048; alloc"),
        ("two copies", "launches 3, at most 2"),
        ("an error", "failed: RuntimeError: planted"),
        ("a wrong result", "failed: WrongResultError: wrong by"),
    ],
)
def test_check_fails_where_ours_does_more_than_it_must(
    kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(monkeypatch, "softmax", "ours", _planted(kind))
    _rows(tmp_path, "softmax --shapes 3x5000 --dtypes fp32 --modes forward --providers ours --check", code=1)
    printed = "".join(capsys.readouterr())
    assert said in printed
    assert "second line" not in printed


def test_without_check_the_same_is_shown_and_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, "softmax", "ours", _planted("a copy"))
    assert _rows(tmp_path, "softmax --shapes 3x5000 --dtypes fp32 --modes forward --providers ours")


@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_long_rows_of_softmax_are_read_once(mode: str, tmp_path: Path) -> None:
    arguments = f"softmax log_softmax --shapes 2x70000 --dtypes bf16 --modes {mode} --providers ours --check"
    for row in _rows(tmp_path, arguments):
        least = int(row["least_read"])
        assert least == {"forward": 1, "backward": 2}[mode] * 2 * 70000 * 2
        assert 0 <= int(row["read"]) - least <= 0.02 * least
