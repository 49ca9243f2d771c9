"""State of optimizers: saved, loaded and continued, here and by PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid.optim import Adam
from tests.test_optim import OPTIMIZERS, random_leaf
from tests.values import leaf, torch_of, values_of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_optimizer_goes_on_bit_for_bit(name: str, dtype: str) -> None:
    x, idle = random_leaf((5, 3), dtype), leaf([1.0])
    optimizer = OPTIMIZERS[name](lucid.optim, [{"params": [idle]}, {"params": [x], "lr": 0.25}])
    optimizer.step()
    saved = optimizer.state_dict()
    twin = lucid.tensor(x.detach()).requires_grad_()
    optimizer.step()
    resumed = OPTIMIZERS[name](lucid.optim, [{"params": [leaf([1.0])]}, {"params": [twin]}])
    resumed.load_state_dict(saved)
    twin.grad = x.grad
    resumed.step()
    assert twin.tolist() == x.tolist()
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1]]
    assert resumed.param_groups[1]["lr"] == 0.25
    kinds = {value.dtype.name for key, value in resumed.state[twin].items() if key != "step"}
    assert kinds <= {"float64" if dtype == "float64" else "float32"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_of_torchs_optimizer_is_loaded_and_one_of_ours_by_torch(name: str) -> None:
    x = random_leaf((5, 3), "float64")
    reference = torch.tensor(values_of(x), requires_grad=True)
    theirs = OPTIMIZERS[name](torch.optim, [reference])
    ours = OPTIMIZERS[name](lucid.optim, [x])
    reference.grad = torch.tensor(values_of(x.grad))
    theirs.step()
    x.detach()[:] = lucid.from_torch(reference.detach())
    ours.load_state_dict(theirs.state_dict())
    ours.step()
    theirs.step()
    np.testing.assert_allclose(values_of(x), reference.detach().numpy(), rtol=1e-12)
    state = ours.state_dict()
    tensors = {key: torch_of(value) for key, value in state["state"].get(0, {}).items()}
    again = OPTIMIZERS[name](torch.optim, [reference])
    again.load_state_dict({**state, "state": {0: tensors} if tensors else {}})
    ours.step()
    again.step()
    np.testing.assert_allclose(values_of(x), reference.detach().numpy(), rtol=1e-12)


def test_a_saved_state_is_a_copy() -> None:
    x = random_leaf((3,), "float32")
    optimizer = Adam([x], betas=[0.9, 0.99])
    optimizer.step()
    saved = optimizer.state_dict()
    before = saved["state"][0]["exp_avg"].tolist()
    other = Adam([x])
    other.load_state_dict(saved)
    optimizer.step()
    other.step()
    optimizer.param_groups[0]["betas"][0] = 0.5
    assert saved["state"][0]["exp_avg"].tolist() == before
    assert saved["state"][0]["step"].item() == 1
    assert saved["param_groups"][0]["betas"] == other.param_groups[0]["betas"] == [0.9, 0.99]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: 3, TypeError, "state_dict must be a mapping, got int"),
        (lambda s: {"state": {}}, KeyError, r".state_dict must have \"state\" and \"param_groups\", got .*"),
        (lambda s: s["param_groups"][0].update(params=[0]), ValueError, r".* groups of \[2\] parameters, .* got \[1\]"),
        (lambda s: s["param_groups"].append({"params": []}), ValueError, r".* groups of \[2\] .*, got \[2, 0\]"),
        (lambda s: s["param_groups"][0].pop("eps"), ValueError, r"param_groups\[0\] of state_dict .*, lacks \['eps'\]"),
        (lambda s: s["param_groups"][0].update(lr=-1), ValueError, "lr must be a number of at least 0 .*, got -1"),
        (lambda s: s["state"].update({7: {}}), ValueError, r"state_dict must have the state of .*, got that of \[7\]"),
        (lambda s: s["state"][1].pop("step"), ValueError, r"state\[1\] .* of Adam, step, .*, got exp_avg, exp_avg_sq"),
        (lambda s: s["state"][1].update(buffer=1), ValueError, r"state\[1\] .* of Adam, .*, exp_avg_sq, buffer"),
        (lambda s: s["state"][1].update(step="x"), TypeError, r"step of state\[1\] must be a number, got str"),
        (
            lambda s: s["state"][1].update(exp_avg=lucid.ones(3)),
            ValueError,
            r"exp_avg of state\[1\] of state_dict must have shape \(2,\), got \(3,\)",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(change: Any, error: Any, message: str) -> None:
    params = [random_leaf((2,), "float32", i) for i in range(2)]
    source = Adam(params, lr=0.5)
    source.step()
    saved: Any = source.state_dict()
    given = change(saved)
    target = Adam(params, lr=0.125)
    with pytest.raises(error, match=f"^{message}$"):
        target.load_state_dict(given if isinstance(given, dict | int) else saved)
    assert not target.state
    assert target.param_groups[0]["lr"] == 0.125
