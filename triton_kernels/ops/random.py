"""Random numbers by Philox-4×32-10, and dropout.

J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. Philox maps a key and a counter to four words
of 32 random bits. The key is the seed; element i of a call, in row-major order, has word i mod 4 of the counter
offset + ⌊i / 4⌋, or, where it needs 64 bits, words 2·(i mod 2) and 2·(i mod 2) + 1 of the counter offset + ⌊i / 2⌋.
So a value depends on seed, offset and i alone: not on strides, tile sizes or the device. A call takes `counters`
counters; the next one starts after them.

Uniform numbers of [0, 1), integers and masks have the same bits on every device. Normal numbers come from the inverse
distribution function in float64: devices may differ in its last bits, which shows in about one of 2²⁷ float32 numbers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import triton
import triton.language as tl

from ..jit.tiles import load, store
from ..runtime import launch, strides, tile_configs

#: Random bits of a uniform number: as many as make all multiples of 2⁻ᵇ in [0, 1) numbers of the dtype.
_UNIFORM_BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


@triton.jit
def _random_bits(seed, offset, first, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Return the random bits of elements first to first + BLOCK − 1: uint32, or uint64 if WIDE."""
    PER_COUNTER: tl.constexpr = 2 if WIDE else 4
    counter = offset + first // PER_COUNTER + tl.arange(0, BLOCK // PER_COUNTER)
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero, zero)
    if WIDE:
        bits = tl.interleave(_join_words(w0, w1), _join_words(w2, w3))
    else:
        bits = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return bits


@triton.jit
def _join_words(high, low):
    return (high.to(tl.uint64) << 32) | low.to(tl.uint64)


@triton.jit
def _fraction(bits, BITS: tl.constexpr):
    """Return the first BITS bits as a multiple of 2^−BITS in [0, 1), in float64, where it is exact."""
    SHIFT: tl.constexpr = bits.dtype.primitive_bitwidth - BITS
    return (bits >> SHIFT).to(tl.float64) * (1.0 / (1 << BITS))


