"""Inputs and truth of a point, and a provider's call on them in one mode, ready to be timed or counted."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import lucid
from perf.measure.op import Costs, Point
from perf.measure.ops import OPS
from triton_kernels.devtools.cost import Cost

MODES = ("forward", "backward", "full")

#: Elements that are made, or whose truth is calculated, at a time: what bounds the memory that float64 takes.
CHUNK = 2**23

#: What a result may be away from the truth, in the 2-norm and in roundings of the dtype of its inputs. Eager PyTorch,
#: which rounds after each operation, stays within.
ROUNDINGS = 64

Inputs = tuple[Tensor, ...]


class WrongResultError(Exception):
    """A result that is further from the truth than arithmetic in its dtype explains."""


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress torch's and lucid's advice, at each call, not to use the reduction that was asked for."""
    with warnings.catch_warnings():
        for message in ("reduction: 'mean' divides the total loss", "reduction 'mean' also divides"):
            warnings.filterwarnings("ignore", message=message)
        yield


def empty_inputs(point: Point, device: torch.device) -> tuple[Inputs, Tensor]:
    """Memory for inputs and dloss, not initialized."""

    def empty(device: torch.device) -> Inputs:
        rows = [(size, row) for make, size in _parts(point) for row in make(point, 1, torch.Generator())]
        dtypes = [point.dtype if row.is_floating_point() else row.dtype for _, row in rows]
        shapes = [(size, *row.shape[1:]) for size, row in rows]
        return tuple(torch.empty(s, dtype=d, device=device) for s, d in zip(shapes, dtypes, strict=True))

    result = OPS[point.op].torch(point)(*empty(torch.device("meta")))
    return empty(device), torch.empty(result.shape, dtype=point.dtype, device=device)


def _parts(point: Point) -> tuple[tuple[Callable[..., Inputs], int], ...]:
    """What makes rows of the inputs and of the parameters, which follow them, and how many rows there are."""
    return (OPS[point.op].inputs, point.n), (OPS[point.op].parameters, point.v)


def make_inputs(point: Point, device: torch.device, seed: int = 0) -> tuple[Inputs, Tensor]:
    """Inputs and dloss, dense, made a chunk of rows at a time."""
    generator = torch.Generator(device).manual_seed(seed)
    inputs, dloss = empty_inputs(point, device)
    left = list(inputs)
    for make, size in _parts(point):
        for rows in _chunks(size, point.d or point.v):
            made = make(point, rows.stop - rows.start, generator)
            for tensor, value in zip(left, made, strict=False):
                tensor[rows].copy_(value)
        del left[: len(made)]
    # That of a reduced loss is 1, as `loss.backward()` has it; others are between 0.5 and 1.5.
    return inputs, dloss.uniform_(0.5, 1.5, generator=generator) if dloss.dim() else dloss.fill_(1)


