"""Fused Triton kernels over device buffers: torch tensors in, torch tensors out, no autograd.

On a machine without a GPU they run on CPU tensors, in Triton's interpreter.
"""

# First of all, since the rest may not be lucid-triton's.
from . import installation as installation  # isort: split

from .runtime import backend

with backend.jit_mode():
    from .losses import from_hidden
    from .losses.cross_entropy import cross_entropy_backward, cross_entropy_forward
    from .losses.distillation.backward import divergence_backward
    from .losses.distillation.forward import divergence_forward
    from .losses.kl_div import kl_div_backward, kl_div_forward
    from .losses.reduction import token_mean
    from .losses.soft_cross_entropy import soft_cross_entropy_backward, soft_cross_entropy_forward
    from .losses.upstream import scale_gradient, token_weights
    from .ops.elementwise import pointwise
    from .ops.embedding import embedding_backward, embedding_forward
    from .ops.matmul import matmul
    from .ops.optimizer import adam_step, sgd_step
    from .ops.reduce import sum
    from .ops.softmax import softmax_backward, softmax_forward
    from .runtime import launch, strides, tile_configs
    from .runtime.device_errors import raise_pending_errors

__all__ = [
    "adam_step",
    "backend",
    "raise_pending_errors",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "divergence_backward",
    "divergence_forward",
    "embedding_backward",
    "embedding_forward",
    "from_hidden",
    "kl_div_backward",
    "kl_div_forward",
    "launch",
    "strides",
    "tile_configs",
    "matmul",
    "pointwise",
    "scale_gradient",
    "sgd_step",
    "soft_cross_entropy_backward",
    "soft_cross_entropy_forward",
    "softmax_backward",
    "softmax_forward",
    "sum",
    "token_mean",
    "token_weights",
]
