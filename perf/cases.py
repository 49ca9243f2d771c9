"""The registry of ops that are measured: `OPS`. Adding an op is adding an entry.

An entry says how inputs are made, what is true of them in float64, the least that must be moved, and how each provider
is called. Everything else (modes, timing, counting, checking, tables) is the same for all.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as torch_functional

import lucid.nn.functional as lucid_functional
import lucid.torch
from perf import labels, logits
from perf.errors import NotOfferedError, require_liger
from triton_kernels.devtools import cost
from triton_kernels.devtools.cost import Cost

#: Elements that are made, or compared with the truth, at a time: what bounds the memory that float64 takes.
CHUNK = 2**23

#: Roundings in the dtype of the inputs that any element of a result may have seen: arithmetic done wholly in that
#: dtype, operation by operation, as eager PyTorch does it, stays within.
ROUNDINGS = 4

#: What may be lost by a rounding (relative), and to underflow (absolute).
ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
UNDERFLOW = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126, torch.float64: 2.0**-1022}

Tensors = dict[str, torch.Tensor]
#: A result in float64, and the magnitude of what was added up to get it, to which errors are relative.
Expected = tuple[torch.Tensor, torch.Tensor]
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Point:
    """An op on inputs of n rows and v columns."""

    op: str
    variant: str
    n: int
    v: int
    dtype: torch.dtype
    reduction: Any  # a word that the op takes


@dataclass(frozen=True, slots=True)
class Op:
    """An entry of the registry.

    Attributes
    ----------
    make
        (point, rows, generator) -> that many rows of each input, by name; floating ones are converted to the point's
        dtype afterwards.
    differentiable
        Names of the inputs that get gradients.
    output
        The shape of the result; () where it is reduced.
    truth
        (point, rows of the inputs, dloss or its rows, in float64) -> the result's value and magnitude as "output" and
        each gradient's by its input's name. A reduced result's are this chunk's share of the sum.
    forward, backward
        The least cost, from tensors of the meta device: the inputs, and dloss.
    ours, lucid_torch, torch, liger
        Point -> the function of the inputs, in their order, in lucid or (all but ours) in torch; raises
        `NotOfferedError` where there is none.
    launches
        The most launches ours may make, by mode.
    rereads
        Bytes that ours may read a second time, from a point and a mode: rows that do not fit on chip.
    statistics
        Bytes of numbers about rows that ours may write and read, from a point and a mode.
    overwritten
        Providers that write to the inputs, which are made anew before each step.
    owned
        Variants whose inputs must be memory of lucid's own for ours to be fused: others cannot write to it unseen.
    variants, reductions
        Names; no reductions where the op has none.
    """

    make: Callable[[Point, int, torch.Generator], Tensors]
    differentiable: tuple[str, ...]
    output: Callable[[Point], tuple[int, ...]]
    truth: Callable[[Point, Tensors, torch.Tensor], dict[str, Expected]]
    forward: Callable[[Point, Tensors], Cost]
    backward: Callable[[Point, Tensors, torch.Tensor], Cost]
    ours: Callable[[Point], Function]
    lucid_torch: Callable[[Point], Function]
    torch: Callable[[Point], Function]
    liger: Callable[[Point], Function]
    launches: Mapping[str, int]
    rereads: Callable[[Point, str], int] = lambda point, mode: 0
    statistics: Callable[[Point, str], int] = lambda point, mode: 0
    overwritten: tuple[str, ...] = ()
    owned: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("",)
    reductions: tuple[str, ...] = field(default=())


def make_inputs(point: Point, device: torch.device, seed: int) -> tuple[Tensors, torch.Tensor]:
    """Inputs and dloss, dense, made a chunk of rows at a time."""
    op, generator = OPS[point.op], torch.Generator(device).manual_seed(seed)
    tensors: Tensors = {}
    for rows in _chunks(point):
        part = op.make(point, len(rows), generator)
        if not tensors:
            tensors = {name: _like(point, row, device) for name, row in part.items()}
        for name, value in part.items():
            tensors[name][rows.start : rows.stop].copy_(value)
    # between 0.5 and 1.5: no provider can take the short cut for a gradient of 1
    dloss = torch.empty(op.output(point), dtype=point.dtype, device=device).uniform_(0.5, 1.5, generator=generator)
    return tensors, dloss


def empty_inputs(point: Point, device: torch.device) -> tuple[Tensors, torch.Tensor]:
    """Memory for inputs and dloss, not initialized."""
    tensors = {name: _like(point, row, device) for name, row in _row(point).items()}
    return tensors, torch.empty(OPS[point.op].output(point), dtype=point.dtype, device=device)


def least_cost(point: Point, mode: str) -> Cost:
    """The least that must be moved in a mode; `full` is forward and backward, which a loss in between keeps apart."""
    op = OPS[point.op]
    tensors, dloss = empty_inputs(point, torch.device("meta"))
    forward, backward = op.forward(point, tensors), op.backward(point, tensors, dloss)
    return {"forward": forward, "backward": backward, "full": forward + backward}[mode]


def input_bytes(point: Point) -> dict[str, int]:
    """The bytes of each input, of dloss and of the result, without making them."""
    sizes = {name: _like(point, row, torch.device("meta")).nbytes for name, row in _row(point).items()}
    result = point.dtype.itemsize * math.prod(OPS[point.op].output(point))
    return sizes | {"dloss": result, "output": result}


def result_names(point: Point, modes: Iterable[str]) -> tuple[str, ...]:
    """Names of the results of some modes: the output, and the gradients."""
    return ("output", *(OPS[point.op].differentiable if set(modes) != {"forward"} else ()))


def truth_dtypes(point: Point) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes in which `Truth` holds a value and what a result may be wrong by: exact enough to compare with."""
    value = torch.float32 if point.dtype.itemsize == 2 else torch.float64
    return value, torch.float64 if point.dtype is torch.float64 else torch.float32


