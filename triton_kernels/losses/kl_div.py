"""Pointwise KL divergence, its reductions, and its gradients.

With x = log q and the target y, a probability p or, where LOG_TARGET, log p:

    loss = p·(log p − x)      dloss/dx = −p      dloss/dp = log p − x + 1      dloss/dlog p = p·(log p − x + 1)

and 0 throughout where p = 0. x and y have any shapes that broadcast, any strides, and any mixture of floating dtypes;
the arithmetic is float32, or float64 where either is. A reduced forward reads each element once and writes one partial
sum per program; the backward needs x only for the gradient to y.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..jit import math, partials
from ..jit.tiles import read, there, write
from ..runtime import launch, strides, tile_configs
from ..runtime.replay import replayable


@triton.jit(do_not_specialize=["n"])
def _kl_div_kernel(
    log_q,  # (n,)
    target,  # (n,): p or log p
    out_ptr,  # REDUCE: (programs,), else dense in the order of the walk
    inner_sizes,
    n,
    scale: tl.float64,
    LOG_TARGET: tl.constexpr,
    REDUCE: tl.constexpr,
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    first = pid * (BLOCK * TILES)
    scale = tl.full((), scale, COMPUTE)
    if first + BLOCK * TILES <= n:
        _forward(log_q, target, out_ptr, inner_sizes, pid, None, scale, LOG_TARGET, REDUCE, BLOCK, TILES)
    else:
        _forward(log_q, target, out_ptr, inner_sizes, pid, n, scale, LOG_TARGET, REDUCE, BLOCK, TILES)


@triton.jit
def _forward(
    x_operand,
    y_operand,
    out_ptr,
    inner_sizes,
    pid,
    n,  # None: every element of the program is there
    scale,
    LOG_TARGET: tl.constexpr,
    REDUCE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    # A probability near 1 is rare, one in a row at most: what its logarithm lacks is added where there is one.
    MEND: tl.constexpr = not LOG_TARGET and scale.dtype == tl.float32
    if REDUCE:
        acc = tl.zeros((BLOCK,), scale.dtype)
        largest = tl.zeros((BLOCK,), scale.dtype)
        if n is None:
            for tile in tl.static_range(TILES):  # so that all loads are made at once
                acc, largest = _add(acc, largest, x_operand, y_operand, inner_sizes, pid * TILES + tile, n, LOG_TARGET)
        else:
            for tile in range(TILES):
                acc, largest = _add(acc, largest, x_operand, y_operand, inner_sizes, pid * TILES + tile, n, LOG_TARGET)
        total = tl.sum(acc, axis=0)
        if MEND:
            if tl.max(largest, axis=0) > math.NEAR_1_FROM:
                total += _missing_near_1(y_operand, inner_sizes, pid, n, scale.dtype, BLOCK, TILES)
        tl.store(out_ptr + pid, (total * scale).to(out_ptr.dtype.element_ty))
    else:
        index = pid * BLOCK + tl.arange(0, BLOCK)
        x = read(x_operand, index, inner_sizes, n, scale.dtype)
        y = read(y_operand, index, inner_sizes, n, scale.dtype)
        term = math.kl_term(x, y, LOG_TARGET)
        if MEND:
            if tl.max(y, axis=0) > math.NEAR_1_FROM:
                term += y * math.log_rest(y)
        write(out_ptr, index, term * scale, n)


@triton.jit
def _add(acc, largest, x_operand, y_operand, inner_sizes, number, n, LOG_TARGET: tl.constexpr):
    """Add a tile's terms to a tile of sums, and its targets to their maxima."""
    index = number * acc.shape[0] + tl.arange(0, acc.shape[0])
    x = read(x_operand, index, inner_sizes, n, acc.dtype)
    y = read(y_operand, index, inner_sizes, n, acc.dtype)
    term = math.kl_term(x, y, LOG_TARGET)
    return acc + there(term, index, n), tl.maximum(largest, y)


