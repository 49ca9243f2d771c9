"""Kernel launches that several test files share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_kernels as tk
from tests.device import DEVICE


def divergence(
    student: Tensor, teacher: Tensor, kind: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of rows and, for an upstream gradient of 1, the gradients to both logits in `dtype`."""
    s, t = student.to(DEVICE), teacher.to(DEVICE)
    ds, dt = (torch.full(x.shape, float("nan"), dtype=dtype, device=DEVICE) for x in (s, t))
    losses, _ = tk.divergence_forward(s, t, divergence=kind, dstudent=ds, dteacher=dt, **options)
    return losses, ds, dt


def divergence_in_two_launches(
    student: Tensor, teacher: Tensor, kind: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `divergence` does, the gradients from the statistics of rows."""
    s, t = student.to(DEVICE), teacher.to(DEVICE)
    losses, statistics = tk.divergence_forward(s, t, divergence=kind, **options)
    dloss = torch.ones((), device=DEVICE)
    dtypes = {"dstudent_dtype": dtype, "dteacher_dtype": dtype}
    ds, dt = tk.divergence_backward(s, t, statistics, dloss, divergence=kind, **dtypes, **options)
    assert ds is not None
    assert dt is not None
    return losses, ds, dt
