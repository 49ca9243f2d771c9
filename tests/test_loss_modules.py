"""Options of losses as modules: wrong ones are errors of the constructor, and of the call where they are set later."""

from __future__ import annotations

import typing
from typing import Any

import numpy as np
import pytest
import torch

import lucid
import lucid.torch
from lucid.typing import DIVERGENCES, LABEL_REDUCTIONS, REDUCTIONS
from tests.device import DEVICE

LIBRARIES: dict[str, Any] = {"lucid": lucid.nn, "lucid.torch": lucid.torch}


def _inputs(library: str, loss: str) -> tuple[Any, ...]:
    second = torch.tensor([1, 0]) if loss == "CrossEntropyLoss" else torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    tensors = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]]).to(DEVICE), second.to(DEVICE)
    return tuple(map(lucid.from_torch, tensors)) if library == "lucid" else tensors


BAD: list[tuple[str, str, Any, type[Exception], str]] = [
    ("KLDivLoss", "reduction", 3, ValueError, r"reduction must be one of \('none', .*, got 3"),
    ("KLDivLoss", "log_target", "no", TypeError, "log_target must be a bool, got str"),
    ("CrossEntropyLoss", "reduction", "batchmean", ValueError, "reduction must be one of .*, got 'batchmean'"),
    ("CrossEntropyLoss", "label_smoothing", 2, ValueError, "label_smoothing must be a number from 0 to 1, got 2"),
    ("CrossEntropyLoss", "ignore_index", None, TypeError, "ignore_index must be an int, got NoneType"),
    ("DistillationLoss", "divergence", "nope", ValueError, "divergence must be one of .*, got 'nope'"),
    ("DistillationLoss", "reduction", "avg", ValueError, "reduction must be one of .*, got 'avg'"),
    ("DistillationLoss", "beta", 0.5, ValueError, "beta is of divergence 'js' alone, got beta=0.5 for 'forward_kl'"),
    ("DistillationLoss", "temperature", 0, ValueError, "temperature must be a number from 1e-15 to 1e15, got 0"),
    ("DistillationLoss", "temperature_squared", "yes", TypeError, "temperature_squared must be a bool, got str"),
    ("DistillationLoss", "ignore_index", 0.5, TypeError, "ignore_index must be an int, got float"),
    ("DistillationLoss", "hard_label_weight", -1, ValueError, "hard_label_weight must be a number from 0 to 1, got -1"),
    ("DistillationLoss", "vocab_size", 0, ValueError, "vocab_size must be a positive int, got 0"),
    ("DistillationLoss", "inplace_gradient", 1, TypeError, "inplace_gradient must be a bool, got int"),
]


@pytest.mark.filterwarnings("ignore:reduction 'mean' also divides")
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("loss", "name", "value", "error", "message"), BAD)
def test_a_wrong_option_is_an_error_of_the_constructor_and_of_the_call(
    loss: str, name: str, value: Any, error: type[Exception], message: str, library: str
) -> None:
    make = getattr(LIBRARIES[library], loss)
    with pytest.raises(error, match=message):
        make(**{name: value})
    module, inputs = make(), _inputs(library, loss)
    module(*inputs)
    setattr(module, name, value)
    with pytest.raises(error, match=message):
        module(*inputs)


@pytest.mark.parametrize("name", ["size_average", "reduce"])
@pytest.mark.parametrize(
    ("value", "message"),
    [("batchmean", "got str: pass reduction='batchmean'"), ("avg", "got str$"), (1, "got int$"), ([], "got list$")],
)
def test_a_reduction_given_as_another_argument_is_an_error(name: str, value: Any, message: str) -> None:
    x, target = _inputs("lucid.torch", "KLDivLoss")
    for make in (
        lucid.torch.KLDivLoss,
        lucid.torch.CrossEntropyLoss,
        lambda **option: lucid.torch.kl_div(x, target, **option),
        lambda **option: lucid.torch.cross_entropy(x, target, **option),
    ):
        with pytest.raises(TypeError, match=f"{name} must be a bool or None, {message}"):
            make(**{name: value})


def test_a_reduction_in_the_place_of_size_average_is_an_error() -> None:
    with pytest.raises(TypeError, match="size_average must be a bool or None, got str: pass reduction='sum'"):
        lucid.nn.functional.kl_div(*_inputs("lucid", "KLDivLoss"), "sum")


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_ignore_index_without_labels_is_an_error_of_the_call(library: str) -> None:
    module, inputs = LIBRARIES[library].DistillationLoss(ignore_index=1), _inputs(library, "DistillationLoss")
    labels = _inputs(library, "CrossEntropyLoss")[1]
    expected = LIBRARIES[library].DistillationLoss(reduction="none")(*inputs)[1].item()
    assert module(*inputs, labels=labels).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="labels must be given for an ignore_index of 1, got None: or leave both out"):
        module(*inputs)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_beta_of_js_is_a_half_where_none_is_given(library: str) -> None:
    make, inputs = LIBRARIES[library].DistillationLoss, _inputs(library, "DistillationLoss")
    module = make()
    module.divergence = "js"
    assert module(*inputs).item() == make("js", beta=0.5)(*inputs).item() != make("js", beta=0.25)(*inputs).item()
    assert repr(module) == "DistillationLoss(divergence='js', beta=0.5, temperature=1.0, reduction='mean')"
    module.beta = 0.25
    assert "beta=0.25" in repr(module)
    assert module(*inputs).item() == make("js", beta=0.25)(*inputs).item()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_bool_may_be_numpys(library: str) -> None:
    make, inputs = LIBRARIES[library].DistillationLoss, _inputs(library, "DistillationLoss")
    module = make(temperature=2.0, temperature_squared=np.True_, inplace_gradient=np.False_)
    assert module(*inputs).item() == make(temperature=2.0, temperature_squared=True)(*inputs).item()
    kl_div = LIBRARIES[library].KLDivLoss(reduction="sum", log_target=np.True_)
    assert kl_div(*inputs).item() == LIBRARIES[library].KLDivLoss(reduction="sum", log_target=True)(*inputs).item()


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_types_of_options_name_every_word_that_is_accepted(library: str) -> None:
    functions = lucid.nn.functional if library == "lucid" else lucid.torch
    for function, option, words in (
        ("kl_div", "reduction", REDUCTIONS),
        ("distillation_loss", "reduction", REDUCTIONS),
        ("distillation_loss", "divergence", DIVERGENCES),
        ("cross_entropy", "reduction", LABEL_REDUCTIONS),
    ):
        hints = typing.get_type_hints(getattr(functions, function))
        assert typing.get_args(hints[option]) == words
