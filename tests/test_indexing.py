"""Indexing by tensors, arrays, lists and masks, and with negative steps: read, assigned, with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lucid
from tests.values import DTYPES, values_of

#: Of a tensor of shape (3, 4, 5). Masks are functions of the shape of what they index.
INDICES: dict[str, Any] = {
    "a list": [2, 0, 2],
    "an array": np.array([[0, -1], [1, 1]]),
    "an empty list": [],
    "integers of two dimensions": ([0, 2], [1, -1]),
    "integers that broadcast": (np.array([[0], [2]]), np.array([1, 3, 3])),
    "integers with a slice between": ([0, 2], slice(None), [1, 4]),
    "integers after a slice": (slice(1, None), [3, 0]),
    "integers and a number": (1, [0, 0, 2]),
    "a number between": ([0, 1], 2, [3, 3]),
    "integers, None and Ellipsis": (None, [1, 1], ..., None),
    "a mask": np.arange(60).reshape(3, 4, 5) % 7 == 0,
    "a mask of rows": np.array([True, False, True]),
    "a mask of two dimensions": (np.arange(12).reshape(3, 4) % 5 == 0, slice(0, 2)),
    "a mask and integers": (np.array([True, False, True]), [1, 2]),
    "a mask that holds nowhere": np.zeros((3, 4), bool),
    "a negative step": slice(None, None, -1),
    "negative steps": (slice(2, None, -2), slice(None), slice(3, 0, -1)),
    "a negative step over nothing": slice(0, 2, -1),
    "a negative step, None and a number": (None, slice(None, None, -1), 1),
    "a negative step and integers": (slice(None, None, -1), [0, 0, 3], slice(4, None, -3)),
    "a negative step and a mask": (slice(None, None, -1), np.array([True, False, True, True])),
}


def as_torch(index: Any) -> Any:
    """The index for torch, whose slices have no negative steps: integers in their place, if alone."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in parts)


def numpy_oracle(x: np.ndarray, index: Any) -> np.ndarray:
    """What NumPy reads; a number beside an array of integers selects first, as in torch."""
    if index is INDICES["a number between"]:
        return x[:, 2][[0, 1], [3, 3]]
    return x[index]


@pytest.mark.parametrize("kind", ["as given", "tensors"])
@pytest.mark.parametrize("name", INDICES)
def test_what_is_read_is_numpys(name: str, kind: str) -> None:
    index = INDICES[name]
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).T
    ours = index
    if kind == "tensors":
        convert = lambda part: lucid.tensor(part) if isinstance(part, list | np.ndarray) and len(part) else part  # noqa: E731
        ours = tuple(map(convert, index)) if isinstance(index, tuple) else convert(index)
    result = lucid.tensor(x.T.copy()).T[ours]
    np.testing.assert_array_equal(result.numpy(), numpy_oracle(x, index))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_and_assigned(dtype: str) -> None:
    x = lucid.tensor(np.arange(6).reshape(2, 3), dtype=dtype)
    assert x[[1, 0], [2, 0]].dtype is x.dtype
    assert x[x > 0].tolist() == x.to_torch()[x.to_torch() > 0].tolist()
    x[:, [0, 2]] = 1
    assert x[:, ::-1][:, 0].tolist() == [1, 1]


@pytest.mark.parametrize("name", INDICES)
def test_what_is_assigned_is_numpys(name: str) -> None:
    index = INDICES[name]
    draw = np.random.default_rng(0)
    expected = draw.normal(size=(3, 4, 5))
    x = lucid.tensor(expected)
    part = numpy_oracle(expected, index)
    value = (
        np.full(part.shape, 7.0) if name in ("a list", "an array") else draw.normal(size=part.shape)
    )  # repeated rows
    if index is INDICES["a number between"]:
        expected[:, 2][[0, 1], [3, 3]] = value
    else:
        expected[index] = value
    x[index] = value
    np.testing.assert_array_equal(x.numpy(), expected)
    x[index] = 1.5
    assert (x[index].numpy() == 1.5).all()


