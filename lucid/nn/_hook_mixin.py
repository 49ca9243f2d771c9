"""Calling a module: ``forward`` and the hooks around it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from lucid._arguments import type_name
from lucid._hooks import RemovableHandle, check_hook, register
from lucid.nn.backward_hooks import BackwardHooks

__all__ = ["_HookMixin"]

Hook = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class _PreHook:
    """A forward pre-hook of either signature; takes and returns positional and keyword arguments."""

    def __init__(self, fn: Hook, with_kwargs: bool) -> None:
        self.fn = fn
        self.with_kwargs = with_kwargs

    def __call__(self, module: object, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        if not self.with_kwargs:
            returned = self.fn(module, args)
            if returned is None:
                return args, kwargs
            return (returned if isinstance(returned, tuple) else (returned,)), kwargs
        returned = self.fn(module, args, kwargs)
        if returned is None:
            return args, kwargs
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise RuntimeError(
                f"forward pre-hook must return None or a tuple of (new_args, new_kwargs), but got {type_name(returned)}"
            )
        return returned


class _ForwardHook:
    """A forward hook of either signature."""

    def __init__(self, fn: Hook, with_kwargs: bool) -> None:
        self.fn = fn
        self.with_kwargs = with_kwargs

    def __call__(self, module: object, args: Args, kwargs: Kwargs, output: Any) -> Any:
        positional = (args, kwargs) if self.with_kwargs else (args,)
        returned = self.fn(module, *positional, output)
        return output if returned is None else returned


class _HookMixin:
    """The part of a module that can be called and hooked; :class:`lucid.nn.Module` has the rest."""

    _forward_pre_hooks: OrderedDict[int, _PreHook]
    _forward_hooks: OrderedDict[int, _ForwardHook]
    _backward_pre_hooks: OrderedDict[int, Hook]
    _backward_hooks: OrderedDict[int, Hook]

    def __init__(self) -> None:
        self._forward_pre_hooks = OrderedDict()
        self._forward_hooks = OrderedDict()
        self._backward_pre_hooks = OrderedDict()
        self._backward_hooks = OrderedDict()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; a subclass defines it, with arguments of its own.

        Raises
        ------
        NotImplementedError
            Where the subclass does not.
        """
        name = type(self).__name__
        raise NotImplementedError(f'Module [{name}] is missing the required "forward" function')

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self._forward_pre_hooks or self._forward_hooks or self._backward_pre_hooks or self._backward_hooks):
            return self.forward(*args, **kwargs)
        # All hooks are copied before they run: a hook may remove itself or others.
        for pre_hook in tuple(self._forward_pre_hooks.values()):
            args, kwargs = pre_hook(self, args, kwargs)
        backward = None
        if self._backward_pre_hooks or self._backward_hooks:
            backward = BackwardHooks(
                self, tuple(self._backward_hooks.values()), tuple(self._backward_pre_hooks.values())
            )
            args = backward.watch_inputs(args)
        output = self.forward(*args, **kwargs)
        for hook in tuple(self._forward_hooks.values()):
            output = hook(self, args, kwargs, output)
        return output if backward is None else backward.watch_outputs(output)

    def register_forward_pre_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Run `hook` before every ``forward``.

        Parameters
        ----------
        hook : callable
            ``hook(module, args)``; what it returns, unless None, replaces the positional arguments: a tuple
            of them, or the only one. With `with_kwargs`, ``hook(module, args, kwargs)``, which returns None
            or ``(args, kwargs)``.
        prepend : bool
            Run `hook` before the hooks registered so far instead of after them.
        with_kwargs : bool
            Whether `hook` gets, and returns, the keyword arguments as well.

        Returns
        -------
        RemovableHandle

        Raises
        ------
        TypeError
            If `hook` cannot be called.
        """
        check_hook(hook)
        return register(self._forward_pre_hooks, _PreHook(hook, with_kwargs), prepend=prepend)

    def register_forward_hook(self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False) -> RemovableHandle:
        """Run `hook` after every ``forward``.

        Parameters
        ----------
        hook : callable
            ``hook(module, args, output)``; what it returns, unless None, replaces the output. With
            `with_kwargs`, ``hook(module, args, kwargs, output)``.
        prepend : bool
            Run `hook` before the hooks registered so far instead of after them.
        with_kwargs : bool
            Whether `hook` gets the keyword arguments as well.

        Returns
        -------
        RemovableHandle

        Raises
        ------
        TypeError
            If `hook` cannot be called.
        """
        check_hook(hook)
        return register(self._forward_hooks, _ForwardHook(hook, with_kwargs), prepend=prepend)

    def register_full_backward_pre_hook(self, hook: Hook, *, prepend: bool = False) -> RemovableHandle:
        """Run `hook` in backward when the gradients of the module's outputs are known.

        Parameters
        ----------
        hook : callable
            ``hook(module, grad_output)`` with one gradient, or None, per output; returns None or a
            replacement. The output must be a Tensor or a tuple.
        prepend : bool
            Run `hook` before the hooks registered so far instead of after them.

        Returns
        -------
        RemovableHandle

        Raises
        ------
        TypeError
            If `hook` cannot be called. In backward, if it returns anything but None, a Tensor or a tuple of
            them.
        RuntimeError
            In backward, if it returns a wrong number of gradients or one of a wrong shape.
        """
        return register(self._backward_pre_hooks, hook, prepend=prepend)

    def register_full_backward_hook(self, hook: Hook, *, prepend: bool = False) -> RemovableHandle:
        """Run `hook` in backward when the gradients of the module's inputs are known.

        Parameters
        ----------
        hook : callable
            ``hook(module, grad_input, grad_output)`` with one gradient, or None, per positional argument and
            per output; returns None or a replacement for `grad_input`. The output must be a Tensor or a
            tuple. Where no input requires grad, `hook` runs when the gradients of the outputs are known,
            with None per input.
        prepend : bool
            Run `hook` before the hooks registered so far instead of after them.

        Returns
        -------
        RemovableHandle

        Raises
        ------
        TypeError
            If `hook` cannot be called. In backward, if it returns anything but None, a Tensor or a tuple of
            them.
        RuntimeError
            In backward, if it returns a wrong number of gradients, one of a wrong shape, or any where no
            input requires grad.

        Examples
        --------
        >>> import lucid
        >>> layer = lucid.nn.ReLU()
        >>> def show(module, grad_input, grad_output):
        ...     print(grad_input[0].tolist(), grad_output[0].tolist())
        >>> handle = layer.register_full_backward_hook(show)
        >>> x = lucid.tensor([-1.0, 1.0], requires_grad=True)
        >>> layer(x).backward(lucid.tensor([3.0, 4.0]))
        [0.0, 4.0] [3.0, 4.0]
        """
        return register(self._backward_hooks, hook, prepend=prepend)
