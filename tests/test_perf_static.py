"""perf static: the machine code is read right, and a kernel that gets worse is found."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perf import __main__ as cli
from perf import results
from perf.static import figures, sass
from perf.static.chips import CHIPS
from perf.static.shipped import variants

ROOT = Path(__file__).parent.parent

#: The path of a whole tile is the entry, the loop once, and the exit: 8 instructions; the other has narrow accesses.
#: The loop is left by a call that never returns, as ptxas does it; the subroutine is none of ours.
LISTING = """
        /*1000*/                   LDC R1, c[0x0][0x28] ;
        /*1010*/              @!P0 BRA 0x1090 ;
        /*1020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*1030*/                   MUFU.LG2 R4, R4 ;
        /*1040*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*1050*/               @P5 CALL.REL.NOINC 0x1070 ;
        /*1060*/                   BRA 0x1020 ;
        /*1070*/                   NOP ;
        /*1080*/                   EXIT ;
        /*1090*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*10a0*/                   CALL.REL.NOINC 0x10e0 ;
        /*10b0*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
        /*10c0*/                   EXIT ;
        /*10d0*/                   BRA 0x10d0;
        /*10e0*/                   MUFU.RCP R4, R4 ;
        /*10f0*/                   RET.REL.NODEC R20 0x1000 ;
"""


class TestSass:
    def test_the_path_of_a_whole_tile_is_told_from_the_ragged_one(self) -> None:
        paths = sass.shortest_paths(sass.parse(LISTING))
        assert {wide: (path.length, path.special) for wide, path in paths.items()} == {32: (8, 1), 0: (6, 0)}

    def test_accesses_are_measured_in_bits(self) -> None:
        paths = sass.shortest_paths(sass.parse(LISTING))
        assert (paths[32].bits("LDG"), paths[32].bits("STG")) == (128, 128)
        assert (paths[0].bits("LDG"), paths[0].bits("STG")) == (16, 16)

    def test_of_two_paths_with_the_same_accesses_the_shorter_counts(self) -> None:
        listing = """
        /*0000*/               @P0 BRA 0x30 ;
        /*0010*/                   FADD R1, R1, R1 ;
        /*0020*/                   FADD R1, R1, R1 ;
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/                   EXIT ;
"""
        assert sass.shortest_paths(sass.parse(listing))[16].length == 3

    @pytest.mark.parametrize(
        ("listing", "message"),
        [
            ("", "no instructions"),
            ("        /*0000*/                   BRX R2 -0x10 ;", "a jump whose target is calculated"),
            ("        /*0000*/                   BRA 0x70 ;", "no instruction at 0x70"),
        ],
    )
    def test_what_cannot_be_read_is_an_error(self, listing: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            sass.parse(listing)

    def test_a_copy_takes_two_instructions_for_each_128_bits(self) -> None:
        """Compiled as its author expects: an element costs a quarter of a load and a quarter of a store."""
        script = """
