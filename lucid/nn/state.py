"""A module's state: collecting it into a state dict, and loading one all or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from lucid.factories import from_torch
from lucid.tensor import Tensor

if TYPE_CHECKING:
    from lucid.nn.module import Module

__all__ = ["IncompatibleKeys", "load_state", "named_state"]


class IncompatibleKeys(NamedTuple):
    """Result of ``load_state_dict``: the keys on which state dict and module disagree.

    Attributes
    ----------
    missing_keys : list of str
        Keys of the module that the state dict lacks.
    unexpected_keys : list of str
        Keys of the state dict that the module lacks.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


def named_state(module: Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the module's own parameters and persistent buffers with their names, its submodules' not."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers:
            yield name, buffer


class _Loading:
    """Copies to make from a state dict into a module, and the errors that prevent them."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.errors: list[str] = []

    def plan(self, module: Module, prefix: str, keys: list[str]) -> None:
        """Compare `module` with `keys`, those of the state that start with `prefix`."""
        own = dict(named_state(module))
        for name, target in own.items():
            key = prefix + name
            if key in self.state:
                self._plan_copy(key, target)
            else:
                self.missing.append(key)
        children = {name: child for name, child in module._modules.items() if child is not None}
        for key in keys:
            name, dot, _ = key[len(prefix) :].partition(".")
            if name not in (children if dot else own):
                self.unexpected.append(key)
        for name, child in children.items():
            child_prefix = f"{prefix}{name}."
            self.plan(child, child_prefix, [key for key in keys if key.startswith(child_prefix)])

    def _plan_copy(self, key: str, target: Tensor) -> None:
        value = self.state[key]
        copying = f'While copying the parameter named "{key}", '
        if isinstance(value, np.ndarray | torch.Tensor):
            try:
                value = Tensor(value, device="cpu") if isinstance(value, np.ndarray) else from_torch(value)
            except (TypeError, ValueError) as error:
                self.errors.append(f"{copying}the {type(value).__name__} could not be converted: {error}")
                return
        if not isinstance(value, Tensor):
            expected = "expected lucid.Tensor, torch.Tensor or NumPy array from checkpoint"
            self.errors.append(f"{copying}{expected} but received {type(value)}")
        elif value.shape != target.shape:
            self.errors.append(
                f"size mismatch for {key}: copying a param with shape {value.shape} from checkpoint, "
                f"the shape in current model is {target.shape}."
            )
        else:
            self.copies.append((target, value))


def load_state(module: Module, state: Mapping[str, Any], strict: bool) -> IncompatibleKeys:
    """Copy `state` into the module's parameters and buffers; where anything is wrong, copy nothing.

    Parameters
    ----------
    module : Module
    state : mapping of str to Tensor, torch.Tensor or NumPy array
    strict : bool
        Whether missing and unexpected keys are errors.

    Returns
    -------
    IncompatibleKeys

    Raises
    ------
    TypeError
        If `state` is no mapping of strings.
    RuntimeError
        With everything that is wrong.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"Expected state_dict to be dict-like, got {type(state)}.")
    for key in state:
        if not isinstance(key, str):
            raise TypeError(f"Expected the keys of state_dict to be strings, got {key!r}.")
    loading = _Loading(state)
    loading.plan(module, "", list(state))
    errors = loading.errors
    if strict:
        disagreements = (("Missing", loading.missing), ("Unexpected", loading.unexpected))
        lists = [(kind, ", ".join(f'"{key}"' for key in keys)) for kind, keys in disagreements if keys]
        errors = [f"{kind} key(s) in state_dict: {keys}. " for kind, keys in lists] + errors
    if errors:
        name = type(module).__name__
        raise RuntimeError(f"Error(s) in loading state_dict for {name}:\n\t" + "\n\t".join(errors))
    for target, value in loading.copies:
        target._buffer_for_write().copy_(value._buffer)
    return IncompatibleKeys(loading.missing, loading.unexpected)
