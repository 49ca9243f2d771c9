"""Modules: what is registered, how it is found, printed, converted and copied. The oracle is torch.nn."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid import nn


def tree(nn: Any) -> Any:
    """The same tree of modules from lucid.nn and from torch.nn: nested, with shared and absent members."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.tied = self.linear
            self.register_parameter("absent", None)
            self.register_module("missing", None)

        def extra_repr(self) -> str:
            return "first line\n\nthird line"

    class Tree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()
            self.again = self.block
            self.act = nn.Tanh()
            self.scale = self.block.linear.bias

    return Tree()


def with_buffers() -> nn.Module:
    module = nn.Module()
    module.register_buffer("kept", lucid.tensor([1.0, 2.0]))
    module.register_buffer("passing", lucid.tensor([3.0]), persistent=False)
    module.register_buffer("none", None)
    module.register_buffer("count", lucid.tensor([1, 2]))
    return module


@pytest.mark.parametrize("remove_duplicate", [True, False])
@pytest.mark.parametrize("walk", ["named_parameters", "named_modules", "named_children", "named_buffers"])
def test_names_come_in_torchs_order(walk: str, remove_duplicate: bool) -> None:
    options = {} if walk == "named_children" else {"prefix": "top", "remove_duplicate": remove_duplicate}
    ours = [name for name, _ in getattr(tree(nn), walk)(**options)]
    theirs = [name for name, _ in getattr(tree(torch.nn), walk)(**options)]
    assert ours == theirs


def test_parameters_without_recursion_are_the_modules_own() -> None:
    model = tree(nn)
    assert [name for name, _ in model.named_parameters(recurse=False)] == ["scale"]
    assert next(model.parameters(recurse=False)) is model.block.linear.bias


def test_unnamed_walks_yield_what_the_named_ones_do() -> None:
    model = tree(nn)
    assert list(model.modules()) == [module for _, module in model.named_modules()]
    assert list(model.children()) == [module for _, module in model.named_children()]
    assert [id(p) for p in model.parameters()] == [id(p) for _, p in model.named_parameters()]
    buffers = with_buffers()
    assert [id(b) for b in buffers.buffers()] == [id(b) for _, b in buffers.named_buffers()]
    assert [name for name, _ in buffers.named_buffers()] == ["kept", "passing", "count"]


@pytest.mark.parametrize(
    "build",
    [
        tree,
        lambda nn: nn.Module(),
        lambda nn: nn.Sequential(),
        lambda nn: nn.ModuleList(),
        lambda nn: nn.Linear(3, 4, bias=False),
        lambda nn: nn.Embedding(5, 6),
        lambda nn: nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Softmax(dim=1))),
        lambda nn: nn.ModuleList([nn.ModuleList([nn.Tanh(), nn.Tanh()]), nn.LogSoftmax(), nn.LogSoftmax()]),
        lambda nn: nn.ModuleDict({"a": nn.Softmax(), "b": nn.ModuleDict()}),
    ],
)
def test_repr_has_torchs_layout(build: Any) -> None:
    assert repr(build(nn)) == repr(build(torch.nn))


def test_parameter_shares_memory_and_says_what_it_is() -> None:
    data = lucid.tensor([1.0, 2.0])
    parameter = nn.Parameter(data)
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter._buffer.data_ptr() == data._buffer.data_ptr()
    assert repr(parameter) == "Parameter containing:\ntensor([1., 2.], requires_grad=True)"
    assert not nn.Parameter(data, requires_grad=False).requires_grad
    assert not data.requires_grad


@pytest.mark.parametrize("data", [[1.0], np.ones(2), 3.0, None])
def test_parameter_of_no_tensor_is_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError, match=r"data must be a lucid.Tensor, got"):
        nn.Parameter(data)


def test_parameter_of_integers_cannot_require_grad() -> None:
    with pytest.raises(RuntimeError, match="float"):
        nn.Parameter(lucid.tensor([1]))
    assert nn.Parameter(lucid.tensor([1]), requires_grad=False).dtype is lucid.int64


def test_attributes_are_registered_replaced_and_deleted() -> None:
    module = nn.Module()
    module.x = 3
    module.x = nn.Parameter(lucid.zeros(1))
    assert "x" not in vars(module)
    assert dict(module.named_parameters()) == {"x": module.x}
    module.x = None
    assert module.x is None
    assert not list(module.parameters())
    module.x = first = nn.Parameter(lucid.zeros(1))
    assert module.x is first
    del module.x
    module.x = nn.Tanh()
    assert [name for name, _ in module.named_children()] == ["x"]
    assert not list(module.parameters())
    module.x = nn.Parameter(lucid.zeros(1))
    assert not list(module.children())
    assert len(list(module.parameters())) == 1
    del module.x
    assert not hasattr(module, "x")
    with pytest.raises(AttributeError):
        del module.x


