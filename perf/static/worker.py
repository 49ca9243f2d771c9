"""Compiles variants and reads their machine code; a process of its own, in which Triton's interpreter is off.

    TRITON_INTERPRET=0 python -m perf.static.worker [KEEP] < tasks > figures

A task is a line with a JSON list: a target, and the numbers of variants. KEEP is a folder for the machine code.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from perf.static import sass
from perf.static.shipped import Variant, variants
from triton_kernels.devtools import aot

#: What a program's number of elements is made of; the first that is more than 1 is halved.
_TILES = ("TILES", "BLOCK", "BLOCK_V", "BLOCK_N")


#: What yields machine code, is sent its text, and returns figures.
Reading = Generator[bytes, str, dict[str, Any]]


def figures(variant: Variant, target: str, keep: Path | None = None) -> Reading:
    """What a variant takes on a target.

    Instructions and special functions per element are marginal: the difference between the shipped tile and one of
    half the size (twice, where half is no whole access a thread), over the difference in elements a thread. A
    program's other instructions are `fixed`, and `total` are all of them per element. None where the code has no way
    with exactly the wide accesses that the variant needs.
    """
    description = aot.describe(variant.launched())
    compiled = aot.compile_for(description, target)
    report = aot.report(compiled, target)
    found: dict[str, Any] = {
        "registers": report.registers,
        "spills": report.spills,
        "shared": report.shared,
        "warps": description["num_warps"],
        "load_bits": None,
        "store_bits": None,
        "instructions": None,
        "special": None,
        "fixed": None,
        "elements": None,
        "total": None,
        "bytes": variant.bytes,
        "least": variant.least_bytes,
    }
    if not target.startswith("cuda"):
        return found
    text = yield compiled.asm["cubin"]
    blocks = sass.parse(text)
    ways = sass.ways(blocks)
    elements = _elements(description)
    way = ways.get(round(elements * variant.bytes)) if variant.bytes else None
    whole = way or sass.Way(tuple(i for block in blocks for i in block.instructions))
    found["load_bits"], found["store_bits"] = whole.bits("LDG", "LD"), whole.bits("STG", "ST")
    if keep:
        _keep(keep / f"{_file_name(variant, target)}.sass", text, way)
    if way is None:
        return found
    tile = next(name for name in _TILES if description["args"].get(name, 1) > 1)
    for size in (description["args"][tile] // 2, description["args"][tile] * 2):
        resized = copy.deepcopy(description)
        resized["args"][tile] = size
        compiled = aot.compile_for(resized, target)
        difference = elements - _elements(resized)
        others = sass.ways(sass.parse((yield compiled.asm["cubin"])))
        other = others.get(round((elements - difference) * (variant.bytes or 0)))
        if other is not None:
            break
    else:
        return found
    instructions = (len(way) - len(other)) / difference
    return found | {
        "instructions": round(instructions, 2),
        "special": round((way.special - other.special) / difference, 2),
        "fixed": round(len(way) - instructions * elements),
        "elements": elements,
        "total": round(len(way) / elements, 2),
    }


def _elements(description: dict[str, Any]) -> float:
    """Elements a thread of a program has."""
    args, count = description["args"], 1
    for name in _TILES:
        count *= args.get(name, 1)
    return count / (32 * description["num_warps"])


def _file_name(variant: Variant, target: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{variant.kernel} {variant.name} {variant.dtype} {target}".lower()).strip("-")


def _keep(path: Path, text: str, way: sass.Way | None) -> None:
    """Write machine code with a mark, >, at each instruction that is counted."""
    counted = {instruction.address for instruction in way.instructions} if way else set()
    lines = []
    for line in text.splitlines():
        found = re.match(r"\s*/\*([0-9a-f]+)\*/", line)
        lines.append(("> " if found and int(found[1], 16) in counted else "  ") + line)
    path.write_text("\n".join(lines) + "\n")


def answers(numbers: Sequence[int], target: str, keep: Path | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The figures of variants, by number, or an error; their machine code is disassembled together."""
    known = variants()
    reading = {number: figures(known[number], target, keep) for number in numbers}
    texts: dict[int, Any] = dict.fromkeys(numbers)
    while texts:
        cubins = {}
        for number, text in texts.items():
            try:
                cubins[number] = reading[number].send(text)
            except StopIteration as done:
                yield number, {"figures": done.value}
            except Exception as error:  # whatever a compiler raises is the finding
                yield number, {"error": f"{type(error).__name__}: {error}"}
        read = sass.disassemble(list(cubins.values()), int(aot.TARGETS[target][1])) if cubins else []
        texts = dict(zip(cubins, read, strict=True))


def main() -> None:
    """Answer tasks until there are no more; an error is an answer."""
    keep = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    for line in sys.stdin:
        target, numbers = json.loads(line)
        print(json.dumps([[number, target, answer] for number, answer in answers(numbers, target, keep)]), flush=True)


if __name__ == "__main__":
    main()
