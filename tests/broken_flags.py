"""Faults of the protocol of `triton_kernels.jit.chunk_flags`, planted for tests."""

from __future__ import annotations

import triton
import triton.language as tl

from triton_kernels.jit.chunk_flags import may_publish, publish
from triton_kernels.jit.tiles import store_stat


@triton.jit
def publish_before_the_data(flags_ptr, todo, chunk):
    """`may_publish` that sets the flag: before the statistics are stored."""
    may = may_publish(flags_ptr, todo, chunk)
    if may:
        publish(flags_ptr + todo)
    return may


@triton.jit
def publish_before_the_statistics(partials_ptr, size, at, mask, stats, flag_ptr):
    """`ops.softmax._publish` that sets the flag before the statistics are stored."""
    publish(flag_ptr)
    for i in tl.static_range(len(stats)):
        store_stat(partials_ptr, i, size, at, stats[i], mask)


@triton.jit
def without_a_check_after_the_loads(flags_ptr, todo, chunk):
    """`may_publish` that does not check whether the chunk's own program has published meanwhile."""
    return (todo == chunk) | (chunk >= 0)


@triton.jit
def without_waiting(flags_ptr, todo, chunk, chunks, polls, BLOCK_C: tl.constexpr):
    """`next_chunk` that takes all flags for set."""
    return chunk * 0 - 1, polls * 0
