"""Values that a tensor returns, memory that it shares, conversion, copies and pickling."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid import nn
from lucid.dtype import dtype as DType
from tests.values import DTYPES


def named(name: str) -> DType:
    return getattr(lucid, name)


# Values on the host


@pytest.mark.parametrize("name", DTYPES)
def test_values_come_back_to_the_host(name: str) -> None:
    x = lucid.tensor([[0, 1], [1, 0]], dtype=name)
    array = x.numpy()
    assert array.dtype == {"bfloat16": "float32", "bool_": "bool"}.get(name, name)
    assert array.tolist() == x.tolist() == [[0, 1], [1, 0]]
    kind = float if named(name).is_floating_point else bool if name == "bool_" else int
    assert type(x[0, 1].item()) is type(x.tolist()[0][1]) is kind
    assert (float(x[0, 1]), int(x[0, 1]), bool(x[0, 0])) == (1.0, 1, False)


def test_values_come_back_while_gradients_are_recorded() -> None:
    x = lucid.tensor([[1.5]], requires_grad=True)
    for tensor in (x, x * 1):
        assert tensor.requires_grad
        assert tensor.numpy().tolist() == tensor.tolist() == [[1.5]]
        assert tensor.item() == float(tensor) == 1.5


def test_numpy_functions_take_tensors() -> None:
    x = lucid.tensor([1.0, 2.0])
    assert np.asarray(x).dtype == np.array(x).dtype == np.float32
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    copied = np.array(x)
    copied[0] = 9
    assert x.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(x, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"^copy must not be False for a tensor of lucid.bfloat16 on "):
        np.asarray(lucid.tensor([1.0], dtype="bfloat16"), copy=False)


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 2)])
def test_only_one_element_is_a_number_or_a_truth(shape: tuple[int, ...]) -> None:
    x = lucid.zeros(shape)
    for read in (x.item, lambda: float(x), lambda: int(x)):
        with pytest.raises(RuntimeError, match=r"^only one-element tensors .* scalars, got shape \("):
            read()
    with pytest.raises(
        RuntimeError,
        match=r"^the truth value of a tensor of shape \(",
    ):
        bool(x)
    assert bool(lucid.ones(1, 1)) is True


# Shape and memory


def test_a_tensor_tells_its_shape_as_a_plain_tuple() -> None:
    x = lucid.zeros(2, 3, 4)
    assert type(x.shape) is tuple
    assert x.shape == x.size() == (2, 3, 4)
    assert (x.size(-1), x.ndim, x.dim(), x.numel(), len(x)) == (4, 3, 3, 24, 2)
    assert x.stride() == (12, 4, 1)
    assert x.is_contiguous()
    assert not x.T.is_contiguous()
    assert x.T.contiguous().is_contiguous()
    assert x.contiguous() is x


def test_iteration_goes_over_the_first_dimension() -> None:
    rows = list(lucid.tensor([[1, 2], [3, 4]]))
    assert [row.tolist() for row in rows] == [[1, 2], [3, 4]]
    scalar = lucid.tensor(1.0)
    with pytest.raises(TypeError, match=r"^a 0-d tensor cannot be iterated over$"):
        iter(scalar)
    with pytest.raises(TypeError, match=r"^a 0-d tensor has no length$"):
        len(scalar)


def test_tensors_hash_by_identity() -> None:
    x, twin = lucid.tensor([1.0, 2.0]), lucid.tensor([1.0, 2.0])
    assert len({x, twin, x}) == 2
    assert {x: "x", twin: "twin"}[x] == "x"


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.reshape(6),
        lambda x: x.view(3, 2),
        lambda x: x.T,
        lambda x: x.permute(1, 0),
        lambda x: x.transpose(0, 1),
        lambda x: x.expand(4, 2, 3),
        lambda x: x.unsqueeze(0),
        lambda x: x.unsqueeze(1).squeeze(),
        lambda x: x[:, 1:],
        lambda x: x[0],
        lambda x: x[None, ..., 0],
        lambda x: x.detach(),
        lambda x: lucid.from_torch(x.to_torch()),
        lambda x: lucid.from_dlpack(x),
    ],
)
def test_views_share_memory(view: Any) -> None:
    x = lucid.ones(2, 3)
    seen = view(x)
    x.to_torch().fill_(7)
    assert set(seen.numpy().ravel()) == {7.0}


def test_clone_and_a_reshape_that_cannot_be_a_view_are_copies() -> None:
    x = lucid.tensor([[1.0, 2.0], [3.0, 4.0]])
    copies = [x.clone(), x.T.reshape(4), x.T.contiguous()]
    x.to_torch().fill_(7)
    assert [tensor.tolist() for tensor in copies] == [[[1, 2], [3, 4]], [1, 3, 2, 4], [[1, 3], [2, 4]]]
    assert x.T.clone().is_contiguous()


def test_memory_is_shared_with_torch_both_ways() -> None:
    theirs = torch.arange(4.0, requires_grad=True)
    ours = lucid.from_torch(theirs)
    assert not ours.requires_grad
    assert ours.data_ptr() == theirs.data_ptr() == ours.to_torch().data_ptr()
    with torch.no_grad():
        theirs[1] = 10
    assert ours.tolist() == [0, 10, 2, 3]
    back = lucid.tensor([1.0], requires_grad=True).to_torch()
    assert not back.requires_grad
    assert lucid.from_torch(torch.ones(2, 3).t()).stride() == (1, 3)


def test_memory_is_shared_with_numpy_both_ways(on_cpu: None) -> None:
    array = np.arange(6.0).reshape(2, 3)[:, ::2]
    tensor = lucid.from_numpy(array)
    array[0, 1] = 10
    assert tensor.tolist() == [[0, 10], [3, 5]]
    tensor.numpy()[1, 0] = 20
    assert array.tolist() == [[0, 10], [20, 5]]


@pytest.mark.parametrize(
    "array",
    [np.ones(2, ">f4"), np.ones(3)[::-1], np.broadcast_to(np.ones(1), (3,))],
    ids=["order", "step", "read-only"],
)
def test_memory_that_cannot_be_shared_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^source must be a writable NumPy array of native byte order and positive"):
        lucid.from_numpy(array)
    assert set(lucid.tensor(array).tolist()) == {1.0}


@pytest.mark.parametrize("name", DTYPES)
def test_memory_is_shared_over_dlpack_both_ways(name: str, on_cpu: None) -> None:
    ours = lucid.zeros(3, dtype=name, requires_grad=named(name).is_floating_point)
    theirs = torch.from_dlpack(ours)
    theirs[1] = 1
    assert ours.tolist() == [0, 1, 0]
    again = lucid.from_dlpack(theirs)
    assert again.dtype is named(name)
    theirs[2] = 1
    assert again.tolist() == [0, 1, 1]
    if name not in ("bfloat16", "bool_"):
        array = np.from_dlpack(lucid.ones(2, dtype=name))
        assert array.tolist() == lucid.from_dlpack(array).tolist() == [1, 1]


# Conversions


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_to_converts_as_torch_does(source: str, target: str) -> None:
    x = lucid.tensor([0.0, 1.0, 2.75, -3.0], dtype=source)
    expected = x.to_torch().to(named(target).torch)
    for made in (x.to(named(target)), x.to(target), x.to(dtype=target), x.to("cpu", target)):
        assert made.dtype is named(target)
        assert made.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("args", "kwargs", "name"),
    [
        (("cpu",), {"device": "cpu"}, "device"),
        (("half", "float"), {}, "dtype"),
        ((lucid.ones(1),), {"dtype": "half"}, "dtype"),
        ((lucid.ones(1), "cpu"), {}, "device"),
    ],
)
def test_to_takes_a_device_and_a_dtype_once(args: Any, kwargs: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^to\(\) takes one {name}, got two$"):
        lucid.ones(1).to(*args, **kwargs)


def test_to_returns_the_tensor_itself_where_nothing_changes() -> None:
    x = lucid.ones(2)
    same = [x.to("float32"), x.to(lucid.float32), x.to(x.device), x.to(x), x.to(), x.to(None), x.float()]
    assert all(tensor is x for tensor in same)
    assert x.to(device=x.device, dtype="float32") is x
    assert lucid.ones(1, device="cpu").cpu().device == "cpu"


def test_conversions_have_names() -> None:
    x = lucid.ones(2, dtype="int64")
    made = (x.float(), x.double(), x.half(), x.bfloat16())
    assert [tensor.dtype for tensor in made] == [lucid.float32, lucid.float64, lucid.float16, lucid.bfloat16]


def test_to_says_what_it_cannot_do() -> None:
    x = lucid.ones(2)
    with pytest.raises(TypeError, match=r"^to\(\) takes a device, a dtype or a Tensor, got 'mps'$"):
        x.to("mps")
    with pytest.raises(ValueError, match=r"^device must be .* got 'cuda:x'$"):
        x.to("cuda:x")
    with pytest.raises(TypeError, match=r"^to\(\) takes device and dtype, got copy$"):
        x.to("cpu", copy=True)


# Copies and pickles


def copies(value: Any) -> list[Any]:
    return [copy.deepcopy(value), pickle.loads(pickle.dumps(value))]


def test_leaves_can_be_copied_and_pickled() -> None:
    x: Any = lucid.tensor([[1.0, 2.0], [3.0, 4.0]], dtype="bfloat16", requires_grad=True)
    (x * x).sum().backward()
    x.register_hook(lambda grad: grad * 0)  # which could not be pickled
    for twin in copies(x):
        assert type(twin).__name__ == "Tensor"
        assert repr(twin) == repr(x)
        assert twin.grad.tolist() == x.grad.tolist()
        assert twin.data_ptr() != x.data_ptr()
        twin.grad = None
        (twin * twin).sum().backward()
        assert twin.grad.tolist() == x.grad.tolist(), "hooks stay behind"


def test_results_of_operations_cannot_be_copied() -> None:
    y = lucid.tensor([1.0], requires_grad=True) * 2
    for make in (copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match=r"^only a leaf can be copied or pickled"):
            make(y)
    assert copy.deepcopy(y.detach()).tolist() == [2.0]


def test_an_optimizer_copied_with_its_model_goes_on_with_the_copy() -> None:
    model = nn.Linear(2, 1)
    optimizer = lucid.optim.Adam(model.parameters(), lr=0.1)
    model(lucid.ones(1, 2)).sum().backward()
    optimizer.step()
    for twin, twins in copies((model, optimizer)):
        before = model.weight.tolist()
        twin.zero_grad()
        twin(lucid.ones(1, 2)).sum().backward()
        twins.step()
        assert twin.weight.tolist() != before == model.weight.tolist()
        assert twins.state[twin.weight]["step"] == 2