def _chunks(size: int, columns: int) -> list[slice]:
    step = max(1, CHUNK // columns)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def truth(point: Point, inputs: Inputs, dloss: Tensor) -> Inputs:
    """The result and the gradients of torch's expression in float64, a chunk of rows at a time."""
    op = OPS[point.op]
    size = {"mean": op.elements(point), "batchmean": point.n}.get(point.reduction, 1)
    plain = dataclasses.replace(point, reduction="sum") if point.reduction not in ("", "none") else point
    kept = torch.float64 if point.dtype is torch.float64 else torch.float32
    outputs, gradients = [], []
    count = len(op.inputs(point, 1, torch.Generator()))
    parameters = [t.detach().double() for t in inputs[count:]]
    sums = [torch.zeros_like(parameters[index - count]) for index in op.differentiated if index >= count]
    for rows in _chunks(point.n, point.v):
        leaves = [t[rows].double() if t.is_floating_point() else t[rows] for t in inputs[:count]] + parameters
        wanted = [leaves[index].requires_grad_() for index in op.differentiated]
        output = op.torch(plain)(*leaves) / size
        outputs.append(output.detach())
        made = torch.autograd.grad(output, wanted, (dloss[rows] if dloss.dim() else dloss).double())
        gradients.append(made[0].to(kept))
        for total, part in zip(sums, made[1:], strict=True):
            total += part
    whole = torch.cat([output.to(kept) for output in outputs]) if dloss.dim() else torch.stack(outputs).sum()
    return whole, torch.cat(gradients), *(total.to(kept) for total in sums)


def least_cost(point: Point, mode: str) -> Cost:
    """The least that must be moved in a mode: `forward` without a gradient, `backward`, and both in a `full` step."""
    return _costs(point)[mode]


def least_allocated(point: Point, mode: str) -> int:
    """The bytes of a mode's results; a gradient that was computed with the loss is scaled in place."""
    costs = _costs(point)
    in_place = costs["backward"].written if OPS[point.op].in_forward(point) and mode != "forward" else 0
    return costs[mode].written - in_place


def _costs(point: Point) -> Costs:
    (x, *others), dloss = empty_inputs(point, torch.device("meta"))
    return OPS[point.op].costs(point, x, others[0] if others else None, dloss)


class Case:
    """A provider's function of a point in one mode: `prepare`; `step`, which is what is measured; `clear`.

    Leaves share the memory of the inputs, except where a provider needs its own. In forward mode none requires
    gradients, so nothing is recorded. Backward starts from a graph that `prepare` makes anew each time.
    """

    def __init__(self, point: Point, provider: str, mode: str, inputs: Inputs, dloss: Tensor) -> None:
        op = OPS[point.op]
        self._function, self._mode, self._lucid = op.function(provider, point), mode, provider == "ours"
        self._products = provider == "products"
        self._private = provider in op.private or (self._lucid and point.variant in op.private)
        self._leaves = [self._leaf(tensor) for tensor in inputs]
        self._differentiated = [self._leaves[index] for index in op.differentiated]
        for leaf in self._differentiated:
            leaf.requires_grad_(mode != "forward")
        self._dloss, self._typed_dloss, self._dtype = dloss, None, point.dtype
        self._output: Any = None

    def _leaf(self, tensor: Tensor) -> Any:
        leaf = lucid.from_torch(tensor) if self._lucid else tensor.detach()
        return leaf.clone() if self._private else leaf

    def _forward(self) -> Any:
        output = self._function(*self._leaves)
        if self._lucid:
            output.data_ptr()  # lucid defers a softmax until its values are asked for
        if self._typed_dloss is None:  # of the dtype of the output, which a provider may choose
            self._typed_dloss = self._leaf(self._dloss.to(_torch(output).dtype))
        return output

    def prepare(self) -> None:
        """Make ready for a step."""
        self._output = self._forward() if self._mode == "backward" else None

    def step(self) -> Any:
        """What is measured."""
        output = self._output if self._mode == "backward" else self._forward()
        if self._mode != "forward":
            output.backward(self._typed_dloss)
        return output

    def clear(self) -> None:
        """Drop the gradients and the graph."""
        self._output = None
        for leaf in self._differentiated:
            leaf.grad = None

    def check(self, expected: Inputs) -> float | None:
        """The largest error of a step, as a fraction of what it may be; a WrongResultError where it is above 1.

        None for matrix products alone, whose result is not the op's.
        """
        if self._products:
            return None
        self.prepare()
        found = [_torch(self.step())]
        if self._mode != "forward":
            found += [_torch(leaf.grad) for leaf in self._differentiated]
        self.clear()
        error = max(_error(result, known, self._dtype) for result, known in zip(found, expected, strict=False))
        if not error <= 1:
            raise WrongResultError(f"wrong by {error:.3g} times what it may be")
        return error


def _torch(tensor: Any) -> Tensor:
    return tensor.detach() if isinstance(tensor, Tensor) else tensor.to_torch()


def _error(result: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    if result.shape != expected.shape:
        raise WrongResultError(f"of shape {tuple(result.shape)}, expected {tuple(expected.shape)}")
    distance = float(torch.linalg.vector_norm(result.to(expected.dtype) - expected))
    if distance == 0:  # also where the truth is 0
        return 0.0
    allowed = ROUNDINGS * torch.finfo(dtype).eps / 2 * float(torch.linalg.vector_norm(expected))
    return distance / allowed if allowed else math.inf
