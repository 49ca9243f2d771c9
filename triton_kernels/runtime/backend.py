"""Compiled or interpreted: decided once, when this package is imported.

With a CUDA or ROCm device the kernels are compiled and take that device's tensors. Without one, or where the user has
set ``TRITON_INTERPRET=1``, Triton's interpreter runs them on CPU tensors. Triton may have been imported before, in
either mode; neither it nor the environment is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl

HAS_GPU: bool = torch.cuda.is_available()

#: Whether the user has asked for Triton's interpreter, now or when triton was imported.
ASKED_FOR: bool = triton.knobs.runtime.interpret or not isinstance(tl.sum, triton.runtime.JITFunction)

#: Whether kernels run in Triton's interpreter, on CPU tensors; ``TRITON_INTERPRET=0`` keeps them compiled everywhere.
INTERPRETED: bool = ASKED_FOR or (not HAS_GPU and "TRITON_INTERPRET" not in os.environ)

if INTERPRETED:
    from . import interpreter

    interpreter.correct()


@contextmanager
def decorating() -> Iterator[None]:
    """Let `triton.jit` make what runs here, compiled or interpreted, of the kernels that are imported within."""
    if not INTERPRETED:
        yield
        return
    with interpreter.switched_on():
        yield


def default_device() -> torch.device:
    """The device kernels run on: the current GPU where there is one and they are compiled, else the CPU."""
    return torch.device("cuda" if HAS_GPU and not INTERPRETED else "cpu")


def check_device(device: torch.device) -> None:
    """Raise a RuntimeError that says what to do where no kernel can run on a tensor of `device`."""
    if INTERPRETED:
        return
    if not HAS_GPU:
        raise RuntimeError(
            "there is no GPU here, and TRITON_INTERPRET=0 keeps kernels compiled: unset it before Python starts to run "
            "them on the CPU"
        )
    if device.type == "cpu":
        raise RuntimeError(
            "kernels are compiled for the GPU here and cannot read a CPU tensor: move it with .to('cuda'), or set "
            "TRITON_INTERPRET=1 before Python starts to run everything on the CPU, slowly"
        )
