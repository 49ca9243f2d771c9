"""Products, variances, norms and logarithms of sums, over any dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch

import triton_kernels as tk
from lucid._arguments import accepts_axis, check_bool, check_int, type_name
from lucid.autograd.function import Function
from lucid.dtype import float32
from lucid.ops.arithmetic import abs, eq, mul, sqrt, sub, where
from lucid.ops.extremes import Dims, extreme
from lucid.ops.memory import permute, reshape, to, unsqueeze
from lucid.ops.power import pow
from lucid.ops.promotion import unwrap_numpy_scalar
from lucid.ops.reduction import as_floating, count, dims_of, reciprocal, scaled_sum, squeeze_dims
from lucid.ops.softmax import softmax
from lucid.tensor import Tensor


def _order(x: Tensor, dims: tuple[int, ...]) -> tuple[int, ...]:
    return (*(d for d in range(x.ndim) if d not in dims), *dims)


def _as_rows(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """(rows, columns), where columns are what is reduced."""
    columns = count(x, dims)
    rows = math.prod(size for d, size in enumerate(x.shape) if d not in dims)
    return reshape(permute(x, _order(x, dims)), (rows, columns))


def _from_rows(rows: Tensor, like: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The inverse of `_as_rows`."""
    order = _order(like, dims)
    permuted = reshape(rows, [like.shape[d] for d in order])
    return permute(permuted, sorted(range(like.ndim), key=order.__getitem__))


class _Prod(Function):
    """Π over dims, which are kept with size 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        ctx.dims = dims
        ctx.save_for_backward(x)
        return Tensor._wrap(tk.prod(x._buffer, dims, keepdim=True))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if not x.numel():
            return mul(grad, x), None
        rows = _as_rows(x, ctx.dims)
        columns = rows.shape[1]
        # No quotient by x, which may be 0.
        others = _products_of_others(_PadWithOnes.apply(rows))[:, :columns]
        return mul(grad, _from_rows(others, x, ctx.dims)), None


class _PadWithOnes(Function):
    """(rows, columns) with columns of ones at the end, up to a power of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows, ctx.columns = x.shape
        size = 1 << (ctx.columns - 1).bit_length()
        padded = torch.ones((rows, size), dtype=x._buffer.dtype, device=x._buffer.device)
        padded[:, : ctx.columns].copy_(x._buffer)
        return Tensor._wrap(padded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad[:, : ctx.columns]


def _products_of_others(x: Tensor) -> Tensor:
    """For each element of (rows, columns), the product of all others of its row; columns are a power of two."""
    rows, columns = x.shape
    if columns == 1:
        return Tensor._wrap(torch.ones_like(x._buffer))
    left, right = x[:, ::2], x[:, 1::2]
    is_left = Tensor._wrap(torch.zeros(2, dtype=torch.bool, device=x._buffer.device))
    is_left._buffer[:1].fill_(True)
    siblings = where(is_left, unsqueeze(right, 2), unsqueeze(left, 2))
    return reshape(mul(siblings, unsqueeze(_products_of_others(mul(left, right)), 2)), (rows, columns))


@accepts_axis
def prod(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The product over `dim`, by default over all; of integers in int64. 1 over nothing.

    Parameters
    ----------
    x : Tensor
        Of any dtype, shape and strides. Half precision is multiplied in float32 and rounded once.
    dim : int or tuple of int, optional
        Dimensions to reduce, also as ``axis``; None, the default, is all.
    keepdim : bool
        Keep them with size 1, also as ``keepdims``.

    Raises
    ------
    TypeError
        If x is no Tensor, `dim` no integers or `keepdim` no bool.
    IndexError, RuntimeError
        If there is no such dimension, or it is named twice.

    Notes
    -----
    The gradient is the product of the other elements, which is right where some are 0.

    Examples
    --------
    >>> import lucid
    >>> lucid.prod(lucid.tensor([[1, 2], [3, 4]]), dim=1)
    tensor([ 2, 12], dtype=lucid.int64)
    """
    dims = dims_of("prod", x, dim)
    return squeeze_dims(_Prod.apply(x, dims), dims, keepdim)


class _SumOf(Function):
    """Σ x² or Σ |x| over dims, which are kept with size 1; in float32 or float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], of: str) -> Tensor:
        ctx.of = of
        ctx.save_for_backward(x)
        kind = tk.launch.compute_dtype(x._buffer.dtype)
        return Tensor._wrap(tk.sum(x._buffer, dims, keepdim=True, of=of, dtype=kind))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if ctx.of == "square":
            return mul(grad, mul(x, 2)), None, None
        sign = tk.pointwise("sign", x._buffer, dtype=x._buffer.dtype)
        return mul(grad, Tensor._wrap(sign)), None, None


