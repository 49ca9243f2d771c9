"""Results as Markdown: the section of the project's README, and the page with all rows."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perf import points, selection
from perf.output import Row

#: Kernels that the README's section shows, by the start of their names; the page with all rows shows every one.
_LOSSES = ("kl_div", "softmax", "forward_kl", "js")
_DTYPES = ("bf16", "fp32")
_NONE = "–"


@dataclass(frozen=True)
class Gpu:
    """What was measured on a GPU: rows by file, and pictures."""

    name: str
    sweeps: dict[str, list[Row]]
    overheads: dict[str, list[Row]]
    plots: Sequence[Path] = ()


@dataclass(frozen=True)
class Results:
    """All committed results. Names of files are as a command line from the project's folder needs them."""

    gpus: Sequence[Gpu] = ()
    static: dict[str, list[Row]] = field(default_factory=dict)
    traffic: dict[str, list[Row]] = field(default_factory=dict)
    overhead: dict[str, list[Row]] = field(default_factory=dict)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns of numbers, and of words for a number that is missing, are right-aligned."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    missing = ("", _NONE, "failed", "skipped")
    columns = zip(*cells, strict=True)
    rules = [
        "--:" if any(column) and all(cell[:1].isdigit() or cell in missing for cell in column) else "---"
        for column in columns
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rules, *cells))


def command(kind: str, file: str, rows: Sequence[Row]) -> str:
    """The command line that writes such rows anew: only options that differ from the command's own defaults."""
    parts = [f"python -m perf {kind}"]
    if kind != "static":
        parser = argparse.ArgumentParser()
        importlib.import_module(f"perf.{kind}").add_arguments(parser)
        parts += points.ordered(row["op"] for row in rows)
        found: dict[str, Sequence[Any]] = {
            "shapes": list(dict.fromkeys(points.shape(row) for row in rows)),
            **{f"{column}s": points.ordered(row[column] for row in rows) for column in ("dtype", "mode")},
            "reductions": points.ordered(row["reduction"] for row in rows if row["reduction"]),
            "providers": points.ordered((row["provider"] for row in rows), points.PROVIDERS),
        }
        for option, values in found.items():
            default = parser.get_default(option)
            if values and set(values) != set(default or ()):
                names = _shape_names(values) if option == "shapes" else values
                parts.append(f"--{option} {','.join(names)}")
        if kind == "overhead" and not any(row["gpu"] for row in rows):
            parts.append("--count-only")
    return " ".join([*parts, f"--csv {file}"])


def _shape_names(shapes: Sequence[tuple[int, int]]) -> list[str]:
    names, left = [], list(shapes)
    for name, members in selection.SHAPE_SETS.items():
        if set(members) <= set(left):
            names.append(name)
            left = [shape for shape in left if shape not in members]
    return [*names, *(f"{n}x{v}" for n, v in left)]


def section(results: Results, page: str) -> str:
    """The README's section; `page` is the way from there to the page with all rows."""
    parts = [
        "<!-- Written by `python -m perf report --readme README.md`. -->",
        f"Every figure stands with the command that gives it again. All rows are in `{page}`.",
        *_measured_summary(results),
        *_traffic_summary(results),
        *_static_summary(results),
    ]
    return "\n\n".join(parts)


def _measured_summary(results: Results) -> list[str]:
    if not results.gpus:
        return [
            "**Measured on a GPU:** nothing yet. No results of a GPU are committed: no figure here is a measured time. "
            "On a machine with a GPU, `make perf` measures."
        ]
    parts = []
    for gpu in results.gpus:
        rows = [row for table in gpu.sweeps.values() for row in table]
        parts.append(f"**Measured on {gpu.name}**")
        if not rows:
            parts[-1] += ": host overhead alone, on the page with all rows."
            continue
        parts[-1] += (
            f" ({points.versions(rows)}): the least possible bytes over time, as a fraction of the copy bandwidth "
            "measured in the same run, and the time of each other provider in multiples of ours, in brackets the least "
            "of all swept shapes."
        )
        parts += [_commands("sweep", gpu.sweeps), _sweep_summary(rows)]
    return parts


