"""State dicts: what they hold, and that loading one is all or nothing. The oracle is torch.nn."""

from __future__ import annotations

import re
from collections import OrderedDict
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid import nn

State = dict[str, Any]


def build(nn: ModuleType) -> Any:
    last = nn.Sequential(nn.Linear(3, 1))
    return nn.Sequential(OrderedDict(first=nn.Linear(2, 3), act=nn.Tanh(), last=last))


def arrays(model: nn.Module) -> dict[str, list[Any]]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def numbers() -> dict[str, np.ndarray[Any, Any]]:
    """A state of other values than any fresh model has."""
    shapes = {name: tensor.shape for name, tensor in build(torch.nn).state_dict().items()}
    places = enumerate(shapes.items())
    return {name: np.full(tuple(shape), place + 7.0, np.float32) for place, (name, shape) in places}


def test_a_state_dict_is_torchs_but_for_the_tensors() -> None:
    for prefix in ("", "p."):
        ours, theirs = (build(kind).state_dict(prefix=prefix) for kind in (nn, torch.nn))
        assert type(ours) is OrderedDict
        assert list(ours) == list(theirs)
        assert vars(ours)["_metadata"] == vars(theirs)["_metadata"]


def test_shared_members_appear_under_every_name() -> None:
    shared = nn.Linear(2, 2)
    assert list(nn.ModuleList([shared, shared]).state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_values_are_detached_tensors_that_share_memory() -> None:
    layer = nn.Linear(2, 2)
    weight = layer.state_dict()["weight"]
    assert type(weight) is lucid.Tensor
    assert not weight.requires_grad
    nn.init.zeros_(weight)
    assert layer.weight.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert layer.state_dict(keep_vars=True)["weight"] is layer.weight


def test_a_destination_is_filled_and_given_back() -> None:
    destination: State = {"there": lucid.zeros(1)}
    assert nn.Linear(2, 2).state_dict(destination=destination, prefix="x.") is destination
    assert list(destination) == ["there", "x.weight", "x.bias"]


def test_buffers_that_are_not_persistent_are_neither_saved_nor_expected() -> None:
    module = nn.Module()
    module.register_buffer("kept", lucid.tensor([1.0]))
    module.register_buffer("passing", lucid.tensor([2.0]), persistent=False)
    assert list(module.state_dict()) == ["kept"]
    module.load_state_dict({"kept": lucid.tensor([5.0])})
    assert (module.kept.tolist(), module.passing.tolist()) == ([5.0], [2.0])
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "passing"\. '):
        module.load_state_dict({"kept": lucid.tensor([1.0]), "passing": lucid.tensor([1.0])})


@pytest.mark.parametrize("convert", [lucid.tensor, np.asarray, torch.tensor])
@pytest.mark.parametrize("wrap", [dict, OrderedDict, MappingProxyType])
def test_loading_copies_into_the_parameters_there_are(convert: Any, wrap: Any) -> None:
    model = build(nn)
    parameters = list(model.parameters())
    memory = [parameter._buffer.data_ptr() for parameter in parameters]
    result = model.load_state_dict(wrap({name: convert(value) for name, value in numbers().items()}))
    assert repr(result) == str(result) == "<All keys matched successfully>"
    assert result == ([], [])
    assert arrays(model) == {name: value.tolist() for name, value in numbers().items()}
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert [p._buffer.data_ptr() for p in model.parameters()] == memory
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in parameters)


def test_loading_takes_another_models_state() -> None:
    model, twin = build(nn), build(nn)
    twin.load_state_dict(model.state_dict())
    assert arrays(twin) == arrays(model)
    nn.init.zeros_(twin.first.weight)
    assert model.first.weight.tolist() != twin.first.weight.tolist()


def test_loading_converts_to_the_parameters_dtype() -> None:
    model = build(nn).to(lucid.float64)
    model.load_state_dict({name: value.astype(np.float16) for name, value in numbers().items()})
    assert model.first.weight.dtype is lucid.float64
    assert arrays(model) == {name: value.tolist() for name, value in numbers().items()}


