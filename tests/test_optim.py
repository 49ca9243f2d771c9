"""Optimizers: the same steps as torch.optim's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import triton_kernels
from lucid import nn
from lucid.optim import SGD, Adam, Optimizer
from tests.device import DEVICE
from tests.values import leaf, torch_of, values_of
from triton_kernels.devtools import trace
from triton_kernels.jit import multi_tensor
from triton_kernels.runtime import tile_configs

Make = Callable[[Any, Any], Any]

OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda optim, params: optim.SGD(params, lr=0.1),
    "momentum": lambda optim, params: optim.SGD(params, lr=0.05, momentum=0.9),
    "dampening": lambda optim, params: optim.SGD(params, lr=0.05, momentum=0.8, dampening=0.3),
    "nesterov": lambda optim, params: optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "weight decay": lambda optim, params: optim.SGD(params, lr=0.1, weight_decay=0.2, maximize=True),
    "Adam": lambda optim, params: optim.Adam(params),
    "Adam with options": lambda optim, params: optim.Adam(params, 0.03, (0.8, 0.95), eps=1e-4, weight_decay=0.1),
    "Adam of beta 0": lambda optim, params: optim.Adam(params, betas=(0.0, 0.9), amsgrad=True),
    "AdamW": lambda optim, params: optim.AdamW(params, lr=0.02),
    "AdamW with options": lambda optim, params: optim.AdamW(
        params, 0.03, weight_decay=0.1, amsgrad=True, maximize=True
    ),
}
SHAPES = [(3, 4), (5,), ()]


def gradients(step: int) -> list[np.ndarray]:
    draw = np.random.default_rng(step)
    return [draw.normal(size=shape) * 10.0 ** (step % 3 - 1) for shape in SHAPES]


def take_steps(make: Make, dtype: str, steps: int) -> tuple[list[Any], list[Any]]:
    """Parameters after the same steps here and, always in float64, in torch."""
    values = [lucid.tensor(array, dtype=dtype) for array in gradients(100)]
    ours = [leaf(value) for value in values]
    theirs = [torch.tensor(values_of(value), requires_grad=True) for value in values]
    our_optimizer, their_optimizer = make(lucid.optim, ours), make(torch.optim, theirs)
    for step in range(steps):
        for a, b, array in zip(ours, theirs, gradients(step), strict=True):
            a.grad = lucid.tensor(array, dtype=dtype)
            b.grad = torch.tensor(values_of(a.grad))
        our_optimizer.step()
        their_optimizer.step()
    return ours, [parameter.detach().numpy() for parameter in theirs]


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 3e-6)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_are_torchs(name: str, dtype: str, rtol: float) -> None:
    ours, theirs = take_steps(OPTIMIZERS[name], dtype, 10)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(values_of(a), b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_half_parameters_lose_one_rounding_per_step(name: str, dtype: str) -> None:
    steps = 5
    ours, theirs = take_steps(OPTIMIZERS[name], dtype, steps)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype.name == dtype
        ulp = torch.finfo(a.dtype.torch).eps
        np.testing.assert_allclose(values_of(a), b, atol=steps * ulp * max(1.0, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize(
    ("dtype", "kept"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_state_is_float32_or_float64(dtype: str, kept: str) -> None:
    for optimizer in (lambda p: SGD(p, momentum=0.9), Adam):
        x = lucid.ones(3, dtype=dtype, requires_grad=True)
        x.grad = lucid.full((3,), 1e-3, dtype=dtype)
        made = optimizer([x])
        made.step()
        names = {"momentum_buffer"} if isinstance(made, SGD) else {"step", "exp_avg", "exp_avg_sq"}
        assert made.state[x].keys() == names
        assert {made.state[x][name].dtype.name for name in names - {"step"}} == {kept}


def test_state_in_float32_collects_what_half_precision_would_lose() -> None:
    x = lucid.zeros(1, dtype="bfloat16", requires_grad=True)
    optimizer = SGD([x], lr=1e-3, momentum=1.0)
    for gradient in (1.0, *(2.0**-9,) * 8):
        x.grad = lucid.tensor([gradient], dtype="bfloat16")
        optimizer.step()
    assert optimizer.state[x]["momentum_buffer"].item() == 1 + 8 * 2.0**-9


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    for make in OPTIMIZERS.values():
        used, idle = leaf([1.0, 2.0]), leaf([3.0])
        optimizer = make(lucid.optim, [used, idle])
        used.grad = lucid.ones(2)
        optimizer.step()
        assert idle.tolist() == [3.0]
        assert idle not in optimizer.state
        assert used.tolist() != [1.0, 2.0]
        assert used.grad.tolist() == [1.0, 1.0]


def test_parameters_of_any_strides_are_changed_where_they_are() -> None:
    for make in OPTIMIZERS.values():
        array, gradient = np.arange(6.0).reshape(2, 3), np.linspace(-1, 1, 6).reshape(2, 3)
        whole = torch.zeros(6, 4, dtype=torch.float64).to(lucid.get_default_device().torch)
        strided = [lucid.tensor(array.T.copy()).T.detach(), lucid.from_torch(whole[::3, 1:])]
        strided[1].to_torch().copy_(torch.from_numpy(array))
        dense: Any = leaf(array)
        parameters: list[Any] = [tensor.requires_grad_() for tensor in strided]
        optimizer = make(lucid.optim, [dense, *parameters])
        for _ in range(2):
            for parameter in (dense, *parameters):
                parameter.grad = lucid.tensor(gradient.T.copy()).T
            optimizer.step()
        for parameter in parameters:
            assert not parameter.is_contiguous()
            np.testing.assert_array_equal(parameter.numpy(), dense.numpy())
        assert not whole[1::3].any()
        assert not whole[:, 0].any()


def test_a_nan_stays_in_parameter_and_state() -> None:
    for make in OPTIMIZERS.values():
        x = leaf([1.0, 1.0])
        optimizer = make(lucid.optim, [x])
        for gradient in (float("nan"), 1.0):
            x.grad = lucid.tensor([gradient, 1.0])
            optimizer.step()
        tensors = [x, *(value for name, value in optimizer.state[x].items() if name != "step")]
        assert [np.isnan(tensor.numpy()).tolist() for tensor in tensors] == [[True, False]] * len(tensors)


def test_groups_have_options_of_their_own() -> None:
    a, b, c = leaf([1.0]), leaf([1.0]), leaf([1.0])
    optimizer = SGD([{"params": [a]}, {"params": b, "lr": 0.5}], lr=0.25)
    optimizer.add_param_group({"params": [c], "lr": 1.0, "weight_decay": 1.0})
    for parameter in (a, b, c):
        parameter.grad = lucid.tensor([1.0])
    optimizer.step()
    assert [parameter.item() for parameter in (a, b, c)] == [0.75, 0.5, -1.0]
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert a.item() == 0.75
    assert b.item() == 0.0
    assert repr(optimizer).startswith("SGD (\nParameter Group 0\n    dampening: 0.0\n    lr: 0.0\n")


def test_parameters_may_come_from_a_model_or_a_generator() -> None:
    model = nn.Linear(2, 2)
    for params in (model.parameters(), [{"params": model.parameters()}], iter(list(model.parameters()))):
        assert [id(p) for p in Adam(params).param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_zero_grad_drops_gradients_or_makes_them_zero() -> None:
    x, y = leaf([1.0]), leaf([2.0])
    optimizer = SGD([x, y], lr=0.1)
    x.grad = held = lucid.tensor([3.0])
    optimizer.zero_grad(set_to_none=False)
    assert x.grad.tolist() == [0.0]
    assert held.tolist() == [3.0]
    assert y.grad is None
    optimizer.zero_grad()
    assert x.grad is None


def test_steps_are_not_recorded_and_parameters_stay_leaves() -> None:
    x = leaf([1.0])
    (x * x).sum().backward(create_graph=True)
    SGD([x], lr=0.1).step()
    assert x.is_leaf
    assert x.grad.requires_grad
    assert torch_of(x).tolist() == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: SGD([x], lr=-1), ValueError, "lr must be a number of at least 0 and finite, got -1"),
        (lambda x: SGD([x], lr=float("nan")), ValueError, "lr must be a number of at least 0 and finite, got nan"),
        (lambda x: Adam([x], lr=float("inf")), ValueError, "lr must be a number of at least 0 and finite, got inf"),
        (lambda x: SGD([x], lr="fast"), ValueError, "lr must be a number of at least 0 and finite, got 'fast'"),
        (lambda x: SGD([x], lr=True), ValueError, "lr must be a number of at least 0 and finite, got True"),
        (lambda x: SGD([x], momentum=-0.5), ValueError, "momentum must be a number of at least 0 and finite, got -0.5"),
        (lambda x: SGD([x], dampening=-1), ValueError, "dampening must be a number of at least 0 and finite, got -1"),
        (lambda x: SGD([x], weight_decay=-1), ValueError, "weight_decay must be a number of at least 0 .*, got -1"),
        (lambda x: SGD([x], nesterov=True), ValueError, "nesterov needs a momentum above 0 and no dampening"),
        (
            lambda x: SGD([x], nesterov=True, momentum=0.9, dampening=0.1),
            ValueError,
            "nesterov needs a momentum above 0 and no dampening",
        ),
        (lambda x: Adam([x], eps=-1e-8), ValueError, "eps must be a number of at least 0 and finite, got -1e-08"),
        (lambda x: Adam([x], betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be a number .* and below 1, got 1.0"),
        (lambda x: Adam([x], betas=(-0.1, 0.9)), ValueError, r"betas\[0\] must be a number of at least 0 .*, got -0.1"),
        (lambda x: Adam([x], betas=0.9), ValueError, "betas must be two numbers, got 0.9"),
        (lambda x: Adam([{"params": [x], "lr": -1}]), ValueError, "lr must be a number of at least 0 .*, got -1"),
        (lambda x: SGD([]), ValueError, "params must hold at least one parameter, got none"),
        (lambda x: SGD(x), TypeError, "params must be an iterable of lucid.Tensors or of dicts, got lucid.Tensor"),
        (
            lambda x: SGD({"params": [x]}),
            TypeError,
            "params must be an iterable of lucid.Tensors or of dicts, got dict",
        ),
        (lambda x: SGD(3), TypeError, "params must be an iterable of lucid.Tensors or of dicts, got int"),
        (lambda x: SGD([1.0]), TypeError, "params must be lucid.Tensors, got float"),
        (lambda x: SGD([{"lr": 1.0}]), TypeError, r"""a parameter group must be a dict .*, got the keys \['lr'\]"""),
        (
            lambda x: SGD([{"params": x}, x]),
            TypeError,
            'a parameter group must be a dict with "params", got lucid.Tensor',
        ),
        (lambda x: SGD([x, x]), ValueError, "duplicate parameter in params"),
        (lambda x: SGD([{"params": x}, {"params": x}]), ValueError, "duplicate parameter in params"),
        (lambda x: SGD([x * 2]), ValueError, r"params must be leaves .* got one of lucid.float32 and shape \(1,\)"),
        (
            lambda x: SGD([lucid.ones(1, dtype="int64")]),
            ValueError,
            "params must be leaves .* got one of lucid.int64 .*",
        ),
    ],
)
def test_an_impossible_option_is_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make(leaf([1.0]))


def test_an_option_made_impossible_later_stops_the_step_before_it_begins() -> None:
    x, y = leaf([1.0]), leaf([1.0])
    optimizer = SGD([{"params": [x]}, {"params": [y]}], lr=0.1)
    optimizer.param_groups[1]["lr"] = -1
    x.grad = lucid.ones(1)
    with pytest.raises(ValueError, match=r"^lr must be a number"):
        optimizer.step()
    assert x.item() == 1.0


def test_numpy_numbers_are_options() -> None:
    x = leaf([1.0])
    x.grad = lucid.ones(1)
    SGD([x], lr=np.float32(0.5), momentum=np.float64(0.5)).step()
    assert x.item() == 0.5


class Sign(Optimizer):
    """An optimizer as a user writes one."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @lucid.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                state["steps"] = state.get("steps", 0) + 1
                state["sign"] = param.grad / param.grad.abs()
                param -= group["lr"] * state["sign"]


