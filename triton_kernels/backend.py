"""Compiled or interpreted: decided once, here, before triton is first imported.

With a CUDA or ROCm device the kernels are compiled and take that device's tensors. Without one, Triton's interpreter
runs them on CPU tensors; it only works if it is switched on before ``import triton``, so this module must be the
first of the package to import triton.
"""

from __future__ import annotations

import os
import sys

import torch

HAS_GPU: bool = torch.cuda.is_available()

if not HAS_GPU and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

#: Whether kernels run in Triton's interpreter, on CPU tensors. Read off triton itself, whose own helpers took their
#: form when it was imported.
INTERPRETED: bool = not isinstance(tl.sum, triton.runtime.JITFunction)

if INTERPRETED:
    from . import interpreter

    interpreter.correct()


def default_device() -> torch.device:
    """The device kernels run on: the current GPU where there is one and they are compiled, else the CPU."""
    return torch.device("cuda" if HAS_GPU and not INTERPRETED else "cpu")


def check_device(device: torch.device) -> None:
    """Raise a RuntimeError that says what to do where no kernel can run on a tensor of `device`."""
    if INTERPRETED:
        return
    if not HAS_GPU:
        raise RuntimeError(
            "there is no GPU here, and triton was imported before this package in compiled mode (torch.compile and "
            "torch._dynamo import it too): import lucid first, or set TRITON_INTERPRET=1 before Python starts"
        )
    if device.type == "cpu":
        raise RuntimeError(
            "kernels are compiled for the GPU here and cannot read a CPU tensor: move it with .to('cuda'), or set "
            "TRITON_INTERPRET=1 before Python starts to run everything on the CPU, slowly"
        )
