"""Deterministic reduction of token losses: sum or weighted mean.

    loss = scale·Σ losses / denominator      factor = scale / denominator, the gradient of loss to each of the losses

The denominator is 1, a scalar in device memory, or the sum of the tokens' weights. A token is active unless its weight
is 0. Without an active token, loss and factor are 0 for any denominator.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..jit import math
from ..runtime import device_errors, launch, tile_configs
from ..runtime.replay import replayable


@triton.jit(do_not_specialize=["n"])
def _token_sum_kernel(
    losses_ptr,  # (n,)
    weights_ptr,  # (n,), or None
    sums_ptr,  # (3, programs): sums of losses and of weights, and whether a token is active
    n,
    ACC_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    losses = tl.zeros((BLOCK,), ACC_DTYPE)
    weights = tl.zeros((BLOCK,), ACC_DTYPE)
    active = tl.zeros((BLOCK,), tl.int1)
    for tile in range(TILES):
        offs = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        losses += tl.load(losses_ptr + offs, mask=offs < n, other=0)
        if weights_ptr is not None:
            weight = tl.load(weights_ptr + offs, mask=offs < n, other=0)
            weights += weight
            active |= weight != 0
    programs = tl.num_programs(0)
    tl.store(sums_ptr + pid, tl.sum(losses, axis=0))
    tl.store(sums_ptr + programs + pid, tl.sum(weights, axis=0))
    tl.store(sums_ptr + 2 * programs + pid, tl.max(active.to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["n"])
def _token_mean_kernel(
    losses_ptr,  # (n,), losses or partial sums
    weights_ptr,  # (n,), weights or partial sums, or None
    active_ptr,  # (n,), nonzero where a token is active, or None: where its weight is nonzero
    denominator_ptr,  # 0-d, or None
    known_factor_ptr,  # 0-d, or None
    report_ptr,
    out_ptr,  # 0-d
    factor_ptr,  # 0-d
    n,
    scale: tl.float64,
    ACC_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.arange(0, BLOCK)
    losses = tl.zeros((BLOCK,), ACC_DTYPE)
    weights = tl.zeros((BLOCK,), ACC_DTYPE)
    active = tl.zeros((BLOCK,), tl.int1)
    for start in range(0, n, BLOCK):
        mask = start + offs < n
        losses += tl.load(losses_ptr + start + offs, mask=mask, other=0)
        if weights_ptr is not None:
            weight = tl.load(weights_ptr + start + offs, mask=mask, other=0)
            weights += weight
            if active_ptr is not None:
                weight = tl.load(active_ptr + start + offs, mask=mask, other=0)
            active |= weight != 0
    total = tl.sum(losses, axis=0)
    factor = tl.full((), scale, ACC_DTYPE)
    if known_factor_ptr is not None:
        factor *= tl.load(known_factor_ptr).to(ACC_DTYPE)
    # Not from the sum of the weights: weights of both signs may add up to 0.
    none_active = (tl.max(active.to(tl.int32), axis=0) == 0) & (weights_ptr is not None)
    if denominator_ptr is not None:
        denominator = tl.load(denominator_ptr).to(ACC_DTYPE)
        bad = ((denominator > 0) == 0) & (none_active == 0)
        one = tl.arange(0, 1).to(tl.int64)
        device_errors.record(report_ptr, device_errors.NORMALIZER, one, 1, (one == 0) & bad)
        factor = tl.where(bad, float("nan"), math.div(factor, denominator))
    elif weights_ptr is not None:
        factor = math.div(factor, tl.sum(weights, axis=0))
    factor = tl.where(none_active, 0.0, factor)
    total = tl.where(none_active, 0.0, total * factor)
    tl.store(out_ptr, total.to(out_ptr.dtype.element_ty))
    tl.store(factor_ptr, factor)


@replayable
def token_mean(
    losses: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    denominator: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale·Σ losses, divided by `denominator`, else by the sum of `weights`, if given.

    Parameters
    ----------
    losses
        float32 or float64, contiguous.
    weights
        One per loss, contiguous, of the same dtype. If all are 0, or there are no losses, result and factor are 0. If
        weights of both signs add up to 0, the mean is infinite or NaN.
    denominator
        0-d, of any dtype; read on the device. If it is not positive, result and factor are NaN, and the next
        `raise_pending_errors` raises, unless weights are given and all are 0.
    factor
        0-d, a further factor, such as that of an earlier call with the weights alone.
    dtype
        Dtype of the result; by default that of the losses.

    Returns
    -------
    tuple
        The result, and its gradient to each loss, of the losses' dtype; both 0-d.

    Examples
    --------
    >>> losses, weights = torch.tensor([1.0, 5.0, 0.0]).to(DEVICE), torch.tensor([1.0, 1.0, 0.0]).to(DEVICE)
    >>> [x.item() for x in token_mean(losses, weights=weights)]
    [3.0, 0.5]
    """
    acc_dtype = launch.tl_dtype(losses.dtype)
    n, active = losses.numel(), None
    config = tile_configs.token_sum(n)
    chunk = config["BLOCK"] * config["TILES"]
    if n > chunk:
        programs = tile_configs.cdiv(n, chunk)
        sums = torch.empty((3, programs), dtype=losses.dtype, device=losses.device)
        launch.run(
            _token_sum_kernel,
            (programs,),
            config,
            losses_ptr=losses,
            weights_ptr=weights,
            sums_ptr=sums,
            n=n,
            ACC_DTYPE=acc_dtype,
        )
        if weights is not None:
            weights, active = sums[1], sums[2]
        losses, n = sums[0], programs
    out = torch.empty((), dtype=dtype or losses.dtype, device=losses.device)
    result = torch.empty((), dtype=losses.dtype, device=losses.device)
    launch.run(
        _token_mean_kernel,
        (1,),
        tile_configs.finalize(n),
        losses_ptr=losses,
        weights_ptr=weights,
        active_ptr=active,
        denominator_ptr=denominator,
        report_ptr=device_errors.buffer(losses.device),
        out_ptr=out,
        known_factor_ptr=factor,
        factor_ptr=result,
        n=n,
        scale=scale,
        ACC_DTYPE=acc_dtype,
    )
    return out, result
