"""Philox-4×32-10 in NumPy (Salmon et al. 2011), and the random bits that elements of a call have."""

from __future__ import annotations

import numpy as np

_LOW = np.uint64(0xFFFFFFFF)


def philox(seed: int, counters: list[np.ndarray]) -> np.ndarray:
    """Return four words of 32 bits for each of four words of counters, along a new last dimension."""
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counters)
    k0, k1 = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)
    with np.errstate(over="ignore"):
        for _ in range(10):
            a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
            c0, c1, c2, c3 = (b >> np.uint64(32)) ^ c1 ^ k0, b & _LOW, (a >> np.uint64(32)) ^ c3 ^ k1, a & _LOW
            k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW, (k1 + np.uint64(0xBB67AE85)) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1)


def element_bits(seed: int, offset: int, numel: int, wide: bool = False) -> np.ndarray:
    """Return the 32, or 64, bits of each element of a call."""
    counter = np.uint64(offset) + np.arange(-(-numel // 2), dtype=np.uint64)
    zero = np.zeros_like(counter)
    words = philox(seed, [counter & _LOW, counter >> np.uint64(32), zero, zero])
    if wide:
        words = (words[:, ::2] << np.uint64(32)) | words[:, 1::2]
    return words.reshape(-1)[:numel]
