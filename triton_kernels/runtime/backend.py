"""Select compiled or interpreted kernels, once, when this package is imported.

With a CUDA or ROCm device kernels are compiled and take tensors of that device. Without one, or with
``TRITON_INTERPRET=1``, Triton's interpreter runs them on CPU tensors. Triton may have been imported before in either
mode; its mode and the environment stay unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

HAS_GPU: bool = torch.cuda.is_available()

#: PyTorch is built for AMD GPUs.
HIP: bool = torch.version.hip is not None

#: The user requested Triton's interpreter, now or before triton was imported.
INTERPRETER_REQUESTED: bool = triton.knobs.runtime.interpret or not isinstance(tl.sum, triton.runtime.JITFunction)

#: Kernels run in Triton's interpreter, on CPU tensors; never with ``TRITON_INTERPRET=0``.
INTERPRETED: bool = INTERPRETER_REQUESTED or (not HAS_GPU and "TRITON_INTERPRET" not in os.environ)

if INTERPRETED:
    from . import interpreter

    interpreter.apply_workarounds()


@contextmanager
def jit_mode() -> Iterator[None]:
    """Make `triton.jit` return interpreted functions inside the block if `INTERPRETED`, compiled ones otherwise."""
    if not INTERPRETED:
        yield
        return
    with interpreter.interpreter_enabled():
        yield


def default_device() -> torch.device:
    """Return the device that kernels run on: the current GPU, or the CPU without a GPU or in the interpreter."""
    return torch.device("cuda" if HAS_GPU and not INTERPRETED else "cpu")


@cache
def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program may have; those of sm_90 if `device` is no NVIDIA GPU."""
    if device.type != "cuda" or HIP:
        return 227 * 1024
    properties: Any = torch.cuda.get_device_properties(device)  # its stub lacks the attribute
    return int(properties.shared_memory_per_block_optin)


def check_device(device: torch.device) -> None:
    """Raise a RuntimeError with a remedy if kernels cannot run on tensors of `device`."""
    if INTERPRETED:
        return
    if not HAS_GPU:
        raise RuntimeError(
            "no GPU is available, and TRITON_INTERPRET=0 keeps kernels compiled: unset it before Python starts to run "
            "them on the CPU"
        )
    if device.type == "cpu":
        raise RuntimeError(
            "kernels are compiled for the GPU and cannot read a CPU tensor: move it with .to('cuda'), or set "
            "TRITON_INTERPRET=1 before Python starts to run everything on the CPU, slowly"
        )
