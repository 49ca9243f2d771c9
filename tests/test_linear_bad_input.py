"""Bad input to losses from hidden states: one error that names the argument, before any product."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
import lucid.torch
from lucid.torch import products
from tests.device import DEVICE
from triton_kernels.devtools import trace
from triton_kernels.runtime import backend

x, w, b = torch.ones(4, 3), torch.ones(5, 3), torch.ones(5)
y, v, logits = torch.ones(4, 2), torch.ones(5, 2), torch.ones(4, 5)
labels = torch.tensor([0, 1, 2, 3])


class Output:
    """What a base model of transformers returns."""

    logits = last_hidden_state = x


#: Arguments of linear_distillation_loss, in place of good ones, and what the error says.
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"student_hidden": [1.0]}, TypeError, r"student_hidden must be a .*Tensor, got list"),
    ({"student_hidden": x.int()}, TypeError, "student_hidden must be float16, bfloat16, float32 or float64, got"),
    ({"student_hidden": torch.ones(())}, RuntimeError, r"student_hidden must have a dimension of features"),
    ({"student_weight": None}, TypeError, "student_weight must be"),
    ({"student_weight": torch.ones(5, 4)}, RuntimeError, r"student_weight must have shape \(V, 3\).*got \(5, 4\)"),
    ({"student_weight": torch.ones(5)}, RuntimeError, r"student_weight must have shape \(V, 3\).*got \(5,\)"),
    ({"student_weight": torch.ones(0, 3)}, RuntimeError, "student_weight must not be empty"),
    ({"student_bias": torch.ones(4)}, RuntimeError, r"student_bias must have shape \(5,\), got \(4,\)"),
    ({"student_bias": torch.ones(5).int()}, TypeError, "student_bias must be float16"),
    (
        {"teacher_hidden": torch.ones(3, 2)},
        RuntimeError,
        "student_hidden and teacher_hidden must have the same leading",
    ),
    ({"teacher_weight": torch.ones(5, 3)}, RuntimeError, r"teacher_weight must have shape \(V, 2\)"),
    ({"teacher_weight": torch.ones(6, 2)}, RuntimeError, "must have equally many rows unless vocab_size .* 5 and 6"),
    ({"teacher_bias": torch.ones(4)}, RuntimeError, r"teacher_bias must have shape \(5,\)"),
    ({"teacher_hidden": None, "teacher_weight": None}, TypeError, "teacher_hidden must be a Tensor unless teacher_log"),
    ({"teacher_weight": None}, TypeError, "teacher_weight must be a Tensor unless teacher_logits are given"),
    ({"teacher_logits": logits}, ValueError, "teacher_hidden must be None where teacher_logits are given"),
    (
        {"teacher_hidden": None, "teacher_weight": None, "teacher_logits": logits, "teacher_bias": b},
        ValueError,
        "teacher_bias must be None where teacher_logits are given",
    ),
    (
        {"teacher_hidden": None, "teacher_weight": None, "teacher_logits": torch.ones(4, 6)},
        RuntimeError,
        "student_weight and teacher_logits must have as many rows as columns unless vocab_size .* 5 and 6",
    ),
    (
        {"teacher_hidden": None, "teacher_weight": None, "teacher_logits": torch.ones(3, 5)},
        RuntimeError,
        "student_hidden and teacher_logits must have the same leading dimensions",
    ),
    ({"vocab_size": 6}, ValueError, "vocab_size must lie in 1 to 5, got 6; student_weight has 5 rows"),
    ({"vocab_size": 0}, ValueError, "vocab_size must be a positive int"),
    ({"chunk_rows": 0}, ValueError, "chunk_rows must be a positive int, got 0"),
    ({"chunk_rows": -3}, ValueError, "chunk_rows must be a positive int, got -3"),
    ({"chunk_rows": 2.5}, TypeError, "chunk_rows must be an int, got float"),
    ({"workspace_mib": 0}, ValueError, "workspace_mib must be a positive number up to 1e9, got 0"),
    ({"workspace_mib": 1e18}, ValueError, "workspace_mib must be a positive number up to 1e9, got 1e"),
    ({"student_softcap": 1e39}, ValueError, "student_softcap must be a number from 1e-15 to 1e15, or None, got 1e"),
    ({"teacher_logit_scale": 10**400}, ValueError, "teacher_logit_scale must be a number from 1e-15 to 1e15, got 10"),
    ({"student_hidden": Output()}, TypeError, "student_hidden must be .*: pass student_hidden.last_hidden_state"),
    ({"workspace_mib": "1"}, TypeError, "workspace_mib must be a positive number up to 1e9, got str"),
    ({"workspace_mib": 1, "chunk_rows": 2}, ValueError, "chunk_rows and workspace_mib both set the size of a chunk"),
    ({"student_softcap": 0.0}, ValueError, "student_softcap must be a number from 1e-15 to 1e15, or None, got 0.0"),
    ({"teacher_softcap": -1}, ValueError, "teacher_softcap must be a number from 1e-15 to 1e15, or None, got -1"),
    (
        {"student_softcap": math.nan},
        ValueError,
        "student_softcap must be a number from 1e-15 to 1e15, or None, got nan",
    ),
    ({"student_logit_scale": 0}, ValueError, "student_logit_scale must be a number from 1e-15 to 1e15, got 0"),
    ({"teacher_logit_scale": math.inf}, ValueError, "teacher_logit_scale must be a number from 1e-15 to 1e15, got inf"),
    ({"student_logit_scale": None}, TypeError, "student_logit_scale must be a number from 1e-15 to 1e15, got NoneType"),
    ({"divergence": "kl"}, ValueError, "divergence must be one of"),
    ({"beta": 0.5}, ValueError, "beta is of divergence 'js' alone"),
    ({"temperature": 0}, ValueError, "temperature must be"),
    ({"weight": torch.ones(3)}, RuntimeError, r"weight must have shape \(4,\)"),
    ({"labels": torch.ones(4)}, TypeError, "labels must be int32 or int64"),
    ({"hard_label_weight": 0.5}, ValueError, "labels must be given for a hard_label_weight of 0.5"),
    ({"ignore_index": 3}, ValueError, "labels must be given for an ignore_index of 3"),
    ({"normalizer": -1.0}, ValueError, "normalizer must be a positive number"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of"),
]


@pytest.fixture
def _no_work(monkeypatch: pytest.MonkeyPatch) -> Any:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a product of bad input")

    monkeypatch.setattr(products, "matmul", refused)
    with trace.launches() as made:
        yield
    assert not made


def _on(device: str, value: Any, in_lucid: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return lucid.from_torch(value.to(device)) if in_lucid else value.to(device)


@pytest.mark.usefixtures("_no_work")
@pytest.mark.parametrize("in_lucid", [True, False], ids=["lucid", "lucid.torch"])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[str(sorted(case[0])) for case in BAD])
def test_is_refused_by_name(arguments: dict[str, Any], error: Any, message: str, in_lucid: bool) -> None:
    good = {"student_hidden": x, "student_weight": w, "teacher_hidden": y, "teacher_weight": v}
    given = {name: _on(DEVICE, value, in_lucid) for name, value in (good | arguments).items()}
    with pytest.raises(error, match=message):
        (F if in_lucid else lucid.torch).linear_distillation_loss(**given)


@pytest.mark.parametrize("make", [nn.LinearDistillationLoss, lucid.torch.LinearDistillationLoss])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_rows": 0}, "chunk_rows must be a positive int"),
        ({"student_softcap": -1.0}, "student_softcap must be a number from 1e-15"),
        ({"workspace_mib": 1, "chunk_rows": 1}, "both set the size of a chunk"),
        ({"divergence": "kl"}, "divergence must be one of"),
    ],
    ids=str,
)
def test_is_refused_by_a_module_when_it_is_made(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.usefixtures("_no_work")
@pytest.mark.parametrize("in_lucid", [True, False], ids=["lucid", "lucid.torch"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": labels.float()}, TypeError, "target must be labels, int32 or int64, got"),
        ({"target": labels[:3]}, RuntimeError, r"target must have shape \(4,\), one label for each row of hidden"),
        ({"weight": torch.ones(5, 2)}, RuntimeError, r"weight must have shape \(V, 3\), that of a linear layer of hid"),
        ({"bias": torch.ones(3)}, RuntimeError, r"bias must have shape \(5,\), got \(3,\)"),
        ({"class_weight": torch.ones(3)}, RuntimeError, r"class_weight must have shape \(5,\), one for each class"),
        ({"softcap": -1}, ValueError, "softcap must be a number from 1e-15 to 1e15, or None, got -1"),
        ({"logit_scale": 0.0}, ValueError, "logit_scale must be a number from 1e-15 to 1e15, got 0.0"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows must be a positive int, got 0"),
        ({"reduction": "batchmean"}, ValueError, "reduction must be one of"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing must be a number from 0 to 1"),
    ],
    ids=str,
)
def test_is_refused_by_linear_cross_entropy(
    arguments: dict[str, Any], error: Any, message: str, in_lucid: bool
) -> None:
    given = {"hidden": x, "weight": w, "target": labels} | arguments
    with pytest.raises(error, match=message):
        (F if in_lucid else lucid.torch).linear_cross_entropy(
            **{name: _on(DEVICE, value, in_lucid) for name, value in given.items()}
        )


@pytest.mark.parametrize("in_lucid", [True, False], ids=["lucid", "lucid.torch"])
def test_a_label_that_is_no_column_is_an_error_that_names_it(in_lucid: bool) -> None:
    functions = F if in_lucid else lucid.torch
    good = {"student_hidden": x, "student_weight": w, "teacher_hidden": y, "teacher_weight": v}
    given = {name: _on(DEVICE, value, in_lucid) for name, value in good.items()}
    bad = _on(DEVICE, torch.tensor([0, 7, -100, 1]), in_lucid)
    with lucid.check_values():
        with pytest.raises(IndexError, match=r"labels must lie in 0 to 4, .* got 7"):
            functions.linear_distillation_loss(**given, labels=bad)
        with pytest.raises(IndexError, match=r"target must lie in 0 to 4, .* got 7"):
            functions.linear_cross_entropy(given["student_hidden"], given["student_weight"], bad)


@pytest.mark.skipif(backend.INTERPRETED, reason="takes a second device")
def test_another_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match="student_hidden and student_weight must be on one device"):
        lucid.torch.linear_distillation_loss(x.to(DEVICE), w, y.to(DEVICE), v.to(DEVICE))
