"""The base class of learning rate schedulers, and those that are a formula of the epoch number."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lucid._arguments import check_int, check_real, type_name

Factor = Callable[[int], float]
PerGroup = float | Sequence[float]


class LRScheduler:
    """Base class: sets ``group["lr"]`` of each parameter group, once when made and then at each `step`.

    A subclass defines `get_lr`, from `last_epoch` and `base_lrs`.

    Parameters
    ----------
    optimizer
        An optimizer, or any object with `param_groups`: dicts with ``"lr"``.
    last_epoch : int
        The last epoch before training resumes with an optimizer whose groups hold ``"initial_lr"``; −1 (default) starts
        anew. Where the scheduler's state was saved, leave it, and call `load_state_dict`.

    Attributes
    ----------
    optimizer
        As given.
    base_lrs : list of float
        ``group["initial_lr"]`` of each group, which the first scheduler of an optimizer sets to the learning rate.
    last_epoch : int
        Number of calls of `step`.

    Raises
    ------
    TypeError
        If `optimizer` has no `param_groups`, or an argument is no number.
    ValueError
        If an argument has an impossible value.
    KeyError
        If training is to resume and a group has no ``"initial_lr"``.
    """

    #: Attributes that `state_dict` leaves out.
    _unsaved: ClassVar[tuple[str, ...]] = ("optimizer",)

    def __init__(self, optimizer: Any, last_epoch: int = -1) -> None:
        self.optimizer = optimizer
        self.last_epoch = check_int("last_epoch", last_epoch)
        for i, group in enumerate(groups_of(optimizer)):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(f"param 'initial_lr' is not specified in param_groups[{i}] when resuming an optimizer")
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self._last_lr: list[float] = []
        self.step()

    def get_lr(self) -> list[float]:
        """Return the learning rate of each group at `last_epoch`."""
        raise NotImplementedError

    def get_last_lr(self) -> list[float]:
        """Return the learning rates that the last step set."""
        return self._last_lr

    def step(self) -> None:
        """Go on to the next epoch; called after the optimizer's step."""
        self.last_epoch += 1
        self._set(self.get_lr())

    def _set(self, lrs: Sequence[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        self._last_lr = list(lrs)

    def _reset(self) -> None:
        """Let the next step be that of epoch 0."""
        self.last_epoch = -1

    def state_dict(self) -> dict[str, Any]:
        """Return the state: numbers, strings and lists, which `lucid.save` saves; functions are left out."""
        return {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self).items()
            if name not in self._unsaved
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned. The optimizer's own state holds the learning rates.

        Raises
        ------
        ValueError
            If it is not that of a scheduler of this class; nothing is changed then.
        """
        own = self.state_dict()
        if set(state_dict) != set(own):
            raise ValueError(
                f"state_dict must be that of a {type(self).__name__}, with {sorted(own)}, got {sorted(state_dict)}"
            )
        kept = {name: value for name, value in state_dict.items() if name not in self._unsaved}
        vars(self).update((name, list(v) if isinstance(v, list) else v) for name, v in kept.items())


def groups_of(optimizer: Any) -> list[dict[str, Any]]:
    """Return the parameter groups, or raise a TypeError."""
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer must have param_groups, got {type_name(optimizer)}")
    return optimizer.param_groups


def current_lrs(optimizer: Any) -> list[float]:
    """Return the learning rate of each group."""
    return [group["lr"] for group in groups_of(optimizer)]


def number(name: str, value: float, accepted: str = "a finite number", low: float = -math.inf) -> float:
    """Return a finite number of at least `low`, or raise an error that says `accepted`."""
    check_real(name, value, accepted, lambda given: given >= low)
    return value


def per_group(name: str, optimizer: Any, values: PerGroup) -> list[float]:
    """Return a number for each group, which were given one by one or as one for all."""
    count = len(groups_of(optimizer))
    given = list(values) if isinstance(values, Sequence) else [values] * count
    if len(given) != count:
        raise ValueError(f"{name} must be a number, or one per group, {count}, got {len(given)}")
    return [number(name, value) for value in given]


def positive_int(name: str, value: int) -> int:
    """Return a positive int, or raise an error."""
    if check_int(name, value) <= 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def _functions(optimizer: Any, lr_lambda: Factor | Sequence[Factor]) -> list[Factor]:
    groups = groups_of(optimizer)
    functions = [lr_lambda] * len(groups) if callable(lr_lambda) else list(lr_lambda)
    if len(functions) != len(groups):
        raise ValueError(f"lr_lambda must be one function, or one per group, {len(groups)}, got {len(functions)}")
    return functions


class LambdaLR(LRScheduler):
    """The initial learning rate times a function of the epoch: base·λ(t).

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    lr_lambda : callable or list of callables
        λ, or one per group. Functions are not part of the state.
    last_epoch : int
        See `LRScheduler`.

    Examples
    --------
    >>> import lucid
    >>> optimizer = lucid.optim.SGD([lucid.ones(2, requires_grad=True)], lr=1.0)
    >>> scheduler = lucid.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    >>> for _ in range(2):
    ...     optimizer.step()
    ...     scheduler.step()
    >>> scheduler.get_last_lr()
    [0.25]
    """

    _unsaved = ("optimizer", "lr_lambdas")

    def __init__(self, optimizer: Any, lr_lambda: Factor | Sequence[Factor], last_epoch: int = -1) -> None:
        self.lr_lambdas = _functions(optimizer, lr_lambda)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]


class _FactorLR(LRScheduler):
    """A learning rate of m + (base − m)·f(t), with m = `_minimum`.

    Each step multiplies lr − m by f(t) / f(t − 1): what else changes the learning rate, such as another scheduler,
    keeps its effect.
    """

    _minimum = 0.0

    def __init__(self, optimizer: Any, last_epoch: int = -1) -> None:
        lrs = current_lrs(optimizer)
        super().__init__(optimizer, last_epoch)
        if last_epoch != -1:  # an optimizer that resumes has the learning rate of the next epoch
            self._set(lrs)

    def _factor(self, epoch: int) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        factor, before = self._factor(self.last_epoch), 1.0
        if self.last_epoch > 0:
            before = self._factor(self.last_epoch - 1)
        lrs = current_lrs(self.optimizer)
        if factor == before:
            return lrs
        if before == 0:
            lrs, before = self.base_lrs, 1.0
        return [self._minimum + (lr - self._minimum) * (factor / before) for lr in lrs]


class MultiplicativeLR(_FactorLR):
    """The current learning rate times a function of the epoch, λ(t), from epoch 1 on; parameters as for `LambdaLR`."""

    _unsaved = ("optimizer", "lr_lambdas")

    def __init__(self, optimizer: Any, lr_lambda: Factor | Sequence[Factor], last_epoch: int = -1) -> None:
        self.lr_lambdas = _functions(optimizer, lr_lambda)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        lrs = current_lrs(self.optimizer)
        if self.last_epoch == 0:
            return lrs
        return [lr * factor(self.last_epoch) for lr, factor in zip(lrs, self.lr_lambdas, strict=True)]


class StepLR(_FactorLR):
    """Times `gamma` every `step_size` epochs: f(t) = gamma^⌊t / step_size⌋.

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    step_size : int
        Epochs between two changes.
    gamma : float
        The factor. Default: 0.1.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(self, optimizer: Any, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.step_size, self.gamma = positive_int("step_size", step_size), number("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return self.gamma ** (epoch // self.step_size)


class MultiStepLR(_FactorLR):
    """Times `gamma` at each of some epochs: f(t) = gamma^(number of milestones up to t).

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    milestones : sequence of int
        The epochs.
    gamma : float
        The factor. Default: 0.1.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(self, optimizer: Any, milestones: Sequence[int], gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.milestones = sorted(check_int("each of milestones", epoch) for epoch in milestones)
        self.gamma = number("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return self.gamma ** bisect_right(self.milestones, epoch)


class ExponentialLR(_FactorLR):
    """Times `gamma` every epoch: f(t) = gamma^t; parameters as for `StepLR`."""

    def __init__(self, optimizer: Any, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = number("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return self.gamma**epoch


class ConstantLR(_FactorLR):
    """Times `factor` for the first `total_iters` epochs, then times 1.

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    factor : float
        From 0 to 1. Default: 1/3.
    total_iters : int
        Epochs with the factor. Default: 5.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(self, optimizer: Any, factor: float = 1 / 3, total_iters: int = 5, last_epoch: int = -1) -> None:
        self.factor, self.total_iters = _part("factor", factor), positive_int("total_iters", total_iters)
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return self.factor if epoch < self.total_iters else 1.0


class LinearLR(_FactorLR):
    """Times a factor that changes linearly: f(t) = start + (end − start)·min(t, total_iters) / total_iters.

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    start_factor, end_factor : float
        From 0 to 1. Default: 1/3 and 1.
    total_iters : int
        The epoch from which the factor is `end_factor`. Default: 5.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self.start_factor, self.end_factor = _part("start_factor", start_factor), _part("end_factor", end_factor)
        self.total_iters = positive_int("total_iters", total_iters)
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        passed = min(epoch, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * passed


def _part(name: str, value: float) -> float:
    check_real(name, value, "a number from 0 to 1", lambda given: 0 <= given <= 1)
    return value


class PolynomialLR(_FactorLR):
    """Decay to 0: f(t) = (1 − min(t, total_iters) / total_iters)^power.

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    total_iters : int
        The epoch from which the learning rate is 0. Default: 5.
    power : float
        Non-negative. Default: 1.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(self, optimizer: Any, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> None:
        self.total_iters = positive_int("total_iters", total_iters)
        self.power = number("power", power, "a non-negative number", 0)
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        return (1 - min(epoch, self.total_iters) / self.total_iters) ** self.power


class CosineAnnealingLR(_FactorLR):
    """Half a wave of the cosine from the initial learning rate to `eta_min`: f(t) = (1 + cos(π·t / T_max)) / 2.

    I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, eq. 5, without restarts:
    after `T_max` epochs it rises again.

    Parameters
    ----------
    optimizer
        See `LRScheduler`.
    T_max : int
        Epochs to the minimum.
    eta_min : float
        The minimum. Default: 0.
    last_epoch : int
        See `LRScheduler`.
    """

    def __init__(self, optimizer: Any, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max, self.eta_min = positive_int("T_max", T_max), number("eta_min", eta_min)
        super().__init__(optimizer, last_epoch)

    @property
    def _minimum(self) -> float:  # type: ignore[override]
        return self.eta_min

    def _factor(self, epoch: int) -> float:
        return (1 + math.cos(math.pi * epoch / self.T_max)) / 2
