"""Which modules import which, and whose packages these are."""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path

import pytest

import lucid
import lucid.torch
import triton_kernels

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("lucid/**/*.py"), *ROOT.glob("triton_kernels/**/*.py")])


def _module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file: Path) -> set[str]:
    """Full names of what a file imports, modules and their members."""
    found = set()
    package = _module(file).split(".") if file.name == "__init__.py" else _module(file).split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


def _within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _offences(files: list[Path], *forbidden: str) -> list[str]:
    return [f"{_module(file)} imports {name}" for file in files for name in _imports(file) if _within(name, *forbidden)]


def _of(*packages: str) -> list[Path]:
    return [file for file in FILES if _within(_module(file), *packages)]


def test_the_kernels_know_no_autograd_no_nn_and_no_lucid() -> None:
    assert len(_of("triton_kernels")) > 10
    assert not _offences(_of("triton_kernels"), "lucid", "torch.autograd", "torch.nn", "tests", "perf")


def test_only_ops_and_optim_import_the_kernels() -> None:
    others = [file for file in _of("lucid") if not _within(_module(file), "lucid.ops", "lucid.optim", "lucid.torch")]
    assert not _offences(others, "triton_kernels")


def test_nothing_in_lucid_imports_triton_tests_or_perf() -> None:
    assert not _offences(_of("lucid"), "triton", "tests", "perf")


#: From the top down: a module of lucid imports only modules of layers below its own.
LAYERS = [
    ("lucid.torch",),
    ("lucid.amp", "lucid.nn", "lucid.optim", "lucid.random", "lucid.serialization"),
    ("lucid.ops",),
    ("lucid.autograd",),
    ("lucid.factories", "lucid.printing"),
    ("lucid.tensor", "lucid._tensor_methods"),
    (
        "lucid._arguments",
        "lucid.device",
        "lucid.dtype",
        "lucid._flags",
        "lucid._generator",
        "lucid._lazy",
        "lucid._hooks",
        "lucid._linear_args",
        "lucid._loss_args",
        "lucid._namesakes",
        "lucid._clobbered",
        "lucid.typing",
    ),
    ("lucid._docs",),
]


@pytest.mark.parametrize("depth", range(1, len(LAYERS)), ids=lambda depth: LAYERS[depth][0])
def test_a_layer_of_lucid_imports_nothing_from_above(depth: int) -> None:
    above = [module for layer in LAYERS[:depth] for module in layer]
    assert not _offences(_of(*LAYERS[depth]), *above)


def test_every_module_of_lucid_is_in_a_layer() -> None:
    known = [module for layer in LAYERS for module in layer]
    others = [_module(file) for file in _of("lucid") if not _within(_module(file), *known, "lucid.examples")]
    assert others == ["lucid"]


#: From the top down: a folder of kernels imports only folders below it.
KERNEL_LAYERS = [("devtools",), ("ops", "losses"), ("jit",), ("runtime",)]


@pytest.mark.parametrize("depth", range(1, len(KERNEL_LAYERS)), ids=lambda depth: KERNEL_LAYERS[depth][0])
def test_a_folder_of_kernels_imports_nothing_from_above(depth: int) -> None:
    above = [f"triton_kernels.{folder}" for folders in KERNEL_LAYERS[:depth] for folder in folders]
    files = _of(*(f"triton_kernels.{folder}" for folder in KERNEL_LAYERS[depth]))
    assert len(files) > len(KERNEL_LAYERS[depth])
    assert not _offences(files, *above)


def test_every_file_of_kernels_is_in_a_folder() -> None:
    folders = [f"triton_kernels.{folder}" for layer in KERNEL_LAYERS for folder in layer]
    others = {_module(file) for file in _of("triton_kernels") if not _within(_module(file), *folders)}
    assert others == {"triton_kernels", "triton_kernels.installation"}


def test_files_of_kernels_do_not_import_each_other() -> None:
    """A loss of several files is a folder."""
    kernels = {
        ".".join(_module(file).split(".")[:3]): file for file in _of("triton_kernels.ops", "triton_kernels.losses")
    }
    units = sorted(unit for unit in kernels if unit.count(".") == 2)
    assert len(units) > 9
    for unit in units:
        assert not _offences(_of(unit), *(other for other in units if other != unit))


def test_the_packages_are_ours_and_not_namesakes() -> None:
    for package in (lucid, triton_kernels):
        assert package.__file__ is not None
        assert Path(package.__file__).parent.parent == ROOT
    assert metadata.metadata("lucid-triton")["Name"] == "lucid-triton"


def test_every_package_folder_is_listed_for_installation() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {_module(file) for file in FILES if file.name == "__init__.py"}
    assert set(listed) == folders


def test_public_names_exist() -> None:
    for module in (
        lucid,
        lucid.amp,
        lucid.nn,
        lucid.nn.utils,
        lucid.ops,
        lucid.optim,
        lucid.autograd,
        lucid.torch,
        triton_kernels,
    ):
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert not missing
