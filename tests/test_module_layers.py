"""The layers: containers, Linear, Embedding, activations, and the filling of fresh parameters."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid import nn

X = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], np.float32)


def both(make: Callable[[ModuleType], Any]) -> tuple[Any, Any]:
    """The same module of either library, with torch's weights in both."""
    ours, theirs = make(nn), make(torch.nn)
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    return ours, theirs


def check(make: Callable[[ModuleType], Any], array: np.ndarray[Any, Any]) -> None:
    """Output and all gradients of a module must be torch's."""
    ours, theirs = both(make)
    floating = array.dtype.kind == "f"
    x, y = lucid.tensor(array, requires_grad=floating), torch.tensor(array, requires_grad=floating)
    out, expected = ours(x), theirs(y)
    np.testing.assert_allclose(out.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    weights = np.random.default_rng(0).normal(size=expected.shape).astype(np.float32)
    out.backward(lucid.tensor(weights))
    expected.backward(torch.from_numpy(weights))
    leaves = zip([x, *ours.parameters()], [y, *theirs.parameters()], strict=True)
    for leaf, oracle in leaves:
        if oracle.requires_grad:
            np.testing.assert_allclose(leaf.grad.numpy(), oracle.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda nn: nn.Linear(2, 3), X),
        (lambda nn: nn.Linear(2, 3), X[0]),
        (lambda nn: nn.Linear(2, 3), np.stack([X, X + 1])),
        (lambda nn: nn.Linear(2, 3, bias=False), X),
        (lambda nn: nn.Embedding(5, 3), np.array([[1, 4], [1, 0]])),
        (lambda nn: nn.Embedding(5, 3), np.array(2)),
        (lambda nn: nn.Tanh(), X),
        (lambda nn: nn.ReLU(), X),
        (lambda nn: nn.Softmax(dim=0), X),
        (lambda nn: nn.Softmax(dim=-1), X),
        (lambda nn: nn.LogSoftmax(dim=1), X),
        (lambda nn: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3), nn.LogSoftmax(dim=-1)), X),
    ],
)
def test_a_layer_computes_what_torchs_does(make: Callable[[ModuleType], Any], x: np.ndarray[Any, Any]) -> None:
    check(make, x)


def test_parameters_have_the_dtype_and_device_asked_for() -> None:
    for layer in (nn.Linear(2, 3, dtype=lucid.float64, device="cpu"), nn.Embedding(2, 3, None, "cpu", "float64")):
        for parameter in layer.parameters():
            assert isinstance(parameter, nn.Parameter)
            assert parameter.dtype is lucid.float64
            assert parameter.device == "cpu"
            assert parameter.requires_grad
            assert parameter.is_leaf
    assert nn.Linear(2, 3).weight.dtype is lucid.float32
    assert nn.Linear(2, 3).weight.device == lucid.get_default_device()


def test_linear_without_bias_has_none() -> None:
    layer = nn.Linear(2, 3, bias=False)
    assert layer.bias is None
    assert list(layer.state_dict()) == ["weight"]


