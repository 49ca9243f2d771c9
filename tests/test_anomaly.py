"""Anomaly mode names the operation that made the first NaN."""

from __future__ import annotations

import re
from typing import Any

import pytest

import lucid
import lucid.nn.functional as F
from lucid.autograd import detect_anomaly, is_anomaly_enabled, set_detect_anomaly


def test_the_operation_that_makes_the_first_nan_is_named() -> None:
    x = lucid.tensor([2.0, -1.0])
    with detect_anomaly():
        with pytest.raises(
            RuntimeError, match=r"^Log made the first NaN: output 0 of shape \(2,\) has NaN, its inputs"
        ):
            (x * 2).log().exp().sum()
        with pytest.raises(RuntimeError, match=r"^Softmax made the first NaN: output 0 of shape \(1, 2\)"):
            F.softmax(lucid.full((1, 2), -float("inf")))
    assert x.log().exp().sum().item() != 0  # no check outside


def test_nan_among_the_inputs_is_no_anomaly() -> None:
    x = lucid.tensor([float("nan"), 1.0], requires_grad=True)
    with detect_anomaly():
        (x * 2).log().sum().backward()
    assert x.grad.tolist()[1] == 1.0


def test_backward_names_the_operation_and_where_it_was_called() -> None:
    x: Any = lucid.tensor([1.0, 0.0], requires_grad=True)
    with set_detect_anomaly(True):
        y = (x * 0).sqrt().sum()
        with pytest.raises(RuntimeError) as error:
            y.backward()
    message = str(error.value)
    assert message.startswith("MulBackward made the first NaN: the gradient of input 0 of shape (2,) has NaN, what it ")
    assert re.search(
        r"The operation was called here:\n.*test_anomaly\.py.*\n    y = \(x \* 0\)\.sqrt\(\)", message, re.DOTALL
    )
    assert x.grad is None


def test_custom_functions_are_named_too() -> None:
    class Strange(lucid.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x + 0

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad * float("nan")

    x = lucid.ones(2, requires_grad=True)
    with detect_anomaly(), pytest.raises(RuntimeError, match="StrangeBackward made the first NaN"):
        Strange.apply(x).sum().backward()


def test_the_switch_is_a_function_a_context_and_a_decorator() -> None:
    set_detect_anomaly(True)
    assert is_anomaly_enabled()
    set_detect_anomaly(False)
    assert not is_anomaly_enabled()
    with detect_anomaly():
        with detect_anomaly(False):
            assert not is_anomaly_enabled()
        assert is_anomaly_enabled()
    assert detect_anomaly()(is_anomaly_enabled)()
    assert not is_anomaly_enabled()
    with pytest.raises(TypeError, match="mode must be a bool, got int"):
        set_detect_anomaly(1)
