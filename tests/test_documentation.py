"""What `help` and `dir` show: every option where a user looks for it, and public names alone."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lucid
import lucid.torch
import lucid.typing
from lucid import _docs
from lucid.nn import functional

MODULES: tuple[Any, ...] = (
    *(lucid.torch.KLDivLoss, lucid.torch.CrossEntropyLoss, lucid.torch.DistillationLoss),
    *(lucid.nn.KLDivLoss, lucid.nn.CrossEntropyLoss, lucid.nn.DistillationLoss),
)
DESCRIBED: dict[str, Callable[..., Any]] = {
    **{f"lucid.torch.{name}": getattr(lucid.torch, name) for name in lucid.torch.__all__},
    **{
        f"lucid.nn.functional.{name}": getattr(functional, name)
        for name in functional.__all__
        if callable(getattr(functional, name))
    },
    **{f"lucid.nn.{module.__name__}": module for module in MODULES if not issubclass(module, torch.nn.Module)},
    **{f"{module.__module__}.{module.__name__}.forward": module.forward for module in MODULES},
}

SECTION = re.compile(r"^Parameters\n-+\n(.*?)(?=^\w+\n-+$|\Z)", re.MULTILINE | re.DOTALL)
#: Names that are documented together, a type, and what is indented below.
ENTRY = re.compile(r"^([*\w, ]+) : (.+)\n((?:^(?: {4}.*)?\n?)+)", re.MULTILINE)
CHAIN = re.compile(r"\b([Ss]ee|[Aa]s (for|in|there|above))\b")


def _entries(described: Callable[..., Any]) -> dict[str, str]:
    section = SECTION.search(inspect.getdoc(described) or "")
    assert section, "no section of parameters"
    return {
        name: text.strip() for names, _, text in ENTRY.findall(section[1] + "\n") for name in re.split(r",\s*", names)
    }


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_parameter_is_described_where_help_shows_it(name: str) -> None:
    described = DESCRIBED[name]
    entries = _entries(described)
    assert sorted(entries) == sorted(inspect.signature(described).parameters.keys() - {"self"})
    assert not [parameter for parameter, text in entries.items() if len(text) < 10]


@pytest.mark.parametrize("name", DESCRIBED)
def test_no_description_sends_the_reader_elsewhere(name: str) -> None:
    text = inspect.getdoc(DESCRIBED[name]) or ""
    assert not CHAIN.search(text)
    assert not re.search(r"\{\w+\}", text), "a placeholder was left"


def test_every_section_is_used() -> None:
    texts = "".join(inspect.getsource(inspect.getmodule(described)) for described in DESCRIBED.values())
    assert not [name for name in _docs.SECTIONS if f"{{{name}}}" not in texts]


#: Public modules except lucid, whose `dir` also has the submodules that were imported.
PUBLIC = (
    *(lucid.amp, lucid.autograd, lucid.nn, functional, lucid.nn.init, lucid.nn.utils, lucid.ops, lucid.optim),
    *(lucid.torch, lucid.typing),
)


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_dir_shows_what_is_public(module: Any) -> None:
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_dir_of_lucid_has_its_version_and_imported_modules_too() -> None:
    assert dir(lucid) == sorted([*lucid.__all__, "__version__", "torch", "typing"])
