"""Parameters, buffers and submodules of a module, registered under the names of its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lucid.nn.parameter import Parameter
from lucid.tensor import Tensor

__all__ = ["_AttributeMixin"]

_KINDS = ("_parameters", "_buffers", "_modules")


class _AttributeMixin:
    """The part of a module that has attributes; :class:`lucid.nn.Module` has the rest."""

    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _non_persistent_buffers: set[str]
    _modules: dict[str, Any]

    def __init__(self) -> None:
        self._parameters = {}
        self._buffers = {}
        self._non_persistent_buffers = set()
        self._modules = {}

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter under an attribute name; None stands for one that is left out.

        Raises
        ------
        TypeError, KeyError
            If `param` is no Parameter, or `name` is no name or taken.
        """
        self._check_name("parameter", name, self._parameters)
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"cannot assign '{_type_name(param)}' object to parameter '{name}' "
                "(lucid.nn.Parameter or None required)"
            )
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that belongs to the module but is not trained, under an attribute name.

        Parameters
        ----------
        name : str
        tensor : Tensor or None
            None stands for a buffer that is left out.
        persistent : bool
            Whether the buffer is part of :meth:`state_dict`.

        Raises
        ------
        TypeError, KeyError
            If `tensor` is no Tensor, or `name` is no name or taken.
        """
        self._check_name("buffer", name, self._buffers)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"cannot assign '{_type_name(tensor)}' object to buffer '{name}' (lucid.Tensor or None required)"
            )
        self._buffers[name] = tensor
        if persistent:
            self._non_persistent_buffers.discard(name)
        else:
            self._non_persistent_buffers.add(name)

    def register_module(self, name: str, module: Any) -> None:
        """Add a submodule under an attribute name; None stands for one that is left out.

        Raises
        ------
        TypeError, KeyError
            If `module` is no Module, or `name` is no name or taken.
        """
        if module is not None and not isinstance(module, _AttributeMixin):
            raise TypeError(f"{_type_name(module)} is not a Module subclass")
        self._check_name("module", name, self._modules)
        self._modules[name] = module

    def add_module(self, name: str, module: Any) -> None:
        """Do what :meth:`register_module` does."""
        self.register_module(name, module)

    def _check_name(self, kind: str, name: str, members: Mapping[str, object]) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{kind} name should be a string. Got {_type_name(name)}")
        if "." in name:
            raise KeyError(f'{kind} name can\'t contain ".", got: {name}')
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')
        if name not in members and hasattr(self, name):
            raise KeyError(f"attribute '{name}' already exists")

    def __getattr__(self, name: str) -> Any:
        for kind in _KINDS:
            members = self.__dict__.get(kind, {})
            if name in members:
                return members[name]
        message = f"'{type(self).__name__}' object has no attribute '{name}'"
        if "_modules" not in self.__dict__:
            message += ", as super().__init__() was not called yet"
        raise AttributeError(message, name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        members = self.__dict__
        if isinstance(value, Parameter):
            self._drop_existing("parameter", name, "_parameters")
            self.register_parameter(name, value)
        elif name in members.get("_parameters", ()):
            if value is not None:
                raise _assignment_error(value, "parameter", name, "lucid.nn.Parameter")
            self._parameters[name] = None
        elif isinstance(value, _AttributeMixin):
            self._drop_existing("module", name, "_modules")
            self._modules[name] = value
        elif name in members.get("_modules", ()):
            if value is not None:
                raise _assignment_error(value, "child module", name, "lucid.nn.Module")
            self._modules[name] = None
        elif name in members.get("_buffers", ()):
            if value is not None and not isinstance(value, Tensor):
                raise _assignment_error(value, "buffer", name, "lucid.Tensor")
            self._buffers[name] = value
        else:
            super().__setattr__(name, value)

    def _drop_existing(self, kind: str, name: str, destination: str) -> None:
        """Free `name` of whatever else it stands for, so that it can be registered."""
        if "_modules" not in self.__dict__:
            raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
        self.__dict__.pop(name, None)
        for members in _KINDS:
            if members != destination:
                self.__dict__[members].pop(name, None)

    def __delattr__(self, name: str) -> None:
        for kind in _KINDS:
            if name in self.__dict__.get(kind, ()):
                del self.__dict__[kind][name]
                return
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        members = [name for kind in _KINDS for name in self.__dict__.get(kind, ())]
        # The numbered submodules of containers are no attribute names.
        return sorted({name for name in (*super().__dir__(), *members) if not name[:1].isdigit()})


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _assignment_error(value: object, kind: str, name: str, accepted: str) -> TypeError:
    return TypeError(f"cannot assign '{_type_name(value)}' as {kind} '{name}' ({accepted} or None expected)")
