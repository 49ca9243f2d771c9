"""The device that tests run on."""

from __future__ import annotations

from triton_kernels.runtime import backend

DEVICE = backend.default_device()
