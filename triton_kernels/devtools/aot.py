"""Ahead-of-time compilation of launches for any GPU, and reports of registers, spills and access widths.

`describe` turns a launch into JSON data, equal for launches that Triton compiles to the same code. `compile_for`
compiles it with Triton's own argument specialization, in a process where the interpreter is off:

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

from ..runtime import launch, tile_configs

#: Targets by name: backend, architecture, threads per warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "cuda:80": ("cuda", 80, 32),
    "cuda:90": ("cuda", 90, 32),
    "cuda:100": ("cuda", 100, 32),
    "hip:gfx942": ("hip", "gfx942", 64),
}


def describe(launched: launch.Launch) -> dict[str, Any]:
    """Return a launch as JSON data: kernel, specialization of the arguments, tile sizes, warps."""
    kernel = launched.kernel
    function = kernel.fn
    constexprs = {name for name, kind in function.__annotations__.items() if "constexpr" in str(kind)}
    unspecialized = _params_with(kernel, "do_not_specialize")
    unaligned = _params_with(kernel, "do_not_specialize_on_alignment")
    args = {}
    for name, value in {**launched.args, **launched.config.tiles}.items():
        if name in constexprs:
            args[name] = _constexpr_value(value)
        else:
            args[name] = _representative(value, name in unspecialized, name not in unaligned)
    return {
        "kernel": f"{function.__module__}:{function.__name__}",
        "args": dict(sorted(args.items())),
        "num_warps": launched.config.num_warps,
        "max_registers": launched.config.max_registers,
        "num_stages": launched.config.num_stages,
    }


def _params_with(kernel: Any, option: str) -> set[str]:
    """Return the names of the parameters that an option of `triton.jit` lists."""
    if isinstance(kernel, triton.runtime.JITFunction):
        return {param.name for param in kernel.params if getattr(param, option)}
    return set(kernel.kwargs.get(option) or [])


def _constexpr_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tl.dtype):
        return {"dtype": value.name}
    return {"function": f"{value.fn.__module__}:{value.fn.__name__}"}


def _representative(value: Any, unspecialized: bool, aligned: bool = True) -> Any:
    """Return a representative of all values for which Triton compiles the same code.

    Triton specializes on the dtype and 16-byte alignment of tensors, and on integers: equal to 1, divisible by 16,
    wider than 32 bits. With `unspecialized` (do_not_specialize) only the width matters. Without `aligned`
    (do_not_specialize_on_alignment) alignment and divisibility do not matter. Both options ignore elements of tuples.
    """
    if isinstance(value, tuple):
        return {"tuple": [_representative(item, False) for item in value]}
    if isinstance(value, torch.Tensor):
        return {
            "tensor": str(value.dtype).removeprefix("torch."),
            "aligned": aligned and value.data_ptr() % 16 == 0,
        }
    if isinstance(value, float):
        return 0.5
    if isinstance(value, int) and not isinstance(value, bool):
        base = 2**32 if value >= 2**31 else 32
        if unspecialized:
            return base
        return 1 if value == 1 else base if aligned and value % 16 == 0 else base + 1
    return value


@dataclass
class Report:
    """Resources of a compiled kernel.

    `spills` are bytes per thread of spilled registers, in stack and local memory (cuda) or scratch (hip). `loads` and
    `stores` map the bytes of a thread's global memory access to the number of such instructions (cuda only).
    """

    target: str
    registers: int
    spills: int
    shared: int
    loads: dict[int, int]
    stores: dict[int, int]


def compile_for(description: dict[str, Any], target: str) -> Any:
    """Compile a described launch for one of `TARGETS`; the interpreter must be off."""
    kernel = _resolve(description["kernel"])
    args = {name: _rebuild(value) for name, value in description["args"].items()}
    options = {"num_warps": description["num_warps"]}
    if description.get("max_registers") and TARGETS[target][0] == "cuda":
        options["maxnreg"] = description["max_registers"]
    if stages := description.get("num_stages"):
        options["num_stages"] = stages
        options |= tile_configs.hip_options(options["num_warps"], stages) if TARGETS[target][0] == "hip" else {}
    return _warm_up(kernel, target, {**args, **options})


def report(compiled: Any, target: str) -> Report:
    """Return the resources of a kernel that was compiled for a target."""
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
    return _FakeTensor(getattr(torch, value["tensor"]), value["aligned"])


class _FakeTensor:
    """The attributes of a tensor that Triton specializes on."""

    def __init__(self, dtype: torch.dtype, aligned: bool) -> None:
        self.dtype = dtype
        self._address = 16 if aligned else 16 + dtype.itemsize

    def data_ptr(self) -> int:
        return self._address


class _Driver:
    """Report the target to Triton as the current device, with its index in `TARGETS` as the device number."""

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

    # Scalar registers that spill to lanes of vector registers do not count: they take no memory.
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
    """Compile each line of standard input for its targets; print a report or an error per line.

    A line is a description by `describe`, with an optional "targets": names of `TARGETS`, by default all.
    """
    for line in sys.stdin:
        description = json.loads(line)
        for target in description.pop("targets", TARGETS):
            answer: dict[str, Any] = {"description": description, "target": target}
            try:
                answer["report"] = asdict(report(compile_for(description, target), target))
            except Exception as error:  # any exception of the compiler is the result
                answer["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
