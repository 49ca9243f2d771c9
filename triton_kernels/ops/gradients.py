"""Norms, clipping and unscaling of the gradients of many parameters, one launch for all of a dtype and device.

A program writes the largest magnitude m of its elements and Σ (|x|/u)^p, with the unit u = m. A last launch merges
these in a fixed order into U·(Σ (u/U)^p·Σ (|x|/u)^p)^(1/p), with U the largest unit, which neither overflows nor
underflows where the norm does not (as in BLAS's nrm2).
"""

from __future__ import annotations

import math as host_math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..jit import math
from ..jit import multi_tensor as mt
from ..runtime import launch, tile_configs

#: Orders of norms with a formula of their own.
_MAX, _SUM, _SQUARES, _POWERS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
#: Bounds of units, whose reciprocals are normal numbers of float32. Infinity and NaN stay what they are.
_LEAST_UNIT, _MOST_UNIT = tl.constexpr(2.0**-100), tl.constexpr(2.0**120)


@triton.jit
def _largest(x):
    """Return the largest of a block of magnitudes, NaN if one is NaN."""
    return tl.where(tl.max((x != x).to(tl.int32), axis=0) > 0, float("nan"), tl.max(x, axis=0))


@triton.jit
def _unit(largest):
    """Return the divisor of magnitudes up to `largest`."""
    return tl.minimum(tl.maximum(largest, _LEAST_UNIT), _MOST_UNIT)


@triton.jit
def _power(y, order, ORDER: tl.constexpr):
    """Return y^order, for y ≥ 0."""
    if ORDER == _SUM:
        power = y
    elif ORDER == _SQUARES:
        power = y * y
    else:
        power = tl.exp2(order * tl.log2(y))
    return power


