"""Memory that a loss has written its gradient into: to use its old values is an error, not a wrong number.

The mark is on the tensor that all views of the memory were made from, so that it holds for views too.
"""

from __future__ import annotations

import torch

_ATTRIBUTE = "_lucid_spent"
_any_spent = False


def spend(buffer: torch.Tensor) -> torch.Tensor:
    """Mark the values of `buffer`, and of all views of its memory, as gone; return a buffer for what is there now."""
    global _any_spent
    _any_spent = True
    # What was saved of it for backward was changed in place.
    if not buffer.is_inference():
        torch.autograd.graph.increment_version(buffer)
    setattr(_root(buffer), _ATTRIBUTE, True)
    fresh = torch.empty(0, dtype=buffer.dtype, device=buffer.device)
    return fresh.set_(buffer.untyped_storage(), buffer.storage_offset(), buffer.shape, buffer.stride())


def check_unspent(buffer: torch.Tensor) -> torch.Tensor:
    """The buffer, about to be looked at; a RuntimeError if its values are gone."""
    if _any_spent and getattr(_root(buffer), _ATTRIBUTE, False):
        raise RuntimeError(
            f"the values of a tensor of shape {tuple(buffer.shape)} are gone: a loss with inplace_gradient=True wrote "
            "its gradient over them; leave inplace_gradient out if they are needed after backward()"
        )
    return buffer


def _root(buffer: torch.Tensor) -> torch.Tensor:
    return buffer if buffer._base is None else buffer._base