def _sweep_summary(rows: list[Row]) -> str:
    rows = points.latest(rows)
    others = [name for name in _providers(rows) if name != "ours"]
    out = []
    for op, variant, mode, dtype, reduction in _cases(rows, ("op", "variant", "mode", "dtype", "reduction")):
        if mode == "full" or dtype not in _DTYPES or reduction != _usual([r for r in rows if r["op"] == op]):
            continue
        keys = dict(op=op, variant=variant, mode=mode, dtype=dtype, reduction=reduction, status="ok")
        times = {
            name: {points.shape(row): row for row in _where(rows, provider=name, **keys)} for name in ("ours", *others)
        }
        ours = times["ours"]
        if not ours:
            out.append([_name(op, reduction), _what(mode, variant), dtype, *[_NONE] * (2 + len(others))])
            continue
        largest = max(ours, key=lambda shape: (shape[0] * shape[1], shape))
        cells = [f"{largest[0]:,} × {largest[1]:,}", f"{ours[largest]['roof_fraction']:.2f}"]
        for name in others:
            ratios = {
                shape: row["median_ms"] / ours[shape]["median_ms"]
                for shape, row in times[name].items()
                if shape in ours
            }
            at_largest = f"{ratios[largest]:.2f}" if largest in ratios else _NONE
            cells.append(f"{at_largest} ({min(ratios.values()):.2f})" if ratios else _NONE)
        out.append([_name(op, reduction), _what(mode, variant), dtype, *cells])
    headings = ["op", "", "dtype", "N × V", "of copy", *(f"{points.provider_name(name)} / ours" for name in others)]
    return table(headings, out)


def _traffic_summary(results: Results) -> list[str]:
    rows = points.latest(row for table in results.traffic.values() for row in table)
    if not rows:
        return ["**Counted without a GPU:** no counts of bytes are committed."]
    providers = [name for name in _providers(rows) if _where(rows, provider=name, status="ok")]
    shapes, out = set(), []
    for op, variant, mode, reduction in _cases(rows, ("op", "variant", "mode", "reduction")):
        of_op = _where(rows, op=op)
        largest = max((points.shape(row) for row in of_op), key=lambda shape: (shape[0] * shape[1], shape))
        if reduction != _usual(of_op):
            continue
        shapes.add(largest)
        here = _where(rows, op=op, variant=variant, mode=mode, reduction=reduction, n=largest[0], v=largest[1])
        cells = [_one(_where(here, provider=name, dtype=dtype), _moved) for dtype in _DTYPES for name in providers]
        out.append([_name(op, reduction), _what(mode, variant), *cells])
    at = " and ".join(f"{n:,} × {v:,}" for n, v in sorted(shapes))
    headings = ["op", "", *(f"{points.provider_name(name)}, {dtype}" for dtype in _DTYPES for name in providers)]
    return [
        f"**Counted without a GPU:** bytes read and written, in multiples of the least possible, at {at}; in brackets "
        "the memory that is allocated on the way, results included, in multiples of one N × V tensor. Kernels are "
        "counted in Triton's interpreter, to the byte and without caches: what is read twice counts twice. torch eager "
        f"is counted by the operands and results of its operators, the least they can move. {_NONE}: not counted, for "
        "reasons that the page gives.",
        _commands("traffic", results.traffic),
        table(headings, out),
    ]


