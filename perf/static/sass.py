"""Reads NVIDIA machine code: what the way through a kernel that a whole tile takes costs.

A kernel's text holds more than one way from entry to exit: whole tiles and the ragged last one, code that is rarely
needed. The way counted here passes every loop once, makes exactly the wide accesses to global memory that a whole tile
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
from pathlib import Path

import triton

#: Bytes of the widest access to global memory that every chip has; what is narrower is a row's statistics, or a fault.
WIDE = 16

_LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"\b0x([0-9a-f]+)$")


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
    def target(self) -> int | None:
        """The address that a jump or a call goes to."""
        found = _TARGET.search(self.operands) if self.name in ("BRA", "CALL") else None
        return int(found[1], 16) if found else None

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


def disassemble(cubins: Sequence[bytes], architecture: int) -> list[str]:
    """The text of the machine code in each cubin, whose addresses go on from one to the next.

    nvdisasm takes longer to start than to read a kernel, so it gets all of them as one piece.
    """
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    codes = [_code(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        # With an a, the name is that of all the instructions there are.
        name = f"SM{architecture}{'a' if architecture >= 90 else ''}"
        command = [str(tool), "--no-dataflow", "--binary", name, file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [(int(line[1], 16), line[0]) for line in map(_LINE.match, printed.splitlines()) if line]
    ends = list(itertools.accumulate(map(len, codes)))
    return [
        "\n".join(line for address, line in found if start <= address < end)
        for start, end in itertools.pairwise([0, *ends])
    ]


def _code(cubin: bytes) -> bytes:
    """The machine code in an ELF file: the one section that can be executed."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count = struct.unpack_from("<2H", cubin, 0x3A)
    sections = [struct.unpack_from("<2I4Q", cubin, start + number * size) for number in range(count)]
    (code,) = (cubin[offset : offset + length] for _, _, flags, _, offset, length in sections if flags & 4)
    return code


def parse(text: str) -> list[Block]:
    """The blocks of the one kernel in a disassembly, in the order of the text; the first is the entry.

    A call may go on behind it, which leaves out what the subroutine does, a slow path in all of them; or it may never
    return, as ptxas leaves some loops.

    Raises
    ------
    ValueError
        If the text has no instructions, or a jump whose target is not in the text.
    """
    found = map(_LINE.match, text.splitlines())
    instructions = [Instruction(int(m[1], 16), m[2] or "", m[3], m[4]) for m in found if m]
    if not instructions:
        raise ValueError("no instructions in the text")
    targets = {instruction.target for instruction in instructions}
    blocks = [Block()]
    starts: dict[int, int] = {}
    for instruction in instructions:
        if instruction.address in targets:
            if blocks[-1].instructions:
                blocks[-1].followers.append(len(blocks))
                blocks.append(Block())
            starts[instruction.address] = len(blocks) - 1
        blocks[-1].instructions.append(instruction)
        if instruction.name in ("BRX", "JMP") or (instruction.name == "BRA" and instruction.target is None):
            raise ValueError(f"a jump whose target is calculated: {instruction.opcode} {instruction.operands}")
        if instruction.name in ("BRA", "CALL", "EXIT", "RET"):
            if instruction.conditional or instruction.name == "CALL":
                blocks[-1].followers.append(len(blocks))
            blocks.append(Block())
    for block in blocks:
        target = block.instructions[-1].target if block.instructions else None
        if target is not None:
            if target not in starts:
                raise ValueError(f"no instruction at {target:#x}, where a jump goes")
            block.followers.append(starts[target])
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