def test_a_tensor_assigned_to_a_buffer_stays_a_buffer() -> None:
    module = with_buffers()
    module.passing = lucid.tensor([4.0])
    module.kept = None
    assert [name for name, _ in module.named_buffers()] == ["passing", "count"]
    assert list(module.state_dict()) == ["count"]
    module.register_buffer("passing", lucid.tensor([5.0]))
    assert list(module.state_dict()) == ["passing", "count"]
    module.register_buffer("passing", lucid.tensor([5.0]), persistent=False)
    del module.passing
    module.register_buffer("passing", lucid.tensor([5.0]))
    assert list(module.state_dict()) == ["count", "passing"]


def test_a_plain_tensor_is_no_member() -> None:
    module = nn.Module()
    module.constant = lucid.zeros(2)
    assert not list(module.buffers())
    assert not module.state_dict()
    assert module.constant.shape == (2,)


@pytest.mark.parametrize(
    ("assign", "message"),
    [
        (lambda m, nn: setattr(m.block.linear, "weight", 3), "cannot assign 'int' as parameter 'weight'"),
        (lambda m, nn: setattr(m, "block", "x"), "cannot assign 'str' as child module 'block'"),
        (lambda m, nn: m.register_module("z", 3), "int is not a Module subclass"),
        (lambda m, nn: m.register_parameter("z", 3), "cannot assign 'int' object to parameter 'z'"),
        (lambda m, nn: m.register_buffer("z", 3), "cannot assign 'int' object to buffer 'z'"),
        (lambda m, nn: m.register_buffer(3, None), "buffer name should be a string. Got int"),
        (lambda m, nn: m.register_parameter(3, None), "parameter name should be a string. Got int"),
        (lambda m, nn: m.register_module(3, None), "module name should be a string. Got int"),
        (lambda m, nn: m.register_buffer("a.b", None), """buffer name can\\'t contain ".\""""),
        (lambda m, nn: m.register_parameter("", None), """parameter name can\\'t be empty string"""),
        (lambda m, nn: m.register_module("a.b", nn.Tanh()), """module name can\\'t contain ".", got: a.b"""),
        (lambda m, nn: m.add_module("forward", nn.Tanh()), "attribute 'forward' already exists"),
        (lambda m, nn: m.register_buffer("act", None), "attribute 'act' already exists"),
        (lambda m, nn: m.register_parameter("act", None), "attribute 'act' already exists"),
        (lambda m, nn: m.train("yes"), "training mode is expected to be boolean"),
        (lambda m, nn: m.nothing, "'Tree' object has no attribute 'nothing'"),
        (lambda m, nn: m.get_submodule("block.nothing"), "Block has no attribute `nothing`"),
        (lambda m, nn: m.get_submodule("scale"), "`scale` is not an nn.Module"),
        (lambda m, nn: m.get_parameter("block.linear"), "`linear` is not an nn.Parameter"),
        (lambda m, nn: m.get_parameter("nothing"), "Tree has no attribute `nothing`"),
        (lambda m, nn: m(1), 'Module [Tree] is missing the required "forward" function'),
    ],
)
def test_misuse_is_refused_as_in_torch_and_changes_nothing(assign: Any, message: str) -> None:
    model = tree(nn)
    before = repr(model), list(model.state_dict())
    with pytest.raises(Exception) as ours:
        assign(model, nn)
    with pytest.raises(Exception) as theirs:
        assign(tree(torch.nn), torch.nn)
    assert type(ours.value) is type(theirs.value)
    assert message in str(ours.value)
    assert message in str(theirs.value)
    assert (repr(model), list(model.state_dict())) == before


def test_a_buffer_takes_tensors_only() -> None:
    with pytest.raises(TypeError, match=r"'int' as buffer 'kept' \(lucid.Tensor or None expected\)"):
        with_buffers().kept = 3


