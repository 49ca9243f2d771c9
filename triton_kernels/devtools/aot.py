"""Compile launches for GPUs that are not there, and read what the compiler made of them.

`describe` turns a launch into plain data, equal for launches that Triton would compile to the same code; `compile_for`
turns that into machine code with Triton's own argument specialisation, in a process where the interpreter is off:

    TRITON_INTERPRET=0 python -m triton_kernels.devtools.aot < descriptions.jsonl > reports.jsonl
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from ..runtime import launch

#: Targets by name: backend, architecture, threads per warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "cuda:80": ("cuda", 80, 32),
    "cuda:90": ("cuda", 90, 32),
    "cuda:100": ("cuda", 100, 32),
    "hip:gfx942": ("hip", "gfx942", 64),
}


def describe(launched: launch.Launch) -> dict[str, Any]:
    """A launch as plain data: kernel, arguments as far as they shape the code, tile sizes, warps."""
    kernel = launched.kernel
    function = kernel.fn
    constexprs = {name for name, kind in function.__annotations__.items() if "constexpr" in str(kind)}
    general = _not_specialised(kernel, "do_not_specialize")
    unaligned = _not_specialised(kernel, "do_not_specialize_on_alignment")
    args = {}
    for name, value in {**launched.args, **launched.config.tiles}.items():
        known = name not in unaligned
        args[name] = _exact(value) if name in constexprs else _as_specialised(value, name in general, known)
    return {
        "kernel": f"{function.__module__}:{function.__name__}",
        "args": dict(sorted(args.items())),
        "num_warps": launched.config.num_warps,
    }


def _not_specialised(kernel: Any, option: str) -> set[str]:
    if isinstance(kernel, triton.runtime.JITFunction):
        return {param.name for param in kernel.params if getattr(param, option)}
    return set(kernel.kwargs.get(option) or [])


def _exact(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, tl.dtype):
        return {"dtype": value.name}
    return {"function": f"{value.fn.__module__}:{value.fn.__name__}"}


def _as_specialised(value: Any, general: bool, aligned: bool = True) -> Any:
    """A representative of all values for which Triton compiles the same code.

    It specializes on the dtype and 16-byte alignment of tensors, and on integers: equal to 1, divisible by 16, wider
    than 32 bits. `general`: only on the width (do_not_specialize). Not `aligned`: neither on alignment nor on
    divisibility (do_not_specialize_on_alignment). Neither option reaches elements of tuples.
    """
    if isinstance(value, tuple):
        return {"tuple": [_as_specialised(item, False) for item in value]}
    if isinstance(value, torch.Tensor):
        known = aligned and value.data_ptr() % 16 == 0
        return {"tensor": str(value.dtype).removeprefix("torch."), "aligned": known}
    if isinstance(value, float):
        return 0.5
    if isinstance(value, int) and not isinstance(value, bool):
        base = 2**32 if value >= 2**31 else 32
        if general:
            return base
        return 1 if value == 1 else base if aligned and value % 16 == 0 else base + 1
    return value


@dataclass
class Report:
    """What the compiler made of a launch for a target.

    `spills` are bytes of memory that stand in for registers, stack on cuda and scratch on hip; `loads` and `stores` map
    the width of a global memory access in bytes, by a thread, to how many there are in the code (cuda only).
    """

    target: str
    registers: int
    spills: int
    shared: int
    loads: dict[int, int]
    stores: dict[int, int]


def compile_for(description: dict[str, Any], target: str) -> Any:
    """Triton's compiled kernel of a described launch for one of `TARGETS`; the interpreter must be off."""
    kernel = _resolve(description["kernel"])
    args = {name: _rebuild(value) for name, value in description["args"].items()}
    return _warm_up(kernel, target, {**args, "num_warps": description["num_warps"]})


def report(compiled: Any, target: str) -> Report:
    """What the compiler says of what it made for a target."""
    return _read_hip(compiled, target) if TARGETS[target][0] == "hip" else _read_cuda(compiled, target)


def _resolve(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def _rebuild(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_rebuild(item) for item in value["tuple"])
    if "dtype" in value:
        return tl.dtype(value["dtype"])
    if "function" in value:
        return _resolve(value["function"])
    return _StandIn(getattr(torch, value["tensor"]), value["aligned"])


class _StandIn:
    """What the specialisation looks at in a tensor."""

    def __init__(self, dtype: torch.dtype, aligned: bool) -> None:
        self.dtype = dtype
        self._address = 16 if aligned else 16 + dtype.itemsize

    def data_ptr(self) -> int:
        return self._address


class _Driver:
    """Says to Triton that the current device is the target: its number is the target's place in `TARGETS`."""

    def __init__(self, target: str) -> None:
        self._target = target

    def get_current_device(self) -> int:
        return list(TARGETS).index(self._target)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget(*TARGETS[self._target])


def _warm_up(kernel: Any, target: str, args: dict[str, Any]) -> Any:
    triton.runtime.driver.set_active(_Driver(target))
    return kernel.warmup(grid=(1,), **args)


def _read_hip(compiled: Any, target: str) -> Report:
    assembly = compiled.asm["amdgcn"]

    def last(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", assembly)[-1])

    # Not counted are scalar registers that are kept in lanes of vector registers: that takes no memory.
    spills = last("private_segment_fixed_size")
    return Report(target, last("vgpr_count"), spills, compiled.metadata.shared, {}, {})


_ACCESS = re.compile(r"\b(ld|st)\.global((?:\.[A-Za-z0-9:_]+)*?)(?:\.v(\d))?\.[bfsu](\d+)\b")


def _read_cuda(compiled: Any, target: str) -> Report:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage:\n{usage}")
    registers, stack, _, local = map(int, found.groups())
    widths: dict[str, dict[int, int]] = {"ld": {}, "st": {}}
    for kind, _, vector, bits in _ACCESS.findall(compiled.asm["ptx"]):
        width = int(vector or 1) * int(bits) // 8
        widths[kind][width] = widths[kind].get(width, 0) + 1
    return Report(target, registers, stack + local, compiled.metadata.shared, widths["ld"], widths["st"])


def main() -> None:
    """Compile each description on standard input for its targets; a report, or an error, a line.

    "targets" beside what `describe` says of a launch are names of `TARGETS`; without it, all are meant.
    """
    for line in sys.stdin:
        description = json.loads(line)
        for target in description.pop("targets", TARGETS):
            answer: dict[str, Any] = {"description": description, "target": target}
            try:
                answer["report"] = asdict(report(compile_for(description, target), target))
            except Exception as error:  # whatever a compiler raises is the finding
                answer["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
