"""plot: pictures of a sweep, from its CSV file alone.

    python -m perf plot perf/results/<gpu>/sweep.csv

For each op and reduction with two or more shapes, a picture of the time, of peak memory, of the fraction of the
roofline and of the speed-up over each other provider: a row of panels per variant and dtype, a column per mode, shapes
by their number of elements, bands from the 20th to the 80th percentile. Losses from hidden states have a row of panels
per V and D, too, and numbers of rows in each. Rows that failed or were skipped are left out, and each picture says so.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from pandas import DataFrame

from perf import results
from perf.results import CASE, PROVIDERS, UsageError, case_name, left_out, ordered, rank

#: Colour and marker of each provider: Okabe and Ito's palette, told apart by every kind of colour vision.
STYLES = {
    "ours": ("#0072B2", "o"),
    "lucid.torch": ("#E69F00", "v"),
    "two-launches": ("#56B4E9", "P"),
    "torch": ("#D55E00", "s"),
    "compile": ("#009E73", "^"),
    "liger": ("#CC79A7", "D"),
    "trl": ("#000000", "X"),
    "products": ("#999999", "*"),
}

#: What a picture shows: label of the axis, and its scale.
METRICS = {
    "time": ("ms", "log"),
    "memory": ("peak MiB beyond the inputs", "log"),
    "roof": ("least bytes / time / copy bandwidth", "linear"),
    "speedup": ("time of the other / ours", "log"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="CSV of a sweep; pictures go to its folder")


def run(options: argparse.Namespace) -> int:
    """Draw every picture that the file gives; print the paths."""
    rows = results.latest(results.load(options.file, "sweep"))
    drawn = False
    for (op, reduction), here in rows.groupby(["op", "reduction"]):
        good = here[here["status"] == "ok"]
        if len(good[["n", "v", "d"]].drop_duplicates()) < 2:
            continue
        for metric in METRICS:
            shown = values(good, metric)
            if not shown["y"].notna().any():
                continue
            path = options.file.with_name("-".join(filter(None, (op, reduction, metric, "shapes.png"))))
            heading = f"{op} {reduction}: {metric}\n{results.environment_line(good)}"
            draw(shown, metric, heading, left_out(here)).savefig(path, dpi=160, metadata={"Software": None})
            print(path)
            drawn = True
    if not drawn:
        raise UsageError(f"{options.file}: nothing to draw, no op has two shapes")
    return 0


def values(rows: DataFrame, metric: str) -> DataFrame:
    """Rows with y, the metric at the median, and low and high, at the quantiles of the time."""
    median, quick, slow = rows["median_ms"], rows["p20_ms"], rows["p80_ms"]
    if metric == "time":
        return rows.assign(y=median, low=quick, high=slow)
    if metric == "memory":
        return rows.assign(y=rows["peak_mib"], low=rows["peak_mib"], high=rows["peak_mib"])
    if metric == "roof":
        roof = rows["roof_fraction"]
        return rows.assign(y=roof, low=roof * median / slow, high=roof * median / quick)
    both = rows[rows["provider"] != "ours"].merge(rows[rows["provider"] == "ours"], on=CASE, suffixes=("", "_ours"))
    return both.assign(
        y=both["median_ms"] / both["median_ms_ours"],
        low=both["p20_ms"] / both["p80_ms_ours"],
        high=both["p80_ms"] / both["p20_ms_ours"],
    )


def draw(rows: DataFrame, metric: str, heading: str, note: str) -> Figure:
    """A picture of a metric."""
    rows = rows.assign(size=rows["n"] * rows["v"]).sort_values(["size", "n"], kind="stable")
    sizes = rows[["n", "v", "d"]].astype(int).to_numpy()
    # Of losses from hidden states, V and D are the panel's.
    rows["shape"] = [f"{n:,}" if d else f"{n}×{v}" for n, v, d in sizes]
    rows["layer"] = [f"V = {v:,}, D = {d:,}" if d else "" for _, v, d in sizes]
    places = {shape: x for x, shape in enumerate(dict.fromkeys(rows["shape"]))}
    rows["x"] = rows["shape"].map(places)
    panel = ["variant", "layer", "dtype"]
    pairs = rows[panel].drop_duplicates().sort_values(panel, key=rank).to_numpy()
    modes, (label, scale) = ordered(rows["mode"]), METRICS[metric]
    figure = Figure(figsize=(9, 1.6 + 1.9 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), len(modes), sharex=True, sharey=True, squeeze=False)
    for (variant, layer, dtype), panels in zip(pairs, grid, strict=True):
        for mode, axes in zip(modes, panels, strict=True):
            here = rows[(rows[[*panel, "mode"]] == [variant, layer, dtype, mode]).all(axis=1)]
            axes.set_title(case_name(mode, variant, layer, dtype), loc="left", fontsize=8)
            axes.grid(True, color="#dddddd", linewidth=0.6)
            axes.set_xticks([*places.values()], [*places], rotation=90, fontsize=6)
            axes.set_yscale(scale)
            for provider in ordered(here["provider"]):
                line = here[here["provider"] == provider].set_index("x").reindex(places.values())  # a gap breaks it
                colour, marker = STYLES[provider]
                axes.fill_between(line.index, line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
                axes.plot(line["y"], color=colour, marker=marker, markersize=4, label=PROVIDERS[provider])
            if metric in ("roof", "speedup"):
                axes.axhline(1, color="#666666", linewidth=1, linestyle="--", zorder=1)
    handles = {text: line for axes in grid.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle("\n".join(textwrap.fill(line, 130) for line in heading.splitlines()), x=0.01, ha="left", fontsize=9)
    figure.supxlabel(textwrap.fill(f"Left out: {note}", 150, max_lines=4) if note else "", fontsize=8)
    figure.supylabel(label, fontsize=8)
    return figure
