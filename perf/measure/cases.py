"""Inputs and truth of a point, and a provider's call on them in one mode, ready to be timed or counted."""

from __future__ import annotations

import argparse
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import lucid
from perf import results
from perf.environment import COLUMNS as ENVIRONMENT
from perf.environment import environment
from perf.errors import UnsupportedError, WrongResultError
from perf.measure.ops import OPS, Function, Point, Tensors
from perf.progress import progress
from perf.results import Row
from perf.selection import DTYPE_NAMES, OURS
from triton_kernels.devtools.cost import Cost

#: Elements that are made, or compared with the truth, at a time: what bounds the memory that float64 takes.
CHUNK = 2**23

#: Roundings in the dtype of the inputs that any element of a result may have seen: arithmetic done wholly in that
#: dtype, operation by operation, as eager PyTorch does it, stays within.
ROUNDINGS = 4

#: What may be lost by a rounding (relative), and to underflow (absolute).
ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
UNDERFLOW = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126, torch.float64: 2.0**-1022}

#: Columns that say what was run and how it ended.
COLUMNS = ("op", "variant", "mode", "provider", "n", "v", "dtype", "reduction", "status")


def rows(
    points: Sequence[Point],
    options: argparse.Namespace,
    columns: Sequence[str],
    fill: Callable[[Row, Point, str, str], None],
) -> Iterator[Row]:
    """Yield a row for every point, provider and mode; `fill` puts values of `columns` into it, or raises why not."""
    runs = [(point, provider, mode) for point in points for provider in options.providers for mode in options.modes]
    made_with = environment()
    with quiet(), progress(len(runs)) as advance:
        for point, provider, mode in runs:
            advance(f"{point.op} {point.n}x{point.v} {provider} {mode}")
            status, values = "ok", dict.fromkeys(columns)
            try:
                fill(values, point, provider, mode)
            except Exception as error:  # whatever a provider raises is the finding
                status = failure(error)
            yield about(point, provider, mode) | {"status": status} | values | made_with


def about(point: Point, provider: str, mode: str) -> Row:
    """What was run: all of `COLUMNS` but the status."""
    values = (point.op, point.variant, mode, provider, point.n, point.v, DTYPE_NAMES[point.dtype], point.reduction)
    return dict(zip(COLUMNS, values, strict=False))


def record(
    kind: str,
    rows: Iterable[Row],
    measured: Sequence[str],
    options: argparse.Namespace,
    title: str,
    headings: dict[str, str],
) -> int:
    """Write each row as it is measured, show all at the end, even if interrupted; 1 where one of ours failed.

    An existing CSV is replaced when the first row comes, or added to with ``--append``.
    """
    adding = options.append and results.has_header(options.csv, ["format", *COLUMNS, *measured, *ENVIRONMENT])
    done: list[Row] = []
    try:
        for row in rows:
            done.append(row)
            if options.csv:
                results.write_csv(options.csv, kind, [row], "a" if adding or len(done) > 1 else "w")
    finally:
        results.write(kind, done, argparse.Namespace(csv=None, json=options.json))
        if done:
            results.show_cases(title or done[0]["gpu"], done, headings)
    return int(any(row["provider"] in OURS and row["status"].startswith("failed") for row in done))


