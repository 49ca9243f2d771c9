"""Bad input to distillation_loss: one clear error, before any launch where the values need not be known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import lucid
import lucid.nn.functional as F
import triton_kernels as tk
from lucid.ops import memory
from tests.device import DEVICE
from triton_kernels.devtools import trace

pytestmark = pytest.mark.usefixtures("launchers")

INF = math.inf
NAN = math.nan


class TestLabelsOutOfRange:
    @pytest.mark.usefixtures("tiles")
    @pytest.mark.parametrize("hard", [0.0, 0.5])
    @pytest.mark.parametrize("bad", [9000, -1, 2**40])
    def test_are_an_error_that_names_label_and_range(self, bad: int, hard: float) -> None:
        s, t = lucid.randn(3, 9000), lucid.zeros(3, 9000)
        labels = lucid.tensor([1, bad, -100])
        with pytest.raises(IndexError, match=f"labels must lie in 0 to 8999, .* got {bad}"):
            F.distillation_loss(s, t, labels=labels, hard_label_weight=hard).item()
        with pytest.raises(IndexError, match=f"must lie in 0 to 8999, .* got {bad}"):
            F.cross_entropy(s, labels).item()
        # It has been reported, and is not a second time.
        assert math.isfinite(F.distillation_loss(s, t).item())

    def test_are_found_within_the_vocabulary(self) -> None:
        with pytest.raises(IndexError, match="0 to 4"):
            F.distillation_loss(lucid.randn(1, 9), lucid.zeros(1, 9), labels=lucid.tensor([5]), vocab_size=5).item()

    @pytest.mark.kernels_only
    def test_make_the_loss_nan_until_then(self) -> None:
        losses, _ = tk.divergence_forward(
            torch.zeros(2, 4).to(DEVICE), torch.zeros(2, 4).to(DEVICE), labels=torch.tensor([4, 1]).to(DEVICE)
        )
        assert losses.isnan().tolist() == [True, False]
        with pytest.raises(IndexError, match="got 4"):
            tk.raise_pending_errors(losses.device)

    def test_are_an_error_of_the_call_itself_where_values_are_checked(self) -> None:
        s, labels = lucid.zeros(1, 4), lucid.tensor([4])
        with lucid.check_values():
            with pytest.raises(IndexError, match="got 4"):
                F.distillation_loss(s, s, labels=labels)
            with pytest.raises(IndexError, match=r"target must lie in 0 to 3, .* got 4"):
                F.cross_entropy(s, labels)
        with pytest.raises(IndexError, match="got 4"):
            lucid.check_values()(F.cross_entropy)(s, labels)

    @pytest.mark.interpreter_only
    def test_are_an_error_of_the_call_itself_on_the_cpu(self) -> None:
        s, labels = lucid.zeros(1, 4), lucid.tensor([4])
        with pytest.raises(IndexError, match=r"labels must lie in 0 to 3, .* got 4"):
            F.distillation_loss(s, s, labels=labels)
        with pytest.raises(IndexError, match=r"target must lie in 0 to 3, .* got 4"):
            F.cross_entropy(s, labels)

    def test_of_a_device_that_one_would_wait_for_are_asked_for_only_where_values_are_checked(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[torch.device] = []
        monkeypatch.setattr(tk, "raise_pending_errors", asked.append)
        elsewhere = torch.empty(3, device="meta")
        memory.raise_device_errors(elsewhere)
        assert not asked
        with lucid.check_values():
            memory.raise_device_errors(elsewhere)
            with lucid.check_values(False):
                memory.raise_device_errors(elsewhere)
        assert asked == [elsewhere.device]

    def test_of_tokens_of_weight_zero_are_none(self) -> None:
        labels, weight = lucid.tensor([99, 1]), lucid.tensor([0.0, 1.0])
        F.distillation_loss(lucid.randn(2, 4), lucid.zeros(2, 4), labels=labels, weight=weight).item()


@pytest.mark.parametrize(
    "normalizer", [lucid.tensor(0.0), lucid.tensor(-1.0), lucid.tensor(NAN), lucid.tensor(0), 0, 0.0]
)
@pytest.mark.parametrize(
    "weight", [None, lucid.tensor([0.0, 1.0]), lucid.tensor([1.0, -1.0])], ids=["none", "one", "sum 0"]
)
def test_a_normalizer_that_is_not_positive_is_reported_where_a_token_counts(weight: Any, normalizer: Any) -> None:
    with pytest.raises(ValueError, match="normalizer must be positive where a token counts"):
        F.distillation_loss(lucid.randn(2, 4), lucid.zeros(2, 4), weight=weight, normalizer=normalizer).item()


S, T = lucid.zeros(4, 6), lucid.zeros(4, 6)
JS = {"divergence": "js"}
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "divergence": ({"divergence": "kl"}, ValueError, r"divergence must be one of \('forward_kl', .* got 'kl'"),
    "reduction": ({"reduction": "avg"}, ValueError, r"reduction must be one of \('none', .* got 'avg'"),
    "beta 0": ({**JS, "beta": 0.0}, ValueError, "got 0.0: for that pass divergence='forward_kl' and no beta"),
    "beta 1": ({**JS, "beta": 1}, ValueError, "got 1.0: for that pass divergence='reverse_kl' and no beta"),
    "beta 2": ({**JS, "beta": 2}, ValueError, r"beta must be a number in the open interval \(0, 1\), got 2$"),
    "beta NaN": ({**JS, "beta": NAN}, ValueError, "beta must be .* got nan"),
    "beta str": ({**JS, "beta": "0.5"}, TypeError, "beta must be .* got str"),
    "beta, forward_kl": ({"beta": 0.5}, ValueError, "beta is of divergence 'js' alone, got beta=0.5 for 'forward_kl'"),
    "temperature 0": ({"temperature": 0}, ValueError, "temperature must be a number from 1e-15 to 1e15, got 0"),
    "temperature < 0": ({"temperature": -2.0}, ValueError, "temperature must be a number from 1e-15 to 1e15, got -2.0"),
    "temperature NaN": ({"temperature": NAN}, ValueError, "temperature must be a number from 1e-15 to 1e15, got nan"),
    "temperature inf": ({"temperature": INF}, ValueError, "temperature must be a number from 1e-15 to 1e15, got inf"),
    "temperature small": ({"temperature": 1e-300}, ValueError, "from 1e-15 to 1e15, got 1e-300"),
    "temperature large": ({"temperature": 1e30}, ValueError, r"from 1e-15 to 1e15, got 1e\+30"),
    "temperature str": ({"temperature": "2"}, TypeError, "temperature must be a number from 1e-15 to 1e15, got str"),
    "hard weight": ({"hard_label_weight": 2.0}, ValueError, "hard_label_weight must be a number from 0 to 1, got 2.0"),
    "no labels": ({"hard_label_weight": 0.5}, ValueError, "labels must be given for a hard_label_weight of 0.5"),
    "student": ({"student_logits": 3}, TypeError, "student_logits must be a lucid.Tensor, got int"),
    "teacher": ({"teacher_logits": None}, TypeError, "teacher_logits must be a lucid.Tensor, got NoneType"),
    "integers": (
        {"teacher_logits": lucid.tensor([[1, 2]])},
        TypeError,
        "teacher_logits must be float16, .* got lucid.int64",
    ),
    "0-d": ({"student_logits": lucid.tensor(1.0)}, RuntimeError, "student_logits must have a dimension of columns"),
    "rows": ({"teacher_logits": lucid.zeros(5, 6)}, RuntimeError, r"same leading dimensions, .*\(4, 6\) .*\(5, 6\)"),
    "columns": ({"teacher_logits": lucid.zeros(4, 7)}, RuntimeError, "equally many columns .* got 6 and 7"),
    "no columns": (
        {"student_logits": lucid.zeros(4, 0), "teacher_logits": lucid.zeros(4, 0)},
        RuntimeError,
        "student_logits must have at least one column",
    ),
    "vocab_size": ({"vocab_size": 7}, ValueError, "vocab_size must lie in 1 to 6, got 7"),
    "vocab_size of one side": (
        {"teacher_logits": lucid.zeros(4, 8), "vocab_size": 7},
        ValueError,
        "vocab_size must lie in 1 to 6, got 7; student_logits have 6 columns and teacher_logits 8$",
    ),
    "vocab_size 0": ({"vocab_size": 0}, ValueError, "vocab_size must be a positive int, got 0"),
    "vocab_size float": ({"vocab_size": 2.0}, TypeError, "vocab_size must be an int, got float"),
    "weight shape": ({"weight": lucid.ones(5)}, RuntimeError, r"weight must have shape \(4,\), .* got \(5,\)"),
    "weight integers": ({"weight": lucid.tensor([1, 1, 1, 1])}, TypeError, "weight must be bool or floating"),
    "weight grad": ({"weight": lucid.ones(4, requires_grad=True)}, RuntimeError, "weight must not require grad"),
    "weight list": ({"weight": [1.0] * 4}, TypeError, "weight must be a lucid.Tensor, got list"),
    "labels shape": ({"labels": lucid.tensor([[1]])}, RuntimeError, r"labels must have shape \(4,\), .* got \(1, 1\)"),
    "labels floats": ({"labels": lucid.ones(4)}, TypeError, "labels must be int32 or int64, got lucid.float32"),
    "ignore_index": ({"ignore_index": 1.5}, TypeError, "ignore_index must be an int, got float"),
    "ignore_index alone": ({"ignore_index": -100}, ValueError, "labels must be given for an ignore_index of -100"),
    "squared": ({"temperature_squared": "yes"}, TypeError, "temperature_squared must be a bool, got str"),
    "in place": ({"inplace_gradient": 1}, TypeError, "inplace_gradient must be a bool, got int"),
    "normalizer < 0": (
        {"normalizer": -1.0},
        ValueError,
        "normalizer must be a positive number, 0 where no token counts, or a 0-d Tensor, got -1.0",
    ),
    "normalizer NaN": ({"normalizer": NAN}, ValueError, "normalizer must be .* got nan"),
    "normalizer inf": ({"normalizer": INF}, ValueError, "normalizer must be .* got inf"),
    "normalizer shape": ({"normalizer": lucid.ones(2)}, RuntimeError, r"normalizer must be .* got shape \(2,\)"),
    "normalizer and sum": ({"normalizer": 2.0, "reduction": "sum"}, ValueError, "normalizer requires .* 'sum'"),
    "normalizer bool": ({"normalizer": True}, TypeError, "normalizer must be .* got bool"),
    "batchmean of one row": (
        {"student_logits": lucid.zeros(6), "teacher_logits": lucid.zeros(6), "reduction": "batchmean"},
        RuntimeError,
        "'batchmean' divides by",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error_before_any_launch(case: str) -> None:
    given, error, message = BAD[case]
    with trace.launches() as made, pytest.raises(error, match=message):
        F.distillation_loss(**{"student_logits": S, "teacher_logits": T, **given})
    assert not made


@pytest.mark.parametrize("name", ["teacher_logits", "weight", "labels", "normalizer"])
def test_tensors_on_different_devices_are_named(name: str) -> None:
    shape, dtype = {
        "teacher_logits": ((4, 6), torch.float32),
        "weight": ((4,), torch.float32),
        "labels": ((4,), torch.int64),
        "normalizer": ((), torch.float32),
    }[name]
    elsewhere = lucid.Tensor._wrap(torch.zeros(shape, dtype=dtype, device="meta"))
    with pytest.raises(RuntimeError, match=f"{name}.* must be on one device"):
        F.distillation_loss(**{"student_logits": S, "teacher_logits": T, name: elsewhere})
