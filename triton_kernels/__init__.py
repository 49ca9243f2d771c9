"""Fused Triton kernels over device buffers: torch tensors in, torch tensors out, no autograd.

On a machine without a GPU, import this before triton: it switches Triton's interpreter on.
"""

from . import backend, launch
from .elementwise import pointwise
from .embedding import check_indices, embedding_backward, embedding_forward
from .kl_div import kl_div_backward, kl_div_forward
from .matmul import matmul
from .optimizer import adam_step, sgd_step
from .reduce import sum
from .softmax import softmax_backward, softmax_forward

__all__ = [
    "adam_step",
    "backend",
    "check_indices",
    "embedding_backward",
    "embedding_forward",
    "kl_div_backward",
    "kl_div_forward",
    "launch",
    "matmul",
    "pointwise",
    "sgd_step",
    "softmax_backward",
    "softmax_forward",
    "sum",
]