def failure(error: Exception) -> str:
    """The status of what raised an error: its type and the first line of its message, or why it was not measured."""
    message = (str(error).splitlines() or [""])[0][:200]
    if isinstance(error, UnsupportedError | torch.OutOfMemoryError):
        return f"skipped: {message}"
    name = "" if isinstance(error, WrongResultError) else type(error).__name__
    return ": ".join(part for part in ("failed", name, message) if part)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress torch's and lucid's advice, at each call, not to use the reduction that was asked for."""
    with warnings.catch_warnings():
        for message in ("reduction: 'mean' divides the total loss", "reduction 'mean' also divides"):
            warnings.filterwarnings("ignore", message=message)
        yield


class Workload:
    """Inputs, truth and functions of one point at a time, which its rows share."""

    def __init__(self, device: torch.device, modes: Sequence[str]) -> None:
        self._device, self._modes = device, modes
        self._point: Point | None = None
        self._sets: list[tuple[Tensors, torch.Tensor]] = []
        self._truth: Truth | None = None
        self._functions: dict[str, Function] = {}

    def enter(self, point: Point) -> bool:
        """Return whether this is the point's first row; what the one before needed is dropped then."""
        first = point != self._point
        if first:
            self._point, self._sets, self._truth, self._functions = point, [], None, {}
        return first

    def cases(self, point: Point, provider: str, mode: str, sets: int = 1, copies: int = 1) -> list[BenchCase]:
        """A provider's cases of a mode, of `sets` inputs with different values."""
        self.enter(point)
        if not self._sets:
            self._sets = [make_inputs(point, self._device, seed) for seed in range(sets)]
        if provider not in self._functions:
            self._functions[provider] = OPS[point.op].function(provider, point)
        function = self._functions[provider]
        return [BenchCase(provider, function, point, mode, *inputs) for inputs in self._sets * copies]

    def check(self, case: BenchCase) -> float:
        """The error, by `Truth`, of a case of the first inputs; raises a `WrongResultError` where it is above 1."""
        if self._truth is None:
            assert self._point is not None
            self._truth = Truth(self._point, *self._sets[0], result_names(self._point, self._modes))
        error = self._truth.error(case.results())
        if error > 1:
            raise WrongResultError(error)
        return error


class BenchCase:
    """A provider's function on given inputs in one mode: `prepare`; `step`, which is what is measured; `clear`.

    Leaves share the memory of the inputs, so several cases may have the same ones; except for what must be memory of
    lucid's own, and for what a provider writes to. In forward mode none of them requires gradients, so nothing is
    recorded. Backward starts from a graph that `prepare` makes anew each time, and from a dloss that is there already.
    """

    def __init__(
        self, provider: str, function: Function, point: Point, mode: str, inputs: Tensors, dloss: torch.Tensor
    ) -> None:
        op = OPS[point.op]
        self._function, self._mode, self._lucid = function, mode, provider == "ours"
        self._differentiable = op.differentiable
        self._overwritten = inputs if provider in op.overwriting else {}
        self._private = bool(self._overwritten) or (self._lucid and point.variant in op.needs_private_memory)
        self._leaves = {
            name: self._leaf(tensor, mode != "forward" and name == op.differentiable) for name, tensor in inputs.items()
        }
        self._given_dloss = dloss
        self._dloss: Any = None
        self._output: Any = None

    def _leaf(self, tensor: torch.Tensor, requires_grad: bool) -> Any:
        leaf = lucid.from_torch(tensor) if self._lucid else tensor.detach()
        return (leaf.clone() if self._private else leaf).requires_grad_(requires_grad)

    def _forward(self) -> Any:
        output = self._function(*self._leaves.values())
        if self._lucid:
            output.data_ptr()  # lucid defers a softmax until its values are asked for
        if self._dloss is None:  # of the dtype of the output, which a provider may choose
            self._dloss = self._leaf(self._given_dloss.to(_torch(output).dtype), False)
        return output

    def prepare(self) -> None:
        """Make ready for a step."""
        self._restore()
        if self._mode == "backward":
            self._output = self._forward()
        elif self._mode == "full" and self._dloss is None:
            self._forward()
            self._restore()

    def _restore(self) -> None:
        for name, tensor in self._overwritten.items():
            self._leaves[name].data.copy_(tensor)

    def step(self) -> Any:
        """What is measured."""
        output = self._output if self._mode == "backward" else self._forward()
        if self._mode != "forward":
            output.backward(self._dloss)
        return output

    def clear(self) -> None:
        """Drop the gradients and the graph."""
        self._output = None
        for leaf in self._leaves.values():
            leaf.grad = None

    def results(self) -> Tensors:
        """The output, and the gradient by its input's name, of one step."""
        self.prepare()
        found = {"output": _torch(self.step())}
        if self._mode != "forward":
            found[self._differentiable] = _torch(self._leaves[self._differentiable].grad)
        self.clear()
        return found


def _torch(tensor: Any) -> torch.Tensor:
    return tensor.detach() if isinstance(tensor, torch.Tensor) else tensor.to_torch()


