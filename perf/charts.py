"""Drawing: lines over sizes in small multiples, and grouped bars. Knows nothing of what it draws.

Everything is placed in inches from the edges of the figure, so that text is as large in a tall chart as in a flat one,
and the same data gives the same bytes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, FormatStrFormatter, MaxNLocator, NullLocator

#: Colour and marker of each series: Okabe and Ito's palette, told apart by every kind of colour vision.
STYLES = {
    "ours": ("#0072B2", "o"),
    "torch eager": ("#D55E00", "s"),
    "torch.compile": ("#009E73", "^"),
    "Liger": ("#CC79A7", "D"),
}
_SPARE = (("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X"))

_INK = "#222222"
_GREY = "#666666"
_FAINT = "#dddddd"
#: How strong the parts of a bar are.
_PARTS = (1.0, 0.5)
_DPI = 160
_WIDTH = 9.0
_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.7,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "svg.hashsalt": "lucid-triton",
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Axis:
    """How the values of a chart are shown: its label, scale, tick text, and a line that means something."""

    label: str
    log: bool
    text: Callable[[float], str]
    reference: float | None = None
    reference_text: str = ""


@dataclass(frozen=True)
class Line:
    """A series: where it is missing, y is NaN; low and high bound the band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One small chart: a title and its lines."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Heading:
    """What stands above and below a chart."""

    title: str
    subtitle: str
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar of one or two parts, with text at its end; without a value, only the text."""

    parts: Sequence[float]
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class BarPanel:
    """Bars by (group, series); `label` stands below, `reference` is a line across."""

    title: str
    label: str
    bars: dict[tuple[str, str], Bar] = field(default_factory=dict)
    reference: float | None = None


def style(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of a series; series without their own share the spare ones in order."""
    if name in STYLES:
        return STYLES[name]
    others = [other for other in names if other not in STYLES]
    return _SPARE[others.index(name) % len(_SPARE)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a log scale from `low` to `high`: as many digits of each decade as give at most 6."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.2, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1,)):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


def spread(sizes: Sequence[float], at_most: int) -> list[float]:
    """Some of the ascending sizes to label, evenly on a log scale, the first and the last among them."""
    if len(sizes) <= 2:
        return list(sizes)
    gap = math.log(sizes[-1] / sizes[0]) / at_most
    chosen = [sizes[0]]
    for size in sizes[1:-1]:
        if math.log(size / chosen[-1]) >= gap and math.log(sizes[-1] / size) >= gap:
            chosen.append(size)
    return [*chosen, sizes[-1]]


def size_text(size: float) -> str:
    """A size as on an axis: multiples of 1024 in Ki, Mi and Gi, which are exact, others in full."""
    whole = int(size)
    for unit, name in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if whole % unit == 0 and whole >= unit:
            return f"{whole // unit}{name}"
    return f"{whole:,}"


def draw_lines(
    heading: Heading,
    rows: Sequence[Sequence[Panel]],
    x_label: str,
    axis: Axis,
    places: dict[int, str] | None = None,
) -> Figure:
    """Panels in rows, all on the same axes; the legend names every series once.

    x is a size on a log scale or, with `places`, one of these, each with a label of two lines.
    """
    lines = [line for row in rows for panel in row for line in panel.lines]
    names = list(dict.fromkeys(line.name for line in lines))
    columns = max(len(row) for row in rows)
    with matplotlib.rc_context(_SETTINGS):
        handles: list[Any] = [
            Line2D([], [], color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=name)
            for name in names
            for colour, marker in [style(name, names)]
        ]
        handles.append(Patch(facecolor=_GREY, alpha=0.25, label="20th to 80th percentile"))
        figure, grid = _frame(heading, len(rows), columns, 1.75, 0.72, handles)
        sizes = sorted({x for line in lines for x in line.x})
        low, high = _limits([y for line in lines for y in (*line.low, *line.high) if not math.isnan(y)], axis)
        for i, row in enumerate(rows):
            for j, plot in enumerate(grid[i]):
                if j >= len(row) or not row[j].lines:
                    plot.set_axis_off()
                    continue
                plot.set_yscale("log" if axis.log else "linear")
                plot.set_ylim(low, high)
                _ticks(plot.yaxis, log_ticks(low, high) if axis.log else _linear_ticks(high), axis.text)
                _x_axis(plot, sizes, places)
                below = any(j < len(other) and other[j].lines for other in rows[i + 1 :])
                plot.tick_params(length=2, labelleft=j == 0, labelbottom=not below)
                _panel(plot, row[j], names)
                if axis.reference is not None:
                    _reference(plot, axis.reference, axis.reference_text if i == j == 0 else "")
        left, right = grid[0][0].get_position(), grid[-1][-1].get_position()
        middle = (left.x0 + right.x1) / 2, (left.y1 + right.y0) / 2
        drop = (0.42 if places else 0.24) / figure.get_figheight()
        figure.text(middle[0], right.y0 - drop, x_label, ha="center", va="top")
        figure.text(0.1 / _WIDTH, middle[1], axis.label, va="center", rotation="vertical")
    return figure


def _panel(plot: Any, panel: Panel, names: Sequence[str]) -> None:
    plot.grid(True, color=_FAINT, linewidth=0.6)
    plot.spines[["top", "right"]].set_visible(False)
    plot.set_title(panel.title, loc="left", fontsize=8.5)
    for line in panel.lines:
        _line(plot, line, names)


def _reference(plot: Any, y: float, text: str) -> None:
    plot.axhline(y, color=_GREY, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    place: dict[str, Any] = dict(xy=(0.99, y), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    plot.annotate(text, xytext=(0, 1.5), textcoords="offset points", color=_GREY, fontsize=7.5, **place)


def _x_axis(plot: Any, sizes: Sequence[float], places: dict[int, str] | None) -> None:
    if places:
        plot.set_xlim(-0.3, len(places) - 0.7)
        labelled = list(places)[:: math.ceil(len(places) / 5)]
        _ticks(plot.xaxis, labelled, lambda place: places[int(place)])
        return
    plot.set_xscale("log")
    pad = (sizes[-1] / sizes[0]) ** 0.04 if len(sizes) > 1 else 2
    plot.set_xlim(sizes[0] / pad, sizes[-1] * pad)
    _ticks(plot.xaxis, spread(sizes, 4), size_text)


def _line(plot: Any, line: Line, names: Sequence[str]) -> None:
    colour, marker = style(line.name, names)
    front = 3 if line.name == "ours" else 2
    plot.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0, zorder=front)
    plot.plot(
        line.x,
        line.y,
        color=colour,
        marker=marker,
        markersize=4,
        markeredgecolor="white",
        markeredgewidth=0.5,
        linewidth=2 if line.name == "ours" else 1.3,
        zorder=front + 0.5,
    )


def draw_bars(
    heading: Heading,
    groups: Sequence[str],
    series: Sequence[str],
    panels: Sequence[BarPanel],
    parts: Sequence[str] = (),
) -> Figure:
    """Horizontal bars, a group for each label, panels side by side; `parts` names what a bar is made of."""
    step = 0.155 * len(series) + 0.13
    with matplotlib.rc_context(_SETTINGS):
        handles: list[Any] = [Patch(facecolor=style(name, series)[0], label=name) for name in series]
        handles += [Patch(facecolor=_GREY, alpha=alpha, label=part) for part, alpha in zip(parts, _PARTS, strict=False)]
        if any(bar.low is not None for panel in panels for bar in panel.bars.values()):
            handles.append(Line2D([], [], color=_INK, linewidth=0.9, label="20th to 80th percentile"))
        left = 0.3 + 0.068 * max(len(group) for group in groups)
        figure, grid = _frame(heading, 1, len(panels), step * len(groups), left, handles)
        for j, panel in enumerate(panels):
            plot = grid[0][j]
            ends = [max(sum(bar.parts), bar.high or 0.0) for bar in panel.bars.values()]
            plot.set_xlim(0, (max([*ends, panel.reference or 0]) or 1) * (1.18 + 0.06 * len(panels)))
            plot.set_ylim(step * len(groups), 0)
            plot.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            plot.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            _ticks(plot.yaxis, [(i + 0.5) * step for i in range(len(groups))], lambda y: groups[round(y / step - 0.5)])
            plot.tick_params(length=0, labelleft=j == 0)
            plot.spines[["top", "right", "left"]].set_visible(False)
            plot.grid(True, axis="x", color=_FAINT, linewidth=0.6)
            plot.set_axisbelow(True)
            plot.set_title(panel.title, loc="left", fontsize=8.5)
            plot.set_xlabel(panel.label, fontsize=8.5)
            for i, group in enumerate(groups):
                for k, name in enumerate(series):
                    if (group, name) in panel.bars:
                        y = i * step + 0.065 + (k + 0.5) * 0.155
                        _bar(plot, panel.bars[group, name], y, style(name, series)[0])
            if panel.reference is not None:
                plot.axvline(panel.reference, color=_INK, linewidth=1, linestyle=(0, (4, 2)))
    return figure


def _bar(plot: Any, bar: Bar, y: float, colour: str) -> None:
    start = 0.0
    for part, alpha in zip(bar.parts, _PARTS, strict=False):
        plot.barh(y, part, height=0.135, left=start, color=colour, alpha=alpha, linewidth=0)
        start += part
    if bar.low is not None and bar.high is not None:
        plot.plot([bar.low, bar.high], [y, y], color=_INK, linewidth=0.9)
        start = max(start, bar.high)
    plot.annotate(
        bar.text,
        (start, y),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=_INK if bar.parts else _GREY,
    )


def save(figure: Figure, path: Path) -> None:
    """Write a figure without anything that changes from one time to the next."""
    undated = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(path, dpi=_DPI, facecolor="white", metadata=undated)


def _notes(heading: Heading) -> list[str]:
    return textwrap.wrap(heading.note, 150, max_lines=4, placeholder=" …") if heading.note else []


def _bottom(heading: Heading) -> float:
    return 0.6 + 0.15 * len(_notes(heading))


def _frame(
    heading: Heading, rows: int, columns: int, height: float, left: float, handles: Sequence[Any]
) -> tuple[Figure, list[list[Any]]]:
    """A figure with its heading, legend and notes, and rows × columns of empty axes of the given height in inches."""
    subtitle = textwrap.wrap(heading.subtitle, 140)
    top, bottom, gap = 0.92 + 0.16 * len(subtitle), _bottom(heading), 0.34
    total = top + rows * height + (rows - 1) * gap + bottom
    figure = Figure(figsize=(_WIDTH, total))
    FigureCanvasAgg(figure)
    figure.text(0.1 / _WIDTH, 1 - 0.1 / total, heading.title, va="top", fontsize=11.5, fontweight="bold")
    figure.text(
        0.1 / _WIDTH, 1 - 0.36 / total, "\n".join(subtitle), va="top", fontsize=8, color=_GREY, linespacing=1.25
    )
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.02 / _WIDTH, 1 - (0.34 + 0.16 * len(subtitle)) / total),
        ncols=len(handles),
        frameon=False,
        handlelength=2,
        columnspacing=1.6,
        borderpad=0.4,
    )
    if heading.note:
        figure.text(0.1 / _WIDTH, 0.06 / total, "\n".join(_notes(heading)), va="bottom", fontsize=7.5, color=_GREY)
    between = 0.16
    width = (_WIDTH - left - 0.2 - between * (columns - 1)) / columns
    width = min(width, 5.0)
    grid = []
    for i in range(rows):
        y = total - top - (i + 1) * height - i * gap
        places = [left + j * (width + between) for j in range(columns)]
        grid.append([figure.add_axes((x / _WIDTH, y / total, width / _WIDTH, height / total)) for x in places])
    return figure, grid


def _limits(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    if axis.reference is not None:
        values = [*values, axis.reference]
    low, high = min(values), max(values)
    if not axis.log:
        return 0.0, high * 1.08
    room = max((high / low) ** 0.06, 1.15)
    return low / room, high * room


def _linear_ticks(high: float) -> list[float]:
    step = next(step for step in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, math.ceil(high)) if high / step <= 8)
    return [i * step for i in range(int(high / step) + 1)]


def _ticks(axis: Any, ticks: Sequence[float], text: Callable[[float], str]) -> None:
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([text(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())
