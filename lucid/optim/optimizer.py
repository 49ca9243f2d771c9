"""Base class of optimizers: parameter groups and state."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch

from lucid._arguments import check_bool, type_name
from lucid.tensor import Tensor


class Optimizer:
    """Base class: holds parameters in groups with their options, and state per parameter.

    Parameters
    ----------
    params
        Leaf Tensors, or dicts with a list of them under ``"params"`` and options of their own.
    defaults
        Options of groups that do not say otherwise.

    Attributes
    ----------
    param_groups : list of dict
        May be changed between steps, to decay ``"lr"`` for one.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor | dict) or not isinstance(params, Iterable):
            raise TypeError(f"params must be an iterable of lucid.Tensors or of dicts, got {type_name(params)}")
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        entries = list(params)
        if not entries:
            raise ValueError("params must hold at least one parameter, got none")
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group of parameters with options of their own.

        Parameters
        ----------
        group
            A Tensor, or an iterable of them, under ``"params"``; options that differ from the defaults by name.

        Raises
        ------
        TypeError
            If it is no such dict, or a parameter is no Tensor.
        ValueError
            If a parameter is no leaf of a floating dtype, or is there already; or an option has an impossible value.
        """
        if not isinstance(group, dict) or "params" not in group:
            got = f"the keys {list(group)}" if isinstance(group, dict) else type_name(group)
            raise TypeError(f'a parameter group must be a dict with "params", got {got}')
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
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
        complete = {**self.defaults, **group, "params": params}
        self._check(complete)
        self.param_groups.append(complete)

    def _check(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _update(self, param: Tensor, grad: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        raise NotImplementedError

    def step(self) -> None:
        """Change every parameter that has a gradient, in place."""
        for group in self.param_groups:
            self._check(group)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                self._update(param, param.grad._buffer, group, self.state.setdefault(param, {}))
                # Kernels do not bump torch's version counter; autograd relies on it for saved parameters.
                torch.autograd.graph.increment_version(param._buffer)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or put zeros in their place."""
        check_bool("set_to_none", set_to_none)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad = None if set_to_none else Tensor._wrap(torch.zeros_like(param.grad._buffer))

    def __repr__(self) -> str:
        lines = [
            f"Parameter Group {i}\n"
            + "".join(f"    {name}: {group[name]}\n" for name in sorted(group) if name != "params")
            for i, group in enumerate(self.param_groups)
        ]
        return f"{type(self).__name__} (\n{''.join(lines)})"


def check_number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Raise a ValueError that names the option unless low <= value < high, and finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) < high:
        above = f" and below {high:g}" if high < math.inf else " and finite"
        raise ValueError(f"{name} must be a number of at least {low:g}{above}, got {value!r}")


def state_like(param: Tensor) -> torch.Tensor:
    """Zeros for a parameter's state: float32, or float64 for a float64 parameter."""
    kind = torch.float64 if param._buffer.dtype is torch.float64 else torch.float32
    return torch.zeros_like(param._buffer, dtype=kind)