def make_inputs(point: Point, device: torch.device, seed: int) -> tuple[Tensors, torch.Tensor]:
    """Inputs and dloss, dense, made a chunk of rows at a time."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors, dloss = empty_inputs(point, device)
    for rows in _chunks(point):
        for name, value in OPS[point.op].inputs(point, rows.stop - rows.start, generator).items():
            tensors[name][rows].copy_(value)
    # between 0.5 and 1.5: no provider can take the short cut for a gradient of 1
    return tensors, dloss.uniform_(0.5, 1.5, generator=generator)


def empty_inputs(point: Point, device: torch.device) -> tuple[Tensors, torch.Tensor]:
    """Memory for inputs and dloss, not initialized."""
    tensors = {
        name: torch.empty(
            (point.n, *row.shape[1:]), dtype=point.dtype if row.is_floating_point() else row.dtype, device=device
        )
        for name, row in _row(point).items()
    }
    return tensors, torch.empty(OPS[point.op].shape(point), dtype=point.dtype, device=device)


@functools.cache
def _row(point: Point) -> Tensors:
    return OPS[point.op].inputs(point, 1, torch.Generator())


def _chunks(point: Point) -> list[slice]:
    step = max(1, CHUNK // point.v)
    return [slice(start, min(start + step, point.n)) for start in range(0, point.n, step)]


def least_cost(point: Point, mode: str) -> Cost:
    """The least that must be moved in a mode; `full` is forward and backward, which a loss in between keeps apart."""
    forward, backward = OPS[point.op].costs(point, *empty_inputs(point, torch.device("meta")))
    return {"forward": forward, "backward": backward, "full": forward + backward}[mode]


def result_names(point: Point, modes: Iterable[str]) -> tuple[str, ...]:
    """Names of the results of some modes."""
    return ("output",) if set(modes) == {"forward"} else ("output", OPS[point.op].differentiable)


def truth_dtypes(point: Point) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes in which `Truth` holds a value and what a result may be wrong by: exact enough to compare with."""
    value = torch.float32 if point.dtype.itemsize == 2 else torch.float64
    return value, torch.float64 if point.dtype is torch.float64 else torch.float32


class Truth:
    """What is true of inputs and dloss, calculated once in float64 for results of the given names.

    An error may be `ROUNDINGS` roundings of the point's dtype, relative to the magnitude of what was added up.
    """

    def __init__(self, point: Point, inputs: Tensors, dloss: torch.Tensor, names: Iterable[str]) -> None:
        self._chunks = _chunks(point)
        self._known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name in names:
            shape = OPS[point.op].shape(point) if name == "output" else inputs[name].shape
            dtypes = truth_dtypes(point) if shape else (torch.float64, torch.float64)
            value, limit = (torch.zeros(shape, dtype=dtype, device=dloss.device) for dtype in dtypes)
            self._known[name] = value, limit
        for rows in self._chunks:
            exact = {name: t[rows].double() if t.is_floating_point() else t[rows] for name, t in inputs.items()}
            expected = OPS[point.op].truth(point, exact, (dloss[rows] if dloss.dim() else dloss).double())
            for name, known in self._known.items():
                for total, found in zip(known, expected[name], strict=True):
                    total[rows if total.dim() else ...] += found  # a reduced result's are these rows' share
        for _, limit in self._known.values():
            limit.mul_(ROUNDOFF[point.dtype]).add_(UNDERFLOW[point.dtype]).mul_(ROUNDINGS)

    def error(self, results: Tensors) -> float:
        """The largest error among `results`, as a fraction of what it may be; infinite where one is not finite.

        1 is the limit; arithmetic in a wider dtype, rounded once, stays well below it.

        Raises
        ------
        ValueError
            If a result has another shape than it must.
        """
        largest = 0.0
        for name, result in results.items():
            value, limit = self._known[name]
            if result.shape != value.shape:
                raise ValueError(f"{name} has shape {tuple(result.shape)}, expected {tuple(value.shape)}")
            for rows in self._chunks if value.dim() else [...]:
                fraction = (result[rows].detach().double() - value[rows]).abs() / limit[rows]
                largest = max(largest, float(torch.nan_to_num(fraction, nan=math.inf, posinf=math.inf).max()))
        return largest
