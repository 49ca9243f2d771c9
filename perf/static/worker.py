"""Processes in which Triton's interpreter is off: they compile kernels and read their machine code."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.progress import track

from perf.static import sass
from perf.static.shipped import Variant, variants
from triton_kernels.devtools import aot

#: Factors of a program's number of elements; the first that is more than 1 is halved.
_TILES = ("TILES", "BLOCK", "BLOCK_V", "BLOCK_N")

#: Read off the machine code, cuda only.
_COUNTED = ("load_bits", "store_bits", "instructions", "special", "fixed", "elements", "total", "special_total")

#: Figures of the shipped tile, and those that take another.
OF_SHIPPED = ("registers", "spills", "shared", "warps", "load_bits", "store_bits", "elements", "total", "special_total")
OF_ANOTHER = ("instructions", "special", "fixed")

#: Yields machine code, is sent its text, and returns figures.
Reading = Generator[bytes, str, dict[str, Any]]


def answers(function: Callable[[Any], Any], tasks: Sequence[Any], jobs: int) -> list[Any]:
    """What a function returns for each task, in processes that compile."""
    context, console = multiprocessing.get_context("spawn"), Console(file=sys.stderr)
    with (
        mock.patch.dict(os.environ, TRITON_INTERPRET="0"),
        ProcessPoolExecutor(max(1, min(jobs, len(tasks))), context) as pool,
    ):
        done = pool.map(function, tasks)
        return list(track(done, "compiling", len(tasks), console=console, disable=not console.is_terminal))


def compile_launch(task: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """The report of a described launch on a target, or an error."""
    description, target = task
    try:
        return asdict(aot.report(aot.compile_for(description, target), target))
    except Exception as error:  # whatever a compiler raises is the finding
        return {"error": f"{type(error).__name__}: {error}"}


def read_variants(
    task: tuple[str, Sequence[int], Path | None, dict[int, dict[str, float]]],
) -> list[tuple[int, str, dict[str, Any]]]:
    """The figures of variants, by number, on a target, or errors; their machine code is disassembled together.

    Accepted figures, by number, save the half of the compilations where those of the shipped tile are as they were.
    """
    target, numbers, keep, accepted = task
    variant_list, found = variants(), []
    reading = {number: _figures(variant_list[number], target, keep, accepted.get(number, {})) for number in numbers}
    texts: dict[int, Any] = dict.fromkeys(numbers)
    while texts:
        cubins = {}
        for number, text in texts.items():
            try:
                cubins[number] = reading[number].send(text)
            except StopIteration as done:
                found.append((number, target, done.value))
            except Exception as error:  # whatever a compiler raises is the finding
                found.append((number, target, {"error": f"{type(error).__name__}: {error}".splitlines()[0]}))
        read = sass.disassemble(list(cubins.values()), int(aot.TARGETS[target][1])) if cubins else []
        texts = dict(zip(cubins, read, strict=True))
    return found


def _figures(variant: Variant, target: str, keep: Path | None, accepted: dict[str, float]) -> Reading:
    """The figures of a variant on a target.

    Instructions and special functions per element are marginal: the difference between the shipped tile and one of
    half the size (twice, where half is no whole access a thread), over the difference in elements a thread. A
    program's other instructions are `fixed`; `total` and `special_total` are all of them per element. None where the
    code has no path with exactly the 128-bit accesses that the variant needs. Where registers, spills, accesses and
    totals of the shipped tile are the accepted ones, so are taken to be those that another tile would tell.
    """
    description = aot.describe(variant.launched())
    compiled = aot.compile_for(description, target)
    report = aot.report(compiled, target)
    found: dict[str, Any] = {name: getattr(report, name) for name in ("registers", "spills", "shared")}
    found |= {"warps": description["num_warps"], **dict.fromkeys(_COUNTED)}
    found |= {"bytes": variant.bytes, "least": variant.least_bytes}
    if not target.startswith("cuda"):
        return found
    text = yield compiled.asm["cubin"]
    blocks = sass.parse(text)
    elements = _elements(description)
    path = sass.shortest_paths(blocks).get(round(elements * variant.bytes)) if variant.bytes else None
    shown = path or sass.Path(tuple(i for block in blocks for i in block.instructions))
    found |= {"load_bits": shown.bits("LDG", "LD"), "store_bits": shown.bits("STG", "ST")}
    if keep:
        name = re.sub(r"[^a-z0-9]+", "-", f"{variant.kernel} {variant.name} {variant.dtype} {target}".lower())
        (keep / f"{name.strip('-')}.sass").write_text(_marked(text, path))
    if path is None:
        return found
    found |= {"total": round(path.length / elements, 2), "special_total": round(path.special / elements, 2)}
    found |= {"elements": elements}
    if accepted and all(found[name] == accepted[name] for name in OF_SHIPPED):
        return found | {name: accepted[name] for name in OF_ANOTHER}
    tile = next(name for name in _TILES if description["args"].get(name, 1) > 1)
    for size in (description["args"][tile] // 2, description["args"][tile] * 2):
        resized = copy.deepcopy(description)
        resized["args"][tile] = size
        others = sass.shortest_paths(sass.parse((yield aot.compile_for(resized, target).asm["cubin"])))
        other = others.get(round(_elements(resized) * (variant.bytes or 0)))
        if other is not None:
            more = elements - _elements(resized)
            each = (path.length - other.length) / more
            special = (path.special - other.special) / more
            found |= {"instructions": round(each, 2), "special": round(special, 2)}
            return found | {"fixed": round(path.length - each * elements)}
    return found | dict.fromkeys(("total", "special_total", "elements"))


def _elements(description: dict[str, Any]) -> float:
    """Elements a thread of a program has."""
    return math.prod(description["args"].get(name, 1) for name in _TILES) / (32 * description["num_warps"])


def _marked(text: str, path: sass.Path | None) -> str:
    """Machine code with a mark, >, at each instruction that is counted."""
    counted = {f"{instruction.address:x}" for instruction in path.instructions} if path else set()
    lines = ((re.match(r"\s*/\*0*([0-9a-f]+)\*/", line), line) for line in text.splitlines())
    return "".join(f"{'>' if address and address[1] in counted else ' '} {line}\n" for address, line in lines)
