"""Plots of what `sweep`, `overhead` and `traffic` wrote.

From CSV files alone, on any machine:

    python -m perf plot perf/results/<gpu>/sweep.csv

A sweep gives, per op, reduction and family of shapes (sizes at one V, or at one number of elements), a picture of the
time, of the fraction of the roofline and of the speed-up over each other provider: a row of panels per variant and
dtype, a column per mode. Traffic and overhead files give bars. Rows that failed or were skipped are left out, and each
picture says so.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pandas import DataFrame

from perf import results
from perf.environment import folder_of
from perf.errors import UsageError
from perf.progress import progress
from perf.results import CASE, PROVIDERS, case_name, left_out, ordered, rank

#: Colour and marker of each provider: Okabe and Ito's palette, told apart by every kind of colour vision.
STYLES = {
    "ours": ("#0072B2", "o"),
    "lucid.torch": ("#E69F00", "v"),
    "torch": ("#D55E00", "s"),
    "compile": ("#009E73", "^"),
    "liger": ("#CC79A7", "D"),
}

#: Options that choose rows: the column is the name without its s.
_FILTERS = ("ops", "modes", "dtypes")
_SETTINGS = {"font.family": "DejaVu Sans", "font.size": 8, "svg.hashsalt": "lucid-triton", "svg.fonttype": "none"}
_GREY = "#666666"

#: A name without suffix, and how to draw it.
Picture = tuple[str, Callable[[], Figure]]


def time_text(ms: float, _: Any = None) -> str:
    """A time on an axis, in the unit that reads best."""
    unit, value = next((u, ms * k) for u, k in (("ns", 1e6), ("µs", 1e3), ("ms", 1.0)) if ms * k < 1000 or u == "ms")
    return f"{value:g} {unit}"


def size_text(size: float) -> str:
    """A size as on an axis: multiples of 1024 in Ki, Mi and Gi, which are exact, others in full."""
    for unit, name in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if size % unit == 0 and size >= unit:
            return f"{size // unit:.0f}{name}"
    return f"{size:,.0f}"


#: What a sweep's pictures show: title, label of the axis, whether it is logarithmic, text of ticks.
METRICS: dict[str, tuple[str, str, bool, Callable[..., str]]] = {
    "time": ("time", "time per call", True, time_text),
    "roof": ("fraction of the roofline", "least bytes / time / copy bandwidth", False, lambda y, _: f"{y:.1f}"),
    "speedup": ("speed-up of ours over each other provider", "time of the other / ours", True, lambda y, _: f"{y:g}×"),
}


@dataclass(frozen=True)
class Family:
    """Shapes on one axis: by a size of each on a log scale, or side by side where there are labels."""

    name: str
    title: str
    label: str
    positions: dict[tuple[int, int], int]
    labels: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="CSV of sweep, overhead or traffic")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the pictures (default: the first FILE's)")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="kind of picture (default: png)")
    for values in _FILTERS:
        only = f"only these {values}, separated by commas (default: all in the files)"
        parser.add_argument(f"--{values}", metavar="LIST", help=only)


def run(options: argparse.Namespace) -> int:
    """Draw every picture that the files give; print the paths."""
    tables = [results.load(file, "sweep", "overhead", "traffic") for file in options.files]
    rows = pd.concat([frame.assign(kind=kind) for kind, frame in tables], ignore_index=True)
    for values in _FILTERS:
        wanted, column = getattr(options, values), values.removesuffix("s")
        for name in wanted.split(",") if wanted else ():
            if name not in set(rows[column]):
                known = ", ".join(ordered(rows[column]))
                raise UsageError(f"argument --{values}: {name!r} is not in the files, which have {known}")
        rows = rows[rows[column].isin(wanted.split(","))] if wanted else rows
    pictures, notes = plan(rows)
    if not pictures:
        why = ", ".join(notes) or "no row is left"
        raise UsageError(f"{', '.join(map(str, options.files))}: nothing to draw; {why}")
    folder = options.out or options.files[0].parent
    paths = [folder / f"{name}.{options.format}" for name, _ in pictures]
    results.make_folder(folder, "--out ")
    results.check_writable(*paths)
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    # Nothing that changes from one time to the next.
    undated = {"Software": None} if options.format == "png" else {"Date": None, "Creator": None}
    with progress(len(pictures)) as advance, matplotlib.rc_context(_SETTINGS):
        for path, (name, draw) in zip(paths, pictures, strict=True):
            advance(name)
            draw().savefig(path, dpi=160, facecolor="white", metadata=undated)
    print(*paths, sep="\n")
    return 0


def plan(rows: DataFrame) -> tuple[list[Picture], list[str]]:
    """The pictures, and lines on what is in none of them."""
    pictures: list[Picture] = []
    notes = []
    several = rows["gpu"].nunique() > 1
    kinds = {"sweep": _sweep, "overhead": _overhead, "traffic": _traffic}
    for kind, gpu, op in [(k, g, o) for k in kinds for g in ordered(rows["gpu"]) for o in ordered(rows["op"])]:
        here = rows[(rows["kind"] == kind) & (rows["gpu"] == gpu) & (rows["op"] == op)]
        if here.empty:
            continue
        here = results.latest(here)
        notes += [f"{kind} of {op}: left out: {note}"] if (note := left_out(here)) else []
        prefix = f"{folder_of(gpu or 'no gpu')}-" if several else ""
        pictures += [(prefix + name, draw) for name, draw in kinds[kind](here, notes)]
    return pictures, notes


def families(shapes: set[tuple[int, int]]) -> tuple[list[Family], set[tuple[int, int]]]:
    """Shapes by the axis they share, and those left alone.

    Three or more values of N at one V make a family; so do three or more of V at one number of elements, to 5 %.
    Two or more shapes in no family stand side by side, by their number of elements. A shape may be in two families.
    """
    found = []
    for v in sorted({v for _, v in shapes}):
        same = {shape: shape[0] for shape in shapes if shape[1] == v}
        if len(same) >= 3:
            found.append(Family(f"v{v}", f"V = {v:,}", f"rows N, at V = {v:,}", same))
    rest = sorted(shapes, key=lambda shape: (math.prod(shape), shape))
    while rest:
        same = {shape: shape[1] for shape in rest if math.prod(shape) <= math.prod(rest[0]) * 1.05}
        rest = rest[len(same) :]
        if len(set(same.values())) >= 3:
            about = size_text(max(map(math.prod, same)))
            label = f"columns V, at N·V = {about} elements"
            found.append(Family(f"e{about.replace(',', '')}", f"N·V = {about}", label, same))
    others = sorted(
        shapes.difference(*(family.positions for family in found)), key=lambda shape: (math.prod(shape), shape)
    )
    if len(others) < 2:
        return found, set(others)
    labels = tuple(f"{n}\n×{v}" for n, v in others)
    positions = {shape: place for place, shape in enumerate(others)}
    return [*found, Family("shapes", "some shapes", "N × V", positions, labels)], set()


def _shapes(rows: DataFrame) -> list[tuple[int, int]]:
    return [(int(n), int(v)) for n, v in zip(rows["n"], rows["v"], strict=True)]


def _sweep(rows: DataFrame, notes: list[str]) -> Iterator[Picture]:
    op = rows["op"].iloc[0]
    for reduction in ordered(rows["reduction"]):
        group = rows[rows["reduction"] == reduction]
        good = group[group["status"] == "ok"]
        found, alone = families(set(_shapes(good)))
        if alone:
            names = ", ".join(f"{n}x{v}" for n, v in sorted(alone))
            notes.append(f"sweep of {op}: left out: {names}, alone on every axis")
        for family in found:
            for metric, (title, *_) in METRICS.items():
                chosen = values(good[[shape in family.positions for shape in _shapes(good)]], metric)
                if len(chosen):
                    name = "-".join(part for part in (op, reduction, metric, family.name) if part)
                    what = f"{op}, reduction {reduction}" if reduction else op
                    heading = _heading(f"{what}: {title} ({family.title})", good)
                    yield name, functools.partial(_lines, chosen, heading, left_out(group), metric, family)


def values(rows: DataFrame, metric: str) -> DataFrame:
    """Rows with y, the metric at the median, and low and high, at the quantiles of the time."""
    median, quick, slow = rows["median_ms"], rows["p20_ms"], rows["p80_ms"]
    if metric == "time":
        return rows.assign(y=median, low=quick, high=slow)
    if metric == "roof":
        roof = rows["roof_fraction"]
        return rows.assign(y=roof, low=roof * median / slow, high=roof * median / quick)
    both = rows[rows["provider"] != "ours"].merge(rows[rows["provider"] == "ours"], on=CASE, suffixes=("", "_ours"))
    return both.assign(
        y=both["median_ms"] / both["median_ms_ours"],
        low=both["p20_ms"] / both["p80_ms_ours"],
        high=both["p80_ms"] / both["p20_ms_ours"],
    )


def _heading(title: str, rows: DataFrame) -> str:
    return "\n".join([title, *textwrap.wrap(results.environment_line(rows), 140)])


def _frame(rows: int, columns: int, height: float, heading: str, label: str, note: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, 1.6 + height), layout="constrained")
    figure.suptitle(f"\n\n{heading}", x=0.01, ha="left", fontsize=9)  # below the legend
    note = "\n".join(textwrap.wrap(f"Left out: {note}", 150, max_lines=4, placeholder=" …")) if note else ""
    figure.supxlabel("\n".join(part for part in (label, note) if part), fontsize=8)
    return figure, figure.subplots(rows, columns, sharex=rows > 1, sharey=True, squeeze=False)


def _lines(rows: DataFrame, heading: str, note: str, metric: str, family: Family) -> Figure:
    _, label, log, text = METRICS[metric]
    pairs = rows[["variant", "dtype"]].drop_duplicates().sort_values(["variant", "dtype"], key=rank).to_numpy()
    modes, providers = ordered(rows["mode"]), ordered(rows["provider"])
    figure, grid = _frame(len(pairs), len(modes), 1.9 * len(pairs), heading, family.label, note)
    rows = rows.assign(x=[family.positions[shape] for shape in _shapes(rows)])
    places = sorted(set(rows["x"]))
    for (variant, dtype), line_of_panels in zip(pairs, grid, strict=True):
        for mode, axes in zip(modes, line_of_panels, strict=True):
            here = rows[(rows["variant"] == variant) & (rows["dtype"] == dtype) & (rows["mode"] == mode)]
            axes.set_title(case_name(mode, variant, dtype), loc="left", fontsize=8)
            axes.grid(True, color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            for provider in ordered(here["provider"]):
                line = here[here["provider"] == provider].set_index("x").reindex(places)  # a missing size breaks it
                colour, marker = STYLES[provider]
                axes.fill_between(places, line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
                axes.plot(places, line["y"], color=colour, marker=marker, markersize=4, linewidth=1.5)
            if metric != "time":
                axes.axhline(1, color=_GREY, linewidth=1, linestyle="--", zorder=1)
    axes = grid[0][0]
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if rows["y"].max() < 300 * rows["y"].min() else (1,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0)
    axes.yaxis.set_major_formatter(FuncFormatter(text))
    ticks = places[:: math.ceil(len(places) / 5)]
    for axes in grid.flat:
        if not family.labels:
            axes.set_xscale("log")
        axes.set_xticks(ticks, [family.labels[x] if family.labels else size_text(x) for x in ticks])
        axes.set_xticks([], minor=True)
    figure.supylabel(label, fontsize=8)
    _legend(figure, providers, [Patch(facecolor=_GREY, alpha=0.25, label="20th to 80th percentile")])
    return figure


def _legend(figure: Figure, providers: Sequence[str], more: Sequence[Patch]) -> None:
    handles = [Patch(color=STYLES[name][0], label=PROVIDERS[name]) for name in providers]
    figure.legend(handles=[*handles, *more], loc="outside upper left", ncols=7, frameon=False)


def _traffic(rows: DataFrame, notes: list[str]) -> Iterator[Picture]:
    """Bytes, a panel per dtype: read, and written on top of it, in multiples of the least."""
    least = rows["least_read"] + rows["least_written"]
    rows = rows.assign(whole=(rows["read"] + rows["written"]) / least, part=rows["read"] / least)
    for n, v in sorted(set(_shapes(rows[rows["status"] == "ok"]))):
        here = rows[(rows["n"] == n) & (rows["v"] == v)]
        op, dtypes = here["op"].iloc[0], ordered(here["dtype"])
        panels = [(dtype, here[here["dtype"] == dtype], "{:.2f}") for dtype in dtypes]
        title = f"{op}: bytes moved, in multiples of the least possible ({n:,} × {v:,})"
        parts = [Patch(color=_GREY, label="read"), Patch(color=_GREY, alpha=0.5, label="written")]
        yield f"traffic-{op}-{n}x{v}", functools.partial(_bars, here, title, panels, parts)


def _overhead(rows: DataFrame, notes: list[str]) -> Iterator[Picture]:
    """Host time, where it was measured, launches, syncs and Python calls, a panel each."""
    titles = {"median_us": "host time, median µs per call", "launches": "launches per call"}
    titles |= {"syncs": "host syncs per call", "python_calls": "Python calls per call"}
    for (n, v, dtype), here in rows.groupby(["n", "v", "dtype"]):
        known = [column for column in titles if here[column].notna().any()]
        panels = [(titles[name], here.assign(whole=here[name], part=here[name]), "{:.3g}") for name in known]
        op = here["op"].iloc[0]
        title = f"{op}, {dtype}: host overhead of a call ({n:,.0f} × {v:,.0f})"
        if panels:
            yield f"overhead-{op}-{dtype}-{n:.0f}x{v:.0f}", functools.partial(_bars, here, title, panels, [])


def _bars(rows: DataFrame, title: str, panels: Sequence[tuple[str, DataFrame, str]], parts: Sequence[Patch]) -> Figure:
    """Panels of bars: `whole` is a bar and `part` the strong part of it; with names of parts, 1 is a line across."""
    good = rows[rows["status"] == "ok"]
    providers = ordered(good["provider"])
    cases = ["variant", "mode", "reduction"]
    groups = list(good[cases].drop_duplicates().sort_values(cases, key=rank).itertuples(index=False, name=None))
    step = len(providers) + 1
    height = 0.155 * step * len(groups)
    figure, grid = _frame(1, len(panels), height, _heading(title, good), "", left_out(rows))
    for (name, panel, text), axes in zip(panels, grid[0], strict=True):
        axes.set_title(name, loc="left", fontsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlim(0, 1.3 * panel["whole"].max() or 1)
        for row in panel[panel["provider"].isin(providers)].to_dict("records"):
            if (group := tuple(row[column] for column in cases)) in groups:
                y, colour = groups.index(group) * step + providers.index(row["provider"]), STYLES[row["provider"]][0]
                ok = row["status"] == "ok"
                axes.barh(y, row["whole"] if ok else 0, color=colour, alpha=0.5)
                axes.barh(y, row["part"] if ok else 0, color=colour)
                label = text.format(row["whole"]) if ok else row["status"].partition(":")[0]
                axes.text(row["whole"] if ok else 0, y, f" {label}", va="center", fontsize=7)
        if parts:
            axes.axvline(1, color="#222222", linewidth=1, linestyle="--")
        names = [case_name(mode, variant, reduction) for variant, mode, reduction in groups]
        axes.set_yticks([(i + 0.5) * step - 1 for i in range(len(groups))], names)
        axes.tick_params(length=0)
    grid[0][0].set_ylim(step * len(groups) - 1, -1)
    _legend(figure, providers, parts)
    return figure