def test_members_before_init_are_refused() -> None:
    class Early(nn.Module):
        def __init__(self, value: Any) -> None:
            self.member = value

    with pytest.raises(AttributeError, match=r"cannot assign module before Module.__init__\(\) call"):
        Early(nn.Tanh())
    with pytest.raises(AttributeError, match=r"cannot assign parameter before Module.__init__\(\) call"):
        Early(nn.Parameter(lucid.zeros(1)))
    module = Early(3)
    uses = lambda: module(1), module.state_dict, lambda: list(module.parameters()), lambda: repr(module)
    for use in uses:
        with pytest.raises(AttributeError, match=r"super\(\).__init__\(\) was not called"):
            use()


def test_a_module_is_found_by_its_dotted_name() -> None:
    model = tree(nn)
    assert model.get_submodule("") is model
    assert model.get_submodule("again.linear") is model.block.linear
    assert model.get_parameter("block.tied.weight") is model.block.linear.weight


def test_dir_lists_members_but_no_numbers() -> None:
    names = dir(tree(nn))
    assert {"block", "act", "scale", "forward", "training"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in dir(nn.Sequential(nn.Tanh())) if name[0].isdigit()]


def test_apply_visits_children_first() -> None:
    def visit(nn: Any) -> list[str]:
        seen: list[str] = []
        model = tree(nn)
        assert model.apply(lambda module: seen.append(type(module).__name__)) is model
        return seen

    assert visit(nn) == visit(torch.nn)


def test_train_and_eval_reach_all_modules() -> None:
    model = tree(nn)
    assert model.training
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())


def test_requires_grad_reaches_all_parameters() -> None:
    model = tree(nn)
    assert model.requires_grad_(False) is model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_drops_gradients_or_zeroes_them_in_place(set_to_none: bool) -> None:
    layer = nn.Linear(2, 2)
    layer.weight.grad = gradient = lucid.tensor([[1.0, 2.0], [3.0, 4.0]])
    layer.zero_grad(set_to_none=set_to_none)
    assert layer.bias.grad is None
    if set_to_none:
        assert layer.weight.grad is None
        assert gradient.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    else:
        assert layer.weight.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]
        assert gradient.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_zero_grad_takes_gradients_out_of_their_graph() -> None:
    layer = nn.Linear(2, 1)
    x = layer(lucid.zeros(3, 2))
    (x * x).sum().backward(create_graph=True)
    assert layer.bias.grad.requires_grad
    layer.zero_grad(set_to_none=False)
    assert layer.bias.grad.is_leaf
    assert not layer.bias.grad.requires_grad


@pytest.mark.parametrize("how", [(lucid.float64,), ("float64",), ("cpu", lucid.float64)])
def test_to_converts_in_place_and_leaves_integers_alone(how: tuple[Any, ...]) -> None:
    model = nn.Sequential(nn.Linear(2, 3), with_buffers())
    weight, expected = model[0].weight, model[0].weight.tolist()
    weight.grad = lucid.zeros(3, 2)
    assert model.to(*how) is model
    assert model[0].weight is weight
    assert weight.dtype is lucid.float64
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight.grad is not None
    assert weight.grad.dtype is lucid.float64
    assert weight.tolist() == expected
    assert model[1].kept.dtype is lucid.float64
    assert model[1].count.dtype is lucid.int64
    assert model[1].count.tolist() == [1, 2]


def test_to_a_device_moves_everything() -> None:
    model = nn.Sequential(nn.Linear(2, 3), with_buffers()).to("cpu")
    assert {str(tensor._buffer.device) for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}


def test_to_keeps_shared_parameters_shared() -> None:
    model = tree(nn).to(lucid.float64)
    assert model.scale is model.block.linear.bias is model.block.tied.bias


@pytest.mark.parametrize("how", [lucid.int32, "nowhere", 3.5])
def test_to_something_senseless_changes_nothing(how: Any) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        layer.to(how)
    assert layer.weight.dtype is lucid.float32


def test_to_an_integer_dtype_says_why_not() -> None:
    with pytest.raises(TypeError, match="only accepts floating point dtypes"):
        nn.Module().to(lucid.int64)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent_and_keep_what_is_shared(duplicate: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), with_buffers())
    model.tied = model[0].weight
    model[0].bias.requires_grad_(False)
    twin = duplicate(model)
    assert repr(twin) == repr(model)
    assert isinstance(twin.tied, nn.Parameter)
    assert twin.tied is twin[0].weight
    assert twin.tied.requires_grad
    assert not twin[0].bias.requires_grad
    before = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    assert {name: tensor.tolist() for name, tensor in twin.state_dict().items()} == before
    nn.init.zeros_(twin[0].weight)
    assert model[0].weight.tolist() == before["0.weight"]