class Truth:
    """What is true of inputs and dloss, calculated once in float64 for results of the given names.

    An error may be `ROUNDINGS` roundings of the point's dtype, relative to the magnitude of what was added up.
    """

    def __init__(self, point: Point, inputs: Tensors, dloss: torch.Tensor, names: Iterable[str]) -> None:
        self._point = point
        self._known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        shapes = {name: tensor.shape for name, tensor in inputs.items()} | {"output": OPS[point.op].output(point)}
        self._shapes = {name: tuple(shapes[name]) for name in names}
        for name, shape in self._shapes.items():
            value, limit = (torch.zeros(shape, dtype=dtype, device=dloss.device) for dtype in truth_dtypes(point))
            self._known[name] = (value, limit) if shape else (value.double(), limit.double())
        for rows in _chunks(point):
            part = slice(rows.start, rows.stop)
            exact = {name: t[part].double() if t.is_floating_point() else t[part] for name, t in inputs.items()}
            expected = OPS[point.op].truth(point, exact, (dloss[part] if dloss.dim() else dloss).double())
            for name, (value, limit) in self._known.items():
                found, magnitude = expected[name]
                if value.dim():
                    value[part], limit[part] = found, self._limit(magnitude)
                else:  # this chunk's share
                    value += found
                    limit += magnitude
        for name, (value, limit) in self._known.items():
            if not value.dim():
                self._known[name] = value, self._limit(limit)

    def _limit(self, magnitude: torch.Tensor) -> torch.Tensor:
        dtype = self._point.dtype
        return ROUNDINGS * (ROUNDOFF[dtype] * magnitude + UNDERFLOW[dtype])

    def error(self, results: Tensors) -> float:
        """The largest error among `results`, as a fraction of what it may be; infinite where one is not finite.

        1 is the limit; arithmetic in a wider dtype, rounded once, stays well below it.

        Raises
        ------
        ValueError
            If a result has another shape than it must.
        """
        for name, result in results.items():
            if tuple(result.shape) != self._shapes[name]:
                raise ValueError(f"{name} has shape {tuple(result.shape)}, expected {self._shapes[name]}")
        largest = 0.0
        for name, result in results.items():
            value, limit = self._known[name]
            parts = [slice(rows.start, rows.stop) for rows in _chunks(self._point)] if value.dim() else [...]
            for part in parts:
                fraction = (result[part].detach().double() - value[part]).abs() / limit[part]
                largest = max(largest, float(torch.nan_to_num(fraction, nan=math.inf, posinf=math.inf).max()))
        return largest


def largest_error(point: Point, inputs: Tensors, dloss: torch.Tensor, results: Tensors) -> float:
    """The error of `results`, by `Truth`."""
    return Truth(point, inputs, dloss, results).error(results)


@contextmanager
def quiet() -> Iterator[None]:
    """Without advice, at each call, not to use the reduction that was asked for."""
    with warnings.catch_warnings():
        for message in ("reduction: 'mean' divides the total loss", "reduction 'mean' also divides"):
            warnings.filterwarnings("ignore", message=message)
        yield


