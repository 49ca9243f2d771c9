"""Learning rate schedulers made of others, and the one that follows a metric."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat

from lucid._arguments import check_choice, check_int, check_real, type_name
from lucid.optim._schedules import LRScheduler, PerGroup, current_lrs, groups_of, number, per_group


class _Composed(LRScheduler):
    """Holds schedulers of one optimizer; their states are part of its own."""

    _unsaved = ("optimizer", "_schedulers")

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Any) -> None:
        name = type(self).__name__
        if not schedulers:
            raise ValueError(f"{name} expects at least one scheduler, but got no scheduler.")
        self.optimizer = schedulers[0].optimizer if optimizer is None else optimizer
        self._schedulers = list(schedulers)
        for i, scheduler in enumerate(self._schedulers):
            if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
                raise TypeError(
                    f"{name} takes schedulers that step without a metric, got {type_name(scheduler)} at {i}"
                )
            if scheduler.optimizer is not self.optimizer:
                raise ValueError(f"{name} expects all schedulers to have one optimizer, got another at {i}")

    def _reset(self) -> None:
        super()._reset()
        for scheduler in self._schedulers:
            scheduler._reset()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_schedulers": [scheduler.state_dict() for scheduler in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        parts = state_dict.get("_schedulers", [])
        if len(parts) != len(self._schedulers):
            raise ValueError(f"state_dict must be that of {len(self._schedulers)} schedulers, got {len(parts)}")
        before = [scheduler.state_dict() for scheduler in self._schedulers]
        try:
            for scheduler, part in zip(self._schedulers, parts, strict=True):
                scheduler.load_state_dict(part)
            super().load_state_dict(state_dict)
        except ValueError:
            for scheduler, part in zip(self._schedulers, before, strict=True):
                scheduler.load_state_dict(part)
            raise


class SequentialLR(_Composed):
    """One scheduler after another: each starts at its milestone, from the initial learning rate and its epoch 0.

    Parameters
    ----------
    optimizer
        Their optimizer.
    schedulers : sequence of LRScheduler
        Other than `ReduceLROnPlateau`.
    milestones : sequence of int
        Increasing; the epochs at which the second and later ones start.

    Raises
    ------
    TypeError, ValueError
        If one is no such scheduler, or has another optimizer; if milestones are not one fewer, or do not increase.

    Examples
    --------
    >>> import lucid
    >>> from lucid.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
    >>> optimizer = lucid.optim.SGD([lucid.ones(2, requires_grad=True)], lr=1.0)
    >>> parts = [LinearLR(optimizer, 0.5, total_iters=2), CosineAnnealingLR(optimizer, T_max=10)]
    >>> scheduler = SequentialLR(optimizer, parts, milestones=[2])
    >>> scheduler.get_last_lr()
    [0.5]
    """

    def __init__(self, optimizer: Any, schedulers: Sequence[LRScheduler], milestones: Sequence[int]) -> None:
        super().__init__(schedulers, optimizer)
        self._milestones = [check_int("each of milestones", epoch) for epoch in milestones]
        increasing = all(a < b for a, b in zip([0, *self._milestones], self._milestones, strict=False))
        if len(self._milestones) != len(schedulers) - 1 or not increasing:
            raise ValueError(
                f"milestones must be {len(schedulers) - 1} increasing positive epochs, one fewer than schedulers, got "
                f"{self._milestones}"
            )
        self._reset()
        self.last_epoch = 0
        self._start(self._schedulers[0])

    def _start(self, scheduler: LRScheduler) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        scheduler.step()
        self._last_lr = scheduler.get_last_lr()

    def step(self) -> None:
        self.last_epoch += 1
        scheduler = self._schedulers[bisect_right(self._milestones, self.last_epoch)]
        if self.last_epoch in (0, *self._milestones):
            self._start(scheduler)
        else:
            scheduler.step()
            self._last_lr = scheduler.get_last_lr()


class ChainedScheduler(_Composed):
    """Several schedulers at once: each step is one of each, in order.

    Schedulers that multiply the learning rate have all their effects: `StepLR`, `MultiStepLR`, `ExponentialLR`,
    `ConstantLR`, `LinearLR`, `PolynomialLR`, `MultiplicativeLR` and `CosineAnnealingLR`. Others set it anew, whatever
    came before.

    Parameters
    ----------
    schedulers : sequence of LRScheduler
        Other than `ReduceLROnPlateau`.
    optimizer : optional
        Their optimizer; that of the first by default.

    Raises
    ------
    TypeError, ValueError
        If one is no such scheduler, or has another optimizer.
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Any = None) -> None:
        super().__init__(schedulers, optimizer)
        self._last_lr = current_lrs(self.optimizer)

    def _reset(self) -> None:
        for scheduler in self._schedulers:
            scheduler._reset()

    def step(self) -> None:
        for scheduler in self._schedulers:
            scheduler.step()
        self._last_lr = self._schedulers[-1].get_last_lr()


class ReduceLROnPlateau(LRScheduler):
    """Multiplies the learning rate by `factor` when a metric has not improved for more than `patience` epochs.

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    mode : {'min', 'max'}
        Whether the metric improves when it falls or when it rises. Default: 'min'.
    factor : float
        Below 1. Default: 0.1.
    patience : int
        Epochs without improvement that are let pass. Default: 10.
    threshold : float
        What counts as an improvement: by this part of the best value ('rel'), or by this much ('abs'). Default: 1e-4.
    threshold_mode : {'rel', 'abs'}
        Default: 'rel'.
    cooldown : int
        Epochs after a change that do not count. Default: 0.
    min_lr : float or list of float
        Least learning rate, of all groups or of each. Default: 0.
    eps : float
        A change of at most this much is not made. Default: 1e-8.

    Examples
    --------
    >>> import lucid
    >>> optimizer = lucid.optim.SGD([lucid.ones(2, requires_grad=True)], lr=1.0)
    >>> scheduler = lucid.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    >>> for loss in (3.0, 2.0, 2.0):
    ...     scheduler.step(loss)
    >>> scheduler.get_last_lr()
    [0.5]
    """

    def __init__(
        self,
        optimizer: Any,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: PerGroup = 0.0,
        eps: float = 1e-8,
    ) -> None:
        groups_of(optimizer)
        self.optimizer = optimizer
        check_choice("mode", mode, ("min", "max"))
        check_choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.mode, self.threshold_mode = mode, threshold_mode
        self.factor = check_real("factor", factor, "a number below 1", lambda given: given < 1)
        self.patience, self.cooldown = check_int("patience", patience), check_int("cooldown", cooldown)
        self.threshold, self.eps = number("threshold", threshold), number("eps", eps)
        self.min_lrs = per_group("min_lr", optimizer, min_lr)
        self.last_epoch = 0
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0
        self._last_lr = current_lrs(optimizer)

    def step(self, metrics: SupportsFloat) -> None:  # type: ignore[override]
        """Go on to the next epoch, with the metric of the last: a number, or a Tensor of one element."""
        current = float(metrics)
        self.last_epoch += 1
        self.num_bad_epochs += 1
        if self._is_better(current):
            self.best, self.num_bad_epochs = current, 0
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        lrs = current_lrs(self.optimizer)
        if self.num_bad_epochs > self.patience:
            lower = [max(lr * self.factor, least) for lr, least in zip(lrs, self.min_lrs, strict=True)]
            lrs = [new if lr - new > self.eps else lr for lr, new in zip(lrs, lower, strict=True)]
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._set(lrs)

    def _is_better(self, value: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "rel":
            return sign * value > sign * self.best * (1 + sign * self.threshold)
        return sign * value > sign * self.best + self.threshold
