"""Pointwise KL divergence and its gradients with torch's operators.

The formulas are those of `triton_kernels.losses.kl_div`. Elements are taken in chunks, in the order of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import triton_kernels as tk
from lucid.torch.cpu.rows import LOG2_E, chunk_indices, chunk_size, whole_vectors, workspace


def kl_div_forward(
    x: Tensor,
    target: Tensor,
    *,
    log_target: bool = False,
    reduce: bool = True,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    dx: Tensor | None = None,
) -> Tensor:
    """Compute `triton_kernels.kl_div_forward` with torch's operators.

    If the loss is reduced, its gradient to x may be written to `dx`.
    """
    shape = tk.strides.broadcast(x.shape, target.shape)
    compute = tk.launch.compute_dtype(x.dtype, target.dtype)
    dtype = dtype or torch.promote_types(x.dtype, target.dtype)
    walk = tk.strides.coalesce(shape, x, target)
    out = None if reduce else walk.empty(shape, dtype, x.device)
    sums = x.new_zeros((), dtype=torch.float64)
    operands = (x, target, *(tensor for tensor in (out, dx) if tensor is not None))
    for (log_q, y, *outs), buffers in _chunks(walk, shape, operands, compute):
        y = _upcast(y, buffers[1])
        loss = _loss(_upcast(log_q, buffers[0]), y, log_target, *buffers[2:])
        if out is not None:
            outs[0].copy_(loss.mul_(scale))
            continue
        sums += loss.sum()
        if dx is not None:
            p = buffers[3] if log_target else y
            outs[0].copy_(torch.mul(p, -scale, out=buffers[3]))
    return (sums * scale).to(dtype) if out is None else out


def kl_div_backward(
    x: Tensor | None,
    target: Tensor,
    dloss: Tensor,
    *,
    shape: Sequence[int],
    log_target: bool = False,
    scale: float = 1.0,
    dx_dtype: torch.dtype | None = None,
    dtarget_dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute `triton_kernels.kl_div_backward` with torch's operators."""
    shape = tuple(shape)
    if dtarget_dtype is not None and x is None:
        raise ValueError("x must be given for the gradient with respect to the target, got None")
    given = (target, dloss) if dtarget_dtype is None or x is None else (target, dloss, x)
    walk = tk.strides.coalesce(shape, *given)
    compute = tk.launch.compute_dtype(target.dtype, *(d for d in (dx_dtype, dtarget_dtype) if d), *_dtypes(x))
    outs = [None if d is None else walk.empty(shape, d, target.device) for d in (dx_dtype, dtarget_dtype)]
    dx, dtarget = outs
    g: Tensor | float = dloss.item() * scale if dloss.dim() == 0 else 1.0
    each = () if dloss.dim() == 0 else (dloss,)
    operands = (target, *given[2:], *each, *(out for out in outs if out is not None))
    for (y, *rest), buffers in _chunks(walk, shape, operands, compute):
        y = _upcast(y, buffers[0])
        log_q = _upcast(rest.pop(0), buffers[1]) if dtarget is not None else None
        if each:
            g = torch.mul(_upcast(rest.pop(0), buffers[2]), scale, out=buffers[2])
        if log_q is not None:
            rest[-1].copy_(_gradient_to_target(log_q, y, log_target, g, buffers[3]))
        if dx is not None:
            p = _exp(y, buffers[3]) if log_target else y
            rest[0].copy_(torch.mul(p, g, out=buffers[3]).neg_())
    return dx, dtarget


def _loss(log_q: Tensor, y: Tensor, log_target: bool, first: Tensor, second: Tensor) -> Tensor:
    """p·(log p − log q) of a chunk, in the first of two buffers. 0 where p = 0, unless log q is NaN."""
    least = None
    if log_target:
        p = _exp(y, second)
        loss = torch.sub(y, log_q, out=first).mul_(p)
    else:
        p, least = y, y.amin()
        finfo = torch.finfo(y.dtype)
        smallest = finfo.smallest_normal * finfo.eps  # a subnormal; 0 times its logarithm is 0
        loss = torch.clamp_min(y, smallest, out=first).log_().sub_(log_q).mul_(p)
    if loss.sum().isnan() or (least is not None and not least >= 0):
        # A NaN that was given, or one of 0·inf; or a logarithm of what is no probability.
        slope = torch.sub(y if log_target else y.log(), log_q)
        loss.copy_(torch.where((p == 0) & (log_q == log_q), 0.0, slope.mul_(p)))
    return loss


def _exp(y: Tensor, out: Tensor) -> Tensor:
    """Write exp(y) to a buffer, computed as by the kernels; torch's own takes three times as long."""
    torch.mul(y, LOG2_E, out=out)
    out.as_strided((whole_vectors(out.numel()),), (1,)).exp2_()  # see `Rows.exp2`
    return out


def _gradient_to_target(log_q: Tensor, y: Tensor, log_target: bool, g: Tensor | float, buffer: Tensor) -> Tensor:
    """(log p − log q + 1)·g for p, multiplied by p for log p. 0 where p = 0, unless log q is NaN."""
    p = _exp(y, buffer) if log_target else y
    slope = (y if log_target else y.log()).sub(log_q).add_(1)
    if log_target:
        slope.mul_(p)
    return torch.where((p == 0) & (log_q == log_q), 0.0, slope.mul_(g))


def _chunks(
    walk: tk.strides.Coalesced, shape: tuple[int, ...], operands: Sequence[Tensor], dtype: torch.dtype
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Chunks of operands that broadcast to `shape`, and four buffers of their shape."""
    ordered = [operand.expand(shape).permute(walk.order) for operand in operands]
    sizes: tuple[int, ...] = ordered[0].shape
    if all(operand.is_contiguous() for operand in ordered):
        sizes = (walk.numel,)
        ordered = [operand.view(sizes) for operand in ordered]
    buffers = workspace(whole_vectors(chunk_size()), dtype, 4)
    for at in chunk_indices(sizes, 1) if walk.numel else ():
        chunks = [operand[at] for operand in ordered]
        size = chunks[0].numel()
        yield chunks, [buffer[:size].view(chunks[0].shape) for buffer in buffers]


def _upcast(chunk: Tensor, buffer: Tensor) -> Tensor:
    return chunk if chunk.dtype == buffer.dtype else buffer.copy_(chunk)


def _dtypes(tensor: Tensor | None) -> tuple[torch.dtype, ...]:
    return () if tensor is None else (tensor.dtype,)
