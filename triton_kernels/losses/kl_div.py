"""Pointwise KL divergence, its reductions, and its gradients.

With log q, and as the target p or, where LOG_TARGET, log p:

    loss = p·(log p − log q)                    (0 where p = 0)
    dloss/dlog q = −p
    dloss/dp = log p − log q + 1                (0 where p = 0)
    dloss/dlog p = p·(log p − log q + 1)        (0 where p = 0)

log q and the target have any shapes that broadcast, any strides and any mixture of floating dtypes; the arithmetic is
float32, or float64 where either is. A reduced forward pass writes one partial sum per program and adds those in a fixed
order. It reads each element once, but the target twice in blocks with a probability near 1. Backward needs the inputs
and the upstream gradient, nothing else of the forward pass, and log q only for the gradient with
respect to the target.

Kernels number the elements of the broadcast shape 0 to n − 1, and turn a number into an offset with each operand's
strides (`runtime.strides`). `jit.tiles` says why their bodies are compiled twice, without and with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..jit import math, partials
from ..jit.tiles import load
from ..runtime import launch, strides, tile_configs
from ..runtime.replay import replayable


@triton.jit(do_not_specialize=["n"])
def _kl_div_kernel(
    log_q,  # (pointer, strides), n elements
    target,  # (pointer, strides), n elements: p or log p
    out_ptr,  # (programs,) if REDUCE, else (n,)
    inner_sizes,  # of the merged dimensions but the outermost: runtime.strides
    n,
    scale: tl.float64,
    LOG_TARGET: tl.constexpr,
    REDUCE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    P_0: tl.constexpr = float("-inf") if LOG_TARGET else 0.0  # the target whose loss is 0
    scale = tl.full((), scale, ACC_DTYPE)
    # The fast logarithm is corrected in blocks with a probability near 1, which are few.
    CORRECT: tl.constexpr = not LOG_TARGET and scale.dtype == tl.float32
    pid = tl.program_id(0).to(INDEX_DTYPE)
    first = pid * (BLOCK * TILES)
    for MASKED in tl.static_range(2):
        if (first + BLOCK * TILES > n) == MASKED:
            acc = tl.zeros((BLOCK,), ACC_DTYPE)
            p_max = acc
            for tile in tl.range(TILES, loop_unroll_factor=1 if MASKED else TILES):  # unrolled for loads in flight
                offs = first + tile * BLOCK + tl.arange(0, BLOCK)
                mask = offs < n if MASKED else None
                x = load(log_q, offs, mask, inner_sizes, 0.0, ACC_DTYPE)
                y = load(target, offs, mask, inner_sizes, P_0, ACC_DTYPE)
                loss = math.kl_term(x, y, LOG_TARGET)
                if REDUCE:
                    acc += loss
                    if CORRECT:
                        p_max = tl.maximum(p_max, y)
                else:
                    if CORRECT:
                        if tl.max(y, axis=0) > math.NEAR_1_FROM:
                            loss += y * math.log_correction(y)
                    tl.store(out_ptr + offs, loss * scale, mask=mask)
            if REDUCE:
                total = tl.sum(acc, axis=0)
                if CORRECT:
                    if tl.max(p_max, axis=0) > math.NEAR_1_FROM:
                        acc = tl.zeros((BLOCK,), ACC_DTYPE)
                        for tile in range(TILES):
                            offs = first + tile * BLOCK + tl.arange(0, BLOCK)
                            p = load(target, offs, offs < n if MASKED else None, inner_sizes, P_0, ACC_DTYPE)
                            acc += p * math.log_correction(p)
                        total += tl.sum(acc, axis=0)
                tl.store(out_ptr + pid, total * scale)


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
        Factor on the result. A mean passes 1/n: inf for n = 0, so that it is NaN.
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
    coalesced = strides.coalesce(shape, x, target)
    acc_dtype = launch.compute_dtype(x.dtype, target.dtype)
    dtype = dtype or torch.promote_types(x.dtype, target.dtype)
    # A scalar beside many elements takes registers, as offsets of several dimensions do.
    dims = coalesced.dims + (None in coalesced.strides)
    config = (tile_configs.pointwise_sum if reduce else tile_configs.pointwise)(
        max(x.dtype.itemsize, target.dtype.itemsize), coalesced.numel, dims
    )
    config.tiles.setdefault("TILES", 1)
    chunk = config["BLOCK"] * config["TILES"]
    programs = tile_configs.cdiv(coalesced.numel, chunk)
    out = torch.empty((), dtype=dtype, device=x.device) if reduce else coalesced.empty(shape, dtype, x.device)
    two_launches = reduce and programs != 1  # also for no programs: `finalize` writes the 0
    sums = partials.allocate(1, programs, acc_dtype, x.device) if two_launches else out
    launch.run(
        _kl_div_kernel,
        (programs,),
        config,
        log_q=(x, coalesced.strides[0]),
        target=(target, coalesced.strides[1]),
        out_ptr=sums,
        scale=1.0 if two_launches else scale,
        LOG_TARGET=log_target,
        REDUCE=reduce,
        ACC_DTYPE=launch.tl_dtype(acc_dtype),
        **launch.element_args(coalesced, chunk),
    )
    return partials.finalize(sums, out, scale) if two_launches else out


@triton.jit(do_not_specialize=["n"])
def _kl_div_backward_kernel(
    log_q,  # (pointer, strides), n elements; None without dtarget
    target,  # (pointer, strides), n elements: p or log p
    dloss,  # (pointer, strides), n elements
    dx_ptr,  # (n,), or None
    dtarget_ptr,  # (n,), or None
    inner_sizes,  # of the merged dimensions but the outermost: runtime.strides
    n,
    scale: tl.float64,
    LOG_TARGET: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(INDEX_DTYPE) * BLOCK
    for MASKED in tl.static_range(2):
        if (first + BLOCK > n) == MASKED:
            offs = first + tl.arange(0, BLOCK)
            mask = offs < n if MASKED else None
            y = load(target, offs, mask, inner_sizes, None, ACC_DTYPE)
            g = load(dloss, offs, mask, inner_sizes, None, ACC_DTYPE) * tl.full((), scale, ACC_DTYPE)
            if dx_ptr is not None:
                tl.store(dx_ptr + offs, math.kl_grad_x(y, g, LOG_TARGET), mask=mask)
            if dtarget_ptr is not None:
                x = load(log_q, offs, mask, inner_sizes, None, ACC_DTYPE)
                tl.store(dtarget_ptr + offs, math.kl_grad_target(x, y, g, LOG_TARGET), mask=mask)


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
    """Gradients of `kl_div_forward` with respect to x and the target, in one launch.

    Parameters
    ----------
    x
        As in the forward pass; required, and read, only for the target's gradient.
    dloss
        The upstream gradient: 0-d, or of a shape that broadcasts to `shape`.
    shape
        The broadcast shape, which the gradients have.
    scale
        The forward pass's factor.
    dx_dtype, dtarget_dtype
        Dtypes of the gradients; None: that gradient is not calculated.

    Returns
    -------
    tuple
        (dx, dtarget), None where not calculated.

    Examples
    --------
    >>> p, one = torch.tensor([0.25, 0.75]).to(DEVICE), torch.tensor(1.0).to(DEVICE)
    >>> kl_div_backward(None, p, one, shape=(2,), dx_dtype=torch.float32)[0].tolist()
    [-0.25, -0.75]
    """
    if dtarget_dtype is not None and x is None:
        raise ValueError("x must be given for the gradient with respect to the target, got None")
    shape = tuple(shape)
    log_q = x if dtarget_dtype is not None else None
    # log_q comes last, as it may be absent.
    coalesced = strides.coalesce(shape, target, dloss, *(() if log_q is None else (log_q,)))
    grad_dtypes = (dx_dtype, dtarget_dtype)
    dx, dtarget = (None if dtype is None else coalesced.empty(shape, dtype, target.device) for dtype in grad_dtypes)
    dtypes = [t.dtype for t in (log_q, target) if t is not None] + [dtype for dtype in grad_dtypes if dtype is not None]
    config = tile_configs.pointwise(max(dtype.itemsize for dtype in dtypes), coalesced.numel, coalesced.dims)
    launch.run(
        _kl_div_backward_kernel,
        (tile_configs.cdiv(coalesced.numel, config["BLOCK"]),),
        config,
        log_q=None if log_q is None else (log_q, coalesced.strides[2]),
        target=(target, coalesced.strides[0]),
        dloss=(dloss, coalesced.strides[1]),
        dx_ptr=dx,
        dtarget_ptr=dtarget,
        scale=scale,
        LOG_TARGET=log_target,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(*dtypes)),
        **launch.element_args(coalesced, config["BLOCK"]),
    )
    return dx, dtarget
