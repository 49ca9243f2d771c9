"""The random number generator of factories and initial weights."""

from __future__ import annotations

import numbers

import numpy as np

_generator = np.random.default_rng()


def manual_seed(seed: int) -> None:
    """Start the generator anew, so that what follows repeats.

    Parameters
    ----------
    seed
        A non-negative integer.

    Raises
    ------
    ValueError
        If it is not one.

    Examples
    --------
    >>> import lucid
    >>> lucid.manual_seed(0)
    >>> first = lucid.rand(3)
    >>> lucid.manual_seed(0)
    >>> first.tolist() == lucid.rand(3).tolist()
    True
    """
    global _generator
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    _generator = np.random.default_rng(seed)


def generator() -> np.random.Generator:
    """The generator in use."""
    return _generator
