"""Launchers of losses with torch's own operators, for tensors in the CPU's memory.

Names, arguments and results are those of `triton_kernels`. Rows are processed in chunks whose temporaries stay in a
cache; beside those only results are allocated.
"""

from .cross_entropy import cross_entropy_backward, cross_entropy_forward
from .divergence import divergence_backward, divergence_forward
from .kl_div import kl_div_backward, kl_div_forward
from .soft_cross_entropy import soft_cross_entropy_backward, soft_cross_entropy_forward
from .token_mean import token_mean
from .upstream import scale_gradient, token_weights

__all__ = [
    "cross_entropy_backward",
    "cross_entropy_forward",
    "divergence_backward",
    "divergence_forward",
    "kl_div_backward",
    "kl_div_forward",
    "scale_gradient",
    "soft_cross_entropy_backward",
    "soft_cross_entropy_forward",
    "token_mean",
    "token_weights",
]
