"""Kernels with known faults, to see that the checks of compiled code find them."""

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
    # Every element is needed again when all of them have been added up.
    tl.store(y_ptr + offs, x * tl.sum(x, axis=0))


@triton.jit
def refused(x_ptr, y_ptr, BLOCK: tl.constexpr):
    # The interpreter adds tiles of unequal lengths as NumPy does; the compiler does not.
    tl.store(y_ptr + tl.arange(0, 3), tl.load(x_ptr + tl.arange(0, 3)))


@triton.jit
def narrow(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + (offs ^ 1)))
