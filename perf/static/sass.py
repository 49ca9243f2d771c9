"""Reads NVIDIA machine code: the cost of the path through a kernel that a whole tile takes.

A kernel's text has several paths from entry to exit: whole tiles and the ragged last one, code that is rarely needed.
The path counted here passes every loop once, makes exactly the 128-bit accesses to global memory that a whole tile
needs, and is the shortest of those. Every instruction on it counts, also one whose predicate is false: it is issued.
"""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import NamedTuple

import triton

_LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"\b0x([0-9a-f]+)$")


class Instruction(NamedTuple):
    """An instruction; its predicate is "" if it is always executed, its opcode has modifiers."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """Opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> int | None:
        """Address that a jump or a call goes to."""
        found = _TARGET.search(self.operands) if self.name in ("BRA", "CALL") else None
        return int(found[1], 16) if found else None

    @property
    def access(self) -> int:
        """Bytes of global memory that a thread reads or writes."""
        if self.name not in ("LDG", "STG", "LD", "ST"):
            return 0
        widths = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((widths[modifier] for modifier in self.opcode.split(".") if modifier in widths), 4)


@dataclass(slots=True)
class Block:
    """Instructions executed one after another, and the numbers of the blocks that may be next."""

    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


class Path(NamedTuple):
    """Instructions from the entry of a kernel to its exit."""

    instructions: tuple[Instruction, ...]

    @property
    def length(self) -> int:
        """Number of instructions."""
        return len(self.instructions)

    @property
    def special(self) -> int:
        """Number of special functions: logarithms, exponentials, roots and reciprocals."""
        return sum(instruction.name == "MUFU" for instruction in self.instructions)

    def bits(self, *names: str) -> int:
        """Width of the accesses named (LDG, STG) that move most of the bytes; 0 without any."""
        moved: Counter[int] = Counter()
        for instruction in self.instructions:
            if instruction.name in names:
                moved[instruction.access * 8] += instruction.access
        return moved.most_common(1)[0][0] if moved else 0


def disassemble(cubins: Sequence[bytes], architecture: int) -> list[str]:
    """The text of the machine code in each cubin, whose addresses continue from one to the next.

    nvdisasm takes longer to start than to read a kernel, so it gets all of them as one piece.
    """
    tool = File(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    codes = [_code(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        # With an a, the name stands for all instructions that there are.
        name = f"SM{architecture}{'a' if architecture >= 90 else ''}"
        command = [str(tool), "--no-dataflow", "--binary", name, file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [(int(line[1], 16), line[0]) for line in map(_LINE.match, printed.splitlines()) if line]
    ends = itertools.pairwise([0, *itertools.accumulate(map(len, codes))])
    return ["\n".join(line for address, line in found if start <= address < end) for start, end in ends]


def _code(cubin: bytes) -> bytes:
    """Machine code of an ELF file: its one executable section."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count = struct.unpack_from("<2H", cubin, 0x3A)
    sections = [struct.unpack_from("<2I4Q", cubin, start + number * size) for number in range(count)]
    (code,) = (cubin[offset : offset + length] for _, _, flags, _, offset, length in sections if flags & 4)
    return code


def parse(text: str) -> list[Block]:
    """The blocks of the one kernel in a disassembly, in the order of the text; the first is the entry.

    A call continues after it, without what the subroutine does, a slow path in all of them; or it never returns, as
    ptxas leaves some loops.

    Raises
    ------
    ValueError
        If the text has no instructions, or a jump whose target is not in the text.
    """
    instructions = [
        Instruction(int(m[1], 16), m[2] or "", m[3], m[4]) for m in map(_LINE.match, text.splitlines()) if m
    ]
    if not instructions:
        raise ValueError("no instructions in the text")
    targets = {instruction.target for instruction in instructions}
    blocks, starts = [Block()], dict[int, int]()
    for instruction in instructions:
        if instruction.address in targets:
            if blocks[-1].instructions:
                blocks[-1].successors.append(len(blocks))
                blocks.append(Block())
            starts[instruction.address] = len(blocks) - 1
        blocks[-1].instructions.append(instruction)
        if instruction.name in ("BRX", "JMP") or (instruction.name == "BRA" and instruction.target is None):
            raise ValueError(f"a jump whose target is calculated: {instruction.opcode} {instruction.operands}")
        if instruction.name in ("BRA", "CALL", "EXIT", "RET"):
            conditional = instruction.predicate or re.match(r"!?U?P\d", instruction.operands)
            if conditional or instruction.name == "CALL":
                blocks[-1].successors.append(len(blocks))
            blocks.append(Block())
    for block in blocks:
        target = block.instructions[-1].target if block.instructions else None
        if target is not None and target not in starts:
            raise ValueError(f"no instruction at {target:#x}, where a jump goes")
        found = [*block.successors, *([starts[target]] if target is not None else [])]
        block.successors = [number for number in dict.fromkeys(found) if number < len(blocks)]
    return blocks


def shortest_paths(blocks: list[Block]) -> dict[int, Path]:
    """The shortest path for each number of bytes that a thread can move in accesses of 128 bits or more."""
    # For each block: bytes from it to the exit -> (instructions to the exit, the next block, bytes from that on).
    best: list[dict[int, tuple[int, int, int]]] = [{} for _ in blocks]
    for number, successors in _from_the_exits(blocks):
        instructions = blocks[number].instructions
        wide = sum(instruction.access for instruction in instructions if instruction.access >= 16)
        # The end of a subroutine or of a trap is no exit.
        rests = [(0, -1, 0)] if instructions and instructions[-1].name == "EXIT" else []
        rests += [(rest[0], after, moved) for after in successors for moved, rest in best[after].items()]
        for rest, after, moved in rests:
            known = best[number].get(wide + moved)
            if known is None or len(instructions) + rest < known[0]:
                best[number][wide + moved] = (len(instructions) + rest, after, moved)
    found = {}
    for total in best[0]:
        path: list[Instruction] = []
        number, left = 0, total
        while number >= 0:
            path += blocks[number].instructions
            _, number, left = best[number][left]
        found[total] = Path(tuple(path))
    return found


def _from_the_exits(blocks: list[Block]) -> list[tuple[int, list[int]]]:
    """Blocks reached from the entry, each after its successors, which are listed without those that close a loop."""
    order: list[tuple[int, list[int]]] = []
    onwards: dict[int, list[int]] = {0: []}
    done: set[int] = set()
    stack = [(0, iter(blocks[0].successors))]
    while stack:
        number, successors = stack[-1]
        for after in successors:
            if after not in onwards or after in done:
                onwards[number].append(after)
            if after not in onwards:
                onwards[after] = []
                stack.append((after, iter(blocks[after].successors)))
                break
        else:
            done.add(number)
            order.append((number, onwards[number]))
            stack.pop()
    return order
