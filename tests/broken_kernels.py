"""Kernels with known faults, which the checks of compiled code must find."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def copy(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs))


@triton.jit
def spill(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    # Every element is live across the reduction.
    tl.store(y_ptr + offs, x * tl.sum(x, axis=0))


@triton.jit
def refused(x_ptr, y_ptr, BLOCK: tl.constexpr):
    # The compiler rejects ranges that are not powers of two; the interpreter does not.
    tl.store(y_ptr + tl.arange(0, 3), tl.load(x_ptr + tl.arange(0, 3)))


@triton.jit
def narrow(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + (offs ^ 1)))


@triton.jit
def wider(x_ptr, y_ptr, BLOCK: tl.constexpr):
    # Begins in the second element, and ends beyond it where elements have fewer bytes.
    tl.store(y_ptr, tl.load((x_ptr + 1).to(tl.pointer_type(tl.int32))))
