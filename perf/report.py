"""report: the committed results as Markdown.

Writes perf/results/README.md, a page with all rows, and the section of README.md between its markers; with --check,
nothing is written and the exit code is 1 where either is not what the results give. The folder of results holds
`predicted/static.csv`, `traffic.csv`, `overhead.csv` and `linear_distillation.csv`, made without a GPU, and for each
GPU a folder with `sweep.csv`, `overhead.csv` and pictures.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pandas import DataFrame
from tabulate import tabulate

from perf import results
from perf.__main__ import COMMANDS
from perf.count import linear_distillation
from perf.measure.rows import chosen
from perf.results import CASE, DTYPES, PROVIDERS, ROOT, SHAPE_SETS, Row, UsageError, case_name, left_out, number_text

RESULTS = ROOT / "perf/results"
BEGIN, END = "<!-- perf:begin -->", "<!-- perf:end -->"
NONE = "–"

#: The rows of README's table: an op and a variant, forward and in this mode or, where it was not measured, backward.
HEADLINE = (("distillation", "forward_kl", "full"), ("distillation", "js", "full"), ("kl_div", "log", "backward"))

#: What the cells of a file's tables hold, for each provider.
CELLS = {
    "sweep": "median time in ms (fraction of the roofline, that is, of the measured copy bandwidth; multiples of ours)"
    "; from hidden states, median time in ms (multiples of the matrix products), peak memory",
    "overhead": "median host time per call in µs where a GPU measured it, launches, host syncs, Python calls",
    "traffic": "bytes read + written (in multiples of the least possible), launches, bytes allocated in multiples of "
    "one N × V tensor. Without caches: what is read twice counts twice. torch is counted by its operators' operands",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    output, readme = RESULTS / "README.md", ROOT / "README.md"
    parser.add_argument("--output", type=Path, default=output, metavar="FILE", help="where the page goes")
    parser.add_argument("--readme", type=Path, default=readme, metavar="FILE", help="whose section is written")
    check = "write nothing; exit with 1 where the files differ from what the results give"
    parser.add_argument("--check", action="store_true", help=check)


def run(options: argparse.Namespace) -> int:
    """Write or compare."""
    text = options.readme.read_text(encoding="utf-8")
    if [text.count(BEGIN), text.count(END)] != [1, 1] or text.index(BEGIN) > text.index(END):
        raise UsageError(f"{options.readme} needs the lines {BEGIN} and {END}, once and in this order")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    wanted = {options.output: page(), options.readme: f"{before}{BEGIN}\n{section()}\n{END}{after}"}
    stale = [file for file, text in wanted.items() if not file.is_file() or file.read_bytes() != text.encode()]
    if options.check:
        for file in stale:
            print(f"{file} is out of date with {RESULTS}: run python -m perf report", file=sys.stderr)
        return int(bool(stale))
    for file in stale:
        file.write_text(wanted[file], encoding="utf-8")
        print(file)
    return 0


def gpus() -> Iterator[tuple[str, Path, list[tuple[str, Path, DataFrame]]]]:
    """The name, folder, and kinds, files and rows of each GPU that something was measured on."""
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir() and path.name != "predicted"):
        files = [(kind, folder / f"{kind}.csv") for kind in ("sweep", "overhead")]
        tables = [(kind, file, results.load(file, kind)) for kind, file in files if file.exists()]
        if tables:
            yield " and ".join(sorted({name for _, _, rows in tables for name in rows["gpu"]})), folder, tables


def section() -> str:
    """The README's section."""
    blocks = ["<!-- Written by `python -m perf report --readme README.md`. -->"]
    for gpu, _, tables in gpus():
        for kind, file, rows in tables:
            if kind == "sweep":
                made_with = results.environment_line(rows.assign(gpu="")).removeprefix("no GPU, ")
                blocks.append(
                    f"**Measured on {gpu}** ({made_with}), bf16: our time, the fraction of the roofline (the least "
                    "possible bytes at the copy bandwidth of the same run) that it reaches, and the time of each other "
                    "provider in multiples of ours, in brackets the least of all measured shapes."
                )
                blocks += [f"    {command(kind, file, rows)}", _headline(results.latest(rows))]
    if len(blocks) == 1:
        blocks.append("**Measured on a GPU:** nothing yet. On a machine with a GPU, `make perf` measures.")
    link = "perf/results/README.md"
    return "\n\n".join([*blocks, f"All rows, and what was counted and predicted without a GPU, are in `{link}`."])