import json
from perf.static import sass
from triton_kernels.devtools import aot
for target in ("cuda:80", "cuda:90", "cuda:100"):
    cubins = []
    for block in (1024, 2048):
        tensor = {"tensor": "float32", "aligned": True}
        args = {"x_ptr": tensor, "y_ptr": tensor, "BLOCK": block}
        compiled = aot.compile_for({"kernel": "tests.broken_kernels:copy", "args": args, "num_warps": 4}, target)
        cubins.append(compiled.asm["cubin"])
    for block, text in zip((1024, 2048), sass.disassemble(cubins, int(target.partition(":")[2]))):
        path = sass.shortest_paths(sass.parse(text))[2 * 4 * block // 128]
        print(json.dumps([path.length, path.special, path.bits("LDG"), path.bits("STG"), text.count("EXIT")]))
"""
        environ = os.environ | {"TRITON_INTERPRET": "0"}
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        for short, long in zip(found[::2], found[1::2], strict=True):
            assert long[0] - short[0] == 2 * 1024 // 128 // 4
            assert short[1:] == long[1:] == [0, 128, 128, 1]
        assert len(found) == 6


def _tree(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of what is compiled, with a fault planted."""
    for package in ("triton_kernels", "perf"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    return folder


def _static(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": "no such folder"}
    command = [sys.executable, "-m", "perf", "static", *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


#: The machine code, and so its figures, differ from one triton to another.
with_the_accepted_triton = pytest.mark.skipif(
    {row["triton"] for row in results.read_csv(figures.BASELINE)} != {figures.triton.__version__},
    reason="the accepted figures are another triton's",
)


class TestCheck:
    @with_the_accepted_triton
    def test_a_software_logarithm_is_found(self, tmp_path: Path) -> None:
        condition, fast = "tl.float32 and _COMPILED and is_cuda()", ':\n        y = tl.inline_asm_elementwise("lg2'
        tree = _tree(tmp_path, "triton_kernels/jit/math.py", condition + fast, "tl.int1" + fast)
        done = _static(tree, "--check", "--kernels", "kl_div", "--dtypes", "bf16", "--targets", "cuda:90")
        assert done.returncode == 1
        assert "kl_div, forward, probabilities, summed, bf16, cuda:90: instructions" in done.stderr
        assert "limit 16" in done.stderr

    @with_the_accepted_triton
    def test_a_spill_is_found(self, tmp_path: Path) -> None:
        tree = _tree(tmp_path, "triton_kernels/runtime/tile_configs.py", "limit = 32768 //", "limit = 131072 //")
        done = _static(tree, "--check", "--kernels", "softmax", "--dtypes", "fp32", "--targets", "cuda:90")
        assert done.returncode == 1
        assert "softmax, forward, long rows, fp32, cuda:90: spills" in done.stderr

    @with_the_accepted_triton
    def test_kernels_as_they_are_pass_and_machine_code_is_kept_with_what_counts_marked(self, tmp_path: Path) -> None:
        done = _static(
            ROOT, "--check", "--kernels", "sgd,finalize", "--dtypes", "fp32", "--targets", "cuda:90", "--keep",
            str(tmp_path),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "2 rows, none worse than accepted in perf/results/predicted/static.csv" in done.stdout
        kept = {file.name: file.read_text() for file in tmp_path.iterdir()}
        assert set(kept) == {"sgd-momentum-fp32-cuda-90.sass", "finalize-fp32-cuda-90.sass"}
        assert "LDG.E.128" in kept["sgd-momentum-fp32-cuda-90.sass"]

    @with_the_accepted_triton
    def test_a_second_tile_is_compiled_where_the_shipped_ones_figures_are_not_the_accepted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
        chosen = ("--kernels", "scale_gradient", "--dtypes", "bf16", "--targets", "cuda:90")
        rows = []
        for check in (["--check"], []):
            done = _static(ROOT, *check, *chosen, "--csv", str(tmp_path / f"{check}.csv"))
            assert done.returncode == 0, done.stderr
            rows.append([row | {"date": ""} for row in results.read_csv(tmp_path / f"{check}.csv")])
            compiled = len([*tmp_path.rglob("*.cubin")])
            assert compiled == len(rows[0]) if check else compiled > len(rows[0])
        assert rows[0] == rows[1]

    def test_marked_instructions_are_those_that_are_counted(self, tmp_path: Path) -> None:
        target = tmp_path / "figures.csv"
        done = _static(
            ROOT, "--kernels", "pointwise", "--dtypes", "fp32", "--targets", "cuda:90", "--keep", str(tmp_path),
            "--csv", str(target),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (row,) = (row for row in results.read_csv(target) if row["variant"] == "add")
        listing = (tmp_path / "pointwise-add-fp32-cuda-90.sass").read_text().splitlines()
        assert sum(line.startswith("> ") for line in listing) == round(float(row["total"]) * float(row["elements"]))

    def test_what_is_worse_than_accepted_is_named_figure_by_figure(self) -> None:
        row: dict[str, Any] = dict(
            kernel="k", variant="v", dtype="bf16", target="cuda:90", limit=None, special_limit=None
        )
        row |= dict(spills=0, instructions=10.0, special=1.0, total=12.0, load_bits=128, store_bits=128, occupancy=0.5)
        budget = {("k", "v", "bf16", "cuda:90"): {name: str(value) for name, value in row.items()}}
        assert figures.regressions([row], budget) == []
        better = {"instructions": 9.5, "total": 11.0, "occupancy": 0.75, "load_bits": 256}
        assert figures.regressions([row | better], budget) == []
        for name, value in {"spills": 8, "instructions": 10.01, "special": 1.5, "total": 12.5}.items():
            assert figures.regressions([row | {name: value}], budget) == [
                f"k, v, bf16, cuda:90: {name} {value}, accepted {row[name]:g}"
            ]
        for name, value in {"load_bits": 16, "store_bits": 64, "occupancy": 0.25}.items():
            assert figures.regressions([row | {name: value}], budget) == [
                f"k, v, bf16, cuda:90: {name} {value}, accepted {row[name]:g}"
            ]
        assert figures.regressions([row | {"instructions": None}], budget) == [
            "k, v, bf16, cuda:90: instructions unknown, accepted 10"
        ]
        assert figures.regressions([row | {"limit": 9}], budget) == ["k, v, bf16, cuda:90: instructions 10.0, limit 9"]
        assert figures.regressions([row | {"special_limit": 0.5}], budget) == [
            "k, v, bf16, cuda:90: special 1.0, limit 0.5"
        ]
        assert figures.regressions([row], {}) == ["k, v, bf16, cuda:90: no accepted figures; --accept writes them"]


def test_a_revision_is_compared_with_what_is_there(tmp_path: Path) -> None:
    finalize = 'return Config({"BLOCK": 4096}, num_warps='
    tree = _tree(tmp_path, "triton_kernels/runtime/tile_configs.py", finalize, finalize)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "triton_kernels"], ["commit", "-qm", "before"]):
        subprocess.run([*git, *command], cwd=tree, check=True)
    which = ("--kernels", "finalize", "--targets", "cuda:90")
    done = _static(tree, "--diff", "HEAD", *which)
    assert (done.returncode, done.stdout.strip()) == (0, "no figure has changed since HEAD"), done.stderr
    file = tree / "triton_kernels/runtime/tile_configs.py"
    file.write_text(file.read_text().replace(finalize + "8)", finalize + "2)"))
    done = _static(tree, "--diff", "HEAD", *which)
    assert done.returncode == 0, done.stderr
    assert "8 → 2" in done.stdout


@pytest.mark.parametrize("jobs", [1, 2, 64])
def test_a_batch_is_of_one_target_and_leaves_work_for_the_others(jobs: int) -> None:
    tasks = [(number, target) for number in range(40) for target in ("cuda:80", "cuda:90")]
    batches = figures.batches(tasks, jobs)
    assert sorted((number, target) for target, numbers in batches for number in numbers) == sorted(tasks)
    assert max(len(numbers) for _, numbers in batches) == min(figures.BATCH_SIZE, -(-len(tasks) // jobs))


def test_every_kernel_that_is_shipped_has_a_variant() -> None:
    files = (ROOT / "triton_kernels").rglob("*.py")
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.stem != "__init__"]
    names = (name for module in modules for name in vars(importlib.import_module(module)))
    shipped = {name for name in names if name.startswith("_") and name.endswith("_kernel")}
    assert len(shipped) > 8
    assert {variant.launched().kernel.__name__ for variant in variants()} == shipped


def test_a_chip_predicts_what_bounds_a_kernel() -> None:
    h200 = next(chip for chip in CHIPS if chip.name == "h200")
    # 4 bytes take 4 / 4800 ns; 31 instructions take 31 / (128 · 132 · 1.98) ns, a little less.
    assert h200.bound(4, 4, 27, 1) == ("memory", 1.0)
    bound, fraction = h200.bound(4, 4, 56, 1)
    assert bound == "issue"
    assert fraction == pytest.approx(4 / 4800 * 128 * 132 * 1.98 / 56)
    assert h200.bound(4, 4, 10, 8)[0] == "special"
    assert h200.bound(6, 4, 10, 1) == ("memory", pytest.approx(2 / 3))


def test_occupancy_is_the_scarcest_of_registers_shared_memory_warps_and_blocks() -> None:
    h200 = next(chip for chip in CHIPS if chip.name == "h200")
    assert h200.occupancy(registers=32, shared=0, warps=4) == 1.0
    assert h200.occupancy(registers=128, shared=0, warps=4) == 0.25
    assert h200.occupancy(registers=33, shared=0, warps=4) == 48 / 64
    assert h200.occupancy(registers=32, shared=113 * 1024, warps=4) == 8 / 64
    assert h200.occupancy(registers=16, shared=0, warps=1) == 32 / 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernels", "gelu"], "argument --kernels: unknown 'gelu', accepted: kl_div,"),
        (["--dtypes", "fp8"], "unknown 'fp8', accepted: bf16, fp16, fp32, fp64"),
        (["--targets", "cuda:70"], "unknown 'cuda:70', accepted: cuda:80,"),
        (["--accept", "--dtypes", "bf16"], "--accept takes all kernels, dtypes and targets"),
        (["--accept", "--check"], "not allowed with argument"),
        (["--kernels", "adam", "--dtypes", "fp64"], "no kernel is shipped for these --kernels and --dtypes"),
        (["--keep", __file__], "File exists"),
        (["--csv", "/no/such/folder/x.csv"], "cannot be written: no such folder"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(["static", *arguments])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert message in printed.err


def test_figures_of_another_triton_are_no_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures.triton, "__version__", "3.6.0")
    assert cli.main(["static", "--check", "--kernels", "sgd"]) == 2
    assert "--check needs the triton that perf/results/predicted/static.csv was made with" in capsys.readouterr().err


def test_bytes_are_counted_in_the_interpreter_whatever_the_environment_says() -> None:
    """It must be switched on before triton is imported, which the command's own module does."""
    script = """
import sys
from perf.__main__ import main
assert "triton" not in sys.modules
try:
    main(["traffic", "--help"])
finally:
    from triton_kernels.runtime import backend
    assert backend.INTERPRETED
"""
    environ = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
