"""Launches that users can reach, recorded, compiled and judged: none may be refused, spill or have narrow accesses."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from perf.static import worker
from perf.static.matrix_ops import CALLS
from triton_kernels.devtools import aot
from triton_kernels.runtime import launch

#: The target that every launch is compiled for; one in `OTHERS` is compiled for another, too.
MAIN, OTHERS = "cuda:90", 8

#: Kernels that add up or merge few numbers, where the width of accesses matters little.
SMALL = ("_finalize_kernel", "_merge_kernel", "_token_mean_kernel", "_token_sum_kernel", "_update_scale_kernel")

#: Bytes that ptxas may spill, as it does in a few of these launches with registers to spare; shipped variants have 0.
FEW_BYTES = 32

#: More of them, by kernel and target: float64 products of heads of more than 64 columns, without tensor cores there.
SPILLS = {("_attention_dq_kernel", "cuda:100"): 256}

#: Bytes of shared memory that a program may have, by target.
SHARED = {"cuda:80": 163 * 1024, "cuda:90": 227 * 1024, "cuda:100": 227 * 1024, "hip:gfx942": 64 * 1024}


def launches() -> Iterator[tuple[str, launch.Launch]]:
    """All launches, as a GPU would get them, each with its call in words."""
    for name, (call, cases) in CALLS.items():
        for case in cases:
            made: list[launch.Launch] = []
            with torch.device("meta"), launch.dry_run(made.append):
                call(case)
            words = f"{name} {' '.join(f'{key}={value}' for key, value in case.items())}"
            yield from ((words, launched) for launched in made)


def faults(calls: Iterable[tuple[str, launch.Launch]], targets: Sequence[str] | None, jobs: int) -> list[str]:
    """Compile launches; a line for each that is refused, spills, or has narrow accesses where wide ones fit.

    `targets` are those that each is compiled for; by default `MAIN`, and for one launch in eight one of the others.
    """
    distinct: dict[str, tuple[str, launch.Launch]] = {}
    for words, launched in calls:
        distinct.setdefault(json.dumps(aot.describe(launched)), (words, launched))
    tasks = [(description, target) for description in distinct for target in targets or some_targets(description)]
    reports = worker.answers(worker.compile_launch, [(json.loads(text), target) for text, target in tasks], jobs)
    found = []
    for (description, target), report in zip(tasks, reports, strict=True):
        words, launched = distinct[description]
        if fault := _fault(launched, report, target):
            found.append(f"{words}, {launched.kernel.__name__}, {target}: {fault}")
    print(f"{len(tasks)} launches compiled, {len(found)} of them with faults")
    return found


def some_targets(description: str) -> tuple[str, ...]:
    """`MAIN`, and for some launches one of the others, always the same: launches that are alike see all of them."""
    number, others = zlib.crc32(description.encode()), [target for target in aot.TARGETS if target != MAIN]
    return (MAIN,) if number % OTHERS else (MAIN, others[number // OTHERS % len(others)])


def _fault(launched: launch.Launch, report: dict[str, Any], target: str) -> str:
    if "error" in report:
        return str(report["error"])
    if report["spills"] > SPILLS.get((launched.kernel.__name__, target), FEW_BYTES):
        return f"{report['spills']} bytes of spills with {report['registers']} registers"
    if report["shared"] > SHARED[target]:
        return f"{report['shared']} bytes of shared memory, at most {SHARED[target]} accepted"
    accesses = (*report["loads"].items(), *report["stores"].items())
    moved = sum(width * count for width, count in accesses if width >= 16)
    least = least_wide(launched)
    if accesses and moved < least:
        return f"{moved} bytes a thread in 128-bit accesses, at least {least} expected"
    return ""


def least_wide(launched: launch.Launch) -> int:
    """Bytes that a thread moves in 128-bit accesses, where all tensors of full size are aligned and without gaps.

    0 where one is not, or where a thread has less than 128 bits of one.
    """
    tensors = [
        (name, t) for name, value in launched.args.items() for t in tree_leaves(value) if isinstance(t, torch.Tensor)
    ]
    size = max(*(t.numel() for _, t in tensors), launched.args.get("n", 0))  # all operands may broadcast
    full = [(name, t) for name, t in tensors if t.numel() > size // 2]  # teachers may have fewer columns
    tiles = launched.config.tiles
    elements = tiles.get("BLOCK", tiles.get("BLOCK_N", 1) * tiles.get("BLOCK_V", 0)) // (32 * launched.config.num_warps)
    # A merge of extremes of chunks; a table has addresses, not tensors.
    merges, of_table = launched.args.get("index_ptr") is not None, "table_ptr" in launched.args
    if launched.kernel.__name__ in SMALL or merges or of_table:
        return 0
    for _, t in full:
        if not t.is_contiguous() or t.data_ptr() % 16 or (t.shape or (1,))[-1] % 16 or elements * t.itemsize < 16:
            return 0
    for name, value in launched.args.items():
        # An operand of rows is a tensor, strides between rows, the stride between columns unless it is 1, and a unit.
        if isinstance(value, tuple) and len(value) == 4 and value[2] is not None:
            return 0
        if name.endswith("column_strides") and value is not None and value[-1] != 1:
            return 0
    return sum(elements * t.itemsize for _, t in full)
