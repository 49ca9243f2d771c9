"""Asynchronous reporting of invalid values that kernels find.

A kernel stores an error code, the value and its bound in a buffer on its device; `raise_pending_errors` raises the
exception at the next synchronization.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

#: Error codes, indices into the messages.
EMBEDDING = tl.constexpr(0)
LABELS = tl.constexpr(1)
NORMALIZER = tl.constexpr(2)
_MESSAGES = (
    "indices must lie in 0 to {last}, the rows of the embedding, got {value}",
    "labels must lie in 0 to {last}, the columns of the logits, or be ignore_index, got {value}",
    "normalizer must be positive where a token counts, got one that is not",
)

_buffers: dict[torch.device, torch.Tensor] = {}


def buffer(device: torch.device) -> torch.Tensor:
    """Return the error buffer of `device`: (code, value, bound), int64; a code of −1 is no error."""
    if device not in _buffers:
        # During CUDA graph capture, on another stream: the graph's pool would reuse the memory, its replays refill it.
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        stream = torch.cuda.Stream(device) if capturing else None
        with torch.inference_mode(False), torch.cuda.stream(stream):  # later calls may be outside inference mode
            _buffers[device] = torch.full((3,), -1, dtype=torch.int64, device=device)
    return _buffers[device]


@triton.jit
def record(buffer_ptr, CODE: tl.constexpr, value, bound, bad):
    """Record an error for the values of an int64 tile where `bad`; of several, an arbitrary one is reported."""
    at = buffer_ptr + value * 0
    tl.store(at, value * 0 + CODE, mask=bad)
    tl.store(at + 1, value, mask=bad)
    tl.store(at + 2, value * 0 + bound, mask=bad)


def raise_pending_errors(device: torch.device) -> None:
    """Raise the error that kernels on `device` recorded since the last call; synchronizes with the device.

    Raises
    ------
    IndexError
        If an index of an embedding or a label of a loss was out of range.
    ValueError
        If a normalizer in device memory was not positive.
    """
    pending = _buffers.get(device)
    if pending is None:
        return
    code, value, bound = pending.tolist()
    if code < 0:
        return
    pending.fill_(-1)
    raise error(code, value, bound)


def error(code: int, value: int, bound: int) -> Exception:
    """Return the exception for a code, an offending value and its bound."""
    kind = ValueError if code == NORMALIZER.value else IndexError
    return kind(_MESSAGES[code].format(value=value, last=bound - 1))
