"""Tile sizes and numbers of warps, for GPUs and for the interpreter.

Each function maps an element size and a shape to a `Config`. GPU tiles allow 128-bit accesses and hide latency.
Interpreter tiles are as large as the data, because a program costs milliseconds there and an element almost nothing.
Tile sizes change only the order of summation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from . import backend

INTERPRETER_TILE = 2**16


@dataclass(frozen=True, slots=True)
class Config:
    """Constexpr tile sizes by parameter name, and what Triton's compiler is told.

    That is the number of warps; the registers per thread, where bounded (CUDA); and how many iterations of a loop of
    matrix products are under way at a time, where that is not Triton's choice.
    """

    tiles: dict[str, int]
    num_warps: int = 4
    max_registers: int | None = None
    num_stages: int | None = None

    def __getitem__(self, name: str) -> int:
        return self.tiles[name]

    @property
    def options(self) -> dict[str, int]:
        """Options of Triton's compiler."""
        options = {"num_warps": self.num_warps}
        if self.max_registers is not None and not backend.HIP:
            options["maxnreg"] = self.max_registers
        if self.num_stages is not None:
            options["num_stages"] = self.num_stages
            options |= hip_options(self.num_warps, self.num_stages) if backend.HIP else {}
        return options


def hip_options(num_warps: int, num_stages: int) -> dict[str, int]:
    """Return the options of loops of matrix products on AMD GPUs.

    A warp has 64 threads there; of 4 warps each may have 512 registers. Shared memory, of 64 KiB, holds two stages.
    """
    return {"num_warps": min(4, num_warps), "num_stages": min(2, num_stages)}


class _State(threading.local):
    """Whether this thread uses interpreter tiles."""

    def __init__(self) -> None:
        self.interpreted = backend.INTERPRETED


_state = _State()


@contextmanager
def use_tile_configs(*, interpreted: bool) -> Iterator[None]:
    """Use interpreter or GPU tiles inside the block, in this thread."""
    before = _state.interpreted
    _state.interpreted = interpreted
    try:
        yield
    finally:
        _state.interpreted = before


def interpreted() -> bool:
    """Return whether this thread uses interpreter tiles."""
    return _state.interpreted


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up; `triton.cdiv` takes 3 µs of host time per call.

    >>> cdiv(7, 3)
    3
    """
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the least power of two that is at least `n`; unlike Triton's, 1 for 0.

    >>> next_power_of_2(5), next_power_of_2(8), next_power_of_2(0)
    (8, 8, 1)
    """
    return 1 << max(n - 1, 0).bit_length()


def pointwise(itemsize: int, numel: int, dims: int = 1) -> Config:
    """Tiles of pointwise operations: 128-bit accesses for contiguous operands.

    Offsets in several dimensions take registers, so the tile is smaller.
    """
    if _state.interpreted:
        return Config({"BLOCK": min(next_power_of_2(numel), INTERPRETER_TILE)})
    if itemsize > 4:  # float64 division and logarithm are software routines, which take registers
        return Config({"BLOCK": 256}, num_warps=4)
    if dims > 1:
        return Config({"BLOCK": 512}, num_warps=4)
    return Config({"BLOCK": 2048 if itemsize == 4 else 4096}, num_warps=8 if itemsize < 4 else 4)


def random(itemsize: int, numel: int) -> Config:
    """Tiles of random numbers, at least of 16 elements, since 4 have one counter; two counters per thread on GPUs."""
    if _state.interpreted:
        return Config({"BLOCK": max(16, min(next_power_of_2(numel), INTERPRETER_TILE))})
    return Config({"BLOCK": 512 if itemsize > 4 else 1024}, num_warps=4)


def pointwise_sum(itemsize: int, numel: int, dims: int = 1) -> Config:
    """Tiles of pointwise operations with a sum: several per program, for fewer partial sums.

    Each element of the tile has an accumulator in a register.
    """
    if _state.interpreted or dims > 1:
        tile = pointwise(itemsize, numel, dims)
        return Config({**tile.tiles, "TILES": 1}, tile.num_warps)
    if itemsize > 4:
        return Config({"BLOCK": 512, "TILES": 8}, num_warps=4)
    return Config({"BLOCK": 2048, "TILES": 4}, num_warps=4)