def _chunks(point: Point) -> Iterator[range]:
    step = max(1, CHUNK // point.v)
    for start in range(0, point.n, step):
        yield range(start, min(start + step, point.n))


@functools.cache
def _row(point: Point) -> Tensors:
    """A row of each input."""
    return OPS[point.op].make(point, 1, torch.Generator())


def _like(point: Point, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Memory for all rows of an input, of which there are some."""
    dtype = point.dtype if rows.is_floating_point() else rows.dtype
    return torch.empty((point.n, *rows.shape[1:]), dtype=dtype, device=device)


def _logits(point: Point, rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, point.v, generator=generator, device=generator.device)


def _of_exp(log_y: torch.Tensor) -> torch.Tensor:
    """The magnitude of y, relative to y: an absolute error of the exponential's argument is a relative one of y."""
    return 1 + log_y.abs()


def _matrix(point: Point) -> tuple[int, ...]:
    return (point.n, point.v)


# kl_div


def _kl_div_inputs(point: Point, rows: int, generator: torch.Generator) -> Tensors:
    x, target = (_logits(point, rows, generator).log_softmax(-1) for _ in range(2))
    return {"x": x, "target": target if point.variant == "log" else target.exp()}


def _kl_div_output(point: Point) -> tuple[int, ...]:
    return _matrix(point) if point.reduction == "none" else ()


def _kl_div_truth(point: Point, inputs: Tensors, dloss: torch.Tensor) -> dict[str, Expected]:
    x, y = inputs["x"], inputs["target"]
    p = y.exp() if point.variant == "log" else y
    log_p = y if point.variant == "log" else torch.where(y > 0, y, 1).log()
    scale = {"mean": 1 / (point.n * point.v), "batchmean": 1 / point.n}.get(point.reduction, 1.0)
    loss, magnitude = p * (log_p - x) * scale, p * (log_p.abs() + x.abs()) * scale
    dx = -p * dloss * scale
    dx_magnitude = dx.abs()
    if point.variant == "log":
        magnitude, dx_magnitude = magnitude + loss.abs() * y.abs(), dx_magnitude * _of_exp(y)
    if point.reduction != "none":
        loss, magnitude = loss.sum(), magnitude.sum()
    return {"output": (loss, magnitude), "x": (dx, dx_magnitude)}


def _kl_div_forward(point: Point, inputs: Tensors) -> Cost:
    return cost.kl_div_forward(inputs["x"], inputs["target"], reduce=point.reduction != "none")


def _kl_div_backward(point: Point, inputs: Tensors, dloss: torch.Tensor) -> Cost:
    return cost.kl_div_backward(inputs["x"], inputs["target"], dloss, log_target=point.variant == "log")


def _our_kl_div(point: Point) -> Function:
    return functools.partial(lucid_functional.kl_div, reduction=point.reduction, log_target=point.variant == "log")


def _lucid_torch_kl_div(point: Point) -> Function:
    return functools.partial(lucid.torch.kl_div, reduction=point.reduction, log_target=point.variant == "log")


def _torch_kl_div(point: Point) -> Function:
    reduction, log_target = point.reduction, point.variant == "log"
    return lambda x, target: torch_functional.kl_div(x, target, reduction=reduction, log_target=log_target)


def _liger_kl_div(point: Point) -> Function:
    require_liger()
    from liger_kernel.ops.kl_div import LigerKLDivLossFunction

    if point.variant == "log" and point.dtype in (torch.bfloat16, torch.float16):
        raise NotOfferedError("Liger's kl_div does not compile for log targets in 16 bits")
    if point.dtype is torch.float64:
        raise NotOfferedError("Liger's kl_div calculates in float32")
    reduction, log_target = point.reduction, point.variant == "log"
    return lambda x, target: LigerKLDivLossFunction.apply(x, target, reduction, log_target)


# softmax and log-softmax


def _softmax_inputs(point: Point, rows: int, generator: torch.Generator) -> Tensors:
    return {"x": _logits(point, rows, generator)}


def _softmax_truth(point: Point, inputs: Tensors, dloss: torch.Tensor) -> dict[str, Expected]:
    x = inputs["x"]
    log_y = x.log_softmax(-1)
    y = log_y.exp()
    magnitude = y * (_of_exp(log_y) + x.abs())
    product = dloss * y
    dx = product - y * product.sum(-1, keepdim=True)
    return {"output": (y, magnitude), "x": (dx, magnitude * (dloss.abs() + product.abs().sum(-1, keepdim=True)))}


def _log_softmax_truth(point: Point, inputs: Tensors, dloss: torch.Tensor) -> dict[str, Expected]:
    x = inputs["x"]
    log_y = x.log_softmax(-1)
    y = log_y.exp()
    dx = dloss - y * dloss.sum(-1, keepdim=True)
    dx_magnitude = dloss.abs() + y * _of_exp(log_y) * dloss.abs().sum(-1, keepdim=True)
    return {"output": (log_y, log_y.abs() + x.abs()), "x": (dx, dx_magnitude)}


def _softmax_forward(point: Point, inputs: Tensors) -> Cost:
    return cost.softmax_forward(inputs["x"])


def _softmax_backward(point: Point, inputs: Tensors, dloss: torch.Tensor) -> Cost:
    return cost.softmax_backward(inputs["x"], dloss)


#: The longest rows, in columns, that fit on chip: one operand in the forward pass, two in the backward one.
ON_CHIP = {"forward": 32768, "backward": 16384}


def _softmax_rereads(point: Point, mode: str) -> int:
    """A longer row is read for its statistics and again for its results; log-softmax's gradient reads only dy twice."""
    longest = {part: columns // (4 if point.dtype is torch.float64 else 1) for part, columns in ON_CHIP.items()}
    operands = {"forward": 1, "backward": 1 if point.op == "log_softmax" else 2}
    parts = ("forward", "backward") if mode == "full" else (mode,)
    return sum(operands[part] * point.n * point.v * point.dtype.itemsize for part in parts if point.v > longest[part])


def _not_in_lucid_torch(point: Point) -> Function:
    raise NotOfferedError(f"lucid.torch leaves {point.op} to torch")


def _liger_softmax(point: Point) -> Function:
    require_liger()
    from liger_kernel.ops.softmax import LigerSoftmaxFunction

    if point.v > 65536:
        raise NotOfferedError("Liger's softmax takes at most 65536 columns")
    return LigerSoftmaxFunction.apply


def _no_liger(point: Point) -> Function:
    require_liger()
    raise NotOfferedError(f"Liger has no {point.op}")


OPS: dict[str, Op] = {
    "kl_div": Op(
        variants=("prob", "log"),
        reductions=("none", "mean", "sum", "batchmean"),
        make=_kl_div_inputs,
        differentiable=("x",),
        output=_kl_div_output,
        truth=_kl_div_truth,
        forward=_kl_div_forward,
        backward=_kl_div_backward,
        ours=_our_kl_div,
        lucid_torch=_lucid_torch_kl_div,
        torch=_torch_kl_div,
        liger=_liger_kl_div,
        launches={"forward": 2, "backward": 1, "full": 3},
    ),
    "softmax": Op(
        make=_softmax_inputs,
        differentiable=("x",),
        output=_matrix,
        truth=_softmax_truth,
        forward=_softmax_forward,
        backward=_softmax_backward,
        ours=lambda point: lambda x: lucid_functional.softmax(x, -1),
        lucid_torch=_not_in_lucid_torch,
        torch=lambda point: lambda x: torch_functional.softmax(x, -1),
        liger=_liger_softmax,
        launches={"forward": 2, "backward": 2, "full": 4},
        rereads=_softmax_rereads,
    ),
    "log_softmax": Op(
        make=_softmax_inputs,
        differentiable=("x",),
        output=_matrix,
        truth=_log_softmax_truth,
        forward=_softmax_forward,
        backward=_softmax_backward,
        ours=lambda point: lambda x: lucid_functional.log_softmax(x, -1),
        lucid_torch=_not_in_lucid_torch,
        torch=lambda point: lambda x: torch_functional.log_softmax(x, -1),
        liger=_no_liger,
        launches={"forward": 2, "backward": 2, "full": 4},
        rereads=_softmax_rereads,
    ),
    "distillation": Op(
        variants=logits.VARIANTS,
        reductions=logits.REDUCTIONS,
        make=logits.inputs,
        differentiable=("student",),
        output=logits.output,
        truth=logits.truth,
        forward=logits.forward_cost,
        backward=logits.backward_cost,
        ours=logits.ours,
        lucid_torch=logits.lucid_torch,
        torch=logits.torchs,
        liger=logits.liger,
        launches={"forward": 6, "backward": 1, "full": 7},
        rereads=logits.rereads,
        statistics=logits.statistics,
        owned=("two_line",),
    ),
    "cross_entropy": Op(
        reductions=labels.REDUCTIONS,
        make=labels.inputs,
        differentiable=("x",),
        output=labels.output,
        truth=labels.truth,
        forward=labels.forward_cost,
        backward=labels.backward_cost,
        ours=labels.ours,
        lucid_torch=labels.lucid_torch,
        torch=labels.in_torch,
        liger=labels.liger,
        launches={"forward": 4, "backward": 1, "full": 5},
        statistics=logits.statistics,
        overwritten=("liger",),
    ),
}
