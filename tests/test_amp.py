"""Mixed precision: which operands are cast, and a scale that stays on the device."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.nn.functional as F
from lucid import nn
from lucid.amp import GradScaler, autocast
from lucid.optim import SGD, Adam, AdamW
from tests.test_no_torch_arithmetic import NoArithmetic
from tests.test_optim import Sign
from tests.values import leaf, torch_of, values_of
from triton_kernels.devtools import trace

HERE = lucid.get_default_device().torch.type


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_operands_of_products_are_cast_and_their_gradients_return_to_their_dtypes(dtype: str) -> None:
    draw = np.random.default_rng(0)
    x, w, b = (leaf(draw.normal(size=shape), "float32") for shape in ((5, 3), (4, 3), (4,)))
    dy = lucid.tensor(draw.normal(size=(5, 4)), dtype=dtype)
    with autocast(HERE, dtype=dtype):
        y = F.linear(x, w, b)
        z = x @ w.T
    assert {y.dtype.name, z.dtype.name} == {dtype}
    y.backward(dy)
    short = getattr(torch, dtype)
    twins = [torch_of(value).to(short).double().requires_grad_() for value in (x, w, b)]
    expected = torch.nn.functional.linear(*twins)
    expected.backward(torch_of(dy).double())
    ulp = torch.finfo(short).eps
    np.testing.assert_allclose(values_of(y), expected.detach().numpy(), rtol=2 * ulp, atol=2 * ulp)
    for value, twin in zip((x, w, b), twins, strict=True):
        assert value.grad.dtype is lucid.float32
        np.testing.assert_allclose(values_of(value.grad), twin.grad.numpy(), rtol=4 * ulp, atol=8 * ulp)


def test_the_default_dtype_is_that_of_torch_for_the_device() -> None:
    x = lucid.ones(2, 2)
    with autocast():
        assert (x @ x).dtype is (lucid.float16 if HERE == "cuda" else lucid.bfloat16)
    assert (x @ x).dtype is lucid.float32


def test_operands_of_several_short_dtypes_meet_in_one_product() -> None:
    x, w = lucid.ones(2, 3, dtype="float16"), lucid.ones(4, 3)
    with autocast(HERE, dtype="bfloat16"):
        assert F.linear(x, w).dtype is lucid.bfloat16
    with pytest.raises(RuntimeError, match=r"^x and weight of linear must have one dtype"):
        F.linear(x, w)


def test_float64_and_operands_of_other_devices_and_operations_are_not_cast() -> None:
    x, wide = lucid.ones(2, 2), lucid.ones(2, 2, dtype="float64")
    with autocast(HERE, dtype="bfloat16"):
        assert (wide @ wide).dtype is lucid.float64
        assert {(x * x).dtype, x.softmax().dtype, x.sum().dtype} == {lucid.float32}
        with pytest.raises(TypeError, match=r"^a of matmul must have a floating dtype, got lucid.int64$"):
            lucid.ones(2, 2, dtype="int64") @ x
    with autocast("cpu" if HERE == "cuda" else "cuda", dtype="float16", enabled=HERE == "cuda"):
        assert (x @ x).dtype is lucid.float32


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_losses_of_half_precision_are_float32_so_that_the_scale_does_not_overflow_them(reduction: Any) -> None:
    draw = np.random.default_rng(0)
    x, y = (lucid.tensor(draw.normal(size=(4, 5)), dtype="float16", requires_grad=True) for _ in range(2))
    labels, q = lucid.tensor([1, 2, 3, 0]), F.softmax(y.detach())
    losses: dict[str, Any] = {
        "cross_entropy": lambda: F.cross_entropy(x, labels, reduction=reduction),
        "cross_entropy of probabilities": lambda: F.cross_entropy(x, q, reduction=reduction),
        "kl_div": lambda: F.kl_div(F.log_softmax(x), F.softmax(y), reduction=reduction),
        "kl_div of values": lambda: F.kl_div(x * 1.5, q * 1.0, reduction=reduction),
        "mse_loss": lambda: F.mse_loss(x, y, reduction=reduction),
        "distillation_loss": lambda: F.distillation_loss(x, y, reduction=reduction),
    }
    for name, loss in losses.items():
        x.grad = y.grad = None
        outside = loss()
        assert outside.dtype is (lucid.float32 if "distillation" in name else lucid.float16)
        outside.sum().backward()
        gradient = values_of(x.grad)
        x.grad = y.grad = None
        with autocast(HERE, dtype="float16"):
            inside = loss()
        assert inside.dtype is lucid.float32, name
        np.testing.assert_allclose(values_of(inside), values_of(outside), rtol=3e-3)
        scaled = inside.sum() * 2.0**10
        scaled.backward()
        assert x.grad is not None
        assert x.grad.dtype is lucid.float16
        np.testing.assert_allclose(values_of(x.grad) / 2**10, gradient, rtol=2e-3, atol=1e-6)


def test_contexts_nest_and_are_decorators() -> None:
    x = lucid.ones(2, 2)

    @autocast(HERE, dtype="float16")
    def product() -> Any:
        return x @ x

    with autocast(HERE, dtype="bfloat16"):
        with autocast(HERE, enabled=False):
            assert (x @ x).dtype is lucid.float32
        assert product().dtype is lucid.float16
        assert (x @ x).dtype is lucid.bfloat16
        with pytest.raises(RuntimeError, match="stop"), autocast(HERE, dtype="float16"):
            raise RuntimeError("stop")
        assert (x @ x).dtype is lucid.bfloat16


def test_other_threads_are_not_cast() -> None:
    x, seen = lucid.ones(2, 2), []
    with autocast(HERE, dtype="bfloat16"):
        thread = threading.Thread(target=lambda: seen.append((x @ x).dtype))
        thread.start()
        thread.join()
    assert seen == [lucid.float32]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_autocast_of_a_missing_gpu_says_that_it_casts_nothing() -> None:
    with pytest.warns(UserWarning, match=r"^autocast\('cuda'\) casts nothing, as no GPU is available$"):
        autocast("cuda")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: autocast("tpu"), ValueError, r"device_type must be one of \('cpu', 'cuda'\), got 'tpu'"),
        (lambda: autocast(HERE, "float32"), ValueError, "dtype must be float16 or bfloat16, got lucid.float32"),
        (lambda: autocast(HERE, "short float"), TypeError, "dtype must be one of .*, got 'short float'"),
        (lambda: autocast(HERE, enabled=1), TypeError, "enabled must be a bool, got int"),
        (lambda: GradScaler(0.0), ValueError, "init_scale must be a number above 0, got 0.0"),
        (lambda: GradScaler("cuda"), TypeError, "init_scale must be a number above 0, got str"),
        (lambda: GradScaler(growth_factor=1), ValueError, "growth_factor must be a number above 1, got 1"),
        (lambda: GradScaler(backoff_factor=1), ValueError, "backoff_factor must be a number above 0 .*, got 1"),
        (lambda: GradScaler(growth_interval=0), ValueError, "growth_interval must be at least 1, got 0"),
        (lambda: GradScaler(growth_interval=2.5), TypeError, "growth_interval must be an int, got float"),
        (lambda: GradScaler().scale(2.0), TypeError, "outputs must be a lucid.Tensor or an iterable .*, got float"),
    ],
)
def test_an_impossible_argument_is_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make()


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda optim, params: optim.SGD(params, lr=0.1, momentum=0.9),
    "dampening": lambda optim, params: optim.SGD(params, lr=0.1, momentum=0.9, dampening=0.5),
    "AdamW": lambda optim, params: optim.AdamW(params, lr=0.1),
}
FACTORS = (math.inf, 2.0, -3.0, math.nan, 0.5, 1.0, math.inf, 1e-3, 4.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_training_is_torchs_with_steps_skipped_and_the_scale_changed_as_there(name: str) -> None:
    values = np.random.default_rng(0).normal(size=(2, 7))
    x, y = leaf(values, "float32"), torch.tensor(values, dtype=torch.float64, requires_grad=True)
    options = {"init_scale": 1024.0, "growth_factor": 3.0, "backoff_factor": 0.25, "growth_interval": 2}
    ours, theirs = GradScaler(**options), torch.amp.GradScaler("cpu", **options)
    optimizer, other = OPTIMIZERS[name](lucid.optim, [x]), OPTIMIZERS[name](torch.optim, [y])
    for factor in FACTORS:
        optimizer.zero_grad()
        other.zero_grad()
        ours.scale((x * x * factor).sum()).backward()
        theirs.scale((y * y * factor).sum()).backward()
        for scaler, stepped in ((ours, optimizer), (theirs, other)):
            scaler.step(stepped)
            scaler.update()
        assert ours.get_scale() == theirs.get_scale()
        assert ours.state_dict() == theirs.state_dict()
        np.testing.assert_allclose(values_of(x), y.detach().numpy(), rtol=1e-5)


def test_gradients_unscaled_before_are_clipped_and_stepped_as_torch_does() -> None:
    x, y = leaf([3.0, 4.0]), torch.tensor([3.0, 4.0], requires_grad=True)
    for param, scaler, optimizer, clip in (
        (x, GradScaler(), SGD([x], lr=1.0), nn.utils.clip_grad_norm_),
        (y, torch.amp.GradScaler("cpu"), torch.optim.SGD([y], lr=1.0), torch.nn.utils.clip_grad_norm_),
    ):
        scaler.scale((param * param).sum()).backward()
        scaler.unscale_(optimizer)
        assert clip([param], 1.0).item() == 10.0
        scaler.step(optimizer)
        scaler.update()
    np.testing.assert_allclose(values_of(x), y.detach().numpy(), rtol=1e-6)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("bad", [None, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("at", [0, 2047, 17000])
def test_one_bad_element_anywhere_is_found(at: int, bad: float | None, dtype: str) -> None:
    x, y = lucid.zeros(17001, dtype=dtype, requires_grad=True), leaf([1.0], dtype)
    x.grad, y.grad = lucid.full((17001,), 6.0, dtype=dtype), lucid.full((1,), 4.0, dtype=dtype)
    if bad is not None:
        x.grad[at] = bad
    optimizer, scaler = SGD([x, y], lr=1.0), GradScaler(2.0)
    scaler.scale(lucid.ones(1))
    with trace.launches() as launched:
        scaler.unscale_(optimizer)
    assert len(launched) == 1
    assert y.grad.item() == 2.0
    assert x.grad[1].item() == 3.0
    scaler.step(optimizer)
    assert y.item() == (-1.0 if bad is None else 1.0)


def test_an_overflow_for_one_optimizer_does_not_skip_the_step_of_another() -> None:
    x, y = leaf([1.0]), leaf([1.0])
    first, second, scaler = SGD([x], lr=1.0), SGD([y], lr=1.0), GradScaler(8.0)
    scaler.scale((x * math.inf + y * 0.5).sum()).backward()
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert (x.item(), y.item()) == (1.0, 0.5)
    assert scaler.get_scale() == 4.0
    x.grad = lucid.tensor([1.0])
    first.step()
    assert x.item() == 0.0


def test_another_optimizer_is_not_called_where_a_gradient_is_not_finite() -> None:
    x = leaf([1.0])
    optimizer, scaler = Sign([x], lr=0.5), GradScaler(8.0)
    for factor in (math.nan, 3.0):
        optimizer.zero_grad()
        scaler.scale((x * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert x.item() == 0.5
    assert optimizer.state[x]["steps"] == 1


def test_several_outputs_are_scaled() -> None:
    scaler, x = GradScaler(4.0), lucid.ones(2)
    for outputs in ((x, (x,)), [x, [x]], iter([x, [x]])):
        first, (second,) = scaler.scale(outputs)
        assert first.tolist() == second.tolist() == [4.0, 4.0]


def test_the_scale_does_not_grow_to_infinity() -> None:
    x = leaf([1.0])
    optimizer, scaler = SGD([x], lr=1.0), GradScaler(2.0**127, growth_interval=1)
    scaler.scale(lucid.ones(1))
    x.grad = lucid.ones(1)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**127


def test_a_scale_may_be_given() -> None:
    scaler = GradScaler()
    scaler.scale(lucid.ones(1))
    scaler.update(8.0)
    assert scaler.get_scale() == 8.0
    scaler.update(lucid.tensor([4.0]))
    assert scaler.get_scale() == 4.0
    with pytest.raises(ValueError, match=r"^new_scale must have one element .*, got shape \(2,\)"):
        scaler.update(lucid.ones(2))


def test_a_scaler_that_is_switched_off_does_nothing() -> None:
    x = leaf([1.0])
    optimizer, scaler = SGD([x], lr=0.5), GradScaler(enabled=False)
    loss = (x * 1).sum()
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert (x.item(), scaler.get_scale(), scaler.state_dict(), scaler.is_enabled()) == (0.5, 1.0, {}, False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), None])
def test_a_scaler_is_saved_and_loaded_with_its_count_of_steps(copied: Any) -> None:
    x = leaf([1.0])
    optimizer, scaler = SGD([x], lr=0.5), GradScaler(8.0, growth_interval=2)
    for _ in range(3):
        scaler.scale((x * 2).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.state_dict() == {
        "scale": 16.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2,
        "_growth_tracker": 1,
    }
    twin = copied(scaler) if copied else GradScaler()
    twin.load_state_dict(scaler.state_dict())
    twin.scale((x * 2).sum()).backward()
    twin.step(optimizer)
    twin.update()
    assert (twin.get_scale(), scaler.get_scale()) == (32.0, 16.0)
    with pytest.raises(KeyError, match="lacks scale, growth_factor"):
        twin.load_state_dict({})


def test_calls_out_of_order_are_errors() -> None:
    x = leaf([1.0])
    optimizer, scaler = SGD([x], lr=0.5), GradScaler()
    for call, name in ((lambda: scaler.step(optimizer), r"unscale_\(\)"), (scaler.update, r"update\(\)")):
        with pytest.raises(RuntimeError, match=rf"^{name} must follow scale\(loss\), which was never called$"):
            call()
    scaler.scale(lucid.ones(1))
    with pytest.raises(RuntimeError, match=r"^update\(\) must follow step\(\) or unscale_\(\)"):
        scaler.update()
    with pytest.raises(RuntimeError, match=r"^unscale_\(\) must find a gradient"):
        scaler.step(optimizer)
    x.grad = lucid.ones(1)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"^unscale_\(\) must be called once .*, but unscale_\(\) was called since"):
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"^step\(\) takes no closure"):
        scaler.step(optimizer, closure=lambda: None)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"^unscale_\(\) must be called once .*, but step\(\) was called since"):
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"^step\(\) must be called once"):
        scaler.step(optimizer)


def test_float16_gradients_are_refused_as_torch_does() -> None:
    x = leaf([1.0], "float16")
    x.grad = lucid.ones(1, dtype="float16")
    scaler = GradScaler()
    scaler.scale(lucid.ones(1))
    with pytest.raises(ValueError, match=r"^gradients must not be float16"):
        scaler.step(SGD([x], lr=1.0))


def steps_in_mixed_precision(model: Any, optimizer: Any, scaler: GradScaler, steps: int) -> list[Any]:
    x, labels = lucid.tensor(np.random.default_rng(0).normal(size=(6, 4)), "float32"), lucid.tensor([0, 1, 2, 0, 1, 2])
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with autocast(HERE, dtype="float16"):
            loss = F.cross_entropy(model(x), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss)
    return losses


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW])
def test_a_training_step_in_mixed_precision_does_no_arithmetic_in_torch_and_reads_nothing_back(optimizer: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with NoArithmetic() as guard:
        losses = steps_in_mixed_precision(model, optimizer(model.parameters(), lr=0.1), GradScaler(), 3)
    assert "_local_scalar_dense" not in guard.seen
    assert losses[-1].item() < losses[0].item()
    assert {param.grad.dtype for param in model.parameters()} == {lucid.float32}


def test_optimizer_clipping_and_scaler_take_six_launches_for_any_number_of_parameters() -> None:
    for layers in (1, 4):
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
        optimizer, scaler = AdamW(model.parameters()), GradScaler()
        scaler.scale(model(lucid.ones(2, 4)).sum()).backward()
        with trace.launches() as launched:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        assert [made.kernel.__name__ for made in launched] == [
            *("_multiply_kernel", "_norm_kernel", "_merge_kernel", "_multiply_kernel"),
            *("_adam_kernel", "_update_scale_kernel"),
        ]
