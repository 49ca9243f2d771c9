"""Containers: modules made of modules."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from itertools import count
from typing import Any, Self, SupportsIndex, TypeAlias, overload

from lucid.nn._repr import indented, layout
from lucid.nn.module import Module

__all__ = ["ModuleDict", "ModuleList", "Sequential"]


_Named: TypeAlias = "Mapping[str, Module] | ModuleDict | Iterable[tuple[str, Module]]"


class _Container(Module):
    def register_module(self, name: str, module: Module | None) -> None:
        if module is None:
            raise TypeError(f"{type(self).__name__} holds modules, got None for '{name}'")
        super().register_module(name, module)

    def _items(self) -> dict[str, Module]:
        # None is there only where an attribute was set to it: no longer an item.
        return {name: module for name, module in self._modules.items() if module is not None}


class _Indexed(_Container):
    """Base class of list-like containers: ordered items, named by their index unless they were given names."""

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items().values())

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    @overload
    def __getitem__(self, index: SupportsIndex) -> Module: ...

    def __getitem__(self, index: slice | SupportsIndex) -> Self | Module:
        if isinstance(index, slice):
            return self._like(dict(list(self._items().items())[index]))
        return self._items()[self._name(index)]

    def __setitem__(self, index: SupportsIndex, module: Module) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__} holds modules, got {type(module).__name__}")
        self._modules[self._name(index)] = module

    def __delitem__(self, index: slice | SupportsIndex) -> None:
        items = self._items()
        numbered = list(items) == [str(i) for i in range(len(items))]
        for name in list(items)[index] if isinstance(index, slice) else [self._name(index)]:
            del items[name]
        # Numbers stay places; names that were given stay what they are.
        names = map(str, range(len(items))) if numbered else items
        self._modules = dict(zip(names, items.values(), strict=True))

    def append(self, module: Module) -> Self:
        """Add a module at the end; return the container.

        Raises
        ------
        TypeError
            If `module` is no Module.
        """
        free = (name for name in map(str, count(len(self))) if name not in self._modules)
        self.register_module(next(free), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; return the container.

        Raises
        ------
        TypeError
            If `modules` is no iterable, or holds something that is no Module.
        """
        for module in tuple(modules):
            self.append(module)
        return self

    def _like(self, items: dict[str, Module]) -> Self:
        """Return a container of the same kind that holds `items`."""
        raise NotImplementedError

    def _name(self, index: SupportsIndex) -> str:
        place = operator.index(index)
        names = list(self._items())
        if not -len(names) <= place < len(names):
            raise IndexError(f"index {place} is out of range")
        return names[place]


class Sequential(_Indexed):
    """A chain: every module gets the output of the one before it.

    Parameters
    ----------
    *modules : Module, or one mapping of str to Module
        The modules in order; a mapping names them, else they are called ``'0'``, ``'1'`` and so on. They are
        indexed by place, and a slice is a Sequential of the same modules.

    Raises
    ------
    TypeError
        If one is no Module.

    Examples
    --------
    >>> from lucid import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> model[1:]
    Sequential(
      (1): Tanh()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.register_module(name, module)
        else:
            self.extend(modules)

    def forward(self, x: Any) -> Any:
        """Return the output of the last module; `x` itself where there is none."""
        for module in self:
            x = module(x)
        return x

    def _like(self, items: dict[str, Module]) -> Self:
        return type(self)(OrderedDict(items))


class ModuleList(_Indexed):
    """A list of modules; how they are used is up to the module that holds it.

    Parameters
    ----------
    modules : iterable of Module, optional

    Raises
    ------
    TypeError
        If `modules` is no iterable, or holds something that is no Module.

    Examples
    --------
    >>> from lucid import nn
    >>> nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh()])
    ModuleList(
      (0-1): 2 x Linear(in_features=4, out_features=4, bias=True)
      (2): Tanh()
    )
    """

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def __iadd__(self, modules: Iterable[Module]) -> Self:
        return self.extend(modules)

    def insert(self, index: SupportsIndex, module: Module) -> None:
        """Add a module before the one at `index`, as ``list.insert`` does.

        Raises
        ------
        TypeError
            If `module` is no Module.
        """
        self.append(module)
        modules = list(self)
        modules.insert(index, modules.pop())
        self._modules = {str(place): item for place, item in enumerate(modules)}

    def __repr__(self) -> str:
        # Neighbours that print alike are printed once.
        runs: list[tuple[str, int]] = []
        for text in map(repr, self):
            if runs and runs[-1][0] == text:
                runs[-1] = (text, runs[-1][1] + 1)
            else:
                runs.append((text, 1))
        lines = []
        first = 0
        for text, length in runs:
            lines.append(
                f"({first}): {indented(text)}"
                if length == 1
                else f"({first}-{first + length - 1}): {length} x {indented(text)}"
            )
            first += length
        return layout(type(self).__name__, self.extra_repr(), lines)

    def _like(self, items: dict[str, Module]) -> Self:
        return type(self)(items.values())


class ModuleDict(_Container):
    """A dictionary of modules, in the order they came; how they are used is up to the module that holds it.

    Parameters
    ----------
    modules : mapping of str to Module, or iterable of pairs, optional

    Raises
    ------
    TypeError, KeyError
        If a value is no Module, or a key is no name or that of an attribute of dictionaries of modules.

    Examples
    --------
    >>> from lucid import nn
    >>> heads = nn.ModuleDict({"student": nn.Linear(4, 2), "teacher": nn.Linear(8, 2)})
    >>> list(heads)
    ['student', 'teacher']
    >>> heads["teacher"]
    Linear(in_features=8, out_features=2, bias=True)
    """

    def __init__(self, modules: _Named | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.update(modules)

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[str]:
        return iter(self._items())

    def __contains__(self, key: object) -> bool:
        return key in self._items()

    def __getitem__(self, key: str) -> Module:
        return self._items()[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.register_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return self._items().keys()

    def values(self) -> ValuesView[Module]:
        """Return the modules."""
        return self._items().values()

    def items(self) -> ItemsView[str, Module]:
        """Return the pairs of name and module."""
        return self._items().items()

    def update(self, modules: _Named) -> None:
        """Add modules by name; one that has the name already is replaced."""
        for key, module in dict(modules).items():
            self[key] = module

    def pop(self, key: str) -> Module:
        """Take the module called `key` out and return it."""
        module = self[key]
        del self[key]
        return module

    def clear(self) -> None:
        """Take all modules out."""
        self._modules.clear()