@pytest.mark.parametrize("name", ["in_features", "out_features", "num_embeddings", "embedding_dim"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-3, ValueError),
        (2.0, TypeError),
        ("2", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_a_size_that_is_no_positive_int_is_named(name: str, value: Any, error: type[Exception]) -> None:
    names = ["in_features", "out_features"] if "features" in name else ["num_embeddings", "embedding_dim"]
    kind = nn.Linear if "features" in name else nn.Embedding
    with pytest.raises(error, match=f"^{name} must be "):
        kind(**{**dict.fromkeys(names, 2), name: value})


def test_sizes_may_be_numpys() -> None:
    layer = nn.Linear(np.int64(2), np.int32(3))
    assert (type(layer.in_features), type(layer.out_features)) == (int, int)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Linear(2, 2, bias=1), TypeError, "bias must be a bool, got int"),
        (
            lambda: nn.Linear(2, 2, dtype=lucid.int64),
            TypeError,
            "dtype must be a floating dtype, got lucid.int64",
        ),
        (lambda: nn.Linear(2, 2, dtype="float3"), TypeError, "dtype must be one of .*, got 'float3'"),
        (lambda: nn.Linear(2, 2, device="nowhere"), ValueError, "device must be .*, got 'nowhere'"),
        (lambda: nn.Softmax(dim=1.0), TypeError, "dim must be an int or None, got float"),
        (lambda: nn.LogSoftmax(True), TypeError, "dim must be an int or None, got bool"),
        (lambda: nn.Sequential(nn.Tanh(), 3), TypeError, "int is not a Module subclass"),
        (lambda: nn.Sequential(nn.Tanh(), None), TypeError, "Sequential holds modules, got None"),
        (lambda: nn.ModuleList([nn.Tanh]), TypeError, "type is not a Module subclass"),
        (lambda: nn.ModuleList(3), TypeError, "iterable"),
        (lambda: nn.ModuleDict({"a": None}), TypeError, "ModuleDict holds modules, got None for 'a'"),
        (lambda: nn.ModuleDict({"items": nn.Tanh()}), KeyError, "attribute 'items' already exists"),
        (lambda: nn.ModuleList([nn.Tanh()])[1], IndexError, "index 1 is out of range"),
        (lambda: nn.Sequential(nn.Tanh())[-2], IndexError, "index -2 is out of range"),
        (lambda: nn.ModuleDict()["a"], KeyError, "a"),
        (lambda: nn.ModuleList([nn.Tanh()])(1), NotImplementedError, r"Module \[ModuleList\] is missing"),
    ],
)
def test_misuse_is_named(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_linear_starts_uniform_within_its_bound() -> None:
    lucid.manual_seed(3)
    layer = nn.Linear(400, 300)
    bound = 1 / math.sqrt(400)
    for parameter in (layer.weight, layer.bias):
        values = parameter.numpy()
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.98 * bound
        assert abs(values.mean()) < 0.2 * bound
    assert abs(layer.weight.numpy().std() - bound / math.sqrt(3)) < 0.01 * bound


def test_a_padding_vector_is_zeros_and_is_not_trained() -> None:
    layer = nn.Embedding(4, 2, padding_idx=-1)
    assert repr(layer) == "Embedding(4, 2, padding_idx=3)"
    assert layer.weight[3].tolist() == [0, 0]
    assert (layer.weight[:3] != 0).all()
    layer(lucid.tensor([[3, 1], [1, 3]])).sum().backward()
    assert layer.weight.grad.tolist() == [[0, 0], [2, 2], [0, 0], [0, 0]]
    assert torch.nn.Embedding(4, 2, -1).padding_idx == layer.padding_idx
    with pytest.raises(ValueError, match="padding_idx must lie in -4 to 3, got 4"):
        nn.Embedding(4, 2, 4)
    with pytest.raises(TypeError, match="padding_idx must be an int, got str"):
        nn.Embedding(4, 2, "cpu")


def test_embedding_starts_standard_normal() -> None:
    lucid.manual_seed(3)
    values = nn.Embedding(400, 300).weight.numpy()
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert 0.31 < (np.abs(values) > 1).mean() < 0.33


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 4), lambda: nn.Embedding(3, 4)])
def test_the_seed_fixes_initial_values(make: Callable[[], nn.Module]) -> None:
    def drawn(seed: int) -> list[Any]:
        lucid.manual_seed(seed)
        return [parameter.tolist() for parameter in make().parameters()]

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (40, 50)])
def test_filling_works_in_place_for_every_floating_dtype_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = lucid.tensor(np.full(shape, 9.0), dtype=dtype)
    memory = tensor._buffer.data_ptr()
    assert nn.init.uniform_(tensor, 2.0, 3.0) is tensor
    assert ((tensor.numpy() >= 2) & (tensor.numpy() <= 3)).all()
    assert nn.init.normal_(tensor, mean=100.0, std=0.5) is tensor
    assert (np.abs(tensor.numpy() - 100) < 4).all()
    assert nn.init.zeros_(tensor) is tensor
    assert not tensor.numpy().any()
    assert tensor._buffer.data_ptr() == memory
    assert tensor.shape == shape
    assert str(tensor.dtype) == f"lucid.{dtype}"


def test_filling_a_float64_draws_all_its_bits() -> None:
    values = nn.init.uniform_(lucid.tensor(np.zeros(100))).numpy()
    assert (values != values.astype(np.float32)).any()


