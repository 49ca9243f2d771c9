"""Plots of what `sweep`, `overhead` and `traffic` wrote.

From CSV files alone, on any machine:

    python -m perf plot perf/results/<gpu>/sweep.csv

A sweep gives, per op, reduction and family of shapes (sizes at one V, or at one number of elements), a picture of the
time, of the fraction of the copy bandwidth and of the speed-up over each other provider: a row of panels per variant
and dtype, a column per mode. Traffic and overhead files give bars. Rows that failed or were skipped are left out, and
each picture says so.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from perf import charts, output, points
from perf.charts import Axis, Bar, BarPanel, Heading, Line, Panel
from perf.errors import UsageError
from perf.output import Row
from perf.progress import progress

HELP = "draw PNGs from the CSV files of the others"

#: Options that choose rows: the column is the name without its s.
_FILTERS = ("ops", "modes", "dtypes")


@dataclass(frozen=True)
class Picture:
    """A file to come: its name without suffix, and how to draw it."""

    name: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Family:
    """Shapes that lie on one axis, by a size of each; or side by side, where `places` has the label of each place."""

    name: str
    title: str
    label: str
    size: Callable[[tuple[int, int]], int]
    shapes: frozenset[tuple[int, int]]
    places: dict[int, str] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="CSV of sweep, overhead or traffic")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the pictures (default: the first FILE's)")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="kind of picture (default: png)")
    for values in _FILTERS:
        parser.add_argument(
            f"--{values}", metavar="LIST", help=f"only these {values}, separated by commas (default: all in the files)"
        )


def run(options: argparse.Namespace) -> int:
    """Draw every picture that the files give; print the paths."""
    tables = points.load(options.files, "sweep", "overhead", "traffic")
    rows: dict[str, list[Row]] = {"sweep": [], "overhead": [], "traffic": []}
    for kind, table in tables:
        rows[kind] += table
    _filter(rows, options)
    pictures, notes = _plan(rows)
    if not pictures:
        raise UsageError(
            f"{', '.join(map(str, options.files))}: nothing to draw; {', '.join(notes) or 'no row is left'}"
        )
    folder = options.out or options.files[0].parent
    paths = [folder / f"{picture.name}.{options.format}" for picture in pictures]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror}") from error
    output.check_writable(*paths)
    for note in notes:
        print(note, file=sys.stderr)
    with progress(len(pictures)) as advance:
        for path, picture in zip(paths, pictures, strict=True):
            advance(picture.name)
            charts.save(picture.draw(), path)
    print(*paths, sep="\n")
    return 0


def _filter(rows: dict[str, list[Row]], options: argparse.Namespace) -> None:
    for values in _FILTERS:
        wanted, column = getattr(options, values), values.removesuffix("s")
        if wanted is None:
            continue
        there = points.ordered(row[column] for table in rows.values() for row in table)
        names = wanted.split(",")
        for name in names:
            if name not in there:
                raise UsageError(f"argument --{values}: {name!r} is not in the files, which have {', '.join(there)}")
        for kind in rows:
            rows[kind] = [row for row in rows[kind] if row[column] in names]


def _plan(rows: dict[str, list[Row]]) -> tuple[list[Picture], list[str]]:
    """The pictures, and lines on what is in none of them."""
    pictures, notes = [], []
    gpus = {row["gpu"] for table in rows.values() for row in table}
    for kind, table in rows.items():
        for gpu in points.ordered(row["gpu"] for row in table):
            of_gpu = points.latest(row for row in table if row["gpu"] == gpu)
            prefix = f"{slug(gpu or 'no gpu')}-" if len(gpus) > 1 else ""
            for op in points.ordered(row["op"] for row in of_gpu):
                of_op = [row for row in of_gpu if row["op"] == op]
                note = points.left_out(of_op)
                if note:
                    notes.append(f"{kind} of {op}: left out: {note}")
                if kind == "sweep":
                    made, alone = _sweep(of_op, prefix)
                    notes += alone
                else:
                    made = list(_bars(kind, of_op, prefix))
                pictures += made
    return pictures, notes


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return "-".join("".join(c.lower() if c.isalnum() else " " for c in name).split())


def families(shapes: set[tuple[int, int]]) -> tuple[list[Family], set[tuple[int, int]]]:
    """Shapes by the axis they share, and those left alone.

    Three or more values of N at one V make a family; so do three or more of V at one number of elements, to 5 %.
    Two or more shapes in no family stand side by side, by their number of elements. A shape may be in two families.
    """
    found = []
    for v in sorted({v for _, v in shapes}):
        same = frozenset(shape for shape in shapes if shape[1] == v)
        if len(same) >= 3:
            found.append(Family(f"v{v}", f"V = {v:,}", f"rows N, at V = {v:,}", lambda shape: shape[0], same))
    rest = sorted(shapes, key=math.prod)
    while rest:
        elements = math.prod(rest[0])
        same = frozenset(shape for shape in rest if math.prod(shape) <= elements * 1.05)
        rest = rest[len(same) :]
        if len({v for _, v in same}) >= 3:
            about = charts.size_text(max(math.prod(shape) for shape in same))
            label = f"columns V, at N·V = {about} elements"
            found.append(Family(f"e{about.replace(',', '')}", f"N·V = {about}", label, lambda shape: shape[1], same))
    others = sorted(
        shapes.difference(*(family.shapes for family in found)), key=lambda shape: (math.prod(shape), shape)
    )
    if len(others) < 2:
        return found, set(others)
    places = {place: f"{n}\n×{v}" for place, (n, v) in enumerate(others)}
    return [*found, Family("shapes", "some shapes", "N × V", others.index, frozenset(others), places)], set()


def _sweep(rows: list[Row], prefix: str) -> tuple[list[Picture], list[str]]:
    pictures, notes = [], []
    op = rows[0]["op"]
    for reduction in points.ordered(row["reduction"] for row in rows):
        group = [row for row in rows if row["reduction"] == reduction]
        good = [row for row in group if row["status"] == "ok"]
        found, alone = families({points.shape(row) for row in good})
        if alone:
            names = ", ".join(f"{n}x{v}" for n, v in sorted(alone))
            notes.append(f"sweep of {op}: left out: {names}, alone on every axis")
        what = f"{op}, reduction {reduction}" if reduction else op
        for family in found:
            for metric, axis in AXES.items():
                chosen = [row for row in group if points.shape(row) in family.shapes]
                ours = {points.case(row) for row in chosen if row["provider"] == "ours" and row["status"] == "ok"}
                others = {points.case(row) for row in chosen if row["provider"] != "ours" and row["status"] == "ok"}
                if metric == "speedup" and not ours & others:
                    continue
                parts = [op, reduction, metric, family.name]
                name = prefix + "-".join(part for part in parts if part)
                title = f"{what}: {TITLES[metric]} ({family.title})"
                pictures.append(Picture(name, _lines_of(chosen, metric, axis, family, title)))
    return pictures, notes


def _time_text(ms: float) -> str:
    unit, value = next((u, ms * k) for u, k in (("ns", 1e6), ("µs", 1e3), ("ms", 1.0)) if ms * k < 1000 or u == "ms")
    return f"{value:g} {unit}"


#: How each metric of a sweep is shown.
AXES = {
    "time": Axis("time per call", True, _time_text),
    "roof": Axis("least possible bytes / time / copy bandwidth", False, lambda y: f"{y:.1f}", 1.0, "copy"),
    "speedup": Axis("time of the other / time of ours", True, lambda y: f"{y:g}×", 1.0, "ours"),
}
TITLES = {
    "time": "time",
    "roof": "fraction of the copy bandwidth",
    "speedup": "speed-up of ours over each other provider",
}


def _lines_of(rows: list[Row], metric: str, axis: Axis, family: Family, title: str) -> Callable[[], Figure]:
    def draw() -> Figure:
        good = [row for row in rows if row["status"] == "ok"]
        modes = points.ordered(row["mode"] for row in good)
        grid = []
        for variant in points.ordered(row["variant"] for row in good):
            for dtype in points.ordered(row["dtype"] for row in good if row["variant"] == variant):
                here = [row for row in good if (row["variant"], row["dtype"]) == (variant, dtype)]
                panels = []
                for mode in modes:
                    name = ", ".join(part for part in (mode, points.variant_name(variant), dtype) if part)
                    panels.append(Panel(name, _series([row for row in here if row["mode"] == mode], metric, family)))
                grid.append(panels)
        note = points.left_out(rows)
        heading = Heading(title, points.environment(good), note and f"Left out: {note}")
        drawn = [panels for panels in grid if any(panel.lines for panel in panels)]
        return charts.draw_lines(heading, drawn, family.label, axis, family.places)

    return draw


def _series(rows: list[Row], metric: str, family: Family) -> list[Line]:
    by_provider = {
        provider: {family.size(points.shape(row)): row for row in rows if row["provider"] == provider}
        for provider in points.ordered((row["provider"] for row in rows), points.PROVIDERS)
    }
    sizes = sorted({size for found in by_provider.values() for size in found})
    ours = by_provider.get("ours", {})
    lines = []
    for provider, found in by_provider.items():
        if metric == "speedup" and (provider == "ours" or not ours.keys() & found.keys()):
            continue
        values = [_values(found.get(size), ours.get(size), metric) for size in sizes]
        y, low, high = zip(*values, strict=True)
        lines.append(Line(points.provider_name(provider), sizes, y, low, high))
    return lines


def _values(row: Row | None, ours: Row | None, metric: str) -> tuple[float, float, float]:
    """The value at the median, and at the quantiles of the time."""
    if row is None or (metric == "speedup" and ours is None):
        return (math.nan,) * 3
    median, quick, slow = row["median_ms"], row["p20_ms"], row["p80_ms"]
    if metric == "time":
        return median, quick, slow
    if metric == "roof":
        roof = row["roof_fraction"]
        return roof, roof * median / slow, roof * median / quick
    assert ours is not None
    return median / ours["median_ms"], quick / ours["p80_ms"], slow / ours["p20_ms"]


def _bars(kind: str, rows: list[Row], prefix: str) -> Iterator[Picture]:
    op = rows[0]["op"]
    good = [row for row in rows if row["status"] == "ok"]
    if kind == "traffic":
        for n, v in sorted({points.shape(row) for row in good}):
            here = [row for row in rows if points.shape(row) == (n, v)]
            title = f"{op}: bytes moved, in multiples of the least possible ({n:,} × {v:,})"
            yield Picture(f"{prefix}traffic-{op}-{n}x{v}", _bars_of(here, title, _traffic_panels, "read", "written"))
        return
    for n, v, dtype in sorted({(*points.shape(row), row["dtype"]) for row in good}):
        here = [row for row in rows if (*points.shape(row), row["dtype"]) == (n, v, dtype)]
        title = f"{op}, {dtype}: host overhead of a call ({n:,} × {v:,})"
        yield Picture(f"{prefix}overhead-{op}-{dtype}-{n}x{v}", _bars_of(here, title, _overhead_panels))


def _bars_of(
    rows: list[Row], title: str, make: Callable[[list[Row]], list[BarPanel]], *parts: str
) -> Callable[[], Figure]:
    def draw() -> Figure:
        good = [row for row in rows if row["status"] == "ok"]
        series = points.ordered((row["provider"] for row in good), points.PROVIDERS)
        rows_drawn = [row for row in rows if row["provider"] in series]
        note = points.left_out(rows)
        heading = Heading(title, points.environment(good), note and f"Left out: {note}")
        return charts.draw_bars(
            heading, _groups(good), [points.provider_name(name) for name in series], make(rows_drawn), parts
        )

    return draw


def _group(row: Row) -> str:
    return ", ".join(part for part in (row["mode"], points.variant_name(row["variant"]), row["reduction"]) if part)


def _groups(rows: Sequence[Row]) -> list[str]:
    modes = points.ordered(row["mode"] for row in rows)
    variants = points.ordered(row["variant"] for row in rows)
    in_order = sorted(
        rows, key=lambda row: (variants.index(row["variant"]), modes.index(row["mode"]), row["reduction"])
    )
    return list(dict.fromkeys(_group(row) for row in in_order))


def _traffic_panels(rows: list[Row]) -> list[BarPanel]:
    panels = []
    for dtype in points.ordered(row["dtype"] for row in rows if row["status"] == "ok"):
        panel = BarPanel(dtype, "× the least possible", reference=1.0)
        for row in rows:
            if row["dtype"] == dtype:
                bar = Bar((), row["status"].partition(":")[0])
                if row["status"] == "ok":
                    least = row["least_read"] + row["least_written"]
                    parts = (row["read"] / least, row["written"] / least)
                    bar = Bar(parts, f"{sum(parts):.2f}")
                panel.bars[_group(row), points.provider_name(row["provider"])] = bar
        panels.append(panel)
    return panels


def _overhead_panels(rows: list[Row]) -> list[BarPanel]:
    panels = []
    for column, title, label in (
        ("median_us", "host time", "median µs per call"),
        ("launches", "launches", "per call"),
        ("syncs", "host syncs", "per call"),
        ("python_calls", "Python calls", "per call"),
    ):
        if all(row[column] is None for row in rows):
            continue
        panel = BarPanel(title, label)
        for row in rows:
            value = row[column]
            bar = Bar((), row["status"].partition(":")[0] if row["status"] != "ok" else "not measured")
            if row["status"] == "ok" and value is not None:
                timed = column == "median_us"
                low, high = (row["p20_us"], row["p80_us"]) if timed else (None, None)
                bar = Bar((value,), f"{value:.3g}", low, high)
            panel.bars[_group(row), points.provider_name(row["provider"])] = bar
        panels.append(panel)
    return panels
