"""What the suite launched, compiled with the tile sizes of a GPU for GPUs that need not be there."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from typing import Any

import pytest
import torch

import triton_kernels
from tests.compiling import Compiler
from tests.device import DEVICE
from triton_kernels.devtools import aot, trace

KERNEL_FILES = [
    importlib.import_module(f"triton_kernels.{name}")
    for name in (
        *(f"ops.{op}" for op in ("elementwise", "embedding", "matmul", "optimizer", "reduce", "softmax")),
        *(f"losses.{loss}" for loss in ("kl_div", "cross_entropy", "soft_cross_entropy", "reduction")),
        *("losses.distillation.forward", "losses.distillation.backward", "jit.partials"),
    )
]

#: Tensors that kernels over a walk load and store; outputs are dense in the order of the walk.
LOADS = {
    "_kl_div_kernel": ("log_q", "target"),
    "_kl_div_backward_kernel": ("log_q", "target", "dloss"),
    "_pointwise_kernel": ("a", "b", "c"),
    "_sgd_kernel": ("param", "grad", "buffer"),
    "_adam_kernel": ("param", "grad", "m", "v"),
}
STORES = {
    "_kl_div_kernel": ("out",),
    "_kl_div_backward_kernel": ("dx", "dtarget"),
    "_pointwise_kernel": ("out",),
    "_sgd_kernel": ("param", "buffer"),
    "_adam_kernel": ("param", "m", "v"),
}


def _name(description: dict[str, Any]) -> str:
    return description["kernel"].split(":")[1]


def _wide(widths: dict[str, int], least: int = 16) -> int:
    """Bytes a thread moves in accesses of at least 128 bits."""
    return sum(int(width) * count for width, count in widths.items() if int(width) >= least)


def _show(description: dict[str, Any]) -> str:
    return json.dumps(description)


def _operand(args: dict[str, Any], name: str) -> tuple[Any, Any]:
    """The tensor and the strides of an operand: of one argument, or of two."""
    if args.get(name):
        tensor, strides = args[name]["tuple"]
        return tensor, strides
    return args.get(f"{name}_ptr"), args.get(f"{name}_strides")


def _contiguous(description: dict[str, Any]) -> bool:
    """Whether a kernel over a walk got only aligned operands of stride 1, or scalars."""
    args = description["args"]
    if args.get("inner_sizes") != {"tuple": []}:
        return False
    names = {name.removesuffix("_ptr") for name in args if name.endswith("_ptr") or name in LOADS[_name(description)]}
    operands = [operand for operand in (_operand(args, name) for name in names) if operand[0]]
    return all(tensor["aligned"] and strides in (None, {"tuple": [1]}) for tensor, strides in operands)


def _expected(description: dict[str, Any], names: tuple[str, ...], dense: bool) -> int | None:
    """Bytes a thread moves for whole tiles of these tensors; None where a tile is less than 128 bits a thread."""
    args = description["args"]
    threads = 32 * description["num_warps"]
    total = 0
    for name in names:
        tensor, strides = _operand(args, name)
        in_walk = dense or strides is not None
        if tensor is None or not in_walk:
            continue
        elements = args["BLOCK"] * args.get("TILES", 1) // threads
        each = elements * getattr(torch, tensor["tensor"]).itemsize
        if each < 16 * args.get("TILES", 1):
            return None
        total += each
    return total


def _read_again(description: dict[str, Any]) -> int:
    """Bytes of a tile of probabilities that a thread reads again where one is near 1."""
    args = description["args"]
    mended = args["REDUCE"] and not args["LOG_TARGET"] and args["COMPUTE"] == {"dtype": "fp32"}
    tensor, strides = _operand(args, "target")
    itemsize = getattr(torch, tensor["tensor"]).itemsize
    return args["BLOCK"] // (32 * description["num_warps"]) * itemsize if mended and strides else 0


@pytest.fixture(scope="session")
def answers(compiler: Compiler) -> list[dict[str, Any]]:
    return compiler.answers()


@pytest.mark.timeout(3600)
def test_every_recorded_launch_compiles_for_its_targets(answers: list[dict[str, Any]], compiler: Compiler) -> None:
    errors = [f"{a['target']}: {a['error']} {_show(a['description'])}" for a in answers if "error" in a]
    assert not errors, "\n".join(errors[:10])
    assert len(answers) == compiler.sent


def test_every_recorded_launch_is_of_a_kernel_and_every_kernel_was_launched_by_the_whole_suite(
    answers: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    launched = {_name(a["description"]) for a in answers}
    kernels = {name for file in KERNEL_FILES for name in vars(file) if name.endswith("_kernel")}
    whole = {item.path.name for item in request.session.items} >= {"test_kl_div.py", "test_optim.py", "test_demo.py"}
    assert not launched - kernels
    assert not (kernels - launched if whole else set())


def test_every_recorded_launch_compiles_without_spills(answers: list[dict[str, Any]]) -> None:
    spills = [
        f"{a['target']}: {a['report']['spills']} with {a['report']['registers']} registers {_show(a['description'])}"
        for a in answers
        if "report" in a and a["report"]["spills"]
    ]
    assert not spills, f"{len(spills)} of {len(answers)}:\n" + "\n".join(spills[:10])


def test_every_recorded_launch_on_contiguous_tensors_moves_whole_tiles_in_128_bit_accesses(
    answers: list[dict[str, Any]],
) -> None:
    faults, checked = [], Counter[str]()
    for answer in answers:
        description, report = answer["description"], answer.get("report")
        name = _name(description)
        if (
            report is None
            or not answer["target"].startswith("cuda")
            or name not in LOADS
            or not _contiguous(description)
        ):
            continue
        stores = () if description["args"].get("REDUCE") else STORES[name]
        loads_bytes, stores_bytes = _expected(description, LOADS[name], False), _expected(description, stores, True)
        if loads_bytes is None or stores_bytes is None:
            continue
        if name == "_kl_div_kernel":
            loads_bytes += _read_again(description)
        checked[name] += 1
        if (_wide(report["loads"]), _wide(report["stores"])) != (loads_bytes, stores_bytes):
            faults.append(
                f"{answer['target']}: {report['loads']} {report['stores']} for {loads_bytes} and {stores_bytes} bytes "
                f"{_show(description)}"
            )
    assert not faults, f"{len(faults)} of {checked.total()}:\n" + "\n".join(faults[:10])
    assert checked.total() > 0


def test_every_recorded_launch_of_softmax_on_aligned_rows_makes_128_bit_accesses(answers: list[dict[str, Any]]) -> None:
    faults, checked = [], 0
    for answer in answers:
        description, report = answer["description"], answer.get("report")
        args = description["args"]
        if report is None or not answer["target"].startswith("cuda") or "softmax" not in _name(description):
            continue
        tensors = [args[name] for name in ("x_ptr", "y_ptr", "dy_ptr", "dx_ptr") if args.get(name)]
        strides = [args[name] for name in ("stride_xv", "stride_yv", "stride_dyv", "stride_dxv") if name in args]
        even = args["UNIT"] == 16 and args["V"] % 16 == 0
        itemsize = getattr(torch, tensors[0]["tensor"]).itemsize
        per_thread = args["BLOCK_N"] * args["BLOCK_V"] * itemsize / (32 * description["num_warps"])
        whole = all(t["aligned"] for t in tensors) and all(stride == 1 for stride in strides) and even
        if not whole or per_thread < 16 or args["BLOCK_V"] * itemsize < 16:
            continue
        checked += 1
        widths = {int(w) for kind in ("loads", "stores") for w in report[kind]}
        # Statistics of a row are single numbers of 4 or 8 bytes.
        narrow = widths - {16, 32} - ({4, 8} if args.get("m_ptr") or args.get("sums_ptr") else set())
        if narrow or not _wide(report["loads"]):
            faults.append(f"{answer['target']}: {report['loads']} {report['stores']} {_show(description)}")
    assert not faults, f"{len(faults)} of {checked}:\n" + "\n".join(faults[:10])
    launched = {_name(answer["description"]) for answer in answers}
    assert checked or not launched & {"_softmax_kernel", "_softmax_backward_kernel"}


@pytest.fixture(scope="module")
def planted() -> dict[tuple[str, bool, str], dict[str, Any]]:
    """Answers for kernels with planted faults, by kernel, alignment of the tensors, and target."""
    compiler = Compiler()
    for kernel, block in (("copy", 1024), ("spill", 2**17), ("refused", 4)):
        for aligned in (True, False):
            tensor = {"tensor": "float32", "aligned": aligned}
            args = {"x_ptr": tensor, "y_ptr": tensor, "BLOCK": block}
            compiler.send(json.dumps({"kernel": f"tests.planted:{kernel}", "args": args, "num_warps": 4}))
    return {
        (_name(a["description"]), a["description"]["args"]["x_ptr"]["aligned"], a["target"]): a
        for a in compiler.answers()
    }


@pytest.mark.parametrize("target", aot.TARGETS)
def test_a_kernel_that_the_compiler_refuses_is_found(planted: Any, target: str) -> None:
    assert "error" in planted["refused", True, target]
    assert "report" in planted["copy", True, target]


@pytest.mark.parametrize("target", aot.TARGETS)
def test_a_planted_spill_is_found(planted: Any, target: str) -> None:
    assert planted["spill", True, target]["report"]["spills"] > 0
    assert planted["copy", True, target]["report"]["spills"] == 0


@pytest.mark.parametrize("target", [target for target in aot.TARGETS if target.startswith("cuda")])
def test_narrow_accesses_are_found(planted: Any, target: str) -> None:
    wide, narrow = (planted["copy", aligned, target]["report"] for aligned in (True, False))
    assert _wide(wide["loads"]) == _wide(wide["stores"]) == 1024 * 4 // 128
    assert _wide(narrow["loads"]) == _wide(narrow["stores"]) == 0


class TestDescriptions:
    def _describe(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        with trace.launches() as made:
            triton_kernels.kl_div_forward(*args, **kwargs)
        return [aot.describe(launched) for launched in made]

    def test_launches_that_differ_only_in_sizes_are_the_same(self) -> None:
        with triton_kernels.tile_configs.use_tile_configs(interpreted=False):
            first = self._describe(torch.zeros(50).to(DEVICE), torch.zeros(50).to(DEVICE))
            second = self._describe(torch.zeros(7, 9).to(DEVICE), torch.zeros(7, 9).to(DEVICE))
        assert first == second

    def test_dtype_alignment_and_flags_tell_launches_apart(self) -> None:
        x = torch.zeros(65).to(DEVICE)
        described = [
            self._describe(x[:64], x[:64]),
            self._describe(x[1:], x[:64]),
            self._describe(x[:64].double(), x[:64]),
            self._describe(x[:64], x[:64], log_target=True),
        ]
        assert len({json.dumps(d) for d in described}) == 4

    def test_a_description_is_plain_data(self) -> None:
        (described,) = self._describe(torch.zeros(64).to(DEVICE), torch.zeros(64).to(DEVICE))
        assert json.loads(json.dumps(described)) == described

    def test_planning_shows_the_launches_of_a_gpu_and_executes_them_as_usual(self) -> None:
        planned: list[Any] = []
        x = torch.randn(3, 70000).to(DEVICE)
        with trace.gpu_launches(planned.append), trace.launches() as made:
            y = triton_kernels.softmax_forward(x, 1)
        assert [launched.kernel.__name__ for launched in planned] == ["_softmax_kernel"] * 2
        assert len(made) >= 1
        torch.testing.assert_close(y.cpu(), x.cpu().softmax(1))
