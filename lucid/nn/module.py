"""Module: what every layer and model is made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar

from lucid._arguments import check_bool
from lucid._tensor_methods import parse_to
from lucid.autograd import no_grad
from lucid.nn._attribute_mixin import _AttributeMixin
from lucid.nn._hook_mixin import _HookMixin
from lucid.nn._repr import indented, layout
from lucid.nn.parameter import Parameter
from lucid.nn.state import IncompatibleKeys, load_state, named_state
from lucid.tensor import Tensor

__all__ = ["Module"]

_T = TypeVar("_T")


class Module(_HookMixin, _AttributeMixin):
    """Base class of layers and models.

    A subclass calls ``super().__init__()``, assigns parameters and submodules as attributes and defines
    ``forward``; calling the module runs ``forward`` and the hooks. Every :class:`Parameter` and
    :class:`Module` assigned is registered: :meth:`parameters`, :meth:`modules`, :meth:`to`,
    :meth:`state_dict` and their like find it.

    Attributes
    ----------
    training : bool
        Whether the module is in training mode; :meth:`train` and :meth:`eval` set it.

    Examples
    --------
    >>> from lucid import nn
    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hidden = nn.Linear(4, 8)
    ...         self.head = nn.Linear(8, 2, bias=False)
    ...     def forward(self, x):
    ...         return self.head(nn.functional.tanh(self.hidden(x)))
    >>> Model()
    Model(
      (hidden): Linear(in_features=4, out_features=8, bias=True)
      (head): Linear(in_features=8, out_features=2, bias=False)
    )
    >>> [(name, parameter.shape) for name, parameter in Model().named_parameters()]
    [('hidden.weight', (8, 4)), ('hidden.bias', (8,)), ('head.weight', (2, 8))]
    """

    training: bool
    _version: int = 1
    _modules: dict[str, Module | None]

    def __init__(self) -> None:
        _HookMixin.__init__(self)
        _AttributeMixin.__init__(self)
        self.training = True

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Yield this module and all below it, each before its own, with their dotted names.

        Parameters
        ----------
        memo : set of Module, optional
            Modules to leave out; those yielded are added.
        prefix : str
            The name of this module.
        remove_duplicate : bool
            Whether a module that is used in several places is yielded once only.
        """
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(memo, _join(prefix, name), remove_duplicate)

    def modules(self, remove_duplicate: bool = True) -> Iterator[Module]:
        """Yield this module and all below it; see :meth:`named_modules`."""
        for _, module in self.named_modules(remove_duplicate=remove_duplicate):
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the submodules directly below this module with their names, a shared one once."""
        memo: set[Module] = set()
        for name, module in self._modules.items():
            if module is not None and module not in memo:
                memo.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """Yield the submodules directly below this module, a shared one once."""
        for _, module in self.named_children():
            yield module

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield the parameters with their dotted names.

        Parameters
        ----------
        prefix : str
            The name of this module.
        recurse : bool
            Whether to yield those of the modules below as well.
        remove_duplicate : bool
            Whether a parameter that is used in several places is yielded once only, under its first name.
        """
        yield from self._named_members(lambda module: module._parameters, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield the parameters, a shared one once; see :meth:`named_parameters`."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers with their dotted names; for the arguments see :meth:`named_parameters`."""
        yield from self._named_members(lambda module: module._buffers, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers, a shared one once; see :meth:`named_buffers`."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def _named_members(
        self,
        members: Callable[[Module], Mapping[str, _T | None]],
        prefix: str,
        recurse: bool,
        remove_duplicate: bool,
    ) -> Iterator[tuple[str, _T]]:
        # By identity: tensors compare by element.
        seen: set[int] = set()
        own = [(prefix, self)]
        for owner_name, owner in self.named_modules(None, prefix, remove_duplicate) if recurse else own:
            for name, member in members(owner).items():
                if member is not None and id(member) not in seen:
                    if remove_duplicate:
                        seen.add(id(member))
                    yield _join(owner_name, name), member

    def get_submodule(self, target: str) -> Module:
        """Return the module below this one with the dotted name `target`; this one for ``""``.

        Raises
        ------
        AttributeError
            If there is none.
        """
        module = self
        for name in target.split(".") if target else ():
            if not hasattr(module, name):
                raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
            module = getattr(module, name)
            if not isinstance(module, Module):
                raise AttributeError(f"`{name}` is not an nn.Module")
        return module

    def get_parameter(self, target: str) -> Parameter:
        """Return the parameter with the dotted name `target`.

        Raises
        ------
        AttributeError
            If there is none.
        """
        owner_name, _, name = target.rpartition(".")
        owner = self.get_submodule(owner_name)
        if not hasattr(owner, name):
            raise AttributeError(f"{type(owner).__name__} has no attribute `{name}`")
        parameter = getattr(owner, name)
        if not isinstance(parameter, Parameter):
            raise AttributeError(f"`{name}` is not an nn.Parameter")
        return parameter

    def apply(self, fn: Callable[[Module], object]) -> Self:
        """Call `fn` with every module below this one, then with this one; return this one."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Put this module and all below it into training mode, or out of it; return this one.

        Raises
        ------
        ValueError
            If `mode` is no bool.
        """
        if not isinstance(mode, bool):
            raise ValueError(f"training mode is expected to be boolean, got {type(mode).__name__}")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self) -> Self:
        """Put this module and all below it out of training mode; return this one."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set ``requires_grad`` of every parameter; return this module."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters; with ``set_to_none=False`` zero them in place instead."""
        check_bool("set_to_none", set_to_none)
        for parameter in self.parameters():
            gradient = parameter.grad
            if set_to_none or gradient is None:
                parameter.grad = None
                continue
            if not gradient.is_leaf:
                parameter.grad = gradient = gradient.detach()
            gradient._buffer_for_write().zero_()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and convert parameters, their gradients and buffers; the objects stay the same.

        Parameters
        ----------
        *args, **kwargs
            A device, a floating dtype, or both, as :meth:`lucid.Tensor.to` takes them. Integer buffers move,
            but keep their dtype.

        Returns
        -------
        Module
            This module.

        Raises
        ------
        TypeError
            If the dtype is not floating.

        Examples
        --------
        >>> import lucid
        >>> lucid.nn.Linear(3, 2).to(lucid.float64).weight.dtype
        lucid.float64
        """
        device, dtype = parse_to(*args, **kwargs)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"nn.Module.to only accepts floating point dtypes, but got desired dtype={dtype}")
        with no_grad():
            for member in (*self.parameters(), *self.buffers()):
                for tensor in (member, member.grad):
                    if tensor is not None:
                        floating = tensor.dtype.is_floating_point
                        tensor._buffer = tensor.to(device=device, dtype=dtype if floating else None)._buffer
        return self

    def float(self) -> Self:
        """Convert floating parameters and buffers to float32; return the module."""
        return self.to("float32")

    def double(self) -> Self:
        """Convert floating parameters and buffers to float64; return the module."""
        return self.to("float64")

    def half(self) -> Self:
        """Convert floating parameters and buffers to float16; return the module."""
        return self.to("float16")

    def bfloat16(self) -> Self:
        """Convert floating parameters and buffers to bfloat16; return the module."""
        return self.to("bfloat16")

    def cpu(self) -> Self:
        """Move parameters and buffers to the CPU; return the module."""
        return self.to("cpu")

    def cuda(self) -> Self:
        """Move parameters and buffers to the GPU; return the module."""
        return self.to("cuda")

    def state_dict(
        self,
        *,
        destination: dict[str, Tensor] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Tensor]:
        """Collect all parameters and persistent buffers.

        Parameters
        ----------
        destination : dict, optional
            What to put them into; a fresh OrderedDict by default.
        prefix : str
            What their names start with.
        keep_vars : bool
            Whether to collect the tensors themselves instead of detached ones that share their memory.

        Returns
        -------
        OrderedDict of str to Tensor
            By dotted name. Its attribute ``_metadata`` holds the version of every module.

        Examples
        --------
        >>> from lucid import nn
        >>> list(nn.Sequential(nn.Linear(2, 2), nn.Tanh()).state_dict())
        ['0.weight', '0.bias']
        """
        if destination is None:
            destination = OrderedDict()
            vars(destination)["_metadata"] = OrderedDict()
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata[prefix.removesuffix(".")] = {"version": self._version}
        for name, tensor in named_state(self):
            destination[prefix + name] = tensor if keep_vars else tensor.detach()
        for name, module in self._modules.items():
            if module is not None:
                module.state_dict(destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        return destination

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy a state dict into the parameters and buffers, converting dtype and device to theirs.

        Nothing is copied where anything is wrong.

        Parameters
        ----------
        state_dict : mapping of str to Tensor or NumPy array
            As :meth:`state_dict` returns it.
        strict : bool
            Whether keys that are missing or unexpected are errors.

        Returns
        -------
        IncompatibleKeys
            A named tuple of the lists ``missing_keys`` and ``unexpected_keys``.

        Raises
        ------
        TypeError
            If `state_dict` is no mapping from strings.
        RuntimeError
            If keys are missing or unexpected, shapes differ, or values are neither tensors nor arrays; names
            them all.

        Examples
        --------
        >>> from lucid import nn
        >>> model, copy = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> copy.load_state_dict(model.state_dict())
        <All keys matched successfully>
        """
        return load_state(self, state_dict, check_bool("strict", strict))

    def extra_repr(self) -> str:
        """Return what ``repr`` shows between the parentheses besides the submodules; empty by default."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {indented(repr(module))}" for name, module in self._modules.items()]
        return layout(type(self).__name__, self.extra_repr(), children)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
