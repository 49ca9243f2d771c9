"""Scenarios that run in lucid and in PyTorch, and a comparison of results and recorded hook calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import lucid

X = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], np.float32)


def plain(value: Any) -> Any:
    """Convert tensors of either library, also in nested tuples, to NumPy arrays."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    return value.numpy() if isinstance(value, lucid.Tensor) else value


class Library:
    """One of the two libraries, and the events that hooks record."""

    def __init__(self, package: Any) -> None:
        self.package = package
        self.nn = package.nn
        self.grad = package.autograd.grad
        self.events: list[tuple[Any, ...]] = []

    def tensor(self, array: Any, requires_grad: bool = False) -> Any:
        return self.package.tensor(np.asarray(array, np.float32), requires_grad=requires_grad)

    def record(self, *event: Any) -> None:
        self.events.append(tuple(plain(part) for part in event))

    def model(self) -> Any:
        model = self.nn.Sequential(self.nn.Linear(2, 3), self.nn.Tanh(), self.nn.Linear(3, 2))
        values = np.random.default_rng(0).normal(size=17).astype(np.float32)
        state = {}
        for name, tensor in model.state_dict().items():
            size = int(np.prod(tuple(tensor.shape)))
            state[name] = self.tensor(values[:size].reshape(tuple(tensor.shape)))
            values = values[size:]
        model.load_state_dict(state)
        return model

    def watch(self, name: str, module: Any) -> None:
        """Register recording hooks of all four kinds."""
        module.register_forward_pre_hook(lambda _, args: self.record(name, "before", args))
        module.register_forward_hook(lambda _, args, output: self.record(name, "after", args, output))
        module.register_full_backward_pre_hook(lambda _, grads: self.record(name, "back", grads))
        module.register_full_backward_hook(lambda _, inner, outer: self.record(name, "backed", inner, outer))


def in_both(scenario: Callable[..., Any]) -> Callable[..., None]:
    """Make a test of a scenario: run it in both libraries; compare what it returns and the recorded events."""

    def test(**parameters: Any) -> None:
        ours, theirs = Library(lucid), Library(torch)
        results = [plain(scenario(library, **parameters)) for library in (ours, theirs)]
        assert [event[:2] for event in ours.events] == [event[:2] for event in theirs.events]
        same(ours.events, theirs.events)
        same(*results)

    test.__doc__ = scenario.__doc__
    # Pytest passes the parameters that the signature names.
    _, *parameters = inspect.signature(scenario).parameters.values()
    test.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return test


def same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other)
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    else:
        assert ours == theirs


def with_forward(library: Library, forward: Callable[..., Any]) -> Any:
    base: Any = library.nn.Module

    class Custom(base):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

    return Custom()
