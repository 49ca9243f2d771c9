"""The memory that a point needs, estimated before it is made."""

from __future__ import annotations

from perf import cases
from perf.cases import OPS, Point

#: Tensors of the inputs' whole shape that torch's functions hold: from forward to backward, and at most within a step,
#: results included. `tests/test_perf_memory.py` counts them.
TORCH = {
    "kl_div": (1, 3),
    "softmax": (1, 2),
    "log_softmax": (1, 2),
    "forward_kl": (2, 5),
    "two_line": (2, 5),
    "reverse_kl": (3, 5),
    "js": (6, 9),
    "total_variation": (3, 5),
    "cross_entropy": (1, 3),
}

#: The same for ours, and for Liger's.
OURS = {"softmax": (1, 2), "log_softmax": (1, 2)}
LIGER = {"kl_div": (2, 3), "softmax": (1, 2), "cross_entropy": (1, 1)}


def held(point: Point, provider: str) -> tuple[int, int]:
    """Whole tensors that a provider holds from forward to backward, and at most within a step."""
    name = point.variant if point.op == "distillation" else point.op
    if provider in ("ours", "lucid.torch"):
        return OURS.get(name, (0, 1))
    if provider == "liger":
        return LIGER.get(name, (2, 6))
    return TORCH[name]


def needed(point: Point, provider: str, mode: str, sets: int, names: tuple[str, ...]) -> int:
    """Bytes for a row of a sweep: all sets of inputs, their truth, gradients and graphs, and one step.

    `names` are those of the results that have a truth.
    """
    sizes = cases.input_bytes(point)
    inputs = sum(size for name, size in sizes.items() if name not in ("dloss", "output"))
    whole = point.n * point.v * point.dtype.itemsize
    saved, most = held(point, provider)
    others = {"forward": 0, "backward": max(saved, 1), "full": 1}[mode]
    private = provider in OPS[point.op].overwritten or (provider == "ours" and point.variant in OPS[point.op].owned)
    total = sets * (inputs * (1 + private) + sizes["dloss"] + sizes["output"])
    total += (most + others * (sets - 1)) * whole
    matrices = [name for name in names if name != "output" or len(OPS[point.op].output(point)) == 2]
    total += len(matrices) * point.n * point.v * sum(dtype.itemsize for dtype in cases.truth_dtypes(point))
    # What is compared, a chunk of rows at a time, in float64.
    return total + 12 * 8 * min(max(cases.CHUNK, point.v), point.n * point.v)
