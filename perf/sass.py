"""Reads NVIDIA machine code: what the way through a kernel that a whole tile takes costs.

A kernel's text holds more than one way from entry to exit: whole tiles and the ragged last one, code that is rarely
needed. The way counted here passes every loop once, makes exactly the wide accesses to global memory that a whole tile
needs, and is the shortest of those. Every instruction on it counts, also one whose predicate is false: it is issued.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import triton

#: Bytes of the widest access to global memory that every chip has; what is narrower is a row's statistics, or a fault.
WIDE = 16

_LABEL = re.compile(r"^(\.L_\S+):\s*$")
_LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\((\.L_\S+)\)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """Where an instruction lies, its predicate ("" if always executed), its opcode with modifiers, its operands."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def conditional(self) -> bool:
        """Whether a jump may fall through."""
        return bool(self.predicate) or re.match(r"!?U?P\d", self.operands) is not None

    @property
    def access(self) -> int:
        """Bytes of global memory a thread reads or writes."""
        if self.name not in ("LDG", "STG", "LD", "ST"):
            return 0
        modifiers = self.opcode.split(".")
        for bits in (256, 128, 64):
            if str(bits) in modifiers:
                return bits // 8
        return 1 if {"U8", "S8"} & set(modifiers) else 2 if {"U16", "S16"} & set(modifiers) else 4

    @property
    def wide(self) -> int:
        """`access`, if it is a wide one."""
        return self.access if self.access >= WIDE else 0


@dataclass(slots=True)
class Block:
    """Instructions executed one after the other, and the numbers of the blocks that may follow."""

    instructions: list[Instruction] = field(default_factory=list)
    followers: list[int] = field(default_factory=list)

    @property
    def ends(self) -> bool:
        """Whether the kernel may end with it; the end of a subroutine or of a trap is none."""
        return bool(self.instructions) and self.instructions[-1].name == "EXIT"


@dataclass(frozen=True, slots=True)
class Way:
    """The instructions on a way from the entry of a kernel to its exit."""

    instructions: tuple[Instruction, ...]

    def __len__(self) -> int:
        return len(self.instructions)

    @property
    def special(self) -> int:
        """Special functions: logarithms, exponentials, roots and reciprocals."""
        return sum(instruction.name == "MUFU" for instruction in self.instructions)

    def bits(self, *names: str) -> int:
        """The width of the accesses named (LDG, STG) by which most bytes go; 0 if there is none."""
        moved: Counter[int] = Counter()
        for instruction in self.instructions:
            if instruction.name in names:
                moved[instruction.access * 8] += instruction.access
        return moved.most_common(1)[0][0] if moved else 0


def disassemble(cubin: bytes) -> str:
    """The text of a kernel's machine code."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout


def parse(text: str) -> list[Block]:
    """The blocks of the one kernel in a disassembly, in the order of the text; the first is the entry.

    A call may go on behind it, which leaves out what the subroutine does, a slow path in all of them; or it may never
    return, as ptxas leaves some loops.

    Raises
    ------
    ValueError
        If the text has no instructions, or a jump whose target is not in the text.
    """
    blocks = [Block()]
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        label, found = _LABEL.match(line), _LINE.match(line)
        if label:
            if blocks[-1].instructions:
                blocks[-1].followers.append(len(blocks))
                blocks.append(Block())
            labels[label[1]] = len(blocks) - 1
        elif found:
            instruction = Instruction(int(found[1], 16), found[2] or "", found[3], found[4])
            blocks[-1].instructions.append(instruction)
            target = _TARGET.search(instruction.operands)
            if instruction.name in ("BRX", "JMP") or (instruction.name == "BRA" and target is None):
                raise ValueError(f"a jump whose target is calculated: {line.strip()}")
            if instruction.name in ("BRA", "CALL") and target:
                jumps.append((len(blocks) - 1, target[1]))
            if instruction.name in ("BRA", "CALL", "EXIT", "RET"):
                if instruction.conditional or instruction.name == "CALL":
                    blocks[-1].followers.append(len(blocks))
                blocks.append(Block())
    for source, name in jumps:
        if name not in labels:
            raise ValueError(f"no label {name} in the text")
        blocks[source].followers.append(labels[name])
    if not any(block.instructions for block in blocks):
        raise ValueError("no instructions in the text")
    for block in blocks:
        block.followers = [number for number in dict.fromkeys(block.followers) if number < len(blocks)]
    return blocks


def ways(blocks: list[Block]) -> dict[int, Way]:
    """The shortest way for each number of bytes of wide accesses, by a thread, that there can be on one."""
    # For each block: bytes from there to the exit -> (instructions from there to the exit, the block that follows, the
    # bytes from that on).
    best: list[dict[int, tuple[int, int, int]]] = [{} for _ in blocks]
    for number, followers in _backwards(blocks):
        block = blocks[number]
        count, wide = len(block.instructions), sum(instruction.wide for instruction in block.instructions)
        rests = [(0, -1, 0)] if block.ends else []
        rests += [(rest[0], follower, beyond) for follower in followers for beyond, rest in best[follower].items()]
        for rest, follower, beyond in rests:
            known = best[number].get(wide + beyond)
            if known is None or count + rest < known[0]:
                best[number][wide + beyond] = (count + rest, follower, beyond)
    found = {}
    for total in best[0]:
        instructions: list[Instruction] = []
        number, left = 0, total
        while number >= 0:
            instructions += blocks[number].instructions
            _, number, left = best[number][left]
        found[total] = Way(tuple(instructions))
    return found


def _backwards(blocks: list[Block]) -> list[tuple[int, list[int]]]:
    """Blocks reached from the entry, each behind its followers, which are listed without those that close a loop."""
    order: list[tuple[int, list[int]]] = []
    onwards: dict[int, list[int]] = {0: []}
    done: set[int] = set()
    stack = [(0, iter(blocks[0].followers))]
    while stack:
        number, followers = stack[-1]
        for follower in followers:
            if follower not in onwards or follower in done:
                onwards[number].append(follower)
            if follower not in onwards:
                onwards[follower] = []
                stack.append((follower, iter(blocks[follower].followers)))
                break
        else:
            done.add(number)
            order.append((number, onwards[number]))
            stack.pop()
    return order