def _static_summary(results: Results) -> list[str]:
    rows = [row for table in results.static.values() for row in table]
    shown = [row for row in rows if row["kernel"].strip("_").startswith(_LOSSES) and row["dtype"] in _DTYPES]
    if not shown:
        return ["**Predicted without a GPU:** no predictions are committed."]
    out = []
    for kernel, variant in dict.fromkeys((row["kernel"], row["variant"]) for row in shown):
        here = [_where(shown, kernel=kernel, variant=variant, dtype=dtype) for dtype in _DTYPES]
        hopper = [_where(rows, target="cuda:90") for rows in here]
        counts = [_pair([_one(rows, _column(column)) for rows in hopper]) for column in ("instructions", "special")]
        out.append([f"`{kernel}`", variant, *counts, *(_prediction(here, chip) for chip in _chips(rows))])
    return [
        "**Predicted without a GPU,** from the machine code, bf16 / fp32: instructions and special functions per "
        "element on cuda:90, then for each chip the fraction of the memory roof (of the least possible bytes) that "
        "the kernel can reach at most, and what bounds it. Without caches: what is read twice comes from memory twice.",
        _commands("static", results.static),
        table(["kernel", "variant", "instructions", "special", *(chip.upper() for chip in _chips(rows))], out),
    ]


def _prediction(rows_by_dtype: list[list[Row]], chip: str) -> str:
    found = [[row for row in rows if row[f"{chip}_roof"] is not None] for rows in rows_by_dtype]
    roofs = [_one(rows, lambda row: f"{row[f'{chip}_roof']:.2f}") for rows in found]
    bounds = [_one(rows, lambda row: row[f"{chip}_bound"]) for rows in found]
    if len(set(bounds)) == 1:
        return f"{_pair(roofs)} {bounds[0]}" if bounds[0] != _NONE else _NONE
    return _pair([f"{roof} {bound}" if bound != _NONE else _NONE for roof, bound in zip(roofs, bounds, strict=True)])


def page(results: Results, folder: Path) -> str:
    """The page with all rows, to lie in `folder`."""
    parts = [
        "# Results",
        "<!-- Written by `python -m perf report --output perf/results/README.md`. -->",
        "A folder per GPU holds what was measured on it; `predicted` holds what was counted or predicted without one. "
        "Quantiles, peak memory and errors are in the CSV files.",
    ]
    if not results.gpus:
        parts.append("No results of a GPU are committed yet.")
    for gpu in results.gpus:
        parts.append(f"## Measured on {gpu.name}")
        for kind, files, cell, what in (
            ("sweep", gpu.sweeps, _sweep_cell, "median time in ms, and the fraction of the copy bandwidth"),
            (
                "overhead",
                gpu.overheads,
                _overhead_cell,
                "median host time per call in µs, launches, host syncs, Python calls",
            ),
        ):
            parts += _all_rows(kind, files, cell, what)
        parts += [
            f"![{plot.stem.replace('-', ' ')}]({Path(os.path.relpath(plot, folder)).as_posix()})" for plot in gpu.plots
        ]
    if results.traffic or results.overhead:
        parts.append("## Counted without a GPU")
        what = "bytes read + written (in multiples of the least possible), launches"
        parts += _all_rows("traffic", results.traffic, _traffic_cell, what)
        parts += _all_rows("overhead", results.overhead, _overhead_cell, "launches, host syncs, Python calls")
    if results.static:
        parts.append("## Predicted without a GPU")
        for file, rows in results.static.items():
            parts += [_about("static", file, rows), _all_static(rows)]
    return "\n\n".join(parts) + "\n"


def _all_rows(kind: str, files: dict[str, list[Row]], cell: Callable[[Row], str], what: str) -> list[str]:
    parts = []
    for file, rows in files.items():
        parts += [f"### {Path(file).name}", _about(kind, file, rows), f"Per provider: {what}."]
        providers = _providers(rows)
        for op in points.ordered(row["op"] for row in rows):
            by_case: dict[Any, dict[str, Row]] = {}
            for row in _where(rows, op=op):
                by_case.setdefault(points.case(row), {})[row["provider"]] = row
            order = _cases(_where(rows, op=op), points.CASE)
            out = []
            for key in order:
                _, variant, mode, dtype, reduction, n, v = key
                found = by_case[key]
                cells = [_status(found[name], cell) if name in found else _NONE for name in providers]
                out.append([_what(mode, variant), reduction, dtype, f"{int(n):,} × {int(v):,}", *cells])
            headings = [op, "reduction", "dtype", "N × V", *map(points.provider_name, providers)]
            parts.append(f"<details><summary>{op}, {len(out)} cases</summary>\n\n{table(headings, out)}\n\n</details>")
        note = points.left_out(rows)
        if note:
            parts.append(f"Without figures: {note}.")
    return parts