@triton.jit
def _missing_near_1(y_operand, inner_sizes, pid, n, DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """What rough terms of a program's probabilities lack; it does not depend on x."""
    acc = tl.zeros((BLOCK,), DTYPE)
    for tile in range(TILES):
        index = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        y = read(y_operand, index, inner_sizes, n, DTYPE)
        acc += there(y * math.log_rest(y), index, n)
    return tl.sum(acc, axis=0)


@replayable
def kl_div_forward(
    x: torch.Tensor,
    target: torch.Tensor,
    *,
    log_target: bool = False,
    reduce: bool = True,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """KL(target ‖ exp x), per element or summed, times `scale`.

    Parameters
    ----------
    x, target
        Log-probabilities and probabilities (log-probabilities where `log_target`): floating dtypes, shapes that
        broadcast, any strides.
    reduce
        Sum over all elements, in a fixed order.
    scale
        A factor on the result. A sum over no elements is 0, and 0·inf is NaN.
    dtype
        Of the result; by default the promoted one.

    Returns
    -------
    torch.Tensor
        0-d, or the broadcast shape; rounded once.

    Examples
    --------
    >>> x, p = torch.tensor([-1.0, -2.0]).to(DEVICE), torch.tensor([0.5, 0.5]).to(DEVICE)
    >>> round(kl_div_forward(x, p).item(), 4)
    0.8069
    """
    shape = strides.broadcast(x.shape, target.shape)
    walk = strides.coalesce(shape, x, target)
    compute = launch.compute_dtype(x.dtype, target.dtype)
    dtype = dtype or torch.promote_types(x.dtype, target.dtype)
    itemsize = max(x.dtype.itemsize, target.dtype.itemsize)
    # One number beside many elements takes registers, as offsets from several dimensions do.
    dims = walk.dims + (None in walk.strides)
    config = (tile_configs.pointwise_sum if reduce else tile_configs.pointwise)(itemsize, walk.numel, dims)
    chunk = config["BLOCK"] * config.tiles.setdefault("TILES", 1)
    programs = tile_configs.cdiv(walk.numel, chunk)
    out = torch.empty((), dtype=dtype, device=x.device) if reduce else walk.empty(shape, dtype, x.device)
    sums = partials.allocate(1, programs, compute, x.device) if reduce and programs != 1 else out
    launch.run(
        _kl_div_kernel,
        (programs,),
        config,
        log_q=(x, walk.strides[0]),
        target=(target, walk.strides[1]),
        out_ptr=sums,
        inner_sizes=walk.inner_sizes,
        n=walk.numel,
        scale=scale if sums is out else 1.0,
        LOG_TARGET=log_target,
        REDUCE=reduce,
        COMPUTE=launch.tl_dtype(compute),
        WIDE=walk.needs_int64(chunk),
    )
    return out if sums is out else partials.finalize(sums, out, scale)


@triton.jit(do_not_specialize=["n"])
def _kl_div_backward_kernel(
    log_q,  # (n,), or None without dtarget
    target,  # (n,): p or log p
    dloss,  # (n,)
    dx_ptr,  # dense in the order of the walk, or None
    dtarget_ptr,  # dense in the order of the walk, or None
    inner_sizes,
    n,
    scale: tl.float64,
    LOG_TARGET: tl.constexpr,
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    scale = tl.full((), scale, COMPUTE)
    if (pid + 1) * BLOCK <= n:
        _backward(log_q, target, dloss, dx_ptr, dtarget_ptr, inner_sizes, pid, None, scale, LOG_TARGET, BLOCK)
    else:
        _backward(log_q, target, dloss, dx_ptr, dtarget_ptr, inner_sizes, pid, n, scale, LOG_TARGET, BLOCK)


@triton.jit
def _backward(
    x_operand,
    y_operand,
    dloss_operand,
    dx_ptr,
    dy_ptr,
    inner_sizes,
    pid,
    n,  # None: every element of the program is there
    scale,
    LOG_TARGET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = pid * BLOCK + tl.arange(0, BLOCK)
    y = read(y_operand, index, inner_sizes, n, scale.dtype)
    dloss = read(dloss_operand, index, inner_sizes, n, scale.dtype) * scale
    if dx_ptr is not None:
        write(dx_ptr, index, math.kl_grad_x(y, dloss, LOG_TARGET), n)
    if dy_ptr is not None:
        x = read(x_operand, index, inner_sizes, n, scale.dtype)
        write(dy_ptr, index, math.kl_grad_target(x, y, dloss, LOG_TARGET), n)


@replayable
def kl_div_backward(
    x: torch.Tensor | None,
    target: torch.Tensor,
    dloss: torch.Tensor,
    *,
    shape: Sequence[int],
    log_target: bool = False,
    scale: float = 1.0,
    dx_dtype: torch.dtype | None = None,
    dtarget_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `kl_div_forward` to x and to the target, in one launch.

    Parameters
    ----------
    x
        As in the forward pass; needed, and read, only for the target's gradient.
    dloss
        The gradient of the loss: 0-d, or broadcasting to `shape`. Read on the device.
    shape
        The broadcast shape, which the gradients have.
    scale
        The forward pass's factor.
    dx_dtype, dtarget_dtype
        Dtypes of the gradients; None leaves that gradient out.

    Returns
    -------
    tuple
        (dx, dtarget), None where not asked for.

    Examples
    --------
    >>> p, one = torch.tensor([0.25, 0.75]).to(DEVICE), torch.tensor(1.0).to(DEVICE)
    >>> kl_div_backward(None, p, one, shape=(2,), dx_dtype=torch.float32)[0].tolist()
    [-0.25, -0.75]
    """
    shape = tuple(shape)
    operands = (target, dloss) if dtarget_dtype is None or x is None else (target, dloss, x)
    if dtarget_dtype is not None and x is None:
        raise ValueError("x must be given for the gradient to the target, got None")
    walk = strides.coalesce(shape, *operands)
    compute = launch.compute_dtype(target.dtype, *(d for d in (dx_dtype, dtarget_dtype) if d), *_dtypes(x))
    dx, dtarget = (
        None if dtype is None else walk.empty(shape, dtype, target.device) for dtype in (dx_dtype, dtarget_dtype)
    )
    config = tile_configs.pointwise(
        max(t.dtype.itemsize for t in (target, x, dx, dtarget) if t is not None), walk.numel, walk.dims
    )
    launch.run(
        _kl_div_backward_kernel,
        (tile_configs.cdiv(walk.numel, config["BLOCK"]),),
        config,
        log_q=None if dtarget is None else (x, walk.strides[2]),
        target=(target, walk.strides[0]),
        dloss=(dloss, walk.strides[1]),
        dx_ptr=dx,
        dtarget_ptr=dtarget,
        inner_sizes=walk.inner_sizes,
        n=walk.numel,
        scale=scale,
        LOG_TARGET=log_target,
        COMPUTE=launch.tl_dtype(compute),
        WIDE=walk.needs_int64(config["BLOCK"]),
    )
    return dx, dtarget


def _dtypes(tensor: torch.Tensor | None) -> tuple[torch.dtype, ...]:
    return () if tensor is None else (tensor.dtype,)