@pytest.mark.parametrize("array", [np.ones((2, 3), np.float32).T, np.ones((6, 2), np.float32)[::-2]])
def test_loading_takes_arrays_of_any_layout(array: np.ndarray[Any, Any]) -> None:
    model = build(nn)
    array.flags.writeable = False
    model.load_state_dict({**numbers(), "first.weight": array})
    assert model.first.weight.tolist() == [[1.0, 1.0]] * 3


def drop(*names: str) -> Any:
    return lambda state: {name: value for name, value in state.items() if name not in names}


def add(**values: Any) -> Any:
    return lambda state: state | {name.replace("__", "."): value for name, value in values.items()}


FAULTS = [
    drop("first.bias"),
    drop("first.weight", "last.0.bias"),
    lambda state: {},
    add(extra=1),
    add(last__x=1, x__y=2, first__weight__z=3, act__w=4, last__0__v=5),
    add(first__weight=np.zeros((2, 2), np.float32)),
    add(last__0__bias=np.zeros((), np.float32), first__bias=np.zeros((1, 3), np.float32)),
    lambda state: add(first__weight=np.zeros(7, np.float32), more=1)(drop("last.0.weight")(state)),
]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_reported_as_in_torch_and_nothing_is_loaded(fault: Any, strict: bool) -> None:
    model, oracle = build(nn), build(torch.nn)
    before = arrays(model)
    state = fault(numbers())
    tensors = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in state.items()}
    refused = None
    try:
        expected = oracle.load_state_dict(tensors, strict=strict)
    except RuntimeError as error:
        refused = re.sub(r"torch\.Size\(\[(.*?)\]\)", as_tuple, str(error))
    if refused is not None:
        with pytest.raises(RuntimeError) as raised:
            model.load_state_dict(state, strict=strict)
        assert str(raised.value) == refused
        assert arrays(model) == before
    else:
        assert not strict
        assert model.load_state_dict(state, strict=False) == expected
        loaded = {name: value.tolist() for name, value in state.items() if name in before}
        assert arrays(model) == before | loaded


def as_tuple(match: re.Match[str]) -> str:
    return repr(tuple(int(size) for size in match[1].split(", ") if size))


def test_the_keys_that_differ_are_told_when_not_strict() -> None:
    result = nn.Linear(1, 1).load_state_dict({"other": 1}, strict=False)
    assert result.missing_keys == ["weight", "bias"]
    assert result.unexpected_keys == ["other"]
    assert repr(result) == "IncompatibleKeys(missing_keys=['weight', 'bias'], unexpected_keys=['other'])"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "value", [3.0, None, [[0.0] * 2] * 3, "text", torch.zeros(3, 2).to_sparse(), np.array([["a"] * 2] * 3)]
)
def test_a_value_that_is_no_tensor_is_named_and_nothing_is_loaded(value: Any, strict: bool) -> None:
    model = build(nn)
    before = arrays(model)
    with pytest.raises(RuntimeError, match=r'While copying the parameter named "first\.weight", '):
        model.load_state_dict({**numbers(), "first.weight": value}, strict=strict)
    assert arrays(model) == before


@pytest.mark.parametrize("state", [[1], None, 3, "weight"])
def test_a_state_that_is_no_mapping_is_a_type_error(state: Any) -> None:
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like, got <class"):
        build(nn).load_state_dict(state)


def test_a_key_that_is_no_string_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="Expected the keys of state_dict to be strings, got 3"):
        build(nn).load_state_dict({3: lucid.zeros(1)})


def test_a_submodule_that_was_left_out_takes_no_state() -> None:
    module = nn.Module()
    module.register_module("head", None)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"head.weight"'):
        module.load_state_dict({"head.weight": lucid.zeros(1)})
