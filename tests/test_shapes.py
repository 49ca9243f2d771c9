"""Shapes: broadcasting, strides, views, reductions and matrix products. The oracle is NumPy in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
from tests.values import DTYPES, FLOATS, check, torch_of, values_of

A = np.array([[1.0, 0.0, 3.0, 7.0], [2.0, 5.0, 1.0, 4.0]])
B = np.array([[2.0, 1.0, 3.0, 5.0], [1.0, 1.0, 6.0, 4.0]])


def layouts(array: np.ndarray) -> dict[str, lucid.Tensor]:
    """The same values, laid out differently."""
    n, m = array.shape
    wide = np.zeros((2 * n, 3 * m), array.dtype)
    wide[::2, 1::3] = array
    return {
        "dense": lucid.tensor(array),
        "transposed": lucid.tensor(np.ascontiguousarray(array.T)).T,
        "sliced": lucid.tensor(wide)[::2, 1::3],
    }


def test_operands_of_any_strides_give_the_same() -> None:
    for a, b in itertools.product(layouts(A).values(), layouts(B).values()):
        np.testing.assert_array_equal((a - b).numpy(), A - B)
        np.testing.assert_array_equal(lucid.where(a > b, a, b).numpy(), np.maximum(A, B))
    for x in layouts(A).values():
        np.testing.assert_array_equal((-x).numpy(), -A)
        np.testing.assert_array_equal((x * x.clone()).numpy(), A * A)
        np.testing.assert_allclose(x.sum(0).numpy(), A.sum(0), rtol=1e-15)
        np.testing.assert_allclose(x.mean(1).numpy(), A.mean(1), rtol=1e-15)
        np.testing.assert_allclose((x @ x.T).numpy(), A @ A.T, rtol=1e-15)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(((3, 1), (1, 4)), ((2, 1, 3), (4, 1)), ((), (2, 3)), ((2, 3), ()), ((), ()), ((1,), (5,)), ((0, 3), (1, 3))),
        *(((2, 0), ()), ((1, 1), (0, 0)), ((2, 3, 4, 5), (3, 1, 5)), ((1000,), (1000,)), ((70, 1), (70, 1000))),
    ],
    ids=str,
)
def test_shapes_broadcast_as_numpys(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=left), draw.normal(size=right)
    a, b = lucid.tensor(x), lucid.tensor(y)
    assert (a + b).shape == np.broadcast_shapes(left, right)
    np.testing.assert_array_equal((a * b).numpy(), x * y)
    np.testing.assert_array_equal((a < b).numpy(), x < y)
    np.testing.assert_array_equal(lucid.where(a < b, a, b).numpy(), np.minimum(x, y))
    spread = (2, *np.broadcast_shapes(left, right))
    np.testing.assert_array_equal((a.expand(spread) - b).numpy(), np.broadcast_to(x, spread) - y)


def test_where_broadcasts_all_three_and_takes_numbers() -> None:
    condition = lucid.tensor([[True], [False]])
    assert lucid.where(condition, lucid.tensor([1.0, 2.0]), lucid.tensor(3.0)).tolist() == [[1, 2], [3, 3]]
    assert lucid.where(condition, 1, 2.5).tolist() == [[1.0], [2.5]]
    for a, b in (
        (1, 2),
        (1, 2.5),
        (True, False),
        (lucid.ones(1, dtype="half"), 2.5),
        (lucid.ones(1, dtype="int8"), 0.5),
    ):
        plain: list[Any] = [torch_of(v) if isinstance(v, lucid.Tensor) else v for v in (a, b)]
        theirs = torch.where(torch_of(condition), plain[0], plain[1])
        assert lucid.where(condition, a, b).dtype.torch is theirs.dtype
    assert lucid.where(lucid.tensor([False]), math.nan, lucid.tensor([1.0])).tolist() == [1.0]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.reshape(6, 4),
        lambda x: x.reshape((4, -1)),
        lambda x: x.reshape(-1),
        lambda x: x.view(2, 3, 2, 2),
        lambda x: x.permute(2, 0, 1),
        lambda x: x.permute((0, -1, 1)),
        lambda x: x.transpose(0, -1),
        lambda x: x.permute(1, 2, 0).reshape(3, 8),
        lambda x: x.expand(5, 2, 3, 4),
        lambda x: x[:, :1].expand(-1, 3, -1),
        lambda x: x.unsqueeze(0),
        lambda x: x.unsqueeze(-1),
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x.squeeze(0),
        lambda x: x[:1, :, :1].squeeze(),
        lambda x: x[:1, :, :1].squeeze(-1),
        lambda x: x[1],
        lambda x: x[-1, 2],
        lambda x: x[np.int64(1), 0, 3],
        lambda x: x[..., 0],
        lambda x: x[:, None, 1:, ::2],
        lambda x: x[1, ..., None],
        lambda x: x[()],
        lambda x: x[...],
        lambda x: x[5:],
        lambda x: x[:, -2:, 1:3],
    ],
)
def test_views_hold_what_torchs_hold(view: Callable[[Any], Any]) -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    ours, theirs = view(lucid.tensor(array)), view(torch.tensor(array))
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_views_of_0d_and_empty_tensors() -> None:
    scalar, empty = lucid.tensor(2.0), lucid.zeros(0, 3)
    assert scalar.reshape(1, 1).shape == (1, 1)
    assert scalar.reshape(()).shape == scalar.permute().shape == scalar.T.shape == scalar.squeeze(0).shape == ()
    assert scalar.transpose(0, -1).shape == scalar[...].shape == ()
    assert scalar.unsqueeze(-1).tolist() == scalar[None].tolist() == [2.0]
    assert scalar.expand(2, 2).tolist() == [[2.0, 2.0]] * 2
    assert empty.reshape(3, 0).T.shape == (0, 3)
    assert empty.reshape(-1, 3).shape == (0, 3)
    assert empty[:, 1].shape == empty.sum(1).shape == (0,)


# Reductions


@pytest.mark.parametrize("name", DTYPES)
def test_sums_and_means_of_any_dtype(name: str) -> None:
    check_sums(1, False, name)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [None, 0, 1, -1, (0, 2), (2, 0), (-2,), [1, 2], (0, 1, 2)], ids=str)
def test_sums_and_means_over_any_dimensions(dim: Any, keepdim: bool) -> None:
    check_sums(dim, keepdim, "bfloat16")
    check_sums(dim, keepdim, "int32")


def check_sums(dim: Any, keepdim: bool, name: str) -> None:
    x = lucid.tensor(np.random.default_rng(0).normal(2, 3, (3, 5, 4)), dtype=name)
    values, axis = values_of(x), tuple(dim) if isinstance(dim, list) else dim
    size = abs(values).sum(axis, keepdims=keepdim)
    total = x.dtype.torch if x.dtype.is_floating_point else torch.int64
    check(x.sum(dim, keepdim), values.sum(axis, keepdims=keepdim), size, total)
    mean = x.dtype.torch if x.dtype.is_floating_point else torch.float32
    count = values.size / size.size
    check(x.mean(dim, keepdim=keepdim), values.mean(axis, keepdims=keepdim), size / count, mean)


def test_reductions_of_0d_and_of_nothing() -> None:
    scalar = lucid.tensor(3.0)
    assert scalar.sum().item() == scalar.mean(0).item() == scalar.sum(-1, keepdim=True).item() == 3.0
    empty = lucid.zeros(0, 3)
    assert empty.sum().item() == 0.0
    assert empty.sum(0).tolist() == [0.0] * 3
    assert math.isnan(empty.mean().item())
    assert np.isnan(empty.mean(0).numpy()).all()
    assert empty.mean(1).shape == (0,)
    assert lucid.zeros(0, dtype="int64").sum().dtype is lucid.int64


def test_a_long_sum_in_half_precision_is_rounded_once() -> None:
    x = lucid.ones(5000, dtype="bfloat16")
    assert x.sum().item() == torch.tensor(5000.0).bfloat16().item()
    assert x.mean().item() == 1.0
    assert (lucid.full((5000,), 60000.0, dtype="float16")).mean().item() == 60000.0


# Matrix products


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (4,))),
        *(((0, 4), (4, 5)), ((3, 0), (0, 5)), ((3, 4), (4, 0)), ((2, 0, 4), (4, 3)), ((1, 1), (1, 1))),
        ((33, 70), (70, 17)),
    ],
    ids=str,
)
def test_matrix_products_are_numpys(left: tuple[int, ...], right: tuple[int, ...], name: str) -> None:
    draw = np.random.default_rng(0)
    a, b = (lucid.tensor(draw.normal(size=shape), dtype=name) for shape in (left, right))
    x, y = values_of(a), values_of(b)
    for result in (a @ b, lucid.matmul(a, b)):
        check(result, x @ y, abs(x) @ abs(y), a.dtype.torch)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 0, 3), (2, 4, 3)], ids=str)
def test_linear_is_numpys(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    x, weight, bias = draw.normal(size=shape), draw.normal(size=(5, 3)), draw.normal(size=5)
    plain = F.linear(lucid.tensor(x), lucid.tensor(weight))
    biased = F.linear(lucid.tensor(x), lucid.tensor(weight), lucid.tensor(bias))
    check(plain, x @ weight.T, abs(x) @ abs(weight.T), torch.float64)
    check(biased, x @ weight.T + bias, abs(x) @ abs(weight.T) + abs(bias), torch.float64)


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x + x[:2], RuntimeError, r"operands of add must have shapes that broadcast, got \(3,\) and \(2,\)"),
        (lambda x: x == x[:2], RuntimeError, r"operands of eq must have shapes that broadcast, got \(3,\) and \(2,\)"),
        (
            lambda x: lucid.where((x > 0)[:2], x, 0),
            RuntimeError,
            r"operands of where must have shapes that broadcast, got \(2,\) and \(3,\)",
        ),
        (lambda x: lucid.where(x, x, x), TypeError, "condition must be a lucid.Tensor of bool_, got lucid.float32"),
        (lambda x: lucid.where(True, x, x), TypeError, "condition must be a lucid.Tensor of bool_, got bool"),
        (lambda x: lucid.exp(1.0), TypeError, "exp takes a lucid.Tensor, got float"),
        (lambda x: lucid.tanh(np.ones(2)), TypeError, "tanh takes a lucid.Tensor, got numpy.ndarray"),
        (lambda x: -(x > 0), TypeError, "neg takes numbers, got a Tensor of lucid.bool_"),
        (lambda x: lucid.ops.add(1, 2.0), TypeError, "add takes at least one lucid.Tensor, got int and float"),
        (lambda x: x.to("int64") + 2**63, ValueError, "add takes integers of 64 bits, got 9223372036854775808"),
        (lambda x: x.to("int64") ** -1, TypeError, "pow of integers takes .* as exponent, got -1; convert .*"),
        (lambda x: 2 ** x.to("int64"), TypeError, "pow of integers takes .* as exponent, got a Tensor; convert .*"),
        (lambda x: x.reshape(2, 2), RuntimeError, r"shape must hold the 3 elements .* \(3,\), got \(2, 2\)"),
        (lambda x: x.reshape(-1, -1), RuntimeError, r"shape must hold the 3 elements .*, got \(-1, -1\)"),
        (lambda x: x.reshape(-3), RuntimeError, r"shape must hold the 3 elements .*, got \(-3,\)"),
        (lambda x: x[:0].reshape(-1, 0), RuntimeError, r"shape must hold the 0 elements .*, got \(-1, 0\)"),
        (lambda x: x.reshape(1.0, 3), TypeError, "shape must be integers, got float"),
        (lambda x: x.reshape(True, 3), TypeError, "shape must be integers, got bool"),
        (lambda x: x.permute(0, 0), RuntimeError, r"dims must name each of the 1 dimensions once, got \(0, 0\)"),
        (lambda x: x.permute(1), RuntimeError, r"dims must name each of the 1 dimensions once, got \(1,\)"),
        (lambda x: x.transpose(0, 1), IndexError, r"dim1 must lie in -1 to 0 for shape \(3,\), got 1"),
        (lambda x: x.expand(2), RuntimeError, r"shape must be one that \(3,\) broadcasts to, got \(2,\)"),
        (lambda x: x.squeeze(1), IndexError, r"dim must lie in -1 to 0 for shape \(3,\), got 1"),
        (lambda x: x.unsqueeze(2), IndexError, r"dim must lie in -2 to 1 for shape \(3,\), got 2"),
        (lambda x: x.unsqueeze("a"), TypeError, "dim must be an integer, got str"),
        (lambda x: x.sum(1), IndexError, r"dim must lie in -1 to 0 for shape \(3,\), got 1"),
        (lambda x: x.mean((0, -1)), RuntimeError, r"dim must name each dimension once, got \(0, -1\)"),
        (lambda x: x.sum(0.0), TypeError, "dim must be an integer, got float"),
        (lambda x: x[3], IndexError, r"index must fit a tensor of shape \(3,\), got 3"),
        (lambda x: x[0, 0], IndexError, r"index must have at most .* and 1 dimensions for shape \(3,\), got \(0, 0\)"),
        (lambda x: x[..., ...], IndexError, "index must have at most one Ellipsis and 1 dimensions .*"),
        (lambda x: x[[3]], IndexError, r"index must fit a tensor of shape \(3,\): .*"),
        (lambda x: x[x], TypeError, "index must be of integers or bool_, got a tensor of lucid.float32"),
        (lambda x: x[[0.5]], TypeError, "index must be of integers or bool_, got a tensor of lucid.float32"),
        (lambda x: x[(x > 0)[:2]], IndexError, r"a mask in an index must have the shape .*, \(3,\), got \(2,\)"),
        (lambda x: x[True], TypeError, "index must be made of integers, slices, .* of integers or bool_, got bool"),
        (lambda x: x["a"], TypeError, "index must be made of integers, slices, .* of integers or bool_, got str"),
        (lambda x: x[::0], ValueError, "slice step cannot be zero"),
        (lambda x: x[:x], TypeError, r"only a 0-d tensor of integers is an index, got lucid.float32 of shape \(3,\)"),
        (lambda x: x.gather(0, x), TypeError, "index must be a lucid.Tensor of int32 or int64, got lucid.float32"),
        (
            lambda x: x.gather(0, x[None].long()),
            RuntimeError,
            r"index must have 1 dimensions, .* got \(1, 3\) for x .*",
        ),
        (lambda x: x.gather(0, lucid.tensor([3])), IndexError, "index must lie in 0 to 2, the elements along dim 0"),
        (lambda x: x.flip((0, 0)), RuntimeError, r"dims must name each dimension once, got \(0, 0\)"),
        (lambda x: lucid.cat(x), TypeError, "tensors of cat must be a sequence of lucid.Tensors, got lucid.Tensor"),
        (lambda x: lucid.cat([]), ValueError, "tensors of cat must be at least one, got none"),
        (lambda x: lucid.cat([x, 1.0]), TypeError, "tensors of cat must be lucid.Tensors, got float"),
        (
            lambda x: lucid.cat([x, x[None]]),
            RuntimeError,
            r"tensors of cat must have equal .*, got \(3,\) and \(1, 3\)",
        ),
        (lambda x: lucid.stack([x, x[1:]]), RuntimeError, r"tensors of stack must have one .*, got \(3,\) and \(2,\)"),
        (lambda x: x.split(0), RuntimeError, "split_size must be positive, got 0"),
        (lambda x: x.split([1, 1]), RuntimeError, r"split_size must add up to 3, the size of dim 0, got \[1, 1\]"),
        (lambda x: x.chunk(0), RuntimeError, "chunks must be positive, got 0"),
        (lambda x: x.masked_fill(x > 1, x), RuntimeError, r"value must be a number or a 0-d tensor, got shape \(3,\)"),
        (lambda x: x.tril(), RuntimeError, r"x must be a lucid.Tensor of at least two dimensions, got \(3,\)"),
        (lambda x: x.flatten(1), IndexError, r"start_dim must lie in -1 to 0 for shape \(3,\), got 1"),
        (lambda x: x.view(2), RuntimeError, r"shape must hold the 3 elements .* \(3,\), got \(2,\)"),
        (
            lambda x: x.expand(2, 3).T.view(6),
            RuntimeError,
            r"a tensor of shape \(3, 2\) and strides \(1, 0\) cannot be viewed in shape .*: use reshape, .*",
        ),
        (lambda x: x.clamp(), ValueError, "clamp takes min, max or both, got neither"),
        (lambda x: x & x, TypeError, "bitwise_and takes integers or bool_, got lucid.float32"),
        (lambda x: F.gelu(x, "fast"), ValueError, r"approximate must be one of \('none', 'tanh'\), got 'fast'"),
        (lambda x: F.softmax(x, 0, axis=0), TypeError, "softmax takes dim or axis, got both"),
        (lambda x: np.exp(x), TypeError, r"np.exp takes NumPy arrays, got a lucid.Tensor: use lucid.exp\(x\), or .*"),
        (lambda x: np.hypot(x, x), TypeError, "np.hypot takes NumPy arrays, .*: use a function of lucid, or pass .*"),
        (lambda x: x @ x[:2], RuntimeError, r"matmul takes shapes .* got \(3,\) and \(2,\)"),
        (lambda x: x.sum() @ x, RuntimeError, r"matmul takes shapes .* got \(\) and \(3,\)"),
        (lambda x: x @ x.expand(2, 4, 3), RuntimeError, r"matmul takes shapes .* got \(3,\) and \(2, 4, 3\)"),
        (lambda x: x @ x.double(), RuntimeError, "a and b of matmul must have one dtype, got lucid.float32 and .*64"),
        (lambda x: x.to("int64") @ x, TypeError, "a of matmul must have a floating dtype, got lucid.int64"),
        (lambda x: x @ 2.0, TypeError, "b of matmul must be a lucid.Tensor, got float"),
        (lambda x: F.linear(x, x), RuntimeError, r"linear takes x .* got \(3,\) and \(3,\)"),
        (
            lambda x: F.linear(x, x[None], x[:2]),
            RuntimeError,
            r"bias of linear must have shape \(1,\), got \(2,\)",
        ),
        (
            lambda x: F.linear(x, x[None], x[:1].half()),
            RuntimeError,
            "x and weight and bias of linear must have one dtype, got lucid.float32 and .*32 and lucid.float16",
        ),
        (lambda x: F.embedding(x, x[None]), TypeError, "indices must be int32 or int64, got lucid.float32"),
        (
            lambda x: F.embedding(lucid.tensor([0, 2]), x[None]).tolist(),
            IndexError,
            "indices must lie in 0 to 0, the rows of the embedding, got 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        call(lucid.tensor([1.0, 2.0, 3.0]))
