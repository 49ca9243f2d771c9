"""Workarounds for bugs and slow paths of Triton's interpreter (versions 3.6 to 3.9).

- float32 to bfloat16 truncates, and can turn a NaN into inf; float64 to bfloat16 casts to an integer. Compiled code
  rounds to nearest, ties to even.
- ``tl.dot`` multiplies the bit patterns of bfloat16 operands.
- ``tl.maximum`` and ``tl.minimum`` propagate NaN, where compiled code returns the other operand.
- ``tl.fma`` rounds twice.
- An argument of −0.0 becomes 0.0, as constants do; compiled code keeps it.
- Triton 3.6 takes a loop's bounds from arrays of one element, which NumPy 2.5 no longer converts to an integer.
- The result of a comparison of scalars has its operands' dtype, not int1, once it is broadcast.
- Whether Triton's own jit functions (``tl.sum`` and others) are interpreted is fixed when triton is imported. Here they
  are interpreted exactly while an interpreted kernel runs.
- Every call of a jit function patches ``triton.language``, which is most of the time of a small launch. The patches are
  always the same, so they are applied once per launch and removed after it.
- Integer sums and products are computed a second time, in int64, for an overflow check that only debug mode makes.
- The current program id is one global for all threads, so launches from several threads are serialized.
- Loads and stores loop over elements, which is half of the time of a large launch. NumPy's indexing is four times as
  fast.
- NumPy warns of a logarithm of zero and of invalid values; kernels select the right result afterwards.
"""

from __future__ import annotations

import dataclasses
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

