"""What scripts do beside training: conversions, printing, joining, names that are not there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid.autograd import gradcheck, gradgradcheck
from tests.values import DTYPES


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("long", "int64"), ("int", "int32"), ("bool", "bool_"), ("float", "float32"), ("half", "float16")],
)
def test_conversions_have_methods(method: str, dtype: str) -> None:
    x = lucid.tensor([0.0, -1.75, 2.5])
    converted = getattr(x, method)()
    assert converted.dtype.name == dtype
    np.testing.assert_array_equal(converted.numpy(), x.numpy().astype(dtype.rstrip("_")))


def test_modules_convert_their_floating_members() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("steps", lucid.tensor([1]))
    for name in ("half", "bfloat16", "double", "float", "cpu"):
        assert getattr(model, name)() is model
    assert [p.dtype for p in model.double().parameters()] == [lucid.float64] * 2
    assert [b.dtype for b in model.buffers()] == [lucid.int64]
    assert model.cpu()[0].weight.device == "cpu"


def test_numbers_of_a_matrix_are_below_each_other() -> None:
    x = lucid.tensor([[1.0, 22.5], [-3.25, float("inf")], [1e-9, 0.0]])
    assert repr(x) == "tensor([[ 1.    , 22.5   ],\n        [-3.25  ,     inf],\n        [ 1.e-09,  0.    ]])"
    assert repr(lucid.tensor([1.0, 22.5])) == "tensor([1., 22.5])"
    lines = repr(lucid.tensor(np.random.default_rng(0).normal(size=(40, 40)), "float32")).splitlines()
    assert len({len(line.rstrip("],)")) for line in lines if "..., " in line}) == 1


def test_one_element_formats_as_a_number() -> None:
    loss = lucid.tensor([1.23456])
    assert f"{loss:.4f} {loss.sum():8.2e}" == "1.2346 1.23e+00"


def test_nested_arrays_keep_their_dtype() -> None:
    rows = [np.zeros(2, np.float16), np.ones(2, np.float16)]
    assert lucid.tensor(rows).dtype is lucid.float16
    assert lucid.tensor([[np.arange(2, dtype=np.int32)]]).dtype is lucid.int32
    assert lucid.tensor([lucid.tensor(1.0), lucid.tensor(2.0)]).tolist() == [1.0, 2.0]


def test_numpy_operators_work_on_either_side_and_functions_name_ours() -> None:
    x = lucid.tensor([4.0, 9.0])
    assert (np.float32(2) * x - np.float64(1)).tolist() == [7.0, 17.0]
    assert (np.float32(5) > x).tolist() == [True, False]
    with pytest.raises(TypeError, match=r"np.sqrt takes NumPy arrays, got a lucid.Tensor: use lucid.sqrt\(x\), or"):
        np.sqrt(x)
    with pytest.raises(TypeError, match=r"np.sum takes NumPy arrays, got a lucid.Tensor: use lucid.sum\(x\), or"):
        np.sum(x)
    for divide in (lambda: x // 2, lambda: 2 % x):
        with pytest.raises(TypeError, match="of Tensors is not part of lucid-triton: compute it in NumPy or PyTorch"):
            divide()


@pytest.mark.parametrize(
    ("space", "name"),
    [
        (lucid, "conv2d"),
        (nn, "Conv2d"),
        (F, "max_pool2d"),
        (lucid.optim, "LBFGS"),
        (lucid.autograd, "jacobian"),
        (nn.init, "sparse_"),
        (lucid.ones(1), "cholesky"),
    ],
)
def test_a_name_that_is_left_out_says_so(space: Any, name: str) -> None:
    with pytest.raises(AttributeError, match=f"^[A-Za-z.]+{name} is not part of lucid-triton: "):
        getattr(space, name)
    assert not hasattr(space, name)


def test_a_misspelt_name_is_suggested_a_similar_one() -> None:
    for space, name, similar in ((lucid.ones(1), "reqires_grad", "requires_grad"), (nn, "LayerNrom", "LayerNorm")):
        with pytest.raises(AttributeError, match=rf"is not part of lucid-triton: did you mean {similar}\?$"):
            getattr(space, name)


def test_a_number_that_a_dtype_does_not_have_is_not_filled_in() -> None:
    x = lucid.tensor([1, 2], dtype="int16")
    with pytest.raises((ValueError, OverflowError, RuntimeError), match="70000"):
        x.masked_fill(x > 1, 70000)
    assert x.masked_fill(x > 1, -128).tolist() == [1, -128]


def test_softmax_takes_axis_and_the_dtype_of_its_arithmetic() -> None:
    x = lucid.tensor([[1.0, 2.0], [3.0, 5.0]])
    y = x.bfloat16()
    for function in (F.softmax, F.log_softmax):
        assert function(y, -1, dtype="float32").tolist() == function(y.float(), -1).tolist()
        with pytest.raises(TypeError, match=r"dtype must be float16, bfloat16, float32 or float64, got lucid.int64"):
            function(x, -1, dtype=lucid.int64)
    assert F.softmax(x, axis=0).tolist() == x.softmax(axis=0).tolist() == x.softmax(0).tolist()
    assert F.log_softmax(x, axis=0).tolist() == x.log_softmax(axis=0).tolist()


#: Functions that join, split or mask, here and in torch; their arguments have shapes (3, 4) and (2, 4).
JOINING: dict[str, Any] = {
    "cat": lambda m, a, b: m.cat([a, b, a]),
    "cat along the last dimension": lambda m, a, b: m.cat((a, a[:, 1:]), -1),
    "cat along an axis": lambda m, a, b: m.cat((a, a), axis=1),
    "flip, one by one": lambda m, a, b: a.flip(0, 1),
    "squeeze": lambda m, a, b: a[None, :, None].squeeze((0, 2)) * a[:, None].squeeze(dim=1),
    "stack": lambda m, a, b: m.stack([b, b * b], 1),
    "split": lambda m, a, b: m.split(a, 2)[1] * m.split(a, [1, 3], 1)[0][2],
    "chunk": lambda m, a, b: m.chunk(a, 3, 1)[1] * 2,
    "unbind": lambda m, a, b: m.unbind(a, 1)[2] * a[:, 0],
    "masked_fill": lambda m, a, b: a.masked_fill(a > 1, 0.5) * a,
    "tril": lambda m, a, b: m.tril(a, -1) + m.tril(a * a),
    "triu": lambda m, a, b: m.triu(b * b, 1) + m.triu(b),
    "flatten": lambda m, a, b: m.flatten(a[None], 1) * 2,
    "view": lambda m, a, b: (a * a).view(2, -1) * b.reshape(2, 4)[:, :1],
    "flip": lambda m, a, b: m.flip(a, (0, 1)) * a,
    "mT": lambda m, a, b: a.mT * 2 + a.T,
}


@pytest.mark.parametrize("name", JOINING)
def test_joined_and_masked_tensors_are_torchs_with_their_gradients(name: str) -> None:
    draw = np.random.default_rng(0)
    values = [draw.uniform(0.5, 1.5, shape) for shape in ((3, 4), (2, 4))]
    ours = [lucid.tensor(value, requires_grad=True) for value in values]
    theirs = [torch.tensor(value, requires_grad=True) for value in values]
    result, expected = JOINING[name](lucid, *ours), JOINING[name](torch, *theirs)
    np.testing.assert_array_equal(result.numpy(), expected.detach())
    weights = draw.normal(size=result.shape)
    result.backward(lucid.tensor(weights))
    expected.backward(torch.tensor(weights))
    for x, y in zip(ours, theirs, strict=True):
        if y.grad is not None:
            np.testing.assert_allclose(x.grad.numpy(), y.grad, rtol=1e-13)
    function = lambda a, b: JOINING[name](lucid, a, b)  # noqa: E731
    used = [lucid.tensor(value, requires_grad=True) for value in values]
    assert gradcheck(function, used, fast_mode=True)
    assert gradgradcheck(lambda a, b: function(a, b) * function(a, b), used, fast_mode=True)


def test_parts_share_memory_with_their_tensor() -> None:
    x = lucid.zeros(4, 6)
    views = [
        *lucid.split(x, 2),
        *lucid.chunk(x, 3, 1),
        *lucid.unbind(x),
        x.flatten(),
        x.view(24),
        x.mT,
        x.T,
        x[1:, ::2],
    ]
    assert {view.data_ptr() // 4096 for view in views} <= {x.data_ptr() // 4096, x.data_ptr() // 4096 + 1}
    for view in views:
        view.fill_(1)
        assert x.sum().item() > 0
        x.zero_()


def test_dtypes_are_promoted_where_tensors_are_joined() -> None:
    for other in DTYPES:
        joined = lucid.cat([lucid.ones(1, dtype="float16"), lucid.ones(1, dtype=other)])
        assert joined.dtype.torch is torch.promote_types(torch.float16, lucid.ones(1, dtype=other).dtype.torch)


def test_losses_and_activations_are_modules() -> None:
    x, y = lucid.tensor([[1.0, 2.0]]), lucid.tensor([[3.0, 2.5]])
    assert nn.MSELoss()(x, y).item() == pytest.approx(2.125)
    assert nn.MSELoss("sum")(x, y).item() == pytest.approx(4.25)
    assert nn.MSELoss("none")(x, y).tolist() == [[4.0, 0.25]]
    assert repr(nn.MSELoss()) == "MSELoss(reduction='mean')"
    assert repr(nn.GELU("tanh")) == "GELU(approximate='tanh')"
    for module, function in ((nn.GELU(), F.gelu), (nn.SiLU(), F.silu), (nn.Sigmoid(), F.sigmoid)):
        assert module(x).tolist() == function(x).tolist()
    assert nn.GELU("tanh")(x).tolist() == F.gelu(x, "tanh").tolist() != F.gelu(x).tolist()
    assert nn.Identity(3, a=1)(x) is x
    with pytest.raises(ValueError, match="reduction must be one of"):
        F.mse_loss(x, y, "batchmean")
    with pytest.raises(ValueError, match="approximate must be one of"):
        nn.GELU("fast")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: lucid.squeeze(3), TypeError, "x must be a lucid.Tensor, got int"),
        (lambda x: lucid.flatten([1]), TypeError, "x must be a lucid.Tensor, got list"),
        (lambda x: lucid.reshape("a", 3), TypeError, "x must be a lucid.Tensor, got str"),
        (lambda x: lucid.permute(x, None), TypeError, "dims must be integers, got NoneType"),
        (lambda x: x.copy_(1), TypeError, "copy_ takes a lucid.Tensor, got int: fill_ takes a number"),
        (lambda x: x.size(2), IndexError, r"dim must name one of the 2 dimensions of shape \(2, 3\), got 2"),
        (lambda x: x[0, 0].unbind(), RuntimeError, "unbind takes a tensor of at least one dimension"),
        (lambda x: F.layer_norm(x, None), TypeError, "normalized_shape must be an int, got NoneType"),
        (lambda x: F.gelu(x, np.ones(2)), ValueError, "approximate must be one of"),
        (lambda x: nn.init.constant_(x, np.ones(2)), TypeError, "val must be a number, got numpy.ndarray"),
        (lambda x: x[0, 0][x[0, 0] > 0], IndexError, "a mask in an index must have at least one dimension"),
    ],
)
def test_bad_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call(lucid.ones(2, 3))
    assert lucid.reshape(lucid.ones(2, 3), 6).shape == (6,)
