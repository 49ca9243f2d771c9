"""Flags in memory by which programs that hold the chunks of a row tell each other that statistics are stored.

A program stores its chunk's statistics, sets the chunk's flag, and waits for those of the row's other chunks. The wait
is bounded: nothing promises that the programs of a row run at the same time, beside other kernels or in an interpreter.
Statistics whose flag is not set by then, a program computes itself, and stores for all. So neither the order of
programs nor an expired wait changes a result, provided that every program computes the same bits. For that they are
computed in one place of the machine code, since the compiler contracts products and sums depending on context: in a
loop,

    todo = chunk
    while todo >= 0:
        statistics of chunk `todo`
        if chunk_flags.may_publish(flags, todo, chunk):
            store them
            chunk_flags.publish(flags + todo)
        todo, polls = chunk_flags.next_chunk(flags, todo, chunk, chunks, polls, BLOCK_C)

whose last iteration is always that of the program's own chunk, which is then in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def publish(flag_ptr):
    """Set a flag, after the stores of all of the program's threads so far."""
    tl.debug_barrier()
    tl.atomic_xchg(flag_ptr, 1, sem="release", scope="gpu")


@triton.jit
def may_publish(flags_ptr, todo, chunk):
    """Return whether to store the statistics of chunk `todo`; not those of another's that has published them by now.

    Its program may have written a gradient over the logits meanwhile, which comes after the flag.
    """
    return (todo == chunk) | (tl.atomic_add(flags_ptr + todo, 0, sem="acq_rel", scope="gpu") == 0)


@triton.jit
def arrive(counter_ptr):
    """Count the program in, after the stores of all of its threads so far; return how many were before it."""
    tl.debug_barrier()
    before = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return before


@triton.jit
def next_chunk(flags_ptr, todo, chunk, chunks, polls, BLOCK_C: tl.constexpr):
    """Poll a row's flags until all are set, at most `polls` times.

    Return the chunk whose statistics are to be computed next, −1 for none, and 0, the remaining number of polls.
    """
    offs_c = tl.arange(0, BLOCK_C)
    missing = _first_missing(flags_ptr, offs_c, chunks)
    while (missing < chunks) & (polls > 0):
        missing = _first_missing(flags_ptr, offs_c, chunks)
        polls -= 1
    tl.debug_barrier()
    own = tl.where(todo == chunk, -1, chunk)
    return tl.where(missing < chunks, missing, own), polls * 0


@triton.jit
def _first_missing(flags_ptr, offs_c, chunks):
    mask = offs_c < chunks
    flags = tl.atomic_add(flags_ptr + offs_c, 0, mask=mask, sem="acquire", scope="gpu")
    return tl.min(tl.where(mask & (flags == 0), offs_c, chunks), axis=0)