@triton.jit(do_not_specialize=["n"])
def _norm_kernel(
    table_ptr,  # addresses of gradients
    partials_ptr,  # (2, programs): the largest magnitude, and Σ (|x|/unit)^order
    n,
    order: tl.float64,
    ORDER: tl.constexpr,
    DTYPE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    column, start, remaining = mt.locate(table_ptr, n, BLOCK, TILES, BLOCK_T)
    grad_at = mt.address(table_ptr, n, column, 0)
    order = tl.full((), order, ACC_DTYPE)
    wide = (grad_at % 16 == 0) & (remaining >= BLOCK * TILES)
    largest = tl.zeros((), ACC_DTYPE)
    total = tl.zeros((), ACC_DTYPE)
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if wide != MASKED:
            grad_ptr = mt.pointer(grad_at, start, DTYPE, not MASKED)
            for tile in range(mt.tiles_in_bounds(remaining, BLOCK, TILES) if MASKED else TILES):
                offs = tile * BLOCK + tl.arange(0, BLOCK)
                if MASKED:
                    x = tl.load(grad_ptr + offs, mask=offs < remaining, other=0).to(ACC_DTYPE)
                else:
                    x = tl.load(grad_ptr + offs).to(ACC_DTYPE)
                x = tl.abs(x)
                before = _unit(largest)
                largest = tl.maximum(largest, _largest(x), propagate_nan=tl.PropagateNan.ALL)
                if ORDER != _MAX:
                    unit = _unit(largest)
                    total *= _power(math.div(before, unit), order, ORDER)
                    total += tl.sum(_power(x * math.div(1.0, unit), order, ORDER), axis=0)
    at = partials_ptr + tl.program_id(0)
    tl.store(at, largest)
    tl.store(at + tl.num_programs(0), total)


@triton.jit(do_not_specialize=["programs"])
def _merge_kernel(
    partials_ptr,  # (2, programs)
    norm_ptr,  # 0-d
    programs,
    order: tl.float64,
    ORDER: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.arange(0, BLOCK)
    order = tl.full((), order, ACC_DTYPE)
    acc = tl.zeros((BLOCK,), ACC_DTYPE)
    for start in range(0, programs, BLOCK):
        x = tl.load(partials_ptr + start + offs, mask=start + offs < programs, other=0)
        acc = tl.maximum(acc, x, propagate_nan=tl.PropagateNan.ALL)
    norm = _largest(acc)
    if ORDER != _MAX:
        unit = _unit(norm)
        acc = tl.zeros((BLOCK,), ACC_DTYPE)
        for start in range(0, programs, BLOCK):
            mask = start + offs < programs
            units = _unit(tl.load(partials_ptr + start + offs, mask=mask, other=0))
            sums = tl.load(partials_ptr + programs + start + offs, mask=mask, other=0)
            acc += sums * _power(math.div(units, unit), order, ORDER)
        total = tl.sum(acc, axis=0)
        if ORDER == _SUM:
            root = total
        elif ORDER == _SQUARES:
            root = math.sqrt(total)
        else:
            root = tl.exp2(math.div(tl.log2(total), order))
        norm = unit * root
    tl.store(norm_ptr, norm)


def total_norm(grads: Sequence[torch.Tensor], order: float = 2.0) -> torch.Tensor:
    """Return the norm (Σ |g|^order)^(1/order) of all elements of all gradients, 0-d.

    Parameters
    ----------
    grads
        At least one tensor; floating, any shapes and strides.
    order
        Above 0; infinity for the largest magnitude.

    Returns
    -------
    torch.Tensor
        float32, or float64 if a gradient is; on the device of the first.

    Examples
    --------
    >>> total_norm([torch.tensor([3.0]).to(DEVICE), torch.tensor([[0.0, 4.0]]).to(DEVICE)]).item()
    5.0
    """
    device, dtype = grads[0].device, launch.compute_dtype(*(grad.dtype for grad in grads))
    kind = _MAX if host_math.isinf(order) else {1.0: _SUM, 2.0: _SQUARES}.get(order, _POWERS)
    order = 1.0 if host_math.isinf(order) else order
    parts = []
    for batch in mt.batches(grads, written=()):
        part = torch.empty((2, batch.programs), dtype=launch.compute_dtype(batch.dtype), device=batch.table.device)
        batch.run(_norm_kernel, partials_ptr=part, order=order, ORDER=kind.value)
        parts.append(part.to(device=device, dtype=dtype))
    norm = torch.empty((), dtype=dtype, device=device)
    partials = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    launch.run(
        _merge_kernel,
        (1,),
        tile_configs.finalize(partials.shape[1]),
        partials_ptr=partials,
        norm_ptr=norm,
        programs=partials.shape[1],
        order=order,
        ORDER=kind.value,
        ACC_DTYPE=launch.tl_dtype(dtype),
    )
    return norm


@triton.jit
def _clip_factor(norm, max_norm):
    """Return the factor that brings a norm down to max_norm, 1 if it is smaller, NaN if it is NaN."""
    factor = math.div(max_norm, norm + 1e-6)
    return tl.where(factor > 1, 1.0, factor)


@triton.jit
def _unscale_factor(scale, _):
    return math.div(1.0, scale)


@triton.jit(do_not_specialize=["n"])
def _multiply_kernel(
    table_ptr,  # addresses of gradients
    scalar_ptr,  # 0-d
    found_inf_ptr,  # 0-d, or None: set to 1 where a product is not finite
    n,
    number: tl.float64,
    FACTOR: tl.constexpr,  # function of the scalar and the number
    DTYPE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    factor = FACTOR(tl.load(scalar_ptr).to(ACC_DTYPE), tl.full((), number, ACC_DTYPE))
    if found_inf_ptr is None:
        if factor == 1:
            return
    column, start, remaining = mt.locate(table_ptr, n, BLOCK, TILES, BLOCK_T)
    grad_at = mt.address(table_ptr, n, column, 0)
    wide = (grad_at % 16 == 0) & (remaining >= BLOCK * TILES)
    infinite = tl.zeros((BLOCK,), tl.int1)
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if wide != MASKED:
            grad_ptr = mt.pointer(grad_at, start, DTYPE, not MASKED)
            for tile in range(mt.tiles_in_bounds(remaining, BLOCK, TILES) if MASKED else TILES):
                offs = tile * BLOCK + tl.arange(0, BLOCK)
                mask = offs < remaining if MASKED else None
                x = tl.load(grad_ptr + offs, mask=mask).to(ACC_DTYPE) * factor
                tl.store(grad_ptr + offs, x.to(DTYPE), mask=mask)
                if found_inf_ptr is not None:
                    bad = (tl.abs(x) < float("inf")) == 0
                    infinite |= bad & mask if MASKED else bad
            if found_inf_ptr is not None:
                if tl.max(infinite.to(tl.int32), axis=0) > 0:
                    tl.store(found_inf_ptr, 1.0)


def clip_by_norm(grads: Sequence[torch.Tensor], norm: torch.Tensor, max_norm: float) -> None:
    """Multiply gradients in place by max_norm / (norm + 1e-6), unless that is above 1.

    Examples
    --------
    >>> grad = torch.tensor([3.0, 4.0]).to(DEVICE)
    >>> clip_by_norm([grad], total_norm([grad]), 2.5)
    >>> [round(x, 4) for x in grad.tolist()]
    [1.5, 2.0]
    """
    for batch in mt.batches(grads, written=(0,)):
        norm_there = norm.to(batch.table.device)
        batch.run(_multiply_kernel, scalar_ptr=norm_there, found_inf_ptr=None, number=max_norm, FACTOR=_clip_factor)


def unscale(grads: Sequence[torch.Tensor], scale: torch.Tensor, found_inf: torch.Tensor) -> None:
    """Divide gradients in place by `scale`, and set `found_inf` to 1 where a quotient is infinite or NaN.

    `scale` and `found_inf` are 0-d, float32, on the device of all gradients.

    Examples
    --------
    >>> grad, scale, found_inf = (torch.tensor(x).to(DEVICE) for x in ([6.0, 4.0], 2.0, 0.0))
    >>> unscale([grad], scale, found_inf)
    >>> grad.tolist(), found_inf.item()
    ([3.0, 2.0], 0.0)
    """
    for batch in mt.batches(grads, written=(0,)):
        batch.run(_multiply_kernel, scalar_ptr=scale, found_inf_ptr=found_inf, number=0.0, FACTOR=_unscale_factor)


@triton.jit(do_not_specialize=["n"])
def _clamp_kernel(
    table_ptr,  # addresses of gradients
    n,
    bound: tl.float64,
    DTYPE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    column, start, remaining = mt.locate(table_ptr, n, BLOCK, TILES, BLOCK_T)
    grad_at = mt.address(table_ptr, n, column, 0)
    bound = tl.full((), bound, ACC_DTYPE)
    wide = (grad_at % 16 == 0) & (remaining >= BLOCK * TILES)
    for MASKED in tl.static_range(2):  # two copies, the first without a mask: see `jit.tiles`
        if wide != MASKED:
            grad_ptr = mt.pointer(grad_at, start, DTYPE, not MASKED)
            for tile in range(mt.tiles_in_bounds(remaining, BLOCK, TILES) if MASKED else TILES):
                offs = tile * BLOCK + tl.arange(0, BLOCK)
                mask = offs < remaining if MASKED else None
                x = tl.load(grad_ptr + offs, mask=mask).to(ACC_DTYPE)
                x = tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))  # NaN stays
                tl.store(grad_ptr + offs, x.to(DTYPE), mask=mask)


def clip_by_value(grads: Sequence[torch.Tensor], bound: float) -> None:
    """Clamp gradients in place to the interval from −bound to bound.

    Examples
    --------
    >>> grad = torch.tensor([3.0, -0.5]).to(DEVICE)
    >>> clip_by_value([grad], 1.0)
    >>> grad.tolist()
    [1.0, -0.5]
    """
    for batch in mt.batches(grads, written=(0,)):
        batch.run(_clamp_kernel, bound=bound)


@triton.jit(do_not_specialize=["flags", "growth_interval"])
def _update_scale_kernel(
    scale_ptr,  # 0-d
    growth_tracker_ptr,  # 0-d: number of steps since the scale changed
    found_inf_ptr,  # (flags,)
    flags,
    growth_factor: tl.float64,
    backoff_factor: tl.float64,
    growth_interval,
):
    found = tl.zeros((), tl.float32)
    for i in range(flags):
        found += tl.load(found_inf_ptr + i)
    scale = tl.load(scale_ptr)
    steps = tl.load(growth_tracker_ptr) + 1
    grown = (scale.to(tl.float64) * growth_factor).to(tl.float32)
    grows = (found == 0) & (steps == growth_interval)
    scale = tl.where(grows & (grown < float("inf")), grown, scale)
    scale = tl.where(found == 0, scale, (scale.to(tl.float64) * backoff_factor).to(tl.float32))
    tl.store(scale_ptr, scale)
    tl.store(growth_tracker_ptr, tl.where(grows | (found != 0), 0, steps))


def update_scale(
    scale: torch.Tensor,
    growth_tracker: torch.Tensor,
    found_inf: torch.Tensor,
    *,
    growth_factor: float,
    backoff_factor: float,
    growth_interval: int,
) -> None:
    """Multiply `scale` in place: by `backoff_factor` where a flag is set, else by `growth_factor` every so many steps.

    Parameters
    ----------
    scale
        0-d, float32; it does not grow to infinity.
    growth_tracker
        0-d, int32: number of steps without a flag since the scale changed.
    found_inf
        (flags,), float32.
    growth_interval
        Number of steps without a flag before the scale grows.

    Examples
    --------
    >>> scale, found_inf = torch.tensor(8.0).to(DEVICE), torch.tensor([0.0, 1.0]).to(DEVICE)
    >>> tracker = torch.zeros((), dtype=torch.int32).to(DEVICE)
    >>> update_scale(scale, tracker, found_inf, growth_factor=2.0, backoff_factor=0.5, growth_interval=3)
    >>> scale.item(), tracker.item()
    (4.0, 0)
    """
    launch.run(
        _update_scale_kernel,
        (1,),
        tile_configs.Config({}, num_warps=1),
        scale_ptr=scale,
        growth_tracker_ptr=growth_tracker,
        found_inf_ptr=found_inf,
        flags=found_inf.numel(),
        growth_factor=growth_factor,
        backoff_factor=backoff_factor,
        growth_interval=growth_interval,
    )
