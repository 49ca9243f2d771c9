"""Made-up rows of every kind of CSV, from a toy model of a chip called "SYNTHETIC GPU"; for tests alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perf import results

Row = dict[str, Any]

CASES = (("kl_div", "prob", "mean"), ("kl_div", "log", "mean"), ("softmax", "", ""))
MODES = ("forward", "backward", "full")
PROVIDERS = {"ours": 1.0, "torch": 4.5, "compile": 1.4, "liger": 1.25}
SHAPES = (
    *((n, 32768) for n in (1, 8, 64, 512, 4096, 65536)),
    *((2**27 // v, v) for v in (1024, 8192, 65536, 262144, 2**20)),
)
ITEMSIZE = {"bf16": 2, "fp32": 4}
PASSES = {"forward": (2, 0), "backward": (1, 1), "full": (3, 1)}


def environment(gpu: str = "SYNTHETIC GPU") -> dict[str, str]:
    """The last columns; without a GPU, no driver either."""
    versions = {"torch": "2.13.0", "triton": "3.7.1", "liger": "0.8.5", "python": "3.11.7"}
    card = {"gpu": gpu, "driver": "1.2.3" if gpu else "", "cuda": "0.1" if gpu else ""}
    return {**card, **versions, "commit": "0123456789ab", "date": "2001-01-01"}


def _cases(shapes: Any) -> Any:
    for op, variant, reduction in CASES:
        for mode in MODES:
            for dtype in ITEMSIZE:
                for n, v in shapes:
                    for provider, factor in PROVIDERS.items():
                        case = dict(op=op, variant=variant, mode=mode, provider=provider, n=n, v=v, d=0)
                        yield {**case, "dtype": dtype, "reduction": reduction}, factor


def _unavailable(row: Row) -> str:
    if row["provider"] == "liger" and row["dtype"] == "bf16" and row["variant"] == "log":
        return "failed: CompilationError in the kernel"
    return "skipped: not offered" if row["provider"] == "liger" and row["op"] == "softmax" else "ok"


def sweep(gpu: str = "SYNTHETIC GPU", shapes: Any = SHAPES) -> list[Row]:
    """Times of a chip that copies 4000 GB/s after 5 µs."""
    rows = []
    for row, factor in _cases(shapes):
        status = _unavailable(row)
        least = sum(PASSES[row["mode"]]) * row["n"] * row["v"] * ITEMSIZE[row["dtype"]]
        time = 0.005 * factor**0.5 + factor * 1.04 * least / 4e9
        measured: Row = dict(median_ms=time, p20_ms=time * 0.97, p80_ms=time * 1.06, least_bytes=least)
        measured |= dict(gbps=least / time / 1e6, copy_gbps=4000.0, roof_fraction=least / time / 4e9)
        measured |= dict(peak_mib=least / 2**20, max_error=0.5)
        if status != "ok":
            measured = dict.fromkeys(measured)
        rows.append({**row, "status": status, **measured, **environment(gpu)})
    return rows


def linear(gpu: str = "SYNTHETIC GPU") -> list[Row]:
    """Times and memory of losses from hidden states: so many times those of the products."""
    rows = []
    for n, v in ((8, 100), (8, 200), (64, 100), (64, 200)):
        for provider, factor in {"lucid.torch": 1.25, "trl": 3.0, "products": 1.0}.items():
            row: Row = dict(op="linear_distillation", variant="forward_kl", mode="full", provider=provider)
            row |= dict(n=n, v=v, d=16, dtype="bf16", reduction="batchmean", status="ok")
            row |= dict(median_ms=factor * n, p20_ms=factor * n, p80_ms=factor * n, least_bytes=100)
            row |= dict(gbps=None, copy_gbps=4000.0, roof_fraction=None, peak_mib=1000 * factor, max_error=0.5)
            rows.append({**row, **environment(gpu)})
    return rows


def overhead(gpu: str = "SYNTHETIC GPU") -> list[Row]:
    """Host times; without a GPU only counts."""
    rows = []
    for row, factor in _cases([(64, 1000)]):
        status, time = _unavailable(row), 20 * factor
        counted: Row = dict(launches=round(factor), syncs=int(row["provider"] == "liger"), python_calls=31)
        timed: Row = dict(median_us=time, p20_us=time * 0.9, p80_us=time * 1.2)
        if status != "ok":
            counted = dict.fromkeys(counted)
        if status != "ok" or not gpu:
            timed = dict.fromkeys(timed)
        rows.append({**row, "status": status, **timed, **counted, **environment(gpu)})
    return rows


def traffic() -> list[Row]:
    """Bytes: the least possible and 64 more, times each provider's factor."""
    rows = []
    for row, factor in _cases([(41, 1271), (8, 32000)]):
        status = "skipped: no interpreter" if row["provider"] == "compile" else _unavailable(row)
        read, written = (passes * row["n"] * row["v"] * ITEMSIZE[row["dtype"]] for passes in PASSES[row["mode"]])
        written += 4
        moved: Row = dict(read=int(read * factor) + 64, written=int(written * factor), launches=2, allocated=written)
        least: Row = dict(least_read=read, least_written=written, least_allocated=written)
        if status != "ok":
            moved = dict.fromkeys(moved)
        rows.append({**row, "status": status, **moved, **least, **environment("")})
    return rows


def static() -> list[Row]:
    """What a compiler could have made of two kernels."""
    rows = []
    chips = {"cuda:80": ("a100",), "cuda:90": ("h100", "h200"), "cuda:100": ("b200",), "hip:gfx942": ()}
    kernels = (("_kl_div_kernel", "forward, probabilities, summed", 15.0), ("_softmax_kernel", "whole rows", 12.5))
    for kernel, variant, count in kernels:
        for dtype in ITEMSIZE:
            for target, known in chips.items():
                row: Row = dict(kernel=kernel, variant=variant, dtype=dtype, target=target, registers=48, spills=0)
                row |= dict(shared=16, warps=4, occupancy=1.0, load_bits=128, store_bits=128)
                cuda = target != "hip:gfx942"
                row |= dict(instructions=count if cuda else None, special=1.0 if cuda else None)
                row |= dict(fixed=155 if cuda else None, bytes=2.0 * ITEMSIZE[dtype])
                for chip in ("a100", "h100", "h200", "b200"):
                    row |= {f"{chip}_bound": "memory" if chip in known else None}
                    row |= {f"{chip}_roof": 0.97 if chip in known else None}
                rows.append({**row, **environment("")})
    return rows


def write(path: Path, kind: str, rows: list[Row]) -> Path:
    """A CSV as the command `kind` would write it."""
    results.write_csv(path, kind, rows)
    return path
