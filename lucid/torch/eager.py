"""Who sees what is called: eager autograd alone, or a compiler, a transform, a mode, or hooks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_TYPES = (Tensor, torch.nn.Parameter)
#: Dispatch key of batched tensors, in `torch.autograd.grad` with is_grads_batched.
_BATCHED = torch._C._dispatch_key_parse("Batched")


def is_eager(*tensors: Tensor | None) -> bool:
    """Return whether nothing but eager autograd sees what is called with these tensors.

    False for subclasses, for torch's negative bit, which the dispatcher resolves, and under saved-tensor hooks, such as
    those of `torch.utils.checkpoint`, which would not see the gradient.
    """
    return (
        all(tensor is None or (type(tensor) in _TYPES and not tensor.is_neg()) for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not dispatch_modes()
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor is batched, as in `torch.autograd.grad` with is_grads_batched."""
    return bool(torch._C._dispatch_keys(tensor).has(_BATCHED))


def dispatch_modes() -> int:
    """Return the number of active dispatch modes, such as those of fake tensors or of profilers."""
    return torch._C._len_torch_dispatch_stack()
