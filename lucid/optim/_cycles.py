"""Learning rate schedulers that go up and down."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from lucid._arguments import check_bool, check_choice, check_int, check_real
from lucid.optim._schedules import LRScheduler, PerGroup, groups_of, number, per_group, positive_int


class NoamScheduler(LRScheduler):
    """d^(−½)·min(t^(−½), t·w^(−3/2)), whatever the optimizer's learning rate: linear warm-up over w steps, then decay.

    A. Vaswani et al., "Attention is all you need", 2017, eq. 3.

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    d_model : int
        d, the width of the model.
    warmup_steps : int
        w.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(self, optimizer: Any, d_model: int, warmup_steps: int, last_epoch: int = -1) -> None:
        self.d_model = positive_int("d_model", d_model)
        self.warmup_steps = positive_int("warmup_steps", warmup_steps)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        t = max(1, self.last_epoch)
        return [self.d_model**-0.5 * min(t**-0.5, t * self.warmup_steps**-1.5)] * len(self.base_lrs)


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half waves of the cosine, from the initial learning rate to `eta_min`, of T_0, T_0·T_mult, T_0·T_mult², … epochs.

    eta_min + (base − eta_min)·(1 + cos(π·T_cur / T_i)) / 2, T_cur epochs after a restart and T_i between two (I.
    Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, eq. 5).

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    T_0 : int
        Epochs to the first restart.
    T_mult : int
        Factor on the number of epochs after each restart. Default: 1.
    eta_min : float
        The minimum. Default: 0.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(self, optimizer: Any, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_0, self.T_mult = positive_int("T_0", T_0), positive_int("T_mult", T_mult)
        self.eta_min = number("eta_min", eta_min)
        self.T_cur, self.T_i = 0.0, T_0
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        """Go on to the next epoch, or to `epoch`, which may have a fraction, as after part of an epoch's batches."""
        at = self.last_epoch + 1 if epoch is None else number("epoch", epoch, "a non-negative number", 0)
        self.last_epoch = math.floor(at)
        self.T_i = self.T_0
        if self.T_mult == 1:
            at %= self.T_0
        while at >= self.T_i:
            at -= self.T_i
            self.T_i *= self.T_mult
        self.T_cur = at
        self._set(self.get_lr())

    def get_lr(self) -> list[float]:
        factor = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2
        return [self.eta_min + (base - self.eta_min) * factor for base in self.base_lrs]


class _CyclicMomentum(LRScheduler):
    """Momentum that falls from `max_momentums` to `base_momentums` while the learning rate rises, and back."""

    cycle_momentum: bool
    base_momentums: list[float]
    max_momentums: list[float]

    def _start_momentum(self, optimizer: Any, cycle: bool, base: PerGroup, most: PerGroup) -> None:
        self.cycle_momentum = check_bool("cycle_momentum", cycle)
        self.base_momentums = per_group("base_momentum", optimizer, base) if cycle else []
        self.max_momentums = per_group("max_momentum", optimizer, most) if cycle else []
        if cycle and not all("momentum" in group or "betas" in group for group in optimizer.param_groups):
            raise ValueError("optimizer must support momentum or beta1 with `cycle_momentum` option enabled")

    def _set_momentum(self, height: float) -> None:
        """Set momentum, or the first of betas, to base + (max − base)·(1 − height)."""
        if self.cycle_momentum:
            bounds = zip(self.optimizer.param_groups, self.base_momentums, self.max_momentums, strict=True)
            for group, base, most in bounds:
                momentum = most - (most - base) * height
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum


class CyclicLR(_CyclicMomentum):
    """Triangles between two learning rates: base_lr + (max_lr − base_lr)·height·scale.

    The height rises linearly from 0 to 1 over `step_size_up` steps, and falls over `step_size_down`. (L. N. Smith,
    "Cyclical learning rates for training neural networks", 2017.)

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    base_lr, max_lr : float or list of float
        The bounds, of all groups or of each.
    step_size_up, step_size_down : int
        Steps of the rise, and of the fall. Default: 2000, and as many as of the rise.
    mode : {'triangular', 'triangular2', 'exp_range'}
        The scale: 1, 2^(1 − cycle) of the 1st, 2nd, … cycle, or gamma^t. Default: 'triangular'.
    gamma : float
        For 'exp_range'. Default: 1.
    scale_fn : callable, optional
        The scale in place of `mode`'s, as a function of the cycle or of t. It is not part of the state.
    scale_mode : {'cycle', 'iterations'}
        What `scale_fn` gets: the number of the cycle, from 1, or t. Default: 'cycle'.
    cycle_momentum : bool
        Set momentum, or the first of betas, to max_momentum − (max_momentum − base_momentum)·height·scale. Default:
        True.
    base_momentum, max_momentum : float or list of float
        Its bounds. Default: 0.8 and 0.9.
    last_epoch : int
        See `LRScheduler`.
    """

    _unsaved = ("optimizer", "scale_fn")

    def __init__(
        self,
        optimizer: Any,
        base_lr: PerGroup,
        max_lr: PerGroup,
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: Literal["cycle", "iterations"] = "cycle",
        cycle_momentum: bool = True,
        base_momentum: PerGroup = 0.8,
        max_momentum: PerGroup = 0.9,
        last_epoch: int = -1,
    ) -> None:
        lrs = per_group("base_lr", optimizer, base_lr)
        self.max_lrs = per_group("max_lr", optimizer, max_lr)
        self.step_size_up = positive_int("step_size_up", step_size_up)
        self.step_size_down = step_size_up if step_size_down is None else positive_int("step_size_down", step_size_down)
        check_choice("mode", mode, ("triangular", "triangular2", "exp_range"))
        check_choice("scale_mode", scale_mode, ("cycle", "iterations"))
        self.mode, self.gamma, self.scale_fn = mode, number("gamma", gamma), scale_fn
        self.scale_mode = scale_mode
        self._start_momentum(optimizer, cycle_momentum, base_momentum, max_momentum)
        if last_epoch == -1:
            for group, lr in zip(groups_of(optimizer), lrs, strict=True):
                group["lr"] = lr
                group.setdefault("initial_lr", lr)
        super().__init__(optimizer, last_epoch)
        self.base_lrs = lrs
        self._set(self.get_lr())

    def _scale(self, cycle: int) -> float:
        if self.scale_fn is not None:
            return self.scale_fn(cycle if self.scale_mode == "cycle" else self.last_epoch)
        if self.mode == "exp_range":
            return self.gamma**self.last_epoch
        return 2.0 ** (1 - cycle) if self.mode == "triangular2" else 1.0

    def get_lr(self) -> list[float]:
        cycle, passed = divmod(self.last_epoch, self.step_size_up + self.step_size_down)
        up, down = passed / self.step_size_up, 1 - (passed - self.step_size_up) / self.step_size_down
        height = min(up, down) * self._scale(cycle + 1)
        self._set_momentum(height)
        return [low + (high - low) * height for low, high in zip(self.base_lrs, self.max_lrs, strict=True)]


class OneCycleLR(_CyclicMomentum):
    """One rise to `max_lr`, and one fall far below the learning rate of the start.

    From max_lr / div_factor to max_lr in the first part of the steps, `pct_start`, then to max_lr / (div_factor ·
    final_div_factor) at the last step, along half a wave of the cosine or a line. (L. N. Smith and N. Topin,
    "Super-convergence: very fast training of neural networks using large learning rates", 2018.)

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    max_lr : float or list of float
        The highest learning rate, of all groups or of each.
    total_steps : int, optional
        Number of steps; a step more is an error.
    epochs, steps_per_epoch : int, optional
        Their product, in place of `total_steps`.
    pct_start : float
        Part of the steps in which the learning rate rises, from 0 to 1. Default: 0.3.
    anneal_strategy : {'cos', 'linear'}
        Default: 'cos'.
    cycle_momentum : bool
        Let momentum, or the first of betas, fall from `max_momentum` to `base_momentum` while the learning rate rises,
        and rise again. Default: True.
    base_momentum, max_momentum : float or list of float
        Default: 0.85 and 0.95.
    div_factor, final_div_factor : float
        Default: 25 and 1e4.
    three_phase : bool
        Fall as long as rise, to the learning rate of the start, then to that of the end. Default: False.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        max_lr: PerGroup,
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: PerGroup = 0.85,
        max_momentum: PerGroup = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = _total_steps(total_steps, epochs, steps_per_epoch)
        self.max_lrs = per_group("max_lr", optimizer, max_lr)
        self.pct_start = check_real("pct_start", pct_start, "a number from 0 to 1", lambda part: 0 <= part <= 1)
        check_choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.anneal_strategy = anneal_strategy
        self.three_phase = check_bool("three_phase", three_phase)
        self.div_factor = check_real("div_factor", div_factor, "a positive number", lambda given: given > 0)
        self.final_div_factor = check_real(
            "final_div_factor", final_div_factor, "a positive number", lambda given: given > 0
        )
        self._start_momentum(optimizer, cycle_momentum, base_momentum, max_momentum)
        if check_int("last_epoch", last_epoch) == -1:
            for group, most in zip(groups_of(optimizer), self.max_lrs, strict=True):
                group["initial_lr"] = most / self.div_factor
        super().__init__(optimizer, last_epoch)

    def _phase(self) -> tuple[float, int, int]:
        """Return the part of the phase that has passed, and the points between which it leads.

        Points: 0, the start; 1, the highest learning rate; 2, the end.
        """
        first, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        phases = [(first, 0, 1), (last, 1, 2)]
        if self.three_phase:
            phases = [(first, 0, 1), (2 * first, 1, 0), (last, 0, 2)]
        start = 0.0
        for end, source, target in phases:
            if self.last_epoch <= end or end == last:
                return (self.last_epoch - start) / (end - start) if end > start else 1.0, source, target
            start = end
        raise AssertionError("the last phase has no end")

    def get_lr(self) -> list[float]:
        if self.last_epoch >= self.total_steps:
            raise ValueError(
                f"Tried to step {self.last_epoch} times. The specified number of total steps is {self.total_steps}"
            )
        passed, source, target = self._phase()
        if self.anneal_strategy == "cos":
            passed = (1 - math.cos(math.pi * passed)) / 2
        self._set_momentum((source == 1) * (1 - passed) + (target == 1) * passed)
        lrs = []
        for base, most in zip(self.base_lrs, self.max_lrs, strict=True):
            points = (base, most, base / self.final_div_factor)
            lrs.append(points[source] + (points[target] - points[source]) * passed)
        return lrs


def _total_steps(total: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total is not None:
        if epochs is not None or steps_per_epoch is not None:
            raise ValueError("total_steps must be given alone, or epochs and steps_per_epoch in its place, got both")
        return positive_int("total_steps", total)
    if epochs is None or steps_per_epoch is None:
        raise ValueError("You must define either total_steps OR (epochs AND steps_per_epoch)")
    return positive_int("epochs", epochs) * positive_int("steps_per_epoch", steps_per_epoch)