def _headline(rows: DataFrame) -> str:
    rows = _against_baseline(rows[(rows["status"] == "ok") & (rows["dtype"] == "bf16")])
    lines = []
    for op, variant, training in HEADLINE:
        of_op = rows[(rows["op"] == op) & (rows["variant"] == variant)]
        for mode in ("forward", training if training in set(of_op["mode"]) else "backward"):
            here = of_op[of_op["mode"] == mode]
            line = {"op": op, "": case_name(mode, variant)}
            for best in here[here["provider"] == "ours"].sort_values(["elements", "n"]).tail(1).to_dict("records"):
                line |= {"N × V": _shape(best), "ms": number_text(best["median_ms"])}
                line["of roofline"] = f"{best['roof_fraction']:.2f}"
                for name in results.ordered(rows["provider"][rows["provider"] != "ours"]):
                    ratios = here[here["provider"] == name].set_index(["n", "v"])["ratio"].dropna()
                    at_largest = f"{ratios[best['n'], best['v']]:.2f}" if (best["n"], best["v"]) in ratios else NONE
                    line[f"{PROVIDERS[name]} / ours"] = f"{at_largest} ({ratios.min():.2f})" if len(ratios) else NONE
            lines.append(line)
    return table(DataFrame(lines))


def _against_baseline(rows: DataFrame) -> DataFrame:
    """With the time in multiples of ours, or of the op's matrix products, and the number of elements."""
    known = rows[rows["provider"] == rows["op"].map(results.baseline)].drop_duplicates([*CASE, "gpu"])
    both = rows.merge(known[[*CASE, "gpu", "median_ms"]], how="left", on=[*CASE, "gpu"], suffixes=("", "_known"))
    return both.assign(ratio=both["median_ms"] / both["median_ms_known"], elements=both["n"] * both["v"])


def page() -> str:
    """The page with all rows."""
    blocks = [
        "# Results",
        "<!-- Written by `python -m perf report --output perf/results/README.md`. -->",
        "A folder per GPU holds what was measured on it; `predicted` holds what was counted or predicted without one. "
        "Quantiles, peak memory and errors are in the CSV files.",
    ]
    for gpu, folder, tables in gpus():
        blocks.append(f"## Measured on {gpu}")
        for kind, file, rows in tables:
            blocks += _all_cases(kind, file, rows)
        pictures = sorted(folder.glob("*.png"))
        blocks += [f"![{plot.stem.replace('-', ' ')}]({folder.name}/{plot.name})" for plot in pictures]
    for heading, kinds in (
        ("Counted", {"traffic": _all_cases, "overhead": _all_cases}),
        ("Predicted", {"static": _all_static, "linear_distillation": _all_predicted}),
    ):
        files = [(kind, RESULTS / "predicted" / f"{kind}.csv") for kind in kinds]
        made = [kinds[kind](kind, file, results.load(file, kind)) for kind, file in files if file.exists()]
        blocks += [f"## {heading} without a GPU", *itertools.chain(*made)] if made else []
    return "\n\n".join(blocks) + "\n"


def _all_cases(kind: str, file: Path, rows: DataFrame) -> list[str]:
    blocks = [f"### {file.name}", _about(kind, file, rows), f"For each provider: {CELLS[kind]}."]
    note = left_out(rows)
    rows = results.latest(rows)
    rows = _against_baseline(rows) if kind == "sweep" else rows
    rows = rows.assign(cell=[_cell(kind, row) for row in rows.to_dict("records")])
    providers = results.ordered(rows["provider"])
    for op in results.ordered(rows["op"]):
        here = rows[rows["op"] == op].pivot(index=CASE, columns="provider", values="cell").reindex(columns=providers)
        here = here.reset_index().sort_values(CASE, key=results.rank).rename(columns=PROVIDERS)
        here.insert(0, op, [case_name(*names) for names in zip(here["mode"], here["variant"], strict=True)])
        shape = "N × V × D" if here["d"].any() else "N × V"
        here.insert(4, shape, [_shape(row) for row in here.to_dict("records")])
        text = table(here[[op, "reduction", "dtype", shape, *map(PROVIDERS.get, providers)]])
        blocks.append(f"<details><summary>{op}, {len(here)} cases</summary>\n\n{text}\n\n</details>")
    return [*blocks, f"Without figures: {note}."] if note else blocks


def _cell(kind: str, row: Row) -> str:
    if row["status"] != "ok":
        return str(row["status"]).partition(":")[0]
    if kind == "overhead":
        names = ("median_us", "launches", "syncs", "python_calls")
        return ", ".join(number_text(row[name]) for name in names if row[name] == row[name])
    if kind == "sweep":
        roof, ratio = row["roof_fraction"], row["ratio"]
        known = [] if roof != roof else [f"{roof:.2f}"]
        known += [] if row["provider"] == results.baseline(row["op"]) or ratio != ratio else [f"{ratio:.2f}"]
        memory = f", {row['peak_mib']:,.0f} MiB" if row["d"] else ""
        return number_text(row["median_ms"]) + (f" ({'; '.join(known)})" if known else "") + memory
    ratio = (row["read"] + row["written"]) / (row["least_read"] + row["least_written"])
    allocated = row["allocated"] / (row["n"] * row["v"] * DTYPES[row["dtype"]].itemsize)
    return f"{row['read']:,.0f} + {row['written']:,.0f} ({ratio:.2f}), {row['launches']:.0f}, {allocated:.2f}"


