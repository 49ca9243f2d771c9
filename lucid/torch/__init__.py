"""Losses for PyTorch's tensors and modules on the same kernels, in place of torch's own.

Operators are registered with PyTorch in the namespace ``lucid``, with fake implementations and autograd formulas, for
`torch.compile`, `torch.export` and `torch.func`. GPU tensors go through the kernels, CPU tensors through torch's own
operators, or within `kernels_on_cpu` through the kernels in Triton's interpreter.

Examples
--------
>>> import torch
>>> import lucid.torch
>>> device = "cuda" if torch.cuda.is_available() else "cpu"
>>> student = torch.tensor([[0.5, 1.0, 0.2]], device=device, requires_grad=True)
>>> teacher = torch.tensor([[0.3, 0.9, 0.4]], device=device)
>>> loss = lucid.torch.distillation_loss(student, teacher)
>>> loss.backward()
>>> f"{loss.item():.6f}"
'0.011704'
"""

from lucid._docs import listing
from lucid._flags import gradient_in_forward
from lucid.torch.functional import (
    cross_entropy,
    distillation_loss,
    kl_div,
    linear_cross_entropy,
    linear_distillation_loss,
)
from lucid.torch.modules import CrossEntropyLoss, DistillationLoss, KLDivLoss, LinearDistillationLoss
from lucid.torch.operators import kernels_on_cpu

__all__ = [
    "CrossEntropyLoss",
    "DistillationLoss",
    "KLDivLoss",
    "LinearDistillationLoss",
    "cross_entropy",
    "distillation_loss",
    "gradient_in_forward",
    "kernels_on_cpu",
    "kl_div",
    "linear_cross_entropy",
    "linear_distillation_loss",
]

__dir__ = listing(__all__)