def finalize(partials: int, rows: int = 1) -> Config:
    """Blocks of partial results to sum; fixed on GPUs, so that one specialization serves all lengths."""
    if _state.interpreted:
        return Config({"BLOCK": min(next_power_of_2(partials), INTERPRETER_TILE)})
    if rows > 1 and partials <= 128:
        return Config({"BLOCK": 128}, num_warps=1)
    return Config({"BLOCK": 4096}, num_warps=8)


def token_sum(tokens: int) -> Config:
    """Blocks of token losses to sum; BLOCK·TILES per program."""
    if _state.interpreted:
        return Config({"BLOCK": min(next_power_of_2(tokens), INTERPRETER_TILE), "TILES": 1})
    return Config({"BLOCK": 1024, "TILES": 8}, num_warps=4)


def tokens(rows: int) -> Config:
    """Blocks of rows, of which one number each is calculated."""
    block = min(next_power_of_2(rows), INTERPRETER_TILE) if _state.interpreted else 256
    return Config({"BLOCK_N": block, "BLOCK_V": 1}, num_warps=4)


#: Programs that scale a gradient: few, since each reads the factor, usually 1, and returns then.
SCALING_PROGRAMS = 1024


def rows(itemsize: int, columns: int, contiguous: bool, tiles: int = 1) -> Config:
    """Tiles of rows and columns; `contiguous` means a column stride of 1.

    The tile does not depend on the number of rows, so results are batch-invariant. A row of at most BLOCK_V columns
    stays in registers between its statistics and its results, in `tiles` tensors at once: it has one chunk, BLOCK_C.
    The programs of a longer row wait for each other: they have smaller tiles, so that several fit a multiprocessor.
    """
    if _state.interpreted:
        return Config({**_interpreted_rows(INTERPRETER_TILE, columns).tiles, "BLOCK_C": 1})
    registers = 2 if itemsize > 4 else 1
    limit = 32768 // (registers * registers * tiles) if contiguous else 128 // (registers * registers)
    if contiguous and columns > limit:
        limit = 4096 // registers
    block_v = min(next_power_of_2(columns), limit)
    if not contiguous:
        warps = max(4 * registers, block_v // 16)
        return Config({"BLOCK_N": 32, "BLOCK_V": block_v, "BLOCK_C": 1}, num_warps=warps)
    # 32 elements per thread amortize per-program work; 16 if a program has several short rows with one address each.
    block_n = max(1, 1024 // (block_v * registers))
    warps = block_n * block_v * registers // (1024 if block_n == 1 else 512)
    return Config({"BLOCK_N": block_n, "BLOCK_V": block_v, "BLOCK_C": 1}, num_warps=max(1, min(16, warps)))


def sums(itemsize: int, rows: int, columns: int, contiguous: bool) -> Config:
    """Tiles of rows and columns to sum; TILES of columns per program."""
    if _state.interpreted:
        config = _interpreted_rows(rows, columns)
        return Config({**config.tiles, "TILES": 1})
    block_v = min(next_power_of_2(columns), 4096 if contiguous else 64)
    block_n = min(4096 // block_v, 64)
    return Config({"BLOCK_N": block_n, "BLOCK_V": block_v, "TILES": 8 if contiguous else 64}, num_warps=8)


def _interpreted_rows(rows: int, columns: int) -> Config:
    block_v = min(next_power_of_2(columns), 16 * INTERPRETER_TILE)
    return Config({"BLOCK_N": max(1, min(next_power_of_2(rows), INTERPRETER_TILE // block_v)), "BLOCK_V": block_v})


def logits(itemsize: int, rows: int, columns: int, contiguous: bool, whole_rows: bool) -> Config:
    """Tiles of rows and one chunk of columns, for losses of logits.

    GPU tiles do not depend on the number of rows. With `whole_rows` a row is one chunk if it fits: it needs no merging
    then, and two-pass losses load it once.
    """
    if _state.interpreted:
        return _interpreted_rows(rows, columns)
    wide = itemsize > 4
    if not contiguous:
        block_v = min(next_power_of_2(columns), 16 if wide else 32)
        return Config({"BLOCK_N": 32, "BLOCK_V": block_v}, num_warps=max(4, block_v if wide else block_v // 4))
    if wide:  # float64 exponentials and logarithms are software routines, which take registers
        block_v = min(next_power_of_2(columns), 512)
        return Config({"BLOCK_N": max(1, 128 // block_v), "BLOCK_V": block_v}, num_warps=max(4, block_v // 32))
    # One row per program, with scalar statistics, and 32 elements per thread to amortize per-program work: half the
    # instructions of tiles of several rows.
    block_v = min(next_power_of_2(columns), 8192 if whole_rows and columns <= 8192 else 4096)
    return Config({"BLOCK_N": 1, "BLOCK_V": block_v}, num_warps=max(1, block_v // 1024))


#: Maximal chunks of a row whose programs merge its statistics within a launch: each merges those of all. For tiles of
#: several rows fewer, as it merges those of all of its rows.
MAX_ROW_CHUNKS, MAX_ROW_CHUNKS_OF_SEVERAL = 256, 32


#: The registers of a multiprocessor, and the most that a thread may have. ptxas may take fewer, and spill, unless it is
#: told.
REGISTERS, MOST_REGISTERS = 2**16, 255


def meeting(config: Config, itemsize: int, tiles: int, registers: int) -> tuple[Config, int, int | None]:
    """Return the configuration of rows of `tiles` tiles; their number of chunks, and of tiles per chunk, None for 1.

    A thread of a tile of one row has at most `registers`, so that several programs fit a multiprocessor: they hide each
    other's waits.

    >>> config = Config({"BLOCK_N": 1, "BLOCK_V": 4096})
    >>> meeting(config, 4, 32, 128)[1:], meeting(config, 4, 1000, 128)[1:]
    ((32, None), (250, 4))
    """
    one_row = config["BLOCK_N"] == 1
    tiles_per_chunk = cdiv(tiles, MAX_ROW_CHUNKS if one_row or _state.interpreted else MAX_ROW_CHUNKS_OF_SEVERAL)
    chunks = cdiv(tiles, tiles_per_chunk)
    warps = config.num_warps
    if not one_row or itemsize > 4:  # take more registers than any bound: of 256 threads each may have the most
        warps, registers = min(8, warps), MOST_REGISTERS
    registers = min(registers, REGISTERS // (32 * warps))
    config = Config({**config.tiles, "BLOCK_C": next_power_of_2(chunks)}, warps, registers)
    return config, chunks, tiles_per_chunk if tiles_per_chunk > 1 else None


def of_more_threads(config: Config) -> Config:
    """Return the configuration with twice the threads, for a kernel that holds more of each element."""
    return config if _state.interpreted else replace(config, num_warps=min(16, 2 * config.num_warps))


def polls() -> int:
    """Return how often a program polls for the statistics of other chunks: for about 0.3 ms (not measured).

    The interpreter runs programs one after another, so that polling would not help.
    """
    return 0 if backend.INTERPRETED else 500


#: As many programs keep a GPU of 132 multiprocessors busy; fewer take smaller tiles of a matrix product.
_BUSY = 128
#: Shared memory per program of sm_90, and more than sm_80 has.
_MUCH_SHARED_MEMORY = 200 * 1024


def matmul(dtype: torch.dtype, rows: int, n: int, k: int, tf32: bool, wide: bool, device: torch.device) -> Config:
    """Tiles of a matrix product, of `rows` rows in all of a batch.

    BLOCK_K depends on the dtype only. On sm_90 all tiles of half precision and of tf32 are products by wgmma, of 64
    rows per 4 warps. `wide` operands allow 128-bit accesses; others take registers for addresses.
    """
    if _state.interpreted:
        bound = {"BLOCK_M": (rows, 512), "BLOCK_N": (n, 512), "BLOCK_K": (k, 2048)}
        tiles = {name: max(16, min(next_power_of_2(size), most)) for name, (size, most) in bound.items()}
        return Config({**tiles, "GROUP_M": 8})
    if dtype.itemsize > 4:
        return _matmul(32, 32, 16, 8, None)
    block_k = 128 // dtype.itemsize  # 128 bytes: a row of operands in swizzled shared memory
    choices: list[tuple[int, int, int, int, int | None]]
    if dtype.itemsize > 2 and not tf32:
        choices = [(128, 64, 16, 8, None), (64, 64, 16, 8, None)]
    else:
        choices = [(128, 256, block_k, 8, 3), (128, 128, block_k, 8, 3), (64, 64, block_k, 4, 4)]
        if backend.shared_memory(device) < _MUCH_SHARED_MEMORY:
            del choices[0]
    busy = (tile for tile in choices if wide and cdiv(rows, tile[0]) * cdiv(n, tile[1]) >= _BUSY)
    return _matmul(*next(busy, choices[-1]))


def _matmul(m: int, n: int, k: int, warps: int, stages: int | None) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8}, warps, num_stages=stages)


def embedding(itemsize: int, width: int) -> Config:
    """Tiles of tokens and of the embedding's width."""
    elements = INTERPRETER_TILE if _state.interpreted else 4096 // itemsize
    block_d = min(next_power_of_2(width), elements)
    return Config({"BLOCK_N": max(1, elements // block_d), "BLOCK_D": block_d}, num_warps=4)


def embedding_gradient(itemsize: int, tokens: int, rows: int, width: int) -> Config:
    """Tiles of table rows, of tokens, and of the embedding's width."""
    if _state.interpreted:
        bound = {"BLOCK_R": (rows, 512), "BLOCK_N": (tokens, 4096), "BLOCK_D": (width, 512)}
        return Config({name: max(16, min(next_power_of_2(size), most)) for name, (size, most) in bound.items()})
    tile, width_tile = (16, 32) if itemsize > 4 else (32, 64)
    block_d = max(16, min(next_power_of_2(width), width_tile))
    return Config({"BLOCK_R": tile, "BLOCK_N": tile, "BLOCK_D": block_d}, num_warps=4)


def attention(itemsize: int, queries: int, keys: int, head: int, value: int, of: str) -> Config:
    """Tiles of queries and of keys, and powers of two that hold a head's columns of keys and of values.

    `of` is "out" in forward, in backward "dq" or "dkdv". In float32 the loop of "dkdv" has one stage, as more
    would take too many registers.
    """
    sizes = {"BLOCK_E": max(16, next_power_of_2(head)), "BLOCK_D": max(16, next_power_of_2(value))}
    widest = max(sizes.values())
    if _state.interpreted:
        bound = {"BLOCK_M": queries, "BLOCK_N": keys}
        return Config({**{name: max(16, min(next_power_of_2(n), 512)) for name, n in bound.items()}, **sizes})
    if itemsize > 2:
        block = 16 if itemsize > 4 or widest > 64 else 32
        stages = 3 if of == "out" or (of == "dq" and itemsize == 4) else 1
        return _attention(block, block, sizes, 8 if itemsize > 4 and widest > 64 else 4, stages)
    if widest > 128:
        return _attention(64 if of == "out" else 32, 32, sizes, 8, 2)
    if of == "out":
        return _attention(128, 64, sizes, 8, 3)
    return _attention(64, 64, sizes, 4 if widest <= 64 else 8, 3)


def _attention(m: int, n: int, sizes: dict[str, int], warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n, **sizes}, warps, num_stages=stages)


def multi_tensor(itemsize: int, largest: int) -> Config:
    """Tiles of launches over lists of tensors: BLOCK·TILES elements per program, BLOCK_T columns of the table at once.

    A program searches the table for its tensor, which takes as long as a tile; so it has several tiles.
    """
    if _state.interpreted:
        return Config({"BLOCK": min(next_power_of_2(largest), INTERPRETER_TILE), "TILES": 1, "BLOCK_T": 4096})
    if itemsize > 4:
        return Config({"BLOCK": 512, "TILES": 8, "BLOCK_T": 512})
    return Config({"BLOCK": 1024, "TILES": 16, "BLOCK_T": 512})


#: Programs of the gradient of a normalization, each with a partial sum of the gradient of the weight.
NORMALIZATION_PROGRAMS = 256


def normalized_rows(itemsize: int, rows: int, columns: int) -> Config:
    """Tiles of rows that are normalized, and of their columns: a whole row where it fits."""
    if _state.interpreted:
        return _interpreted_rows(rows, columns)
    block_v = min(next_power_of_2(columns), 1024 if itemsize > 4 else 4096)
    block_n = max(1, (512 if itemsize > 4 else 2048) // block_v)
    return Config({"BLOCK_N": block_n, "BLOCK_V": block_v}, num_warps=max(1, min(8, block_n * block_v // 512)))
