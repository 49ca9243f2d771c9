"""Providers run on a point: ours through lucid, all others through torch's autograd, with the same three steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import lucid
from perf.cases import OPS, Function, Point, Tensors


def function(provider: str, point: Point) -> Function:
    """A provider's function of the inputs; raises `perf.cases.NotOfferedError` where it has none."""
    op = OPS[point.op]
    if provider == "compile":
        # Dynamo counts recompilations by code object, over all points, and would fall back to eager mode after a few.
        torch.compiler.reset()
        return torch.compile(op.torch(point), dynamic=False, fullgraph=True)
    makers: Mapping[str, Any] = {"ours": op.ours, "lucid.torch": op.lucid_torch, "torch": op.torch, "liger": op.liger}
    return makers[provider](point)


class Subject:
    """A provider's function on given inputs in one mode: `prepare`; `step`, which is what is measured; `clear`.

    Leaves share the memory of the inputs, so several subjects may have the same ones; except for what must be memory of
    lucid's own, and for what a provider writes to. In forward mode none of them requires gradients, so nothing is
    recorded. Backward starts from a graph that `prepare` makes anew each time, and from a dloss that is there already.
    """

    def __init__(
        self, provider: str, function: Function, point: Point, mode: str, inputs: Tensors, dloss: torch.Tensor
    ) -> None:
        self._function, self._mode = function, mode
        self._differentiable = OPS[point.op].differentiable
        self._lucid = provider == "ours"
        self._owned = point.variant in OPS[point.op].owned
        wanted = () if mode == "forward" else self._differentiable
        self._leaves = {name: self._leaf(tensor, name in wanted) for name, tensor in inputs.items()}
        self._inputs = inputs if provider in OPS[point.op].overwritten else {}
        for name in self._inputs:
            self._leaves[name] = inputs[name].clone().requires_grad_(name in wanted)
        self._dloss = dloss
        self._fitted: Any = None
        self._output: Any = None

    def _leaf(self, tensor: torch.Tensor, wants_gradient: bool) -> Any:
        leaf = lucid.from_torch(tensor) if self._lucid else tensor.detach()
        if self._lucid and self._owned:
            leaf = leaf.clone()
        return leaf.requires_grad_(wants_gradient)

    def _forward(self) -> Any:
        output = self._function(*self._leaves.values())
        if self._lucid:
            output.data_ptr()  # lucid may put a softmax off until somebody looks
        return output

    def _fit(self, output: Any) -> None:
        """Give dloss the dtype of the output, which a provider may choose."""
        if self._fitted is None:
            dtype = _torch(output).dtype
            self._fitted = self._leaf(self._dloss.to(dtype), False)

    def prepare(self) -> None:
        """What has to be there before a step."""
        self._restore()
        if self._mode == "backward":
            self._output = self._forward()
            self._fit(self._output)
        elif self._mode == "full" and self._fitted is None:
            self._fit(self._forward())
            self._restore()

    def _restore(self) -> None:
        """Make inputs anew that a provider wrote to."""
        for name, tensor in self._inputs.items():
            self._leaves[name].data.copy_(tensor)

    def step(self) -> Any:
        """What is measured."""
        if self._mode == "forward":
            return self._forward()
        output = self._output if self._mode == "backward" else self._forward()
        output.backward(self._fitted)
        return output

    def clear(self) -> None:
        """Drop the gradients and the graph."""
        self._output = None
        for leaf in self._leaves.values():
            leaf.grad = None

    def results(self) -> Tensors:
        """The output, and the gradients by input's name, of one step."""
        self.prepare()
        found = {"output": _torch(self.step())}
        if self._mode != "forward":
            found |= {name: _torch(self._leaves[name].grad) for name in self._differentiable}
        self.clear()
        return found


def _torch(tensor: Any) -> torch.Tensor:
    return tensor.detach() if isinstance(tensor, torch.Tensor) else tensor.to_torch()