_MISSING = object()


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Round float32 or float64 values to bfloat16, ties to even, and return its bits as uint16; NaN stays NaN.

    >>> [hex(b) for b in bfloat16_bits(np.array([1.0, 1.00390625, 1.01171875], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82']
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def bfloat16_values(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16 values, given as uint16 bits, in float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def apply_workarounds() -> None:
    """Patch Triton's interpreter; further calls do nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_patched", False):
        return
    builder._patched = True
    builder.cast_impl = _patched_cast(builder.cast_impl)
    builder.create_dot = _patched_dot(builder.create_dot)
    builder.create_maxnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax)
    builder.create_minnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmin)
    builder.create_fma = _patched_fma(builder.create_fma)
    builder.create_masked_load = _fast_load(builder.create_masked_load)
    builder.create_masked_store = _fast_store(builder.create_masked_store)
    for name in dir(builder):
        if name.startswith(("create_icmp", "create_fcmp")):
            setattr(builder, name, _patched_comparison(getattr(builder, name)))
    semantic = interpreter.interpreter_semantic
    semantic.scalar_constant = _patched_constant(semantic.scalar_constant)
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=options.debug)
    interpreter._patch_lang = lambda fn: _NoopScope()  # `_patched_language` patches per launch
    interpreter.GridExecutor.__call__ = _serialized(interpreter.GridExecutor.__call__)


def _patched_cast(original: Callable[..., Any]) -> Callable[..., Any]:
    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, destination = src.dtype.scalar, dst_type.scalar
        if destination == tl.bfloat16 and source in (tl.float32, tl.float64):
            return interpreter.TensorHandle(bfloat16_bits(src.data), tl.bfloat16)
        if source == tl.bfloat16 and destination == tl.float32:
            return interpreter.TensorHandle(bfloat16_values(src.data), tl.float32)
        return original(self, src, dst_type)

    return cast_impl


def _patched_dot(original: Callable[..., Any]) -> Callable[..., Any]:
    def as_float32(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return interpreter.TensorHandle(bfloat16_values(operand.data), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, as_float32(a), as_float32(b), *rest)

    return create_dot


def _patched_fma(original: Callable[..., Any]) -> Callable[..., Any]:
    # The product of two float32 is exact in float64; longdouble is wider than float64 on most platforms.
    wider = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.data.dtype not in wider:
            return original(self, x, y, z)
        exact = x.data.astype(wider[z.data.dtype]) * y.data + z.data
        return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    return create_fma


def _patched_constant(original: Callable[..., Any]) -> Callable[..., Any]:
    def scalar_constant(value: Any, dtype: Any) -> Any:
        constant = original(value, dtype)
        if isinstance(value, float) and value == 0:
            constant.handle.data[...] = value  # with its sign
        return constant

    return scalar_constant


def _patched_comparison(original: Callable[..., Any]) -> Callable[..., Any]:
    def compare(self: Any, lhs: Any, rhs: Any) -> Any:
        return interpreter.TensorHandle(original(self, lhs, rhs).data, tl.int1)

    return compare


#: Loads and stores of fewer elements use Triton's loop, which is faster for them.
_MIN_VECTORIZED = 256


class _MemorySpan:
    """Expose the memory from one address to another as a NumPy array."""

    def __init__(self, first: int, last: int, dtype: np.dtype[Any]) -> None:
        n = (last - first) // dtype.itemsize + 1
        self.__array_interface__ = {"data": (first, False), "shape": (n,), "typestr": dtype.str, "version": 3}


def _memory_and_indices(pointers: np.ndarray, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return an array over the memory that `pointers` into one tensor span, and their indices in it."""
    first = pointers.min()
    offsets = (pointers - first).view(np.int64)
    return np.asarray(_MemorySpan(int(first), int(pointers.max()), dtype)), offsets >> (dtype.itemsize.bit_length() - 1)


def _fast_load(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_masked_load(self: Any, pointers: Any, mask: Any, other: Any, *hints: Any) -> Any:
        if pointers.data.size < _MIN_VECTORIZED:
            return original(self, pointers, mask, other, *hints)
        element = pointers.get_element_ty()
        dtype = interpreter._get_np_dtype(element)
        if mask.data.all():
            memory, indices = _memory_and_indices(pointers.data, dtype)
            return interpreter.TensorHandle(memory[indices], element)
        values = np.zeros(pointers.data.shape, dtype) if other is None else other.data.astype(dtype)
        if mask.data.any():
            memory, indices = _memory_and_indices(pointers.data[mask.data], dtype)
            values[mask.data] = memory[indices]
        return interpreter.TensorHandle(values, element)

    return create_masked_load


def _fast_store(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *hints: Any) -> Any:
        if pointers.data.size < _MIN_VECTORIZED:
            return original(self, pointers, value, mask, *hints)
        where = ... if mask.data.all() else mask.data
        active = pointers.data[where]
        if active.size:
            memory, indices = _memory_and_indices(active, value.data.dtype)
            memory[indices] = value.data[where]

    return create_masked_store


@contextmanager
def interpreter_enabled() -> Iterator[None]:
    """Act as with ``TRITON_INTERPRET=1`` inside the block, without changing the environment."""
    values = vars(triton.knobs.runtime)
    before = values.get("interpret", _MISSING)
    values["interpret"] = True
    try:
        yield
    finally:
        if before is _MISSING:
            del values["interpret"]
        else:
            values["interpret"] = before


@cache
def _patches() -> list[tuple[Any, str, Any, Any]]:
    """Return the attributes of ``triton.language`` to patch: (namespace, name, original value, patched value)."""
    namespaces = (tl, tl.core, tl.math, tl.random, tl.standard, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)
    before = [dict(vars(namespace)) for namespace in namespaces]
    # Triton patches the modules that a kernel's globals name.
    scope = _patch_lang(types.FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core}))
    tl.tensor.__index__ = lambda self: int(self.handle.data.squeeze())
    changed = [dict(vars(namespace)) for namespace in namespaces]
    scope.restore()
    helpers: dict[Any, Any] = {}  # by jit function: one function may have several names
    patches = []
    for namespace, old, new in zip(namespaces, before, changed, strict=True):
        for name, value in new.items():
            if isinstance(value, triton.runtime.JITFunction):
                value = helpers.setdefault(value, interpreter.InterpretedFunction(value.fn))
            if old.get(name, _MISSING) is not value:
                patches.append((namespace, name, old.get(name, _MISSING), value))
    return patches


_patch_lang = interpreter._patch_lang


@contextmanager
def _patched_language() -> Iterator[None]:
    for namespace, name, _, value in _patches():
        setattr(namespace, name, value)
    try:
        yield
    finally:
        for namespace, name, value, _ in _patches():
            if value is _MISSING:
                delattr(namespace, name)
            else:
                setattr(namespace, name, value)


class _NoopScope:
    """Replace Triton's scope of patches; `_patched_language` removes them after the launch."""

    def restore(self) -> None:
        pass


def _serialized(original: Callable[..., Any]) -> Callable[..., Any]:
    """Run one launch at a time, with the patched language and without NumPy's warnings."""
    lock = threading.Lock()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with lock, interpreter_enabled(), _patched_language(), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            return original(self, *args, **kwargs)

    return call