@triton.jit(do_not_specialize=["n", "seed", "offset"])
def _uniform_kernel(
    out,  # (n,)
    inner_sizes,
    n,
    seed: tl.int64,
    offset: tl.int64,
    low: tl.float64,
    scale: tl.float64,
    BITS: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(INDEX_DTYPE) * BLOCK
    bits = _random_bits(seed, offset, first, BITS > 32, BLOCK)
    value = low + scale * _fraction(bits, BITS)
    _store_rounded(out, first, n, inner_sizes, value, BLOCK)


@triton.jit(do_not_specialize=["n", "seed", "offset"])
def _normal_kernel(
    out,  # (n,)
    inner_sizes,
    n,
    seed: tl.int64,
    offset: tl.int64,
    mean: tl.float64,
    std: tl.float64,
    p_from: tl.float64,  # the probabilities that bound the quantiles: 0 and 1, unless the distribution is truncated
    p_to: tl.float64,
    least: tl.float64,
    most: tl.float64,
    WIDE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(INDEX_DTYPE) * BLOCK
    bits = _random_bits(seed, offset, first, WIDE, BLOCK)
    BITS: tl.constexpr = 52 if WIDE else 32
    # The middle of an interval of 2^−BITS: never 0 or 1, whose quantiles are infinite, and symmetric about ½.
    u = _fraction(bits, BITS) + 0.5 / (1 << BITS)
    value = mean + std * _normal_quantile(p_from + (p_to - p_from) * u)
    # Bounds are tensors: the interpreter would round numbers to float32 here.
    value = tl.maximum(value, tl.full((), least, tl.float64))
    value = tl.minimum(value, tl.full((), most, tl.float64))
    _store_rounded(out, first, n, inner_sizes, value, BLOCK)


@triton.jit
def _normal_quantile(p):
    """Return x with Φ(x) = p, for float64 p in (0, 1), of a relative error of about 1e-16.

    M. J. Wichura, "Algorithm AS 241: the percentage points of the normal distribution", 1988, PPND16.
    """
    q = p - 0.5
    r = 0.180625 - q * q
    num = ((2509.0809287301226727 * r + 33430.575583588128105) * r + 67265.770927008700853) * r + 45921.953931549871457
    num = (((num * r + 13731.693765509461125) * r + 1971.5909503065514427) * r + 133.14166789178437745) * r
    den = ((5226.495278852854561 * r + 28729.085735721942674) * r + 39307.89580009271061) * r + 21213.794301586595867
    den = (((den * r + 5394.1960214247511077) * r + 687.1870074920579083) * r + 42.313330701600911252) * r + 1.0
    central = q * (num + 3.387132872796366608) / den

    s = tl.sqrt(-tl.log(tl.minimum(p, 1 - p)))
    r = s - 1.6
    num = ((7.7454501427834140764e-4 * r + 0.0227238449892691845833) * r + 0.24178072517745061177) * r
    num = (((num + 1.27045825245236838258) * r + 3.64784832476320460504) * r + 5.7694972214606914055) * r
    num = (num + 4.6303378461565452959) * r + 1.42343711074968357734
    den = ((1.05075007164441684324e-9 * r + 5.475938084995344946e-4) * r + 0.0151986665636164571966) * r
    den = (((den + 0.14810397642748007459) * r + 0.68976733498510000455) * r + 1.6763848301838038494) * r
    near = num / ((den + 2.05319162663775882187) * r + 1.0)

    r = s - 5
    num = ((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 0.0012426609473880784386) * r
    num = (((num + 0.026532189526576123093) * r + 0.29656057182850489123) * r + 1.7848265399172913358) * r
    num = (num + 5.4637849111641143699) * r + 6.6579046435011037772
    den = ((2.04426310338993978564e-15 * r + 1.4215117583164458887e-7) * r + 1.8463183175100546818e-5) * r
    den = (((den + 7.868691311456132591e-4) * r + 0.0148753612908506148525) * r + 0.13692988092273580531) * r
    far = num / ((den + 0.59983220655588793769) * r + 1.0)

    tail = tl.where(s <= 5, near, far)
    return tl.where(tl.abs(q) <= 0.425, central, tl.where(q < 0, -tail, tail))


@triton.jit
def _store_rounded(out, first, n, inner_sizes, value, BLOCK: tl.constexpr):
    # To half dtypes by way of float32, since not every backend rounds float64 to bfloat16 directly.
    if out[0].dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    _store_block(out, first, n, inner_sizes, value, BLOCK)


@triton.jit
def _store_block(out, first, n, inner_sizes, value, BLOCK: tl.constexpr):
    offs = first + tl.arange(0, BLOCK)
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if (first + BLOCK > n) == MASKED:
            store(out, offs, offs < n if MASKED else None, inner_sizes, value)


@triton.jit(do_not_specialize=["n", "seed", "offset", "low", "count"])
def _randint_kernel(
    out,  # (n,)
    inner_sizes,
    n,
    seed: tl.int64,
    offset: tl.int64,
    low: tl.int64,
    count: tl.int64,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(INDEX_DTYPE) * BLOCK
    bits = _random_bits(seed, offset, first, True, BLOCK)
    # A remainder of 64 bits prefers some numbers by count / 2⁶⁴ at most.
    value = low + (bits % tl.full((), count, tl.uint64)).to(tl.int64)
    _store_block(out, first, n, inner_sizes, value, BLOCK)


@triton.jit(do_not_specialize=["n", "seed", "offset", "threshold"])
def _dropout_kernel(
    x,  # (n,)
    out_ptr,  # (n,)
    inner_sizes,
    n,
    seed: tl.int64,
    offset: tl.int64,
    threshold: tl.int64,
    scale: tl.float64,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    factor = tl.full((), scale, ACC_DTYPE)
    first = tl.program_id(0).to(INDEX_DTYPE) * BLOCK
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if (first + BLOCK > n) == MASKED:
            offs = first + tl.arange(0, BLOCK)
            mask = offs < n if MASKED else None
            keep = _random_bits(seed, offset, first, False, BLOCK).to(tl.int64) >= threshold
            value = tl.where(keep, load(x, offs, mask, inner_sizes, None, ACC_DTYPE) * factor, 0)
            tl.store(out_ptr + offs, value.to(out_ptr.dtype.element_ty), mask=mask)


def counters(numel: int) -> int:
    """Return how many counters a call with so many elements takes, of any dtype.

    >>> counters(5)
    3
    """
    return tile_configs.cdiv(numel, 2)


def _fill(kernel: object, out: torch.Tensor, seed: int, offset: int, **args: object) -> None:
    walk = strides.walk_in_order(out.shape, [out.stride()])
    config = tile_configs.random(out.dtype.itemsize, walk.numel)
    launch.run(
        kernel,
        (tile_configs.cdiv(walk.numel, config["BLOCK"]),),
        config,
        out=(out, walk.strides[0]),
        seed=seed,
        offset=offset,
        **args,
        **launch.element_args(walk, config["BLOCK"]),
    )


def fill_uniform(out: torch.Tensor, seed: int, offset: int, low: float = 0.0, high: float = 1.0) -> None:
    """Fill a buffer with low + (high − low)·u, u uniform in [0, 1).

    u is a multiple of 2⁻ᵇ with 11 bits b for float16, 8 for bfloat16, 24 for float32 and 53 for float64, so that it is
    never rounded to 1. But in float64, high − low is rounded to float32, which makes its product with u exact, and the
    result the same with and without fused multiply-add.

    Parameters
    ----------
    out
        Floating, any shape and strides without overlap.
    seed, offset
        From 0 to 2⁶³ − 1; see the head of this file.

    Examples
    --------
    >>> x = torch.empty(2, device=DEVICE)
    >>> fill_uniform(x, seed=0, offset=0)
    >>> bool(x.min() >= 0) and bool(x.max() < 1)
    True
    """
    scale = high - low if out.dtype is torch.float64 else float(np.float32(high - low))
    _fill(_uniform_kernel, out, seed, offset, low=float(low), scale=scale, BITS=_UNIFORM_BITS[out.dtype])


def fill_normal(
    out: torch.Tensor,
    seed: int,
    offset: int,
    mean: float = 0.0,
    std: float = 1.0,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Fill a buffer with mean + std·Φ⁻¹(u), u uniform in (0, 1): normal, within `least` and `most`.

    Truncated, u is uniform between the values of the distribution function at the bounds. u has 32 bits, 52 for
    float64, so that numbers beyond 6.3 (8.2) standard deviations do not occur.

    Parameters
    ----------
    out, seed, offset
        As for `fill_uniform`.
    std
        Non-negative.
    least, most
        Bounds with a probability between them, as `normal_probability` tells.

    Examples
    --------
    >>> x = torch.empty(2, device=DEVICE)
    >>> fill_normal(x, seed=0, offset=0, mean=100.0)
    >>> bool((x - 100).abs().max() < 7)
    True
    """
    p_from, p_to, sign = _quantile_range(mean, std, least, most)
    _fill(
        _normal_kernel,
        out,
        seed,
        offset,
        mean=float(mean),
        std=float(sign * std),
        p_from=p_from,
        p_to=p_to,
        least=float(least),
        most=float(most),
        WIDE=out.dtype is torch.float64,
    )


def normal_probability(mean: float, std: float, least: float, most: float) -> float:
    """Return the probability of a normal number between two bounds.

    >>> round(normal_probability(0.0, 1.0, -1.0, 1.0), 4)
    0.6827
    """
    p_from, p_to, _ = _quantile_range(mean, std, least, most)
    return p_to - p_from


def _quantile_range(mean: float, std: float, least: float, most: float) -> tuple[float, float, int]:
    """Return the distribution function at the bounds, and the sign of the standard deviation for which they hold.

    Bounds in the upper tail are reflected into the lower, where the function has small numbers, which are precise.
    """
    if std == 0:
        return 0.0, 1.0, 1
    sign = 1
    a, b = (least - mean) / std, (most - mean) / std
    if a + b > 0:
        a, b, sign = -b, -a, -1
    return math.erfc(-a * math.sqrt(0.5)) / 2, math.erfc(-b * math.sqrt(0.5)) / 2, sign


def fill_randint(out: torch.Tensor, seed: int, offset: int, low: int, high: int) -> None:
    """Fill a buffer with integers from low to high − 1: low + r mod (high − low), r of 64 random bits.

    Parameters
    ----------
    out
        Of an integer dtype that holds the bounds, any shape and strides without overlap.
    seed, offset
        As for `fill_uniform`.
    low, high
        low < high, high − low below 2⁶³.

    Examples
    --------
    >>> x = torch.empty(3, dtype=torch.int64, device=DEVICE)
    >>> fill_randint(x, 0, 0, low=7, high=8)
    >>> x.tolist()
    [7, 7, 7]
    """
    _fill(_randint_kernel, out, seed, offset, low=low, count=high - low)


def dropout(x: torch.Tensor, p: float, scale: float, seed: int, offset: int) -> torch.Tensor:
    """Return x·scale with each element set to 0 at a probability of p; contiguous, of x's dtype.

    An element is 0, whatever x holds, where its 32 random bits are a number below p·2³², rounded.

    Parameters
    ----------
    x
        Floating, any shape and strides.
    p
        From 0 to 1.
    scale
        Rounded once to the dtype of the arithmetic; usually 1/(1 − p).
    seed, offset
        As for `fill_uniform`. The same ones drop the same elements of any tensor of the shape.

    Examples
    --------
    >>> dropout(torch.ones(2, device=DEVICE), p=1.0, scale=2.0, seed=0, offset=0).tolist()
    [0.0, 0.0]
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    walk = strides.walk_in_order(x.shape, [x.stride()])
    config = tile_configs.random(x.dtype.itemsize, walk.numel)
    launch.run(
        _dropout_kernel,
        (tile_configs.cdiv(walk.numel, config["BLOCK"]),),
        config,
        x=(x, walk.strides[0]),
        out_ptr=out,
        seed=seed,
        offset=offset,
        threshold=round(p * 2**32),
        scale=float(scale),
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(x.dtype)),
        **launch.element_args(walk, config["BLOCK"]),
    )
    return out
