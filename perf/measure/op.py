"""What is known of each op that is measured: inputs, truth, the least that must be moved, and calls of providers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as torch_functional
import triton
from torch import Tensor

import lucid.nn.functional as lucid_functional
import lucid.torch
from triton_kernels.devtools.cost import Cost

Function = Callable[..., Any]

#: By mode.
Costs = dict[str, Cost]


class UnsupportedError(Exception):
    """Why a provider does not take a point; its row is skipped with this reason."""


@dataclass(frozen=True, slots=True)
class Point:
    """An op on inputs of n rows and v columns; or on hidden states of n rows, and weights of v rows, of d features."""

    op: str
    variant: str
    n: int
    v: int
    dtype: torch.dtype
    reduction: Any  # a word that the op takes
    d: int = 0


class Op:
    """An entry of the registry; its defaults are those of losses of rows of logits.

    `inputs` makes so many of the n rows of each input, and `parameters` of the v rows of each weight, which follow the
    inputs; floating ones are converted to the point's dtype afterwards. `costs` are the least of each mode, from
    tensors of the meta device. `call` gives the function of the inputs in a namespace of functions like
    lucid.nn.functional; it and those of other providers raise an `UnsupportedError` where there is none. `statistics`
    are bytes that ours may write and read about rows and their chunks.
    """

    variants: tuple[str, ...] = ("",)
    reductions: tuple[str, ...] = ("none", "mean", "sum", "batchmean")
    #: The most launches that ours may make, by mode.
    launches: ClassVar[dict[str, int]] = {"forward": 4, "backward": 1, "full": 9}
    #: Providers and variants that need inputs of their own: those that write to them, or are fused only then.
    private: tuple[str, ...] = ()
    #: Whether it takes hidden states and weights, and points have features.
    from_hidden = False
    #: Indices of the inputs and weights that get a gradient, an input's first.
    differentiated: tuple[int, ...] = (0,)
    #: What a sweep runs where it is not told.
    sweep: ClassVar[dict[str, str]] = {
        "shapes": "target,512x4096",
        "dtypes": "bf16,fp32",
        "modes": "forward,backward,full",
        "providers": "ours,torch,compile,liger",
    }

    def inputs(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def parameters(self, point: Point, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return ()

    def costs(self, point: Point, x: Tensor, y: Any, dloss: Tensor) -> Costs:
        raise NotImplementedError

    def call(self, point: Point, namespace: Any) -> Function:
        raise NotImplementedError

    def in_forward(self, point: Point) -> bool:
        """Whether ours computes the gradient with the loss."""
        return False

    def torch(self, point: Point) -> Function:
        """The expression in torch; of one dtype throughout."""
        return self.call(point, torch_functional)

    def liger(self, point: Point) -> Function:
        raise UnsupportedError(f"Liger has no {point.op}")

    def trl(self, point: Point) -> Function:
        raise UnsupportedError(f"TRL has no {point.op}")

    def products(self, point: Point) -> Function:
        """Its matrix products alone, whose result is no loss and is not compared with the truth."""
        raise UnsupportedError(f"{point.op} has no matrix products")

    def elements(self, point: Point) -> int:
        """What a reduction "mean" divides by."""
        return point.n

    def statistics(self, point: Point, mode: str) -> int:
        # Chunks are of at least so many columns; where programs of a row meet, each reads the statistics of all chunks.
        size, columns = (8, 512) if point.dtype is torch.float64 else (4, 4096)
        chunks = triton.cdiv(point.v, columns)
        meeting = chunks * chunks if mode != "backward" and chunks > 1 else 0
        return point.n * size * (16 * (chunks + (mode != "backward")) + 8 * meeting)

    def function(self, provider: str, point: Point) -> Function:
        """A provider's function of the inputs."""
        if provider in ("ours", "lucid.torch"):
            return self.call(point, lucid_functional if provider == "ours" else lucid.torch)
        if provider == "two-launches":
            if not self.in_forward(point):
                raise UnsupportedError("its gradient takes a launch of its own in any case")
            return lucid.torch.gradient_in_forward(False)(self.call(point, lucid.torch))
        if provider == "torch":
            return self.torch(point)
        if provider == "compile":
            # Dynamo counts recompilations by code object, over all points, and would fall back to eager mode.
            torch.compiler.reset()
            return torch.compile(self.torch(point), dynamic=False, fullgraph=True)
        if provider in ("trl", "products"):
            return self.trl(point) if provider == "trl" else self.products(point)
        if importlib.util.find_spec("liger_kernel") is None:
            raise UnsupportedError('liger-kernel is not installed: pip install ".[perf]"')
        if point.dtype is torch.float64:
            raise UnsupportedError(f"Liger's {point.op} calculates in float32")
        return self.liger(point)


def in_backward(forward: Cost, backward: Cost) -> Costs:
    """Costs where the gradient is computed in backward: a loss in between keeps the two apart."""
    return {"forward": forward, "backward": backward, "full": forward + backward}


def normal(point: Point, rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, point.d or point.v, generator=generator, device=generator.device)
