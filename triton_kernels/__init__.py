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
    from .ops import random
    from .ops.attention import attention_backward, attention_forward
    from .ops.elementwise import pointwise
    from .ops.embedding import embedding_backward, embedding_forward, scatter_add
    from .ops.gradients import clip_by_norm, clip_by_value, total_norm, unscale, update_scale
    from .ops.matmul import matmul
    from .ops.normalization import normalize_backward, normalize_forward
    from .ops.optimizer import adam_step, sgd_step
    from .ops.reduce import extreme, extreme_index, prod, sum
    from .ops.softmax import softmax_backward, softmax_forward
    from .runtime import launch, strides, tile_configs
    from .runtime.device_errors import raise_pending_errors

__all__ = [
    "adam_step",
    "attention_backward",
    "attention_forward",
    "backend",
    "clip_by_norm",
    "clip_by_value",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "divergence_backward",
    "divergence_forward",
    "embedding_backward",
    "embedding_forward",
    "extreme",
    "extreme_index",
    "from_hidden",
    "kl_div_backward",
    "kl_div_forward",
    "launch",
    "matmul",
    "normalize_backward",
    "normalize_forward",
    "pointwise",
    "prod",
    "raise_pending_errors",
    "random",
    "scale_gradient",
    "scatter_add",
    "sgd_step",
    "soft_cross_entropy_backward",
    "soft_cross_entropy_forward",
    "softmax_backward",
    "softmax_forward",
    "strides",
    "sum",
    "tile_configs",
    "token_mean",
    "token_weights",
    "total_norm",
    "unscale",
    "update_scale",
]
