"""Random numbers, the same by seed on every device; see `manual_seed`."""

from __future__ import annotations

import numbers
import secrets
from typing import Any

import numpy as np
import torch

from lucid import _generator
from lucid._arguments import check_int, check_real, type_name
from lucid._docs import listing
from lucid.dtype import dtype as DTypeType
from lucid.dtype import float32, int64
from lucid.factories import Device, DType, _checked, empty
from lucid.ops import random as ops
from lucid.tensor import Tensor

__all__ = [
    "bernoulli",
    "get_rng_state",
    "initial_seed",
    "manual_seed",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "seed",
    "set_rng_state",
]

__dir__ = listing(__all__)


def manual_seed(seed: int) -> None:
    """Start the generator anew, so that what follows repeats.

    One generator serves factories, initial weights and dropout, of all threads of the process: Philox-4×32-10 (Salmon
    et al. 2011), which maps a seed and a counter to random bits. Each call takes as many counters as it needs, by the
    number of elements alone. Uniform numbers, integers and dropout masks have the same bits on every device; normal
    numbers may differ in the last bit, of about one in 2²⁷ float32 numbers. Without this call the operating system
    chooses the seed.

    Parameters
    ----------
    seed
        An integer from 0 to 2⁶³ − 1.

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
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < _generator.LIMIT:
        raise ValueError(f"seed must be a non-negative integer of at most 63 bits, got {seed!r}")
    _generator.set_state(int(seed), 0)


def seed() -> int:
    """Start the generator with a seed from the operating system; return the seed.

    Examples
    --------
    >>> import lucid
    >>> lucid.seed() == lucid.initial_seed()
    True
    """
    chosen = secrets.randbelow(_generator.LIMIT)
    manual_seed(chosen)
    return chosen


def initial_seed() -> int:
    """Return the seed that the generator was started with.

    Examples
    --------
    >>> import lucid
    >>> lucid.manual_seed(5)
    >>> lucid.initial_seed()
    5
    """
    return _generator.get_state()[0]


def get_rng_state() -> Tensor:
    """Return the generator's state, for `set_rng_state`: seed and next counter, int64, on the CPU.

    Examples
    --------
    >>> import lucid
    >>> lucid.manual_seed(5)
    >>> _ = lucid.rand(7)
    >>> lucid.get_rng_state().tolist()
    [5, 4]
    """
    return Tensor(list(_generator.get_state()), dtype=int64, device="cpu")


def set_rng_state(state: Tensor) -> None:
    """Continue from a state that `get_rng_state` returned, as when training resumes from a checkpoint.

    Raises
    ------
    TypeError
        If it is no int64 Tensor.
    ValueError
        If it is not two non-negative numbers.

    Examples
    --------
    >>> import lucid
    >>> state = lucid.get_rng_state()
    >>> first = lucid.randn(3)
    >>> lucid.set_rng_state(state)
    >>> first.tolist() == lucid.randn(3).tolist()
    True
    """
    if not isinstance(state, Tensor) or state.dtype is not int64:
        got = state.dtype if isinstance(state, Tensor) else type_name(state)
        raise TypeError(f"state must be an int64 lucid.Tensor from get_rng_state, got {got}")
    values = state.tolist()
    if state.shape != (2,) or min(values) < 0:
        raise ValueError(f"state must hold a seed and a counter, two non-negative numbers, got {values}")
    _generator.set_state(*values)


def _floating(dtype: DType) -> DTypeType:
    kind = float32 if dtype is None else DTypeType.of(dtype)
    if not kind.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype, got {kind}")
    return kind


def rand(*shape: Any, dtype: DType = None, device: Device = None, requires_grad: bool = False) -> Tensor:
    """Numbers drawn evenly from [0, 1); parameters as for `empty`.

    They are multiples of 2⁻ᵇ, with 24 bits b for float32, 53 for float64, 11 for float16 and 8 for bfloat16.

    Raises
    ------
    TypeError
        If the dtype is not floating.
    ValueError
        If a size is no non-negative integer.

    Examples
    --------
    >>> import lucid
    >>> 0 <= lucid.rand(1).item() < 1
    True
    """
    made = ops.uniform_(empty(*shape, dtype=_floating(dtype), device=device))
    return made.requires_grad_(requires_grad)


def randn(*shape: Any, dtype: DType = None, device: Device = None, requires_grad: bool = False) -> Tensor:
    """Numbers drawn from the standard normal distribution; parameters and errors as for `rand`.

    They are Φ⁻¹(u) of numbers u of 32 random bits, 52 for float64.

    Examples
    --------
    >>> import lucid
    >>> lucid.randn(2, 3).shape
    (2, 3)
    """
    made = ops.normal_(empty(*shape, dtype=_floating(dtype), device=device))
    return made.requires_grad_(requires_grad)


def bernoulli(p: float, *, size: Any, dtype: DType = None, device: Device = None) -> Tensor:
    """1 at a probability of p and 0 elsewhere, of shape `size`.

    Raises
    ------
    TypeError
        If p is no number, or the dtype not floating.
    ValueError
        If p is not from 0 to 1.

    Examples
    --------
    >>> import lucid
    >>> lucid.bernoulli(1.0, size=(2,))
    tensor([1., 1.])
    """
    probability = check_real("p", p, "a number from 0 to 1", lambda value: 0 <= value <= 1)
    return ops.bernoulli_(empty(size, dtype=_floating(dtype), device=device), probability)


def randint(low: int, high: int | Any, size: Any = None, *, dtype: DType = None, device: Device = None) -> Tensor:
    """Integers drawn evenly from low to high − 1, of shape `size`; ``randint(high, size)`` starts from 0.

    An integer is low + r mod (high − low), with r of 64 random bits: its probability is right to one part in 2⁶⁴/(high
    − low).

    Parameters
    ----------
    low, high : int
        low < high, less than 2⁶³ apart.
    size : int or sequence of int
    dtype : dtype or str, optional
        An integer dtype that holds both bounds; int64 if None.

    Raises
    ------
    TypeError
        If a bound is no int, or the dtype no integer dtype.
    ValueError
        If low is not below high, or the dtype does not hold them.

    Examples
    --------
    >>> import lucid
    >>> lucid.randint(0, 1, (3,))
    tensor([0, 0, 0], dtype=lucid.int64)
    """
    if size is None:
        low, high, size = 0, low, high
    first, end = check_int("low", low), check_int("high", high)
    kind = _integer(dtype)
    limits = torch.iinfo(kind.torch)
    if not limits.min <= first < end <= limits.max + 1 or end - first >= 2**63:
        raise ValueError(
            f"low must be below high, less than 2**63 apart and within {kind}, got low={first} and high={end}"
        )
    return ops.randint_(empty(size, dtype=kind, device=device), first, end)


def randperm(n: int, *, dtype: DType = None, device: Device = None) -> Tensor:
    """The integers from 0 to n − 1 in random order: the order of n numbers of 64 random bits, sorted on the host.

    Raises
    ------
    TypeError
        If n is no int, or the dtype no integer dtype.
    ValueError
        If n is negative, or the dtype does not hold n − 1.

    Examples
    --------
    >>> import lucid
    >>> sorted(lucid.randperm(4).tolist())
    [0, 1, 2, 3]
    """
    count, kind = check_int("n", n), _integer(dtype)
    if not 0 <= count <= torch.iinfo(kind.torch).max + 1:
        raise ValueError(f"n must be non-negative, with n - 1 within {kind}, got {count}")
    keys = ops.randint_(empty(count, dtype=int64), 0, 2**63 - 1)
    return Tensor(np.argsort(keys.numpy(), kind="stable"), kind, device)


def _integer(dtype: DType) -> DTypeType:
    kind = int64 if dtype is None else DTypeType.of(dtype)
    if kind.is_floating_point or kind.torch is torch.bool:
        raise TypeError(f"dtype must be an integer dtype, got {kind}")
    return kind


def rand_like(other: Tensor) -> Tensor:
    """As `rand`, with the shape, dtype and device of another tensor."""
    return rand(_checked(other).shape, dtype=other.dtype, device=other.device)


def randn_like(other: Tensor) -> Tensor:
    """As `randn`, with the shape, dtype and device of another tensor."""
    return randn(_checked(other).shape, dtype=other.dtype, device=other.device)
