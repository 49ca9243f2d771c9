"""Fused Triton kernels over device buffers: torch tensors in, torch tensors out, no autograd.

On a machine without a GPU they run on CPU tensors, in Triton's interpreter.
"""

# First of all, since the rest may not be lucid-triton's.
from . import installation as installation  # isort: split

from . import backend

with backend.decorating():
    from . import launch, layout
    from .cross_entropy import cross_entropy_backward, cross_entropy_forward
    from .divergence import divergence_forward
    from .divergence_backward import divergence_backward
    from .elementwise import pointwise
    from .embedding import embedding_backward, embedding_forward
    from .kl_div import kl_div_backward, kl_div_forward
    from .matmul import matmul
    from .optimizer import adam_step, sgd_step
    from .reduce import sum
    from .reports import check_indices
    from .soft_cross_entropy import soft_cross_entropy_backward, soft_cross_entropy_forward
    from .softmax import softmax_backward, softmax_forward
    from .token_mean import token_mean

__all__ = [
    "adam_step",
    "backend",
    "check_indices",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "divergence_backward",
    "divergence_forward",
    "embedding_backward",
    "embedding_forward",
    "kl_div_backward",
    "kl_div_forward",
    "launch",
    "layout",
    "matmul",
    "pointwise",
    "sgd_step",
    "soft_cross_entropy_backward",
    "soft_cross_entropy_forward",
    "softmax_backward",
    "softmax_forward",
    "sum",
    "token_mean",
]