def test_an_optimizer_of_ones_own_defines_its_step() -> None:
    x, y = leaf([1.0, 2.0]), leaf([0.0, 0.0])
    x.grad = lucid.tensor([-3.0, 0.5])
    optimizer = Sign([x], lr=0.5)
    optimizer.step()
    assert (x.tolist(), optimizer.state[x]["steps"]) == ([1.5, 1.5], 1)
    other = Sign([y], lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.5
    assert other.state[y]["steps"] == 1
    assert other.state[y]["sign"].tolist() == [-1.0, 1.0]
    with pytest.raises(NotImplementedError, match=r"^Optimizer must define step$"):
        Optimizer([x], {}).step()


def random_leaf(shape: Any, dtype: str, seed: int = 0, offset: int = 0) -> Any:
    """Return a leaf with a gradient, both `offset` elements into their memory."""
    draw = np.random.default_rng(seed)
    values = [lucid.tensor(draw.normal(size=(offset + int(np.prod(shape)),)), dtype=dtype) for _ in range(2)]
    param, grad = (value[offset:].reshape(shape) for value in values)
    param = param.detach().requires_grad_()
    param.grad = grad.detach()
    return param


def use_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use chunks of two tiles of 16 elements, and search the table four columns at once."""
    small = tile_configs.Config({"BLOCK": 16, "TILES": 2, "BLOCK_T": 4})
    monkeypatch.setattr(tile_configs, "multi_tensor", lambda *_: small)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["dampening", "AdamW with options"])
def test_parameters_of_any_size_and_alignment_are_found_by_their_programs(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_chunks(monkeypatch)
    sizes = [(1,), (0,), (31,), (32,), (3, 11), (5, 13), (64,), (65,), (2,), (0, 3), (16,)]
    ours = [random_leaf(size, dtype, i, offset=i % 3) for i, size in enumerate(sizes)]
    theirs = [torch.tensor(values_of(param), requires_grad=True) for param in ours]
    optimizer, reference = OPTIMIZERS[name](lucid.optim, ours), OPTIMIZERS[name](torch.optim, theirs)
    for param, other in zip(ours, theirs, strict=True):
        other.grad = torch.tensor(values_of(param.grad))
    for _ in range(2):
        optimizer.step()
        reference.step()
    rtol = 1e-6 if dtype == "float32" else 2 * torch.finfo(torch.bfloat16).eps
    for param, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(values_of(param), other.detach().numpy(), rtol=rtol, atol=rtol)
        if param.numel():
            assert optimizer.state[param]["step"].item() == 2


def test_a_step_is_one_launch_for_each_group_and_dtype() -> None:
    for make in OPTIMIZERS.values():
        first = [random_leaf((3, 2), "float32", i) for i in range(7)]
        second = [random_leaf((4,), "float32"), random_leaf((2,), "bfloat16"), random_leaf((1,), "float32")]
        optimizer = make(lucid.optim, [{"params": first}, {"params": second}, {"params": [leaf([1.0])]}])
        for _ in range(2):
            with trace.launches() as launched:
                optimizer.step()
            assert len(launched) == 3


def test_addresses_are_copied_to_the_device_only_when_they_change() -> None:
    x = random_leaf((3,), "float32")
    optimizer = Adam([x])
    optimizer.step()
    before = multi_tensor._table.cache_info()
    optimizer.step()
    after = multi_tensor._table.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)
    x.grad = lucid.ones(3)
    optimizer.step()
    assert multi_tensor._table.cache_info().misses == before.misses + 1


@pytest.mark.parametrize("layout", ["transposed", "a slice", "a gradient of other strides"])
def test_tensors_without_one_dense_layout_take_the_same_step(layout: str) -> None:
    values, gradient = np.random.default_rng(0).normal(size=(2, 5, 7))
    whole = lucid.zeros(9, 8)
    strided: Any = {
        "transposed": lucid.tensor(values.T.copy(), dtype="float32").T.detach(),
        "a slice": whole[2:7, 1:],
        "a gradient of other strides": lucid.tensor(values, dtype="float32"),
    }[layout].detach()
    strided[:] = lucid.tensor(values, dtype="float32")
    for make in OPTIMIZERS.values():
        dense, param = leaf(values, "float32"), strided.detach()
        param[:] = dense.detach()
        param.requires_grad_()
        optimizer = make(lucid.optim, [dense, param])
        for _ in range(2):
            dense.grad, param.grad = lucid.tensor(gradient, dtype="float32"), lucid.tensor(gradient.T, "float32").T
            optimizer.step()
        assert param.tolist() == dense.tolist()
        assert param.stride() == strided.stride()
    assert whole[:2].tolist() == [[0.0] * 8] * 2


def test_gradients_of_layers_lie_in_memory_as_parameters_do_so_that_a_step_copies_nothing() -> None:
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 8), nn.Linear(8, 5))
    model(lucid.tensor([1, 2, 10])).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.stride() == parameter.stride()
    a, b = leaf(np.ones((2, 3))), leaf(np.ones((3, 4)))
    (a @ b).sum().backward()
    assert (a.grad.stride(), b.grad.stride()) == (a.stride(), b.stride())


@pytest.mark.parametrize("name", ["dampening", "Adam of beta 0"])
def test_a_step_with_found_inf_changes_nothing_and_does_not_count(name: str) -> None:
    x, twin = random_leaf((3, 5), "float32"), random_leaf((3, 5), "float32")
    optimizer, other = OPTIMIZERS[name](lucid.optim, [x]), OPTIMIZERS[name](lucid.optim, [twin])
    for flag in (1.0, 0.0, 1.0, 0.0):
        before, optimizer.found_inf = x.tolist(), lucid.tensor(flag)
        optimizer.step()
        if flag:
            assert x.tolist() == before
        else:
            other.step()
            assert x.tolist() == twin.tolist()
    assert optimizer.state[x]["step"].item() == 2
    assert [value.tolist() for value in optimizer.state[x].values()] == [
        value.tolist() for value in other.state[twin].values()
    ]


@pytest.mark.skipif(DEVICE.type == "cpu", reason="is about CUDA graphs")
def test_a_step_in_a_cuda_graph_is_an_error() -> None:
    optimizer = Adam([random_leaf((3,), "float32")])
    optimizer.step()
    error = pytest.raises(RuntimeError, match=r"^launches over lists of tensors cannot be captured in a CUDA graph")
    with error, torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


def test_launchers_take_a_tensor_in_place_of_a_list_and_the_number_of_the_step() -> None:
    x, grad, m, v = (torch.full((2,), value).to(DEVICE) for value in (1.0, 0.5, 0.0, 0.0))
    twin = leaf([1.0, 1.0])
    twin.grad = lucid.tensor([0.5, 0.5])
    optimizer = Adam([twin], lr=0.25)
    for step in (1, 2):
        triton_kernels.adam_step(x, grad, m, v, step=step, lr=0.25, betas=(0.9, 0.999), eps=1e-8)
        optimizer.step()
    assert x.tolist() == twin.tolist()
    triton_kernels.sgd_step(x, grad, m, lr=0.5, momentum=0.0)
    assert m.tolist() == [0.5, 0.5]


def test_a_closure_computes_the_loss_before_the_step() -> None:
    x = leaf([3.0])
    optimizer = SGD([x], lr=0.5)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (x * x).sum()
        loss.backward()
        return loss

    with lucid.no_grad():
        assert optimizer.step(closure).item() == 9.0
    assert x.tolist() == [0.0]
    assert optimizer.step() is None
