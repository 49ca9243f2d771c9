"""Base classes of optimizers: parameter groups, state, and its saving."""

from __future__ import annotations

import math
import numbers
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from itertools import count
from typing import Any

import torch

import triton_kernels as tk
from lucid._arguments import check_bool, check_real, type_name
from lucid.autograd import enable_grad
from lucid.tensor import Tensor


class Optimizer:
    """Base class: holds parameters in groups with their options, and state per parameter.

    A subclass passes the defaults of its options to this constructor, and defines `step`.

    Parameters
    ----------
    params
        Leaf Tensors, or dicts with a list of them under ``"params"`` and options of their own.
    defaults : dict
        Options of groups that do not say otherwise.

    Attributes
    ----------
    param_groups : list of dict
        May be changed between steps, to decay ``"lr"`` for one.
    state : dict
        By parameter, a dict of what the optimizer keeps of it by name: Tensors and numbers.

    Examples
    --------
    >>> import lucid
    >>> class Sign(lucid.optim.Optimizer):
    ...     def __init__(self, params, lr):
    ...         super().__init__(params, {"lr": lr})
    ...     @lucid.no_grad()
    ...     def step(self, closure=None):
    ...         for group in self.param_groups:
    ...             for param in group["params"]:
    ...                 if param.grad is not None:
    ...                     param -= group["lr"] * (param.grad / param.grad.abs())
    >>> x = lucid.tensor([1.0, 2.0], requires_grad=True)
    >>> (x * lucid.tensor([3.0, -4.0])).sum().backward()
    >>> Sign([x], lr=0.5).step()
    >>> x.tolist()
    [0.5, 2.5]
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor | dict) or not isinstance(params, Iterable):
            raise TypeError(f"params must be an iterable of lucid.Tensors or of dicts, got {type_name(params)}")
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        entries = list(params)
        if not entries:
            raise ValueError("params must hold at least one parameter, got none")
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with options of their own.

        Parameters
        ----------
        param_group : dict
            A Tensor, or an iterable of them, under ``"params"``; options that differ from the defaults by name.

        Raises
        ------
        TypeError
            If it is no such dict, or a parameter is no Tensor.
        ValueError
            If a parameter is no leaf of a floating dtype, or is there already; or an option has an impossible value.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:
            got = f"the keys {list(param_group)}" if isinstance(param_group, dict) else type_name(param_group)
            raise TypeError(f'a parameter group must be a dict with "params", got {got}')
        params = [param_group["params"]] if isinstance(param_group["params"], Tensor) else list(param_group["params"])
        known = {id(param) for other in self.param_groups for param in other["params"]}
        for param in params:
            if not isinstance(param, Tensor):
                raise TypeError(f"params must be lucid.Tensors, got {type_name(param)}")
            if not param.is_leaf or not param.dtype.is_floating_point:
                raise ValueError(
                    f"params must be leaves of a floating dtype, got one of {param.dtype} and shape {param.shape}"
                )
            if id(param) in known:
                raise ValueError("duplicate parameter in params")
            known.add(id(param))
        complete = {**self.defaults, **param_group, "params": params}
        self._check(complete)
        self.param_groups.append(complete)

    def _check(self, group: dict[str, Any]) -> None:
        """Raise if an option of a group is impossible; for subclasses to define."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change the parameters that have a gradient, in place.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients anew, before the step.

        Returns
        -------
        object
            What `closure` returns; None without it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or put zeros in their place."""
        check_bool("set_to_none", set_to_none)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad = None if set_to_none else Tensor._wrap(torch.zeros_like(param.grad._buffer))

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of state and options, as PyTorch lays them out; parameters are numbered over all groups.

        Returns
        -------
        dict
            ``"state"``: a dict by number of parameter of its state's Tensors and numbers by name. ``"param_groups"``: a
            list of the groups' options, with the numbers of their parameters under ``"params"``.

        Examples
        --------
        >>> import lucid
        >>> x = lucid.tensor([1.0], requires_grad=True)
        >>> optimizer = lucid.optim.SGD([x], lr=0.1, momentum=0.9)
        >>> (x * 3).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state_dict()["state"]
        {0: {'momentum_buffer': tensor([3.])}}
        """
        number = count()
        groups, number_of = [], {}
        for group in self.param_groups:
            number_of.update({param: next(number) for param in group["params"]})
            options = {name: deepcopy(value) for name, value in group.items() if name != "params"}
            groups.append({**options, "params": [number_of[param] for param in group["params"]]})
        state = {number_of[param]: deepcopy(values) for param, values in self.state.items() if param in number_of}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy state and options of `state_dict`, from this class of optimizer, here or of PyTorch.

        Parameters
        ----------
        state_dict : mapping
            As `state_dict` returns it; tensors may also be torch's.

        Raises
        ------
        TypeError, KeyError
            If it is no such mapping.
        ValueError
            If its groups have other numbers of parameters, or lack an option; if an option is impossible; if a state
            does not fit its parameter. Nothing is changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, got {type_name(state_dict)}")
        missing = {"state", "param_groups"} - set(state_dict)
        if missing:
            raise KeyError(f'state_dict must have "state" and "param_groups", got the keys {list(state_dict)}')
        saved = state_dict["param_groups"]
        sizes = [[len(group.get("params", ())) for group in groups] for groups in (self.param_groups, saved)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"state_dict must have groups of {sizes[0]} parameters, those of the optimizer, got {sizes[1]}"
            )
        groups: list[dict[str, Any]] = []
        of_number: dict[Any, tuple[Tensor, dict[str, Any]]] = {}
        for i, (group, other) in enumerate(zip(self.param_groups, saved, strict=True)):
            lacking = [name for name in self.defaults if name not in other]
            if lacking:
                raise ValueError(
                    f"param_groups[{i}] of state_dict must have all options of this optimizer, lacks {lacking}"
                )
            options = {name: deepcopy(value) for name, value in other.items() if name != "params"}
            groups.append({**options, "params": group["params"]})
            self._check(groups[-1])
            of_number.update(
                {number: (param, groups[-1]) for number, param in zip(other["params"], group["params"], strict=True)}
            )
        unknown = [number for number in state_dict["state"] if number not in of_number]
        if unknown:
            raise ValueError(f"state_dict must have the state of parameters in its groups, got that of {unknown}")
        state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for number, values in state_dict["state"].items():
            param, group = of_number[number]
            state[param] = self._load(number, param, group, values)
        self.param_groups[:] = groups
        self.state = state

    def _load(self, number: int, param: Tensor, group: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a parameter's saved state, its tensors on the parameter's device."""
        return {name: _copied(value, param._buffer.device) for name, value in values.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __repr__(self) -> str:
        lines = [
            f"Parameter Group {i}\n"
            + "".join(f"    {name}: {group[name]}\n" for name in sorted(group) if name != "params")
            for i, group in enumerate(self.param_groups)
        ]
        return f"{type(self).__name__} (\n{''.join(lines)})"


class FusedOptimizer(Optimizer):
    """Base class of optimizers whose step is one launch per group, and dtype and device in it.

    State tensors are float32, or float64 for a float64 parameter, and lie in memory as the parameter does.

    Attributes
    ----------
    found_inf : Tensor or None
        0-d, set by `lucid.amp.GradScaler` during a step: unless it is 0, kernels leave parameters and state unchanged.
    """

    found_inf: Tensor | None = None

    #: `GradScaler` need not wait for the device to skip a step; torch's name.
    _step_supports_amp_scaling = True

    #: Names of the state that a parameter can have, ``"step"`` first, and of what a saved state must have.
    _STATE: tuple[str, ...]
    _REQUIRED: tuple[str, ...] = ()

    def _state_names(self, group: dict[str, Any]) -> list[str]:
        """Return the names of the state that a step of a group needs, in the order of `_STATE`."""
        raise NotImplementedError

    def _update(
        self, group: dict[str, Any], params: list[torch.Tensor], grads: list[torch.Tensor], **kept: Any
    ) -> None:
        """Launch the step of a group, with a list of buffers for each of the state's names, and `found_inf`."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change the parameters that have a gradient, in place: one launch per group, and dtype and device in it.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients anew, before the step.

        Returns
        -------
        object
            What `closure` returns; None without it.

        Raises
        ------
        ValueError
            If an option was given an impossible value; nothing is changed then.
        """
        for group in self.param_groups:
            self._check(group)
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        found_inf = None if self.found_inf is None else self.found_inf._buffer
        for group in self.param_groups:
            trained = [(param, param.grad) for param in group["params"] if param.grad is not None]
            grads = [grad._buffer for _, grad in trained]
            kept = {
                name: [self._state_buffer(param, name) for param, _ in trained] for name in self._state_names(group)
            }
            buffers = [param._buffer_for_write() for param, _ in trained]
            self._update(group, buffers, grads, found_inf=found_inf, **kept)
            for param, _ in trained:
                # Kernels do not bump torch's version counter; autograd relies on it for saved parameters.
                torch.autograd.graph.increment_version(param._buffer)
        return loss

    def _state_buffer(self, param: Tensor, name: str) -> torch.Tensor:
        state = self.state[param]
        if name not in state:
            state[name] = Tensor._wrap(_zeros(param, name))
        return state[name]._buffer

    def _load(self, number: int, param: Tensor, group: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a parameter's saved state in this optimizer's dtypes."""
        values = {name: value for name, value in values.items() if value is not None}
        lacking = [name for name in self._REQUIRED if values and name not in values]
        unknown = [name for name in values if name not in self._STATE]
        if lacking or unknown:
            raise ValueError(
                f"state[{number}] of state_dict must be that of {type(self).__name__}, "
                f"{', '.join(self._STATE)}, got {', '.join(values)}"
            )
        state = {}
        for name, value in values.items():
            target, source = _zeros(param, name), buffer_of(value)
            if source is None:
                source = torch.full((), check_real(f"{name} of state[{number}]", value, "a number", lambda _: True))
            elif name == "step" and source.numel() == 1:
                source = source.reshape(())
            if source.shape != target.shape:
                raise ValueError(
                    f"{name} of state[{number}] of state_dict must have shape {tuple(target.shape)}, got "
                    f"{tuple(source.shape)}"
                )
            state[name] = Tensor._wrap(target.copy_(source))
        return state


def buffer_of(value: Any) -> torch.Tensor | None:
    """Return the memory of a Tensor of lucid or torch, None for other values."""
    return value._buffer if isinstance(value, Tensor) else value.detach() if isinstance(value, torch.Tensor) else None


def _copied(value: Any, device: torch.device) -> Any:
    """Return a copy of a value of a state, a tensor on `device`."""
    buffer = buffer_of(value)
    return deepcopy(value) if buffer is None else Tensor._wrap(buffer.to(device, copy=True))


def _zeros(param: Tensor, name: str) -> torch.Tensor:
    """Return the initial state of a parameter: float32, or float64 for a float64 parameter."""
    if name == "step":
        return torch.zeros((), dtype=torch.float32, device=param._buffer.device)
    kind = tk.launch.compute_dtype(param._buffer.dtype)
    return torch.zeros_like(param._buffer, dtype=kind)


def check_number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Raise a ValueError that names the option unless low <= value < high, and finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) < high:
        above = f" and below {high:g}" if high < math.inf else " and finite"
        raise ValueError(f"{name} must be a number of at least {low:g}{above}, got {value!r}")