def _shape(row: Row) -> str:
    return " × ".join(f"{row[name]:,.0f}" for name in ("n", "v", "d") if row[name])


def _all_static(kind: str, file: Path, rows: DataFrame) -> list[str]:
    names = (
        "kernel variant dtype target registers spills shared warps occupancy load_bits store_bits instructions special"
    )
    shown = DataFrame({name.replace("_", " "): rows[name].map(number_text) for name in f"{names} fixed bytes".split()})
    shown["kernel"] = "`" + shown["kernel"] + "`"
    for chip in [name.removesuffix("_roof") for name in rows if name.endswith("_roof")]:
        roof = rows[f"{chip}_roof"]
        shown[chip.upper()] = (roof.map("{:.2f} ".format) + rows[f"{chip}_bound"]).where(roof.notna())
    what = (
        "Instructions and special functions per element, on the path of a whole tile, and what a program does once "
        "(fixed). Chips: the fraction of the speed of light (the least possible bytes at the chip's bandwidth) that "
        "the kernel can reach at most, without caches, and what bounds it."
    )
    return [_about(kind, file, rows), what, table(shown)]


def _all_predicted(kind: str, file: Path, rows: DataFrame) -> list[str]:
    shown = DataFrame({"N × V × D": [_shape(row) for row in rows.to_dict("records")]})
    shown["rows of a chunk"] = rows["chunk_rows"].map(number_text)
    shown["products, ms"] = rows["products_ms"].map("{:.2f}".format)
    for name, heading in (("sum", "without overlap, ms (/ products)"), ("overlap", "with overlap, ms (/ products)")):
        shown[heading] = rows[f"{name}_ms"].map("{:.2f} ".format) + rows[f"{name}_ratio"].map("({:.2f})".format)
    shown["peak memory, MiB"] = rows["peak_mib"].map("{:,.0f}".format)
    what = (
        "Predictions, not measurements, of a training step of `lucid.torch.linear_distillation_loss` on an H200, in "
        "bf16: the loss, and the gradients of the student's hidden states and weight. Its four products take "
        f"{linear_distillation.TFLOPS} TFLOP/s. At {linear_distillation.TBPS} TB/s, the logits and their gradient are "
        "moved seven times, and each chunk but the first reads and writes the float32 sum of the weight's gradient. "
        "Without overlap, all of this adds up; with overlap, the sum is moved while its own product is computed. Peak "
        "memory is beyond the inputs, with the gradients."
    )
    return [f"### {file.name}", _about(kind, file, rows), what, table(shown)]


def _about(kind: str, file: Path, rows: DataFrame) -> str:
    return f"{results.environment_line(rows)}:\n\n    {command(kind, file, rows)}"


def command(kind: str, file: Path, rows: DataFrame) -> str:
    """The command line that writes such rows anew: only options that differ from the command's own defaults."""
    parts = [f"python -m perf {kind}"]
    if kind not in ("static", "linear_distillation"):
        parser = argparse.ArgumentParser()
        importlib.import_module(COMMANDS[kind][0]).add_arguments(parser)
        ops, defaults = results.ordered(rows["op"]), parser.parse_args([])
        parts += ops

        def default(name: str) -> set[object]:
            return {value for op in ops for value in chosen(defaults, op, name)}

        sizes = rows[["n", "v", "d"]].drop_duplicates().astype(int).to_numpy().tolist()
        shapes = [(n, v, d) if d else (n, v) for n, v, d in sizes]
        if set(shapes) != default("shapes"):
            sets = [name for name, members in SHAPE_SETS.items() if set(members) <= set(shapes)]
            covered = {shape for name in sets for shape in SHAPE_SETS[name]}
            sets += ["x".join(map(str, shape)) for shape in shapes if shape not in covered]
            parts.append(f"--shapes {','.join(sets)}")
        for column in ("dtype", "mode", "reduction", "provider"):
            values = [value for value in results.ordered(rows[column]) if value]
            if values and set(values) != default(f"{column}s"):
                parts.append(f"--{column}s {','.join(values)}")
        parts += ["--count-only"] if kind == "overhead" and not any(rows["gpu"]) else []
    return " ".join([*parts, f"--csv {os.path.relpath(file, ROOT)}"])


def table(frame: DataFrame) -> str:
    """A Markdown table; what is missing is a dash, and columns of numbers are right-aligned."""
    cells = frame.fillna(NONE).replace({r"\|": r"\\|", "\n": " "}, regex=True)
    numbers = [cells[name].str.match(rf"\d|{NONE}|failed|skipped|$").all() and cells[name].any() for name in cells]
    align = ["right" if number else "left" for number in numbers]
    return tabulate(cells.to_numpy(), list(cells), "pipe", disable_numparse=True, colalign=align)
