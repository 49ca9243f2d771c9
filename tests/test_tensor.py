"""Tensors: made from what, of which types, where, and shown how."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid import nn
from lucid.dtype import dtype as DType
from tests.values import DTYPES

OF_NUMPY = [name for name in DTYPES if name != "bfloat16"]


def named(name: str) -> DType:
    return getattr(lucid, name)


# Made from what


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, lucid.float32),
        (3, lucid.int64),
        (True, lucid.bool_),
        ([1, 2], lucid.int64),
        ([1, 2.5], lucid.float32),
        ([True, False], lucid.bool_),
        ([], lucid.float32),
        ([[], []], lucid.float32),
        (range(3), lucid.int64),
        (((1.0, 2.0), (3.0, 4.0)), lucid.float32),
        ([np.float64(1), np.float64(2)], lucid.float32),
    ],
)
def test_python_numbers_become_float32_int64_or_bool(data: Any, dtype: DType) -> None:
    made = lucid.tensor(data)
    assert made.dtype is dtype
    np.testing.assert_array_equal(made.numpy(), np.asarray(data))
    assert made.device == lucid.get_default_device()
    assert not made.requires_grad


@pytest.mark.parametrize("name", OF_NUMPY)
def test_a_numpy_array_keeps_its_dtype_and_is_copied(name: str) -> None:
    array = np.array([[1, 0, 1], [0, 1, 0]]).astype(name.rstrip("_"))
    made = lucid.tensor(array)
    assert made.dtype is named(name)
    array[0, 0] = 0
    assert made.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_a_numpy_scalar_keeps_its_dtype() -> None:
    assert lucid.tensor(np.float64(0.5)).dtype is lucid.float64
    assert lucid.tensor(np.int8(2)).dtype is lucid.int8


@pytest.mark.parametrize("code", [">f4", ">i8", ">f8", "<f4"])
def test_arrays_of_either_byte_order_are_read(code: str) -> None:
    array = np.array([1, -2, 3], code)
    assert lucid.tensor(array).tolist() == [1, -2, 3]
    assert lucid.tensor(array, dtype="float64").tolist() == [1, -2, 3]


def test_arrays_of_any_strides_are_read() -> None:
    array = np.arange(12.0).reshape(3, 4)
    for view in (array[::-1, ::2], array.T, np.broadcast_to(array[:, :1], (3, 5))):
        np.testing.assert_array_equal(lucid.tensor(view).numpy(), view)
        assert lucid.tensor(view).is_contiguous()


def test_a_dtype_asked_for_is_given() -> None:
    for name in DTYPES:
        assert lucid.tensor([0, 1], dtype=name).dtype is lucid.tensor([0, 1], dtype=named(name)).dtype is named(name)
    assert lucid.tensor(np.float32([1.5]), dtype="int64").tolist() == [1]
    assert lucid.tensor(0.1, dtype="float64").item() == 0.1, "not by way of float32"


def test_a_tensor_of_a_tensor_is_a_copy_outside_the_graph() -> None:
    x = lucid.tensor([1.0, 2.0], dtype="float64", requires_grad=True)
    y = x * 1
    for made, dtype in ((lucid.tensor(y), lucid.float64), (lucid.tensor(y, dtype="float32"), lucid.float32)):
        assert made.dtype is dtype
        assert made.is_leaf
        assert not made.requires_grad
        assert made.data_ptr() != y.data_ptr()
        assert made.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("data", [None, "1", ["a"], 1j, {"a": 1}, object(), 2**70])
def test_what_holds_no_numbers_is_refused(data: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^data must be numbers, nested lists of numbers, a NumPy array or a lucid.Tensor"
    ):
        lucid.tensor(data)


def test_what_cannot_become_a_tensor_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"^data must be nested lists of equal lengths, got unequal ones$"):
        lucid.tensor([[1.0], [1.0, 2.0]])
    with pytest.raises(TypeError, match=r"^data must not be a torch.Tensor: use lucid.from_torch"):
        lucid.tensor(torch.ones(1))
    with pytest.raises(TypeError, match=r"^data's dtype must be one of .* got dtype\('uint16'\)$"):
        lucid.tensor(np.ones(1, np.uint16))
    with pytest.raises(TypeError, match=r"^dtype must be one of .* got 'float31'$"):
        lucid.tensor(1.0, dtype="float31")
    with pytest.raises(
        RuntimeError, match=r"^only tensors of a floating dtype can require gradients, got lucid.int64$"
    ):
        lucid.tensor(1, requires_grad=True)


@pytest.mark.parametrize("value", [300, -129, 1e10, float("nan"), float("inf"), 2**63, 2**64])
def test_a_number_that_an_integer_dtype_does_not_have_is_an_error(value: float) -> None:
    x = lucid.zeros(2, dtype="int8")
    for make in (lambda: lucid.tensor([value], dtype="int8"), lambda: x.__setitem__(0, value)):
        with pytest.raises((ValueError, TypeError), match="data must be "):
            make()
    assert x.tolist() == [0, 0]
    assert lucid.tensor([-128, 127, 2.9], dtype="int8").tolist() == [-128, 127, 2]


# Factories


def test_factories_fill_shapes_given_either_way() -> None:
    for shape in ((), (2,), (2, 0), (2, 3)):
        for factory, value in ((lucid.zeros, 0), (lucid.ones, 1)):
            for made in (factory(*shape), factory(shape), factory(list(shape))):
                np.testing.assert_array_equal(made.numpy(), np.full(shape, value, np.float32), strict=True)
        assert lucid.empty(*shape).shape == lucid.rand(*shape).shape == lucid.randn(shape).shape == shape


def test_full_takes_its_dtype_from_the_value() -> None:
    for value, dtype in ((2, lucid.int64), (2.0, lucid.float32), (True, lucid.bool_)):
        assert lucid.full((2,), value).dtype is dtype
    assert lucid.full((2,), 2, dtype="half").dtype is lucid.float16
    assert lucid.full(2, 0.1, dtype="float64").tolist() == [0.1, 0.1]


def test_factories_like_a_tensor_take_everything_from_it() -> None:
    model = lucid.ones(2, 3, dtype="float64", device="cpu", requires_grad=True)
    made = [lucid.zeros_like(model), lucid.ones_like(model), lucid.full_like(model, 7), lucid.empty_like(model)]
    assert [tensor.numpy().ravel()[0] for tensor in made[:3]] == [0, 1, 7]
    for tensor in made:
        assert (tensor.shape, tensor.dtype, tensor.device) == (model.shape, model.dtype, model.device)
        assert not tensor.requires_grad


@pytest.mark.parametrize("args", [(3,), (1, 4), (1, 8, 3), (5, 1, -2), (0.5,), (0, 1, 0.25), (3, 3)])
def test_arange_counts_as_torchs(args: tuple[float, ...]) -> None:
    made, expected = lucid.arange(*args), torch.arange(*args)
    assert made.dtype is DType.of(expected.dtype)
    assert made.tolist() == expected.tolist()
    assert lucid.arange(*args, dtype="float64").dtype is lucid.float64


def test_random_numbers_repeat_after_the_same_seed() -> None:
    draws = []
    for seed in (5, np.int64(5), 6):
        lucid.manual_seed(seed)
        draws.append((lucid.rand(4).tolist(), lucid.randn(4).tolist()))
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_rand_is_even_below_one_and_randn_standard_normal(name: str) -> None:
    even, normal = (draw(40_000, dtype=name).double().numpy() for draw in (lucid.rand, lucid.randn))
    assert even.min() >= 0
    assert even.max() < 1, "1 itself is what a number close to it would be rounded to"
    moments = [even.mean(), even.var(), normal.mean(), normal.var(), (normal**4).mean()]
    np.testing.assert_allclose(moments, [0.5, 1 / 12, 0, 1, 3], atol=0.1, rtol=0.05)
    assert len(np.unique(even)) > 200


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lucid.zeros(-1), ValueError, r"shape must be non-negative integers, got \(-1,\)"),
        (lambda: lucid.ones(1.5), ValueError, r"shape must be non-negative integers, got \(1.5,\)"),
        (lambda: lucid.empty(True), ValueError, r"shape must be non-negative integers, got \(True,\)"),
        (lambda: lucid.full((2,), "a"), TypeError, "value must be a number, got str"),
        (lambda: lucid.arange("a"), TypeError, "end must be a number, got str"),
        (lambda: lucid.arange(0, 1, 0), ValueError, "step must not be 0"),
        (lambda: lucid.arange(math.inf), ValueError, "end must be finite, got inf"),
        (lambda: lucid.arange(math.nan, 1), ValueError, "start must be finite, got nan"),
        (lambda: lucid.zeros_like([1.0]), TypeError, "other must be a lucid.Tensor, got list"),
        (lambda: lucid.full_like(torch.ones(1), 2), TypeError, "other must be a lucid.Tensor, got torch.Tensor"),
        (lambda: lucid.rand(2, dtype="int64"), TypeError, "dtype must be a floating dtype, got lucid.int64"),
        (lambda: lucid.randn(2, dtype="bool"), TypeError, "dtype must be a floating dtype, got lucid.bool_"),
        (lambda: lucid.zeros(2, device="tpu"), ValueError, "device must be 'cpu', 'cuda' or 'cuda:<index>', got 'tpu'"),
        (lambda: lucid.manual_seed(-1), ValueError, "seed must be a non-negative integer of at most 63 bits, got -1"),
        (lambda: lucid.from_torch(np.ones(1)), TypeError, "source must be a torch.Tensor, got numpy.ndarray"),
        (
            lambda: lucid.from_torch(torch.ones(1, dtype=torch.uint16)),
            TypeError,
            "source's dtype must be one of .*uint16",
        ),
        (lambda: lucid.from_torch(torch.eye(2).to_sparse()), TypeError, "source must be dense, got layout .*"),
        (
            lambda: lucid.from_torch(torch.ones(1, device="meta")),
            ValueError,
            "device must be .* got device.type='meta'.",
        ),
        (lambda: lucid.from_numpy([1.0]), TypeError, "source must be a NumPy array, got list"),
        (
            lambda: lucid.from_numpy(torch.ones(1)),
            TypeError,
            "source must be a NumPy array, got torch.Tensor: use lucid.from_torch",
        ),
        (lambda: lucid.from_dlpack(3), TypeError, "source must have __dlpack__, got int"),
    ],
)
def test_a_factory_says_what_it_cannot_make(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        call()


# Types


def test_dtypes_are_singletons_with_aliases_and_names() -> None:
    assert lucid.half is lucid.float16
    assert (lucid.float, lucid.double) == (lucid.float32, lucid.float64)
    assert (lucid.short, lucid.int, lucid.long) == (lucid.int16, lucid.int32, lucid.int64)
    for name in DTYPES:
        dtype = named(name)
        assert repr(dtype) == f"lucid.{name}"
        assert DType.of(name) is DType.of(dtype) is DType.of(dtype.torch) is dtype
        assert dtype.itemsize == dtype.torch.itemsize
        assert dtype.is_floating_point == dtype.torch.is_floating_point
        assert pickle.loads(pickle.dumps(dtype)) is copy.deepcopy(dtype) is dtype
    for name in OF_NUMPY:
        assert DType.of(np.dtype(name.rstrip("_"))) is DType.of(np.dtype(name.rstrip("_")).type) is named(name)
    for alias in ("half", "float", "double", "short", "int", "long", "bool"):
        assert DType.of(alias).torch is getattr(torch, alias)


@pytest.mark.parametrize("value", ["complex64", torch.uint16, np.uint16, float, None, 32])
def test_there_are_no_other_dtypes(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^dtype must be one of lucid.float16, .*, lucid.bool_, or its name, got "):
        DType.of(value)


# Devices


def test_devices_equal_their_names() -> None:
    assert lucid.device("cpu") == "cpu"
    assert lucid.device("cuda") == "cuda:0" != "cuda:1"
    assert lucid.device("cuda:1") == lucid.device(torch.device("cuda", 1)) == lucid.device(lucid.device("cuda:1"))
    assert lucid.device("cpu") != "cuda"
    assert lucid.device("cpu") != "no such device"
    assert lucid.device("cpu") != 0
    assert {lucid.device("cuda"): 1}[lucid.device("cuda:0")] == 1
    assert str(lucid.device("cuda:1")) == "cuda:1"
    assert repr(lucid.device("cuda:1")) == "device(type='cuda', index=1)"
    assert pickle.loads(pickle.dumps(lucid.device("cuda:1"))) == "cuda:1"
    assert lucid.zeros(1, device="cpu").device == "cpu"


@pytest.mark.parametrize("spec", ["tpu", "cuda:", "cuda:x", "cuda:-1", "", torch.device("meta"), 0, None])
def test_there_are_no_other_devices(spec: Any) -> None:
    with pytest.raises(ValueError, match=r"^device must be 'cpu', 'cuda' or 'cuda:<index>', got "):
        lucid.device(spec)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_missed_with_one_sentence() -> None:
    x = lucid.ones(1)
    for use in (
        lambda: lucid.ones(1, device="cuda"),
        lambda: lucid.tensor(1, device="cuda:1"),
        x.cuda,
        lambda: lucid.set_default_device("cuda"),
    ):
        with pytest.raises(RuntimeError, match=r"^device 'cuda(:1)?' needs a GPU, and there is none here$"):
            use()
    assert lucid.get_default_device() == "cpu"


def test_new_tensors_are_made_on_the_default_device() -> None:
    before = lucid.get_default_device()
    assert before == ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        lucid.set_default_device("cpu")
        assert lucid.tensor([1.0]).device == lucid.rand(1).device == nn.Linear(1, 1).weight.device == "cpu"
        with pytest.raises(ValueError, match=r"^device must be"):
            lucid.set_default_device("tpu")
        assert lucid.get_default_device() == "cpu"
    finally:
        lucid.set_default_device(before)


# Shown how


@pytest.mark.parametrize(
    ("data", "options", "shown"),
    [
        ([1.0, 2.5], {"dtype": "float64", "requires_grad": True}, "[1., 2.5], dtype=lucid.float64, requires_grad=True"),
        ([1.0, 2.5], {}, "[1., 2.5]"),
        (3.0, {}, "3."),
        (2, {}, "2, dtype=lucid.int64"),
        (True, {}, "True, dtype=lucid.bool_"),
        ([], {}, "[]"),
        (np.zeros((0, 3), np.float32), {}, "[], shape=(0, 3)"),
        ([[1.0, 10.0], [100.0, -2.5]], {}, "[[  1. ,  10. ],\n        [100. ,  -2.5]]"),
        ([1.0, 1e-7, 70000.0], {"dtype": "bfloat16"}, "[1., 1.0012e-07, 70144.], dtype=lucid.bfloat16"),
        ([0.1, 65504.0, 1e-6], {"dtype": "float16"}, "[0.1, 65500., 1.e-06], dtype=lucid.float16"),
        ([math.nan, math.inf, -math.inf, -0.0], {}, "[nan, inf, -inf, -0.]"),
        ([1 / 3, 123456789.0, 12345.678], {}, "[0.3333, 1.2346e+08, 12345.678]"),
        ([-1, 10], {}, "[-1, 10], dtype=lucid.int64"),
    ],
)
def test_a_tensor_is_shown_with_what_is_not_default(data: Any, options: dict[str, Any], shown: str) -> None:
    assert repr(lucid.tensor(data, **options)) == str(lucid.tensor(data, **options)) == f"tensor({shown})"


def test_a_result_and_a_parameter_show_that_they_require_grad() -> None:
    weight = nn.Parameter(lucid.tensor([1.0]))
    assert repr(weight) == "Parameter containing:\ntensor([1.], requires_grad=True)"
    assert repr(weight * 2) == "tensor([2.], requires_grad=True)"


def test_the_device_is_shown_unless_it_is_the_default(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = lucid.tensor([1.0, 2.5], dtype="float64", requires_grad=True)
    monkeypatch.setattr("lucid.printing.get_default_device", lambda: lucid.device("cuda"))
    assert repr(x) == "tensor([1., 2.5], device='cpu', dtype=lucid.float64, requires_grad=True)"


def test_one_element_is_formatted_as_its_number() -> None:
    assert f"{lucid.tensor([2.0], requires_grad=True):.4f} {lucid.tensor(7):03d} {lucid.tensor(1.0)}" == (
        "2.0000 007 1.0"
    )
    with pytest.raises(RuntimeError, match=r"only one-element tensors .*, got shape \(2,\)"):
        f"{lucid.ones(2):.4f}"


def test_eval_returns_what_it_is_given() -> None:
    x = lucid.ones(2)
    assert x.eval() is x
    assert lucid.eval(x) is x
    assert lucid.eval(x, y := lucid.ones(1)) == (x, y)
    with pytest.raises(TypeError, match=r"^tensors must be lucid.Tensors, got int$"):
        lucid.eval(x, 3)


def test_a_large_tensor_is_shown_in_part() -> None:
    shown = repr(lucid.zeros(2000))
    assert shown == "tensor([0., 0., 0., ..., 0., 0., 0.])"


# The package


def test_the_package_tells_its_version_and_its_names() -> None:
    assert lucid.__version__[0].isdigit()
    assert {"tensor", "no_grad", "float32", "nn", "optim", "autograd", "device"} <= set(lucid.__all__)
    assert len(set(lucid.__all__)) == len(lucid.__all__)
