"""Embedding, matrix product and sum: the facade's heavier operations, against float64 truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
import triton_kernels as tk
from tests.device import DEVICE
from tests.reference import FLOATS, arithmetic_of, assert_within, exact


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_embedding_picks_rows_and_its_gradient_adds_them_up(dtype: torch.dtype, index_dtype: torch.dtype) -> None:
    rows, width = 70, 37
    table = torch.randn(rows, width).to(DEVICE, dtype)
    indices = torch.randint(0, rows, (5, 41)).to(DEVICE, index_dtype)
    indices[0] = 3  # a row that many tokens name
    leaf = lucid.from_torch(table).requires_grad_()
    out = F.embedding(lucid.from_torch(indices), leaf)
    assert torch.equal(out.to_torch(), table[indices.long()])
    dout = torch.randn(5, 41, width).to(DEVICE, dtype)
    out.backward(lucid.from_torch(dout))
    truth, size = np.zeros((rows, width)), np.zeros((rows, width))
    np.add.at(truth, indices.cpu().numpy().reshape(-1), exact(dout).reshape(-1, width))
    np.add.at(size, indices.cpu().numpy().reshape(-1), np.abs(exact(dout)).reshape(-1, width))
    assert leaf.grad is not None
    assert_within(leaf.grad.to_torch(), truth, size, arithmetic_of(dtype))


def test_the_gradient_of_an_embedding_is_bitwise_the_same_from_run_to_run() -> None:
    indices = torch.randint(0, 9, (500,)).to(DEVICE)
    dout = torch.randn(500, 33).to(DEVICE)
    first, second = (tk.embedding_backward(indices, dout, 9) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("rows", [30, 500])
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_not_finite_reach_the_row_of_their_index_alone(dtype: torch.dtype, rows: int) -> None:
    indices, dout = torch.randint(0, 30, (200,)), torch.randn(200, 3).to(dtype)
    dout[10], dout[20], dout[30] = torch.tensor([[np.inf, -np.inf, np.nan]] * 3).to(dtype)
    dout[40, 0], dout[41, 0], dout[42, 0] = np.nan, np.inf, -np.inf
    indices[[10, 20, 30, 40, 41]] = torch.tensor([1, 2, 2, 3, 3])
    indices[[42, 43]] = 1  # beside an infinity of the other sign
    truth = np.zeros((rows, 3))
    with np.errstate(invalid="ignore"):
        np.add.at(truth, indices.numpy(), exact(dout))
    found = exact(tk.embedding_backward(indices.to(DEVICE), dout.to(DEVICE), rows))
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(found), kind(truth))
        assert kind(truth).sum() < 5


def test_a_pointwise_result_may_be_written_over_an_operand() -> None:
    x, y = torch.randn(5, 70).to(DEVICE), torch.randn(5, 70).to(DEVICE)
    expected = tk.pointwise("add", x, y, dtype=x.dtype)
    for _ in range(3):  # the third is replayed
        a = x.clone()
        assert tk.pointwise("add", a, y, dtype=a.dtype, out=a) is a
        assert torch.equal(a, expected)
    for bad in (x.t().contiguous().t(), x.double(), x[:, :1]):
        with pytest.raises(ValueError, match=r"^out and operands must be contiguous, of shape \(5, 70\), and out of"):
            tk.pointwise("add", x, y, dtype=x.dtype, out=bad)


@pytest.mark.parametrize("bad", [10, 99, -1])
def test_an_index_outside_the_table_is_named_with_the_rows_there_are(bad: int) -> None:
    layer = nn.Embedding(10, 4)
    with pytest.raises(IndexError, match=rf"^indices must lie in 0 to 9, the rows of the embedding, got {bad}$"):
        layer(lucid.tensor([[1, 2], [bad, 3]])).numpy()
    # It is reported once, and nothing of it is left.
    assert np.isfinite(layer(lucid.tensor([0, 9])).numpy()).all()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (33, 70, 20), (130, 5, 65), (2, 0, 3), (0, 4, 5)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_matrix_product_is_true(dtype: torch.dtype, m: int, k: int, n: int, transposed: bool) -> None:
    a, bias = torch.randn(m, k).to(DEVICE, dtype), torch.randn(n, 2 if transposed else 1).to(DEVICE, dtype)[:, 0]
    b = torch.randn(n, k).to(DEVICE, dtype).t() if transposed else torch.randn(k, n).to(DEVICE, dtype)
    truth = exact(a) @ exact(b) + exact(bias)
    size = np.abs(exact(a)) @ np.abs(exact(b)) + np.abs(exact(bias))
    assert_within(tk.matmul(a, b, bias), truth, size, arithmetic_of(dtype))
    assert_within(tk.matmul(a, b), truth - exact(bias), size, arithmetic_of(dtype))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dims", [[0], [1], [2], [0, 2], [0, 1, 2], []], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sum_is_true(dtype: torch.dtype, dims: list[int]) -> None:
    x = torch.randn(40, 7, 90).to(DEVICE, dtype).permute(2, 0, 1)
    axes = tuple(dims)
    assert_within(
        tk.sum(x, dims, scale=0.5),
        exact(x).sum(axis=axes) / 2,
        np.abs(exact(x)).sum(axis=axes),
        arithmetic_of(dtype),
    )


def test_a_long_sum_is_shared_out_and_true() -> None:
    x = torch.randn(3, 100_000).to(DEVICE)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        for dims in ([0], [1], [0, 1]):
            truth, size = exact(x).sum(axis=tuple(dims)), np.abs(exact(x)).sum(axis=tuple(dims))
            assert_within(tk.sum(x, dims), truth, size, torch.float32)
