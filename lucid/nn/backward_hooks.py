"""Backward hooks of modules: one identity node before a module's forward and one after it.

The identity after the module runs first in a backward pass. It shows the outputs' gradients to the pre-hooks
and remembers them. The identity before the module runs last; it has the inputs' gradients at hand and calls
the hooks with both. Both are ordinary Functions, so what the hooks see and return stays differentiable under
``create_graph=True``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lucid._arguments import type_name
from lucid.autograd import Function, is_grad_enabled
from lucid.tensor import Tensor

__all__ = ["BackwardHooks"]

Grads = tuple[Tensor | None, ...]
Hook = Callable[..., Any]


class _Identity(Function):
    """Pass tensors on unchanged; on the way back hand their gradients to a callback that may replace them."""

    @staticmethod
    def forward(ctx: Any, on_grads: Callable[[Grads], Grads], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.on_grads = on_grads
        return tuple(Tensor._wrap(tensor._memory) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.on_grads(grads))


class BackwardHooks:
    """The backward hooks of one module during one call of it.

    Gradients have one entry per positional argument, or per output, of the module: None for what is no
    tensor, does not require grad or was not reached.

    Parameters
    ----------
    module
        The module, as the hooks get it.
    hooks
        Called as ``hook(module, grad_input, grad_output)``; may return a replacement for `grad_input`.
    pre_hooks
        Called as ``hook(module, grad_output)``; may return a replacement for `grad_output`.
    """

    def __init__(self, module: object, hooks: Sequence[Hook], pre_hooks: Sequence[Hook]) -> None:
        self._module = module
        self._hooks = hooks
        self._pre_hooks = pre_hooks
        self._n_inputs = 0
        self._has_input_grads = False
        self._grad_output: Grads | None = None

    def watch_inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the module's positional arguments, those that require grad led through an identity."""
        self._n_inputs = len(args)
        args, self._has_input_grads = self._watch(args, self._on_grad_input)
        return args

    def watch_outputs(self, output: Any) -> Any:
        """Return the module's output, its tensors that require grad led through an identity."""
        if isinstance(output, Tensor):
            (output,), _ = self._watch((output,), self._on_grad_output)
            return output
        if not isinstance(output, tuple):
            warnings.warn(
                f"backward hooks of {type(self._module).__name__} are not called: its output should be a "
                f"Tensor or a tuple of Tensors, got {type_name(output)}",
                stacklevel=3,
            )
            return output
        watched, _ = self._watch(output, self._on_grad_output)
        # A named tuple stays one.
        return watched if type(output) is tuple else type(output)(*watched)

    def _watch(self, values: tuple[Any, ...], on_grads: Callable[[Grads], Grads]) -> tuple[tuple[Any, ...], bool]:
        if not is_grad_enabled():
            return values, False
        places = [i for i, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
        if not places:
            return values, False

        count = len(values)  # the graph keeps `spread`, which must not keep the values

        def spread(grads: Grads) -> Grads:
            full: list[Tensor | None] = [None] * count
            for place, grad in zip(places, grads, strict=True):
                full[place] = grad
            changed = on_grads(tuple(full))
            return tuple(changed[place] for place in places)

        watched = list(values)
        for place, tensor in zip(places, _Identity.apply(spread, *(values[i] for i in places)), strict=True):
            watched[place] = tensor
        return tuple(watched), True

    def _on_grad_output(self, grad_output: Grads) -> Grads:
        for hook in self._pre_hooks:
            returned = hook(self._module, grad_output)
            grad_output = self._replaced("pre-hook", "grad_output", returned, grad_output)
        if self._has_input_grads:
            self._grad_output = grad_output
            return grad_output
        # No gradient will ever arrive at the inputs, so this is the last chance to call the hooks.
        grad_input: Grads = (None,) * self._n_inputs
        for hook in self._hooks:
            returned = hook(self._module, grad_input, grad_output)
            changed = self._replaced("hook", "grad_input", returned, grad_input)
            if any(grad is not None for grad in changed):
                raise RuntimeError(
                    f"{self._name('hook')} must return None, or None for every grad_input, "
                    "where no input of the module requires grad"
                )
        return grad_output

    def _on_grad_input(self, grad_input: Grads) -> Grads:
        if self._grad_output is None:
            # The gradient did not come through the output: this is the second pass of a double backward.
            return grad_input
        # Forgotten before the hooks run: a hook that raises must not leave gradients for the next pass.
        grad_output, self._grad_output = self._grad_output, None
        for hook in self._hooks:
            returned = hook(self._module, grad_input, grad_output)
            grad_input = self._replaced("hook", "grad_input", returned, grad_input)
        return grad_input

    def _name(self, kind: str) -> str:
        return f"backward {kind} of {type(self._module).__name__}"

    def _replaced(self, kind: str, what: str, returned: Any, grads: Grads) -> Grads:
        if returned is None:
            return grads
        if isinstance(returned, Tensor):
            returned = (returned,)
        if isinstance(returned, list):
            returned = tuple(returned)
        accepted = f"{self._name(kind)} must return None, a Tensor or a tuple of Tensors or None"
        if not isinstance(returned, tuple):
            raise TypeError(f"{accepted}, got {type_name(returned)}")
        for place, grad in enumerate(returned):
            if grad is not None and not isinstance(grad, Tensor):
                raise TypeError(f"{accepted}, got {type_name(grad)} at {what}[{place}]")
        if len(returned) != len(grads):
            raise RuntimeError(
                f"{self._name(kind)} returned an invalid number of {what}, "
                f"got {len(returned)}, but expected {len(grads)}"
            )
        for place, (new, old) in enumerate(zip(returned, grads, strict=True)):
            if new is not None and old is not None and new.shape != old.shape:
                raise RuntimeError(
                    f"{self._name(kind)} returned {what}[{place}] of shape {new.shape}, but expected shape {old.shape}"
                )
        return returned
