"""Learning rate schedulers: torch's numbers, and states that are saved without pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lucid
from lucid.optim import lr_scheduler

STEPS = 30
Make = Callable[[Any, Any], Any]

#: By name: what makes a scheduler of a module of schedulers and an optimizer.
SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda t: 0.95**t),
    "LambdaLR per group": lambda s, o: s.LambdaLR(o, [lambda t: 1 / (t + 1), lambda t: t]),
    "MultiplicativeLR": lambda s, o: s.MultiplicativeLR(o, lambda t: 0.9 if t % 3 else 1.1),
    "StepLR": lambda s, o: s.StepLR(o, 7),
    "StepLR with gamma": lambda s, o: s.StepLR(o, step_size=1, gamma=0.7),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [11, 4, 11, 25], 0.3),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.83),
    "ConstantLR": lambda s, o: s.ConstantLR(o),
    "ConstantLR with options": lambda s, o: s.ConstantLR(o, 0.25, 13),
    "LinearLR": lambda s, o: s.LinearLR(o),
    "LinearLR down": lambda s, o: s.LinearLR(o, 1.0, 0.1, total_iters=17),
    "PolynomialLR": lambda s, o: s.PolynomialLR(o),
    "PolynomialLR with power": lambda s, o: s.PolynomialLR(o, 22, 1.7),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 30),
    "CosineAnnealingLR up again": lambda s, o: s.CosineAnnealingLR(o, 6, eta_min=0.03),
    "CosineAnnealingWarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 7),
    "CosineAnnealingWarmRestarts longer": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    "CyclicLR": lambda s, o: s.CyclicLR(o, 0.01, 0.1, step_size_up=4),
    "CyclicLR with options": lambda s, o: s.CyclicLR(
        o, [0.01, 0.02], [0.1, 0.3], 3, 5, mode="triangular2", base_momentum=0.7, max_momentum=0.95
    ),
    "CyclicLR exp_range": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 5, mode="exp_range", gamma=0.9, cycle_momentum=False),
    "CyclicLR with a function": lambda s, o: s.CyclicLR(
        o, 0.01, 0.1, 5, scale_fn=lambda t: 1 / (1 + t), scale_mode="iterations"
    ),
    "CyclicLR with a function of cycles": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 5, scale_fn=lambda c: 1 / c),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 0.3, total_steps=STEPS + 1),
    "OneCycleLR with options": lambda s, o: s.OneCycleLR(
        o,
        [0.3, 0.5],
        epochs=5,
        steps_per_epoch=8,
        pct_start=0.4,
        anneal_strategy="linear",
        div_factor=5.0,
        final_div_factor=100.0,
        base_momentum=0.8,
        max_momentum=0.9,
    ),
    "OneCycleLR of three phases": lambda s, o: s.OneCycleLR(o, 0.3, 31, three_phase=True, cycle_momentum=False),
    "SequentialLR": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=5), s.CosineAnnealingLR(o, 20), s.ExponentialLR(o, 0.5)], [5, 19]
    ),
    "SequentialLR of restarts": lambda s, o: s.SequentialLR(
        o, [s.ConstantLR(o, 0.1, 20), s.CosineAnnealingWarmRestarts(o, 4, 2)], milestones=[3]
    ),
    "ChainedScheduler": lambda s, o: s.ChainedScheduler(
        [s.ConstantLR(o, 0.1, 5), s.ExponentialLR(o, 0.9), s.MultiStepLR(o, [9])]
    ),
    "ChainedScheduler of a cosine": lambda s, o: s.ChainedScheduler(
        [s.LinearLR(o, 0.5, total_iters=4), s.CosineAnnealingLR(o, 40, 0.01)], optimizer=o
    ),
}


def optimizer_of(library: Any = lucid, name: str = "SGD") -> Any:
    """An optimizer of two groups with learning rates of their own."""
    first, second = (library.ones(2, requires_grad=True) for _ in range(2))
    options = {"momentum": 0.5} if name == "SGD" else {}
    groups = [{"params": [first]}, {"params": [second], "lr": 0.02}]
    return getattr(library.optim, name)(groups, lr=0.2, **options)


def values_of(optimizer: Any) -> list[float]:
    """Learning rate and momentum of each group."""
    return [
        value
        for group in optimizer.param_groups
        for value in (group["lr"], group.get("momentum", 0), *group.get("betas", ()))
    ]


def trace(optimizer: Any, scheduler: Any, steps: int) -> list[list[float]]:
    """What the groups hold at first, and after each step."""
    values = [values_of(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        values.append(values_of(optimizer))
    return values


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_thirty_steps_are_torchs(name: str, optimizer: str) -> None:
    ours, theirs = optimizer_of(lucid, optimizer), optimizer_of(torch, optimizer)
    make = SCHEDULERS[name]
    np.testing.assert_allclose(
        trace(ours, make(lr_scheduler, ours), STEPS),
        trace(theirs, make(torch.optim.lr_scheduler, theirs), STEPS),
        rtol=1e-12,
        atol=1e-15,
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_training_resumes_from_a_saved_state_bit_for_bit(name: str, tmp_path: Path) -> None:
    make, optimizer = SCHEDULERS[name], optimizer_of()
    scheduler = make(lr_scheduler, optimizer)
    trace(optimizer, scheduler, 13)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    lucid.save({"scheduler": scheduler.state_dict(), "groups": groups}, tmp_path / "state")
    expected = trace(optimizer, scheduler, STEPS - 13)

    resumed = optimizer_of()
    again = make(lr_scheduler, resumed)
    state = lucid.load(tmp_path / "state")
    for group, saved in zip(resumed.param_groups, state["groups"], strict=True):
        group.update(saved)
    again.load_state_dict(state["scheduler"])
    assert again.get_last_lr() == [group["lr"] for group in groups]
    assert trace(resumed, again, STEPS - 13) == expected
    json.dumps(state["scheduler"])


#: Torch multiplies by StepLR's gamma once more then, unlike by ExponentialLR's, and forgets earlier restarts. Composed
#: schedulers have no such argument.
_NOT_RESUMED = {"StepLR with gamma", "CosineAnnealingWarmRestarts longer"}
_NOT_RESUMED |= {name for name in SCHEDULERS if name.startswith(("Sequential", "Chained"))}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - _NOT_RESUMED))
def test_a_scheduler_made_at_a_later_epoch_goes_on_from_there_as_torchs(name: str) -> None:
    ours, theirs = optimizer_of(), optimizer_of(torch)
    traces = []
    for optimizer, schedulers in ((ours, lr_scheduler), (theirs, torch.optim.lr_scheduler)):
        SCHEDULERS[name](schedulers, optimizer)

        def at_later_epoch(kind: Any) -> Any:
            return lambda *args, **kwargs: kind(*args, **kwargs, last_epoch=8)

        later = SimpleNamespace(
            **{
                kind: at_later_epoch(getattr(schedulers, kind))
                for kind in lr_scheduler.__all__
                if hasattr(schedulers, kind)
            }
        )
        traces.append(trace(optimizer, SCHEDULERS[name](later, optimizer), 5))
    np.testing.assert_allclose(traces[0], traces[1], rtol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name", ["StepLR", "LinearLR", "CosineAnnealingLR", "PolynomialLR with power", "ExponentialLR"]
)
def test_a_learning_rate_that_was_changed_in_between_stays_changed_as_in_torch(name: str) -> None:
    traces = []
    for library, schedulers in ((lucid, lr_scheduler), (torch, torch.optim.lr_scheduler)):
        optimizer = optimizer_of(library)
        scheduler = SCHEDULERS[name](schedulers, optimizer)
        trace(optimizer, scheduler, 3)
        optimizer.param_groups[0]["lr"] *= 0.5
        traces.append(trace(optimizer, scheduler, 5))
    np.testing.assert_allclose(traces[0], traces[1], rtol=1e-12)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(("patience", "cooldown"), [(0, 0), (2, 1), (1, 4)])
@pytest.mark.parametrize("min_lr", [0.0, [0.05, 0.001]])
def test_a_plateau_is_found_where_torch_finds_it(
    mode: Any, threshold_mode: Any, patience: int, cooldown: int, min_lr: Any
) -> None:
    metrics = [*np.random.default_rng(4).normal(size=40).cumsum(), math.nan, 1.0, 1.0, 1.0, -1.0]
    options = {
        "mode": mode,
        "factor": 0.6,
        "patience": patience,
        "cooldown": cooldown,
        "threshold": 0.05,
        "threshold_mode": threshold_mode,
        "min_lr": min_lr,
        "eps": 1e-3,
    }
    ours, theirs = optimizer_of(), optimizer_of(torch)
    scheduler = lr_scheduler.ReduceLROnPlateau(ours, **options)
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    for step, metric in enumerate(metrics):
        scheduler.step(lucid.tensor(metric, dtype="float64") if step % 2 else metric)
        expected.step(metric)
        assert values_of(ours) == values_of(theirs)
        assert scheduler.get_last_lr() == expected.get_last_lr()
        assert (scheduler.best, scheduler.num_bad_epochs) == (expected.best, expected.num_bad_epochs)
        state = scheduler.state_dict()
        scheduler = lr_scheduler.ReduceLROnPlateau(ours, **options)
        scheduler.load_state_dict(state)
    assert values_of(ours) != values_of(optimizer_of()), "at least one change"


def test_restarts_take_fractions_of_epochs() -> None:
    ours, theirs = optimizer_of(), optimizer_of(torch)
    scheduler = lr_scheduler.CosineAnnealingWarmRestarts(ours, 3, 2)
    expected = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(theirs, 3, 2)
    for epoch in (0.25, 1.0, 2.9, 3.0, 8.75, 9.0, 40.5):
        scheduler.step(epoch)
        expected.step(epoch)
        np.testing.assert_allclose(values_of(ours), values_of(theirs), rtol=1e-12)
        assert scheduler.last_epoch == expected.last_epoch


def test_noam_warms_up_and_decays() -> None:
    optimizer = optimizer_of()
    scheduler = lr_scheduler.NoamScheduler(optimizer, d_model=64, warmup_steps=4)
    lrs = [values[0] for values in trace(optimizer, scheduler, 16)]
    expected = [64**-0.5 * min(t**-0.5, t * 4**-1.5) for t in (1, *range(1, 17))]
    np.testing.assert_allclose(lrs, expected, rtol=1e-14)
    assert max(lrs) == lrs[4] == 1 / 16


def test_any_object_with_param_groups_will_do() -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
    lr_scheduler.ExponentialLR(optimizer, 0.5).step()
    assert optimizer.param_groups == [{"lr": 0.5, "initial_lr": 1.0}]


def test_one_cycle_ends_with_its_steps() -> None:
    scheduler = lr_scheduler.OneCycleLR(optimizer_of(), 0.1, total_steps=2)
    scheduler.step()
    with pytest.raises(ValueError, match=r"Tried to step 2 times. The specified number of total steps is 2"):
        scheduler.step()


def test_a_state_of_another_class_is_refused_and_changes_nothing() -> None:
    optimizer = optimizer_of()
    parts = [lr_scheduler.StepLR(optimizer, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    chained = lr_scheduler.ChainedScheduler(parts)
    other = lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(optimizer, 3), lr_scheduler.ConstantLR(optimizer)])
    before = chained.state_dict()
    with pytest.raises(
        ValueError, match=r"state_dict must be that of a ExponentialLR, with .*'gamma'.* got .*'factor'"
    ):
        chained.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="state_dict must be that of 2 schedulers, got 0"):
        chained.load_state_dict(parts[0].state_dict())
    assert chained.state_dict() == before


def test_a_state_is_a_copy() -> None:
    scheduler = lr_scheduler.MultiStepLR(optimizer_of(), [3, 5])
    state = scheduler.state_dict()
    state["milestones"].clear()
    assert scheduler.milestones == [3, 5]
    scheduler.load_state_dict(state)
    state["milestones"].append(1)
    assert scheduler.milestones == []


S = lr_scheduler


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda o: S.StepLR(3, 3), TypeError, "optimizer must have param_groups, got int"),
        (lambda o: S.StepLR(o, 0), ValueError, "step_size must be positive, got 0"),
        (lambda o: S.StepLR(o, 2.5), TypeError, "step_size must be an int, got float"),
        (lambda o: S.StepLR(o, 2, "a"), TypeError, "gamma must be a finite number, got str"),
        (lambda o: S.StepLR(o, 2, last_epoch=3), KeyError, r"'initial_lr' is not specified in param_groups\[0\]"),
        (lambda o: S.LambdaLR(o, [abs]), ValueError, "lr_lambda must be one function, or one per group, 2, got 1"),
        (lambda o: S.ConstantLR(o, 1.5), ValueError, "factor must be a number from 0 to 1, got 1.5"),
        (lambda o: S.LinearLR(o, -0.1), ValueError, "start_factor must be a number from 0 to 1, got -0.1"),
        (lambda o: S.PolynomialLR(o, 3, -1), ValueError, "power must be a non-negative number, got -1"),
        (lambda o: S.CosineAnnealingLR(o, 0), ValueError, "T_max must be positive"),
        (lambda o: S.CosineAnnealingWarmRestarts(o, 3).step(-1), ValueError, "epoch must be a non-negative number"),
        (lambda o: S.CyclicLR(o, 0.1, [0.2]), ValueError, "max_lr must be a number, or one per group, 2, got 1"),
        (lambda o: S.CyclicLR(o, 0.1, 0.2, mode="up"), ValueError, "mode must be one of .*, got 'up'"),
        (
            lambda _: S.CyclicLR(SimpleNamespace(param_groups=[{"lr": 1.0}]), 0.1, 0.2),
            ValueError,
            "must support momentum or beta1",
        ),
        (lambda o: S.OneCycleLR(o, 0.1), ValueError, "either total_steps OR"),
        (lambda o: S.OneCycleLR(o, 0.1, 5, epochs=2), ValueError, "total_steps must be given alone"),
        (lambda o: S.OneCycleLR(o, 0.1, 5, pct_start=2), ValueError, "pct_start must be a number from 0 to 1, got 2"),
        (lambda o: S.SequentialLR(o, [], []), ValueError, "at least one scheduler"),
        (lambda o: S.SequentialLR(o, [S.ConstantLR(o)], [3]), ValueError, "milestones must be 0 increasing .*3"),
        (lambda o: S.ChainedScheduler([S.ReduceLROnPlateau(o)]), TypeError, "got ReduceLROnPlateau at 0"),
        (
            lambda o: S.ChainedScheduler([S.ConstantLR(o), S.ConstantLR(optimizer_of())]),
            ValueError,
            "one optimizer, got another at 1",
        ),
        (lambda o: S.ReduceLROnPlateau(o, "up"), ValueError, "mode must be one of .*, got 'up'"),
        (lambda o: S.ReduceLROnPlateau(o, factor=1), ValueError, "factor must be a number below 1, got 1"),
        (lambda o: S.ReduceLROnPlateau(o, min_lr=[0.1]), ValueError, "min_lr must be a number, or one per group, 2"),
    ],
)
def test_misuse_is_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(optimizer_of())