class _Variance(Function):
    """Σ (x − mean)² / (n − correction) over dims, which are kept with size 1; in float32 or float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], correction: int) -> Tensor:
        ctx.dims = dims
        ctx.scale = reciprocal(count(x, dims) - correction)
        ctx.save_for_backward(x)
        kind = tk.launch.compute_dtype(x._buffer.dtype)
        mean = tk.sum(x._buffer, dims, scale=reciprocal(count(x, dims)), dtype=kind)
        options: dict[str, Any] = {"of": "squared_deviation", "centre": mean, "scale": ctx.scale, "dtype": kind}
        return Tensor._wrap(tk.sum(x._buffer, dims, keepdim=True, **options))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        x = _accurate(x)
        deviation = sub(x, scaled_sum(x, ctx.dims, reciprocal(count(x, ctx.dims))))
        return mul(mul(grad, 2 * ctx.scale), deviation), None, None


def _accurate(x: Tensor) -> Tensor:
    """Return x in the dtype of its arithmetic, float32 or float64."""
    return x if x.dtype.itemsize > 2 else to(x, None, float32)


def _variance(
    name: str, x: Any, dim: Any, correction: int | None, unbiased: bool | None
) -> tuple[Tensor, tuple[int, ...]]:
    dims = dims_of(name, x, dim)
    if unbiased is not None:
        if correction is not None:
            raise TypeError(f"{name} takes correction or unbiased, got both")
        correction = int(check_bool("unbiased", unbiased))
    return _Variance.apply(as_floating(x), dims, 1 if correction is None else check_int("correction", correction)), dims


def _finish(y: Tensor, x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Round to x's dtype, float32 for integers, and drop dimensions."""
    return squeeze_dims(to(y, None, x.dtype if x.dtype.is_floating_point else float32), dims, keepdim)


def _root(x: Tensor, p: float = 2) -> Tensor:
    """x^(1/p), with the gradient 0 at 0."""
    zero = eq(x, 0)
    positive = where(zero, 1, x)
    return where(zero, 0, sqrt(positive) if p == 2 else pow(positive, 1 / p))


@accepts_axis
def var(
    x: Tensor,
    dim: Dims = None,
    *,
    keepdim: bool = False,
    correction: int | None = None,
    unbiased: bool | None = None,
) -> Tensor:
    """The variance over `dim`, by default over all: Σ (x − mean)² / (n − correction).

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32. The mean is computed first, then the sum of squares, both in
        float32 or float64.
    dim : int or tuple of int, optional
        Dimensions to reduce, also as ``axis``; None, the default, is all.
    keepdim : bool
        Keep them with size 1, also as ``keepdims``.
    correction : int, optional
        1, the default, gives the unbiased variance of a sample, 0 the variance of the elements.
    unbiased : bool, optional
        In place of `correction`: True is 1, False 0.

    Returns
    -------
    Tensor
        Of x's dtype; NaN, or inf, where n is not larger than the correction.

    Raises
    ------
    TypeError
        If x is no Tensor, `dim` or `correction` no integers, `keepdim` or `unbiased` no bool, or both of `correction`
        and `unbiased` are given.
    IndexError, RuntimeError
        If there is no such dimension, or it is named twice.

    Examples
    --------
    >>> import lucid
    >>> lucid.var(lucid.tensor([1.0, 2.0, 3.0])).item()
    1.0
    """
    y, dims = _variance("var", x, dim, correction, unbiased)
    return _finish(y, x, dims, keepdim)