@pytest.mark.parametrize(
    ("fill", "error", "message"),
    [
        (lambda: nn.init.uniform_(lucid.zeros(2), 1.0, 0.0), ValueError, "a <= b, got a=1.0 and b=0.0"),
        (lambda: nn.init.normal_(lucid.zeros(2), 0.0, -1.0), ValueError, "std >= 0, got -1.0"),
        (lambda: nn.init.uniform_(np.zeros(2)), TypeError, "tensor must be a lucid.Tensor, got numpy.ndarray"),
        (lambda: nn.init.zeros_([0.0]), TypeError, "tensor must be a lucid.Tensor, got list"),
        (lambda: nn.init.normal_(lucid.tensor([1])), TypeError, "floating dtype, got lucid.int64"),
    ],
)
def test_filling_refuses_what_it_cannot_do(fill: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fill()


def test_a_sequential_is_indexed_sliced_and_iterated() -> None:
    layers = [nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2), nn.ReLU()]
    model = nn.Sequential(*layers)
    assert len(model) == 4
    assert list(model) == layers
    assert [model[i] for i in (0, 3, -1, np.int64(-4))] == [layers[i] for i in (0, 3, 3, 0)]
    part = model[1:3]
    assert type(part) is nn.Sequential
    assert list(part) == layers[1:3]
    assert list(part.state_dict()) == ["2.weight", "2.bias"]
    assert nn.Sequential()(5) == 5


@pytest.mark.parametrize("kind", [OrderedDict, dict])
def test_a_sequential_takes_names(kind: Any) -> None:
    model = nn.Sequential(kind(first=nn.Linear(2, 2), act=nn.Tanh()))
    assert model.first is model[0]
    assert model.act is model[1]
    assert [name for name, _ in model.named_children()] == ["first", "act"]
    assert model[:1].first is model.first


def test_append_never_replaces() -> None:
    model = nn.Sequential(OrderedDict([("1", nn.Tanh()), ("x", nn.ReLU())]))
    del model[1]
    first, added = model[0], nn.Tanh()
    assert model.append(added) is model
    assert list(model) == [first, added]


@pytest.mark.parametrize("index", [0, 2, -1, slice(0, 2), slice(None, None, 2), slice(3, 3)])
@pytest.mark.parametrize("container", ["Sequential", "ModuleList"])
def test_items_are_replaced_and_deleted_as_in_torch(container: str, index: Any) -> None:
    def names(nn: ModuleType) -> list[str]:
        items = [nn.Tanh(), nn.ReLU(), nn.Softmax(dim=0), nn.Tanh()]
        model = getattr(nn, container)(items) if container == "ModuleList" else nn.Sequential(*items)
        if not isinstance(index, slice):
            model[index] = nn.LogSoftmax(dim=1)
        before = repr(model)
        del model[index]
        return [before, repr(model)]

    assert names(nn) == names(torch.nn)


def test_names_that_were_given_outlive_a_deletion() -> None:
    model = nn.Sequential(OrderedDict(first=nn.Tanh(), second=nn.ReLU()))
    del model[0]
    assert [name for name, _ in model.named_children()] == ["second"]


@pytest.mark.parametrize("index", [0, 1, 2, -1, 7])
def test_a_list_of_modules_grows_as_a_list_does(index: int) -> None:
    a, b, c, d = nn.Tanh(), nn.ReLU(), nn.Linear(2, 2), nn.Tanh()
    modules = nn.ModuleList([a])
    modules += [b]
    modules.insert(index, c)
    assert modules.extend(iter([d])) is modules
    plain = [a, b]
    plain.insert(index, c)
    assert list(modules) == [*plain, d]
    assert [name for name, _ in modules.named_children()] == ["0", "1", "2", "3"]
    assert type(modules[1:]) is nn.ModuleList
    assert list(modules[1:]) == [*plain, d][1:]


def test_a_dictionary_of_modules_behaves_as_one() -> None:
    a, b, c = nn.Tanh(), nn.ReLU(), nn.Linear(2, 2)
    modules = nn.ModuleDict({"a": a})
    modules.update([("b", b)])
    modules["c"] = c
    assert len(modules) == 3
    assert list(modules) == list(modules.keys()) == ["a", "b", "c"]
    assert list(modules.values()) == [a, b, c]
    assert dict(modules.items()) == {"a": a, "b": b, "c": c}
    assert "a" in modules
    assert "z" not in modules
    assert modules["b"] is modules.b is b
    assert list(modules.state_dict()) == ["c.weight", "c.bias"]
    assert modules.pop("b") is b
    assert list(modules) == ["a", "c"]
    del modules["a"]
    assert list(nn.ModuleDict(modules)) == ["c"]
    modules.clear()
    assert len(modules) == 0
    assert not list(modules.parameters())


def test_what_containers_hold_is_trained() -> None:
    model = nn.ModuleDict({"list": nn.ModuleList([nn.Linear(2, 2)]), "chain": nn.Sequential(nn.Linear(2, 1))})
    out = model["chain"](model["list"][0](lucid.tensor(X)))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(list(model.parameters())) == 4
