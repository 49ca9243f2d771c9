"""State of the random number generator: a seed, and the next counter of Philox; one for the process."""

from __future__ import annotations

import secrets
import threading

#: Seeds and counters are below it, so that a state is two int64.
LIMIT = 2**63

_lock = threading.Lock()
_seed = secrets.randbelow(LIMIT)
_offset = 0


def get_state() -> tuple[int, int]:
    """Return the seed and the next counter."""
    with _lock:
        return _seed, _offset


def set_state(seed: int, offset: int) -> None:
    """Continue with this seed, from this counter."""
    global _seed, _offset
    with _lock:
        _seed, _offset = seed, offset


def take(counters: int) -> tuple[int, int]:
    """Return the seed and the first of so many counters, which no later call gets."""
    global _offset
    with _lock:
        first = _offset
        _offset += counters
        return _seed, first