@pytest.mark.parametrize("name", INDICES)
def test_gradients_of_what_is_read_add_up(name: str, tiles: str) -> None:
    index = INDICES[name]
    draw = np.random.default_rng(0)
    x: Any = lucid.tensor(draw.normal(size=(3, 4, 5)), requires_grad=True)
    part = x[index]
    weights = draw.normal(size=part.shape)
    part.backward(lucid.tensor(weights))
    expected = np.zeros((3, 4, 5))
    numbers = numpy_oracle(np.arange(60).reshape(3, 4, 5), index)
    np.add.at(expected.reshape(-1), numbers, weights)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-14)


def test_gradients_of_both_are_right_twice() -> None:
    def function(x: Any, value: Any) -> Any:
        y = x * x
        y[[0, 2, 1], [1, 1, 0]] = value * value
        return y[[1, 1, 0]] * y[::-1] + y[y > -1].reshape(3, 2)

    draw = np.random.default_rng(0)
    leaves = [lucid.tensor(draw.uniform(0.5, 2, shape), requires_grad=True) for shape in ((3, 2), (3,))]
    assert lucid.autograd.gradcheck(function, leaves, fast_mode=True)
    assert lucid.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 900), (5000,)])
def test_repeated_elements_are_summed_in_the_arithmetic_and_rounded_once(
    shape: tuple[int, ...], dtype: str, tiles: str
) -> None:
    """Both of fewer indices than rows, whose first of a kind stores, and of more."""
    x: Any = lucid.zeros(*shape, dtype=dtype, requires_grad=True)
    index = np.random.default_rng(0).integers(0, 3, 700)
    x[index].backward(lucid.ones(700, *shape[1:], dtype=dtype))
    counts = np.bincount(index, minlength=shape[0]).astype(np.float64)
    expected = np.broadcast_to(counts.reshape(-1, *[1] * (len(shape) - 1)), shape)
    rounded = lucid.tensor(expected, dtype=dtype)
    np.testing.assert_array_equal(values_of(x.grad), values_of(rounded))


def test_labels_pick_their_log_probabilities() -> None:
    """The shape of a loss: one element of each of many rows."""
    logits: Any = lucid.tensor(np.random.default_rng(0).normal(size=(37, 50)), requires_grad=True)
    labels = np.random.default_rng(1).integers(0, 50, 37)
    picked = logits.log_softmax(-1)[np.arange(37), lucid.tensor(labels)]
    (-picked.mean()).backward()
    theirs = torch.tensor(logits.numpy(), requires_grad=True)
    torch.nn.functional.cross_entropy(theirs, torch.from_numpy(labels)).backward()
    np.testing.assert_allclose(logits.grad.numpy(), theirs.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gather_and_its_gradient_are_torchs(dim: int, tiles: str) -> None:
    draw = np.random.default_rng(0)
    values, index = draw.normal(size=(4, 3, 6)), draw.integers(0, 3, (3, 3, 5))
    weights = draw.normal(size=index.shape)
    x: Any = lucid.tensor(values, requires_grad=True)
    picked = x.gather(dim, lucid.tensor(index))
    picked.backward(lucid.tensor(weights))
    theirs = torch.tensor(values, requires_grad=True)
    expected = theirs.gather(dim, torch.from_numpy(index))
    expected.backward(torch.from_numpy(weights))
    np.testing.assert_array_equal(picked.numpy(), expected.detach())
    np.testing.assert_allclose(x.grad.numpy(), theirs.grad, rtol=1e-14)
    function = lambda x: lucid.gather(x * x, dim, lucid.tensor(index))  # noqa: E731
    small = lucid.tensor(values, requires_grad=True)
    assert lucid.autograd.gradgradcheck(function, small, fast_mode=True) if dim == 1 else True


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_gather_of_nothing_has_a_gradient(shape: tuple[int, int], dim: int) -> None:
    x: Any = lucid.zeros(*shape, requires_grad=True)
    x.gather(dim, lucid.zeros(*shape, dtype="int64")).sum().backward()
    assert x.grad.shape == shape


def test_an_index_tensor_can_be_part_of_a_slice_or_of_range() -> None:
    x = lucid.arange(10)
    two = lucid.tensor(2)
    assert x[two : two + 3].tolist() == [2, 3, 4]
    assert [x[i].item() for i in range(lucid.tensor(3))] == [0, 1, 2]
    assert x[lucid.tensor(5)].item() == 5
