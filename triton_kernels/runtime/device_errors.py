"""What kernels find wrong in values, said to the host without anybody waiting for it.

A kernel stores a code, the value and its bound in a small buffer of its device; `check_indices` turns that into an
error when values are next read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

#: Codes, and what they say of a value and its bound.
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
    """Where kernels on `device` report: (code, value, bound), int64; a code of −1 says nothing."""
    if device not in _buffers:
        # Outside of a CUDA graph that is being captured: its pool would reuse the memory, its replays fill it again.
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        stream = torch.cuda.Stream(device) if capturing else None
        with torch.inference_mode(False), torch.cuda.stream(stream):  # for calls outside of the mode, too
            _buffers[device] = torch.full((3,), -1, dtype=torch.int64, device=device)
    return _buffers[device]


@triton.jit
def report(buffer_ptr, CODE: tl.constexpr, value, bound, bad):
    """Report the values, a tile of int64, that are bad; any one of them will do for the message."""
    at = buffer_ptr + value * 0
    tl.store(at, value * 0 + CODE, mask=bad)
    tl.store(at + 1, value, mask=bad)
    tl.store(at + 2, value * 0 + bound, mask=bad)


def check_indices(device: torch.device) -> None:
    """Raise what kernels on `device` reported since the last time; waits for the device.

    Where memory is the host's anyway this costs nothing; on a GPU, callers ask when they wait for it anyway.

    Raises
    ------
    IndexError
        If an embedding was asked for a row it does not have, or a loss for a label that is no column.
    ValueError
        If a normalizer in device memory was not positive.
    """
    reported = _buffers.get(device)
    if reported is None:
        return
    code, value, bound = reported.tolist()
    if code < 0:
        return
    reported.fill_(-1)
    raise error(code, value, bound)


def error(code: int, value: int, bound: int) -> Exception:
    """What is wrong with a value, as an exception."""
    kind = ValueError if code == NORMALIZER.value else IndexError
    return kind(_MESSAGES[code].format(value=value, last=bound - 1))
