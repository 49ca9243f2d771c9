"""Reduction of losses of tokens: their sum, or their mean by weight, in a fixed order.

    loss = scale·Σ losses / denominator      factor = scale / denominator, the gradient of loss to each of the losses

The denominator is a number, one in device memory, or the sum of the tokens' weights. Where it is a sum that is 0, as
there is no valid token, loss and factor are 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, math, reports
from .replay import repeated


@triton.jit(do_not_specialize=["n"])
def _token_sum_kernel(
    losses_ptr,  # (n,)
    weights_ptr,  # (n,), or None
    sums_ptr,  # (2, programs)
    n,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    losses = tl.zeros((BLOCK,), COMPUTE)
    weights = tl.zeros((BLOCK,), COMPUTE)
    for tile in range(TILES):
        offs = (pid * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        losses += tl.load(losses_ptr + offs, mask=offs < n, other=0)
        if weights_ptr is not None:
            weights += tl.load(weights_ptr + offs, mask=offs < n, other=0)
    tl.store(sums_ptr + pid, tl.sum(losses, axis=0))
    tl.store(sums_ptr + tl.num_programs(0) + pid, tl.sum(weights, axis=0))


@triton.jit(do_not_specialize=["n"])
def _token_mean_kernel(
    losses_ptr,  # (n,), or sums of them
    weights_ptr,  # (n,), or sums of them, or None
    denominator_ptr,  # 0-d, or None
    report_ptr,
    out_ptr,  # 0-d
    factor_ptr,  # 0-d
    n,
    scale: tl.float64,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.arange(0, BLOCK)
    losses = tl.zeros((BLOCK,), COMPUTE)
    weights = tl.zeros((BLOCK,), COMPUTE)
    for start in range(0, n, BLOCK):
        mask = start + offs < n
        losses += tl.load(losses_ptr + start + offs, mask=mask, other=0)
        if weights_ptr is not None:
            weights += tl.load(weights_ptr + start + offs, mask=mask, other=0)
    total = tl.sum(losses, axis=0)
    factor = tl.full((), scale, COMPUTE)
    if denominator_ptr is not None:
        denominator = tl.load(denominator_ptr).to(COMPUTE)
        bad = (denominator > 0) == 0
        one = tl.arange(0, 1).to(tl.int64)
        reports.report(report_ptr, reports.NORMALIZER, one, 1, (one == 0) & bad)
        factor = tl.where(bad, float("nan"), math.div(factor, denominator))
    elif weights_ptr is not None:
        count = tl.sum(weights, axis=0)
        factor = tl.where(count == 0, 0.0, math.div(factor, count))
    # Without a valid token the sum is 0, whatever it is divided by.
    total = tl.where(factor == 0, 0.0, total * factor)
    tl.store(out_ptr, total.to(out_ptr.dtype.element_ty))
    tl.store(factor_ptr, factor)


@repeated
def token_mean(
    losses: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    denominator: torch.Tensor | None = None,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """scale·Σ losses, over the sum of `weights` or over `denominator` where one is given.

    Parameters
    ----------
    losses
        float32 or float64, dense.
    weights
        As many, dense, of the same dtype; a sum of 0 makes result and factor 0.
    denominator
        0-d, of any dtype; read on the device. One that is not positive makes both NaN, and is reported by the next
        `check_indices`.
    dtype
        Of the result; by default that of the losses.

    Returns
    -------
    tuple
        The result, and the factor that each loss has in it, of the losses' dtype; both 0-d.

    Examples
    --------
    >>> losses, weights = torch.tensor([1.0, 5.0, 0.0]).to(DEVICE), torch.tensor([1.0, 1.0, 0.0]).to(DEVICE)
    >>> [x.item() for x in token_mean(losses, weights=weights)]
    [3.0, 0.5]
    """
    compute = launch.tl_dtype(losses.dtype)
    n = losses.numel()
    config = launch.token_sum(n)
    chunk = config["BLOCK"] * config["TILES"]
    if n > chunk:
        programs = launch.cdiv(n, chunk)
        sums = torch.empty((2, programs), dtype=losses.dtype, device=losses.device)
        launch.run(
            _token_sum_kernel,
            (programs,),
            config,
            losses_ptr=losses,
            weights_ptr=weights,
            sums_ptr=sums,
            n=n,
            COMPUTE=compute,
        )
        losses, weights, n = sums[0], None if weights is None else sums[1], programs
    out = torch.empty((), dtype=dtype or losses.dtype, device=losses.device)
    factor = torch.empty((), dtype=losses.dtype, device=losses.device)
    launch.run(
        _token_mean_kernel,
        (1,),
        launch.finalize(n),
        losses_ptr=losses,
        weights_ptr=weights,
        denominator_ptr=denominator,
        report_ptr=reports.buffer(losses.device),
        out_ptr=out,
        factor_ptr=factor,
        n=n,
        scale=scale,
        COMPUTE=compute,
    )
    return out, factor