@accepts_axis
def std(
    x: Tensor,
    dim: Dims = None,
    *,
    keepdim: bool = False,
    correction: int | None = None,
    unbiased: bool | None = None,
) -> Tensor:
    """The standard deviation over `dim`, the root of `var`; its gradient is 0 where it is 0. Parameters as of `var`.

    Examples
    --------
    >>> import lucid
    >>> lucid.std(lucid.tensor([[1.0, 3.0], [2.0, 2.0]]), dim=1, correction=0)
    tensor([1., 0.])
    """
    y, dims = _variance("std", x, dim, correction, unbiased)
    return _finish(_root(y), x, dims, keepdim)


@accepts_axis
def norm(x: Tensor, p: float = 2, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The p-norm over `dim`, by default over all: (Σ |x|^p)^(1/p), or max |x|.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32. Sums are in float32 or float64.
    p : float
        At least 1; may be inf. Default: 2.
    dim : int or tuple of int, optional
        Dimensions to reduce, also as ``axis``; None, the default, is all.
    keepdim : bool
        Keep them with size 1, also as ``keepdims``.

    Returns
    -------
    Tensor
        Of x's dtype. The gradient is 0 where the norm is 0.

    Raises
    ------
    TypeError
        If x is no Tensor, p no number, `dim` no integers or `keepdim` no bool.
    ValueError
        If p is less than 1.
    IndexError, RuntimeError
        If there is no such dimension, it is named twice, or p is inf and there is nothing to reduce.

    Examples
    --------
    >>> import lucid
    >>> lucid.norm(lucid.tensor([[3.0, 4.0], [0.0, 0.0]]), dim=1)
    tensor([5., 0.])
    """
    p = unwrap_numpy_scalar(p)
    if isinstance(p, bool) or not isinstance(p, int | float):
        raise TypeError(f"p must be a number of at least 1, got {type_name(p)}")
    if not p >= 1:
        raise ValueError(f"p must be at least 1, got {p}")
    dims = dims_of("norm", x, dim)
    floating = as_floating(x)
    if p == math.inf:
        return extreme("norm", abs(floating), dim, keepdim, smallest=False)
    if p <= 2 and p == int(p):
        total = _SumOf.apply(floating, dims, "abs" if p == 1 else "square")
    else:
        total = scaled_sum(pow(abs(_accurate(floating)), p), dims, 1.0)
    return _finish(total if p == 1 else _root(total, p), x, dims, keepdim)


class _LogSumExp(Function):
    """log Σ exp x over dims, which are kept with size 1; its gradient is the softmax of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        ctx.dims = dims
        ctx.save_for_backward(x)
        buffer = x._buffer
        if not count(x, dims):
            shape = [1 if d in dims else size for d, size in enumerate(x.shape)]
            return Tensor._wrap(torch.full(shape, -math.inf, dtype=buffer.dtype, device=buffer.device))
        kind = tk.launch.compute_dtype(buffer.dtype)
        largest = tk.extreme(buffer, dims, keepdim=True)
        total = tk.sum(buffer, dims, keepdim=True, of="exp_difference", centre=largest, dtype=kind)
        log = tk.pointwise("log", total, dtype=kind)
        return Tensor._wrap(tk.pointwise("add", log, largest, dtype=buffer.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return mul(grad, _from_rows(softmax(_as_rows(x, ctx.dims), 1), x, ctx.dims)), None


@accepts_axis
def logsumexp(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """log Σ exp x over `dim`, by default over all, without overflow; −inf over nothing, and where all are −inf.

    Parameters
    ----------
    x : Tensor
        Of any shape and strides; integers become float32. Sums are in float32 or float64.
    dim : int or tuple of int, optional
        Dimensions to reduce, also as ``axis``; None, the default, is all.
    keepdim : bool
        Keep them with size 1, also as ``keepdims``.

    Raises
    ------
    TypeError
        If x is no Tensor, `dim` no integers or `keepdim` no bool.
    IndexError, RuntimeError
        If there is no such dimension, or it is named twice.

    Examples
    --------
    >>> import lucid
    >>> lucid.logsumexp(lucid.tensor([1000.0, 1000.0])).item()
    1000.6931762695312
    """
    dims = dims_of("logsumexp", x, dim)
    return squeeze_dims(_LogSumExp.apply(as_floating(x), dims), dims, keepdim)