def _all_static(rows: list[Row]) -> str:
    columns = ["kernel", "variant", "dtype", "target", "registers", "spills", "shared", "warps", "occupancy"]
    columns += ["load_bits", "store_bits", "instructions", "special", "fixed", "bytes"]
    chips = _chips(rows)
    out = [
        [f"`{row['kernel']}`", *(_text(row[c]) for c in columns[1:]), *(_prediction([[row]], c) for c in chips)]
        for row in rows
    ]
    return table([*(column.replace("_", " ") for column in columns), *(chip.upper() for chip in chips)], out)


def _about(kind: str, file: str, rows: list[Row]) -> str:
    return f"{points.environment(rows)}:\n\n    {command(kind, file, rows)}"


def _commands(kind: str, files: dict[str, list[Row]]) -> str:
    return "\n".join(f"    {command(kind, file, rows)}" for file, rows in files.items())


def _sweep_cell(row: Row) -> str:
    return f"{_text(row['median_ms'])} ({row['roof_fraction']:.2f})"


def _overhead_cell(row: Row) -> str:
    columns = ("median_us", "launches", "syncs", "python_calls")
    return ", ".join(_text(row[column]) for column in columns if row[column] is not None)


def _traffic_cell(row: Row) -> str:
    return f"{row['read']:,.0f} + {row['written']:,.0f} ({_ratio(row)}), {row['launches']:.0f}"


def _ratio(row: Row) -> str:
    return f"{(row['read'] + row['written']) / (row['least_read'] + row['least_written']):.2f}"


def _moved(row: Row) -> str:
    if row["allocated"] is None:
        return _ratio(row)
    tensor = row["n"] * row["v"] * selection.DTYPES[row["dtype"]].itemsize
    return f"{_ratio(row)} ({row['allocated'] / tensor:.2f})"


def _status(row: Row, cell: Callable[[Row], str]) -> str:
    return cell(row) if row["status"] == "ok" else row["status"].partition(":")[0]


def _one(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    return cell(rows[0]) if rows and rows[0].get("status", "ok") == "ok" else _NONE


def _column(name: str) -> Callable[[Row], str]:
    return lambda row: _text(row[name]) or _NONE


def _pair(cells: Sequence[str]) -> str:
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return value or ""
    return f"{value:,.0f}" if abs(value) >= 1000 or value.is_integer() else f"{value:.3g}"


def _name(op: str, reduction: str) -> str:
    return f"{op}, {reduction}" if reduction else op


def _what(mode: str, variant: str) -> str:
    return ", ".join(part for part in (mode, points.variant_name(variant)) if part)


def _where(rows: Iterable[Row], **cells: Any) -> list[Row]:
    return [row for row in rows if all(row[column] == cell for column, cell in cells.items())]


def _providers(rows: Iterable[Row]) -> list[str]:
    return points.ordered((row["provider"] for row in rows), points.PROVIDERS)


def _cases(rows: Sequence[Row], columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """The different cells of some columns, each column in its usual order."""
    orders = {
        column: {name: place for place, name in enumerate(points.ordered(row[column] for row in rows))}
        for column in columns
        if column not in ("n", "v")
    }
    found = {tuple(row[column] for column in columns) for row in rows}
    return sorted(
        found, key=lambda key: [orders[c][cell] if c in orders else cell for c, cell in zip(columns, key, strict=True)]
    )


def _usual(rows: Sequence[Row]) -> str:
    """The reduction that a summary shows."""
    return points.ordered((row["reduction"] for row in rows), ("mean", "batchmean", "sum"))[0]


def _chips(rows: Sequence[Row]) -> list[str]:
    chips = [column.removesuffix("_bound") for column in rows[0] if column.endswith("_bound")]
    return [chip for chip in chips if f"{chip}_roof" in rows[0]]
