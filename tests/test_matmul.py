"""Products of batches of matrices: shapes, strides, dtypes, gradients, tiles and precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import triton_kernels as tk
from lucid.autograd import gradcheck, gradgradcheck
from tests.device import DEVICE
from tests.reference import FLOATS, arithmetic_of, assert_within, exact
from tests.values import check, leaf, values_of
from triton_kernels.runtime import backend
from triton_kernels.runtime.launch import Launch

Shape = tuple[int, ...]

#: Shapes that numpy multiplies: equal batches, broadcast on either side, vectors, empty ones.
SHAPES: list[tuple[Shape, Shape]] = [
    *(((3, 2, 5), (3, 5, 4)), ((3, 1, 2, 5), (4, 5, 3)), ((1, 7, 3), (5, 3, 2)), ((2, 3, 4, 5), (5, 6))),
    *(((4, 5), (2, 3, 5, 6)), ((5,), (2, 5, 3)), ((2, 3, 5), (5,)), ((2, 1, 3, 5), (1, 4, 5, 1))),
    *(((0, 2, 3), (3, 4)), ((2, 3, 0), (2, 0, 4)), ((2, 0, 3), (1, 3, 2)), ((1, 3, 1), (0, 1, 4)), ((3, 0), (2, 0, 3))),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_batches_of_matrices_are_multiplied_as_numpy_does(shapes: tuple[Shape, Shape]) -> None:
    draw = np.random.default_rng(0)
    a, b = (lucid.tensor(draw.normal(size=shape)) for shape in shapes)
    x, y = values_of(a), values_of(b)
    check(a @ b, x @ y, abs(x) @ abs(y), torch.float64)


#: A (3, 2, 35, 18) and B (3, 2, 18, 21) in memory; views of them that can be multiplied.
VIEWS: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "transposed": lambda a, b: (b.mT, a.mT),
    "heads": lambda a, b: (a.permute(0, 2, 1, 3)[:, ::7], b[:, :1].expand(-1, 5, -1, -1)),
    "strides of 0": lambda a, b: (a[:, :1].expand(-1, 2, -1, -1), b[:1, :1].expand(3, 2, -1, -1)),
    "batches exchanged": lambda a, b: (a.transpose(0, 1), b.transpose(0, 1)),
    "steps": lambda a, b: (a[::2, :, 1::3, ::2], b[:2, :, ::2, ::4]),
}


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("view", VIEWS)
def test_operands_of_any_strides_are_multiplied_without_a_copy(view: str, dtype: torch.dtype) -> None:
    """A stride of the batch may be 0, and larger or smaller than those of a matrix."""
    a, b = VIEWS[view](torch.randn(3, 2, 35, 18).to(DEVICE, dtype), torch.randn(3, 2, 18, 21).to(DEVICE, dtype))
    launched: list[Launch] = []
    with tk.launch.launch_hook(launched.append):
        product = tk.matmul(a, b)
    assert_within(product, exact(a) @ exact(b), np.abs(exact(a)) @ np.abs(exact(b)), arithmetic_of(dtype))
    ((left, right),) = [(made.args["a"][0], made.args["b"][0]) for made in launched]
    assert (left.data_ptr(), right.data_ptr()) == (a.data_ptr(), b.data_ptr())


def test_a_batch_of_rows_with_one_matrix_is_one_product() -> None:
    """Its tiles are not cut where a row of the batch ends."""
    launched: list[Launch] = []
    a, w = torch.randn(4, 5, 6).to(DEVICE), torch.randn(3, 6).to(DEVICE)
    with tk.launch.launch_hook(launched.append):
        tk.matmul(a, w.t())
        tk.matmul(a.transpose(0, 1), w.t())
    assert [made.args["m_units"] * made.args["UNIT_M"] for made in launched] == [20, 4]


def test_a_product_is_added_to_a_batch_and_has_a_bias() -> None:
    a, b, bias = torch.randn(2, 3, 5).to(DEVICE), torch.randn(2, 5, 4).to(DEVICE), torch.randn(4).to(DEVICE)
    out = torch.randn(2, 4, 3).to(DEVICE).transpose(1, 2)
    truth = exact(out) + exact(a) @ exact(b) + exact(bias)
    tk.matmul(a, b, bias, out=out, accumulate=True)
    assert_within(out, truth, 30.0, torch.float32)


@pytest.mark.parametrize(("m", "k", "n"), [(144, 70, 40), (257, 130, 300)])
def test_tiles_in_groups_cover_the_result(m: int, k: int, n: int) -> None:
    """The last group of rows of tiles has fewer than the others."""
    a, b = torch.randn(2, m, k).to(DEVICE), torch.randn(k, n).to(DEVICE)
    small = tk.tile_configs.Config({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64, "GROUP_M": 8})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tk.tile_configs, "matmul", lambda *_: small)
        product = tk.matmul(a, b)
    assert_within(product, exact(a) @ exact(b), np.abs(exact(a)) @ np.abs(exact(b)), torch.float32)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_rows_bits_depend_neither_on_the_number_of_rows_nor_on_the_batch(aligned: bool) -> None:
    k = 64 if aligned else 67
    a, b = torch.randn(3, 70, k).to(DEVICE), torch.randn(3, k, 33).to(DEVICE)
    with tk.tile_configs.use_tile_configs(interpreted=False):
        many = tk.matmul(a, b)
        for i, j in ((0, 0), (2, 69)):
            assert torch.equal(tk.matmul(a[i, j : j + 1], b[i])[0], many[i, j])
            assert torch.equal(tk.matmul(a[i, j - 3 if j else 0 :], b[i])[3 if j else 0], many[i, j])


@pytest.mark.parametrize("k", [64, 96, 128])
def test_the_block_of_columns_depends_on_the_dtype_only(k: int) -> None:
    """So that the order of a sum does not depend on the number of rows."""
    with tk.tile_configs.use_tile_configs(interpreted=False):
        for dtype in FLOATS:
            made = {
                tk.tile_configs.matmul(dtype, rows, n, k, False, True, DEVICE)["BLOCK_K"]
                for rows in (1, 100, 5000, 100_000)
                for n in (8, 1000, 20_000)
            }
            assert len(made) == 1


def test_large_products_have_large_tiles_and_small_ones_many_programs() -> None:
    with tk.tile_configs.use_tile_configs(interpreted=False):
        large, small = (
            tk.tile_configs.matmul(torch.bfloat16, m, m, m, False, True, torch.device("meta")) for m in (4096, 512)
        )
    assert (large["BLOCK_M"], large["BLOCK_N"]) == (128, 256)
    assert (small["BLOCK_M"], small["BLOCK_N"]) == (64, 64)


@pytest.mark.parametrize("shapes", [((2, 2, 3), (2, 3, 2)), ((2, 1, 2, 2), (3, 2, 1)), ((2, 3), (2, 3, 1))], ids=str)
@pytest.mark.parametrize("order", [gradcheck, gradgradcheck])
def test_derivatives_match_finite_differences(order: Callable[..., bool], shapes: tuple[Shape, Shape]) -> None:
    a, b = (leaf(np.random.default_rng(0).normal(size=shape)) for shape in shapes)
    assert order(lucid.matmul, (a, b), atol=1e-7, rtol=1e-6, fast_mode=True)


def test_a_gradient_of_a_matrix_that_a_batch_shares_is_one_product() -> None:
    """And needs no copy of it for each of the batch."""
    a, w = lucid.randn(3, 4, 5), lucid.randn(5, 6, requires_grad=True)
    loss = (a @ w).sum()
    launched: list[Launch] = []
    with tk.launch.launch_hook(launched.append):
        loss.backward()
    shapes = [tuple(made.args["out"][0].shape) for made in launched if "EVEN_K" in made.args]
    assert shapes == [(5, 6)]
    truth = np.broadcast_to(values_of(a).reshape(-1, 5).sum(0)[:, None], (5, 6))
    np.testing.assert_allclose(values_of(w.grad), truth, rtol=1e-5)


def test_tf32_is_for_float32_alone_and_by_an_explicit_switch() -> None:
    launched: list[Launch] = []
    single, double, half = (lucid.ones(2, 2, dtype=name) for name in ("float32", "float64", "float16"))
    with tk.launch.launch_hook(launched.append):
        try:
            for precision in ("highest", "high"):
                lucid.set_float32_matmul_precision(precision)
                assert lucid.get_float32_matmul_precision() == precision
                for x in (single, double, half):
                    x @ x
        finally:
            lucid.set_float32_matmul_precision("highest")
    assert [made.args["TF32"] for made in launched] == [False, False, False, True, False, False]


@pytest.mark.skipif(backend.INTERPRETED, reason="the interpreter has no tf32")
def test_tf32_rounds_operands() -> None:
    x = torch.full((16, 16), 1 + 2.0**-12, device=DEVICE)
    assert (tk.matmul(x, x, tf32=True) == 16).all()
    assert (tk.matmul(x, x) != 16).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x @ lucid.ones(4, 2), RuntimeError, r"matmul takes shapes .*, got \(2, 2, 3\) and \(4, 2\)"),
        (lambda x: x @ lucid.ones(3, 3, 2), RuntimeError, r"matmul takes leading dimensions .* got shapes \(2, 2, 3\)"),
        (lambda x: x @ lucid.tensor(1.0), RuntimeError, r"matmul takes shapes .*, got \(2, 2, 3\) and \(\)"),
        (lambda x: x @ x.double(), RuntimeError, "a and b of matmul must have one dtype, got lucid.float32 and"),
        (lambda x: lucid.bmm(x, lucid.ones(3, 2)), RuntimeError, r"bmm takes shapes \(B, M, K\) .* and \(3, 2\)"),
        (lambda x: lucid.bmm(x, lucid.ones(1, 3, 2)), RuntimeError, r"bmm takes shapes .* and \(1, 3, 2\)"),
        (lambda x: lucid.set_float32_matmul_precision("medium"), ValueError, "precision must be one of"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call(lucid.ones(2, 2, 3))
