"""Buffers that a loss has overwritten with its gradient: using their old values is an error, not a wrong number.

The mark is on the base tensor of all views of the memory, so that it holds for views too.
"""

from __future__ import annotations

import torch

_ATTRIBUTE = "_lucid_clobbered"
_any_clobbered = False


def mark_clobbered(buffer: torch.Tensor) -> torch.Tensor:
    """Mark the values of `buffer` and of all views of its memory as overwritten; return a buffer for the new ones."""
    global _any_clobbered
    _any_clobbered = True
    # What autograd saved of it was modified in place.
    if not buffer.is_inference():
        torch.autograd.graph.increment_version(buffer)
    setattr(_base(buffer), _ATTRIBUTE, True)
    fresh = torch.empty(0, dtype=buffer.dtype, device=buffer.device)
    return fresh.set_(buffer.untyped_storage(), buffer.storage_offset(), buffer.shape, buffer.stride())


def check_valid(buffer: torch.Tensor) -> torch.Tensor:
    """Return `buffer`; raise a RuntimeError if its values were overwritten."""
    if _any_clobbered and getattr(_base(buffer), _ATTRIBUTE, False):
        raise RuntimeError(
            f"a tensor of shape {tuple(buffer.shape)} was overwritten in place by the gradient of a loss "
            "(inplace_gradient=True); leave inplace_gradient out if its values are needed after backward()"
        )
    return buffer


def _base(buffer: torch.Tensor) -> torch.Tensor:
    return buffer if buffer._base is None else buffer._base
