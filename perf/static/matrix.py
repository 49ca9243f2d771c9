"""Calls of launchers as users can make them: a covering array of options for each, in which any two values meet.

`CALLS` has, by a launcher's name, the function that calls it and its cases, values by factor. Tensors have zeros or, on
the meta device, no memory: launches depend on shapes, strides, dtypes and alignment, not on values.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

import triton_kernels as tk
from perf.static.pairs import pairwise
from triton_kernels.runtime import launch

BOOL = (False, True)
FLOATS = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
WIDE = FLOATS[1::2]
INTEGERS = (torch.int64, torch.int32)

Shape = tuple[int, ...]
Factors = dict[str, Any]

#: Rows of one chunk and of several, of aligned and other lengths; one; several dimensions; 64-bit offsets; rows whose
#: chunks are of several tiles where the programs of a row wait for each other, as are long rows that are strided.
SHAPES: dict[str, Shape] = {
    "one chunk": (256, 4096),
    "odd": (7, 1271),
    "chunks": (8192, 131072),
    "odd chunks": (2, 50257),
    "one": (1, 1),
    "batch": (3, 5, 7, 33),
    "batch of rows": (3, 37, 5008),
    "64-bit": (2**16, 2**15 + 16),
    "few chunks": (16, 131072),
    "tiles": (4, 2**20 + 2**16),
}
ALL = tuple(SHAPES)

#: Of which all options of a loss run, not only all pairs; in float64 those that take the most registers.
PLAIN = ("chunks", "odd chunks")

#: One for each size of a tile of columns, and for each number of chunks to merge.
WIDTHS = {f"{2**power} columns": (40, 2**power) for power in range(1, 19)}

#: Tensors without gaps, and as slices and permutations leave them; operands that broadcast; one value a row.
LAYOUTS = ("dense", "offset", "padded", "rows", "strided", "transposed")
BROADCAST = (*LAYOUTS, "row", "column", "number")
TOKENS = ("dense", "offset", "strided", "number")
FEW = ("dense", "offset", "strided")


def tensor(shape: Shape, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that lies as `layout` says, of the shape or broadcasting to it."""
    *lead, v = shape or (1,)
    zeros = functools.partial(torch.zeros, dtype=dtype)
    match layout:
        case "offset":  # not aligned
            return zeros(torch.Size(shape).numel() + 1)[1:].view(shape)
        case "padded":  # a vocabulary that is padded to a multiple
            return zeros(*lead, v + 16)[..., :v]
        case "rows":  # logits without the first position
            return zeros(*lead[:-1], lead[-1] + 1, v)[..., 1:, :]
        case "strided":
            return zeros(*lead, 2 * v)[..., ::2]
        case "transposed":
            return zeros(*shape[:-2], v, shape[-2]).transpose(-1, -2)
        case "row" | "column" | "number":
            return zeros({"row": [v], "column": [*lead, 1], "number": []}[layout])
    return zeros(shape)


class Case(dict[str, Any]):
    """Values by factor; a tensor's factor has its layout, another, with the suffix _dtype, its dtype."""

    @property
    def shape(self) -> Shape:
        """The shape that all operands have or broadcast to."""
        return (SHAPES | WIDTHS)[self["shape"]]

    def tensor(self, name: str, shape: Shape | None = None) -> Any:
        """An operand; None where its layout or its dtype is."""
        layout, dtype = self[name], self.get(f"{name}_dtype", self.get("dtype"))
        given = self.shape if shape is None else shape
        return None if layout is None or dtype is None else tensor(given, layout, dtype)

    def tokens(self, name: str) -> Any:
        """An operand of one value a row."""
        return self.tensor(name, self.shape[:-1])


#: By a launcher's name: a function that calls it, and its cases.
CALLS: dict[str, tuple[Callable[[Case], None], list[Case]]] = {}


def calls(factors: Factors, *every: Factors) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Add to `CALLS`: any two values of `factors` meet, and all combinations of each of `every` are made.

    What a dict of `every` does not name has the value of the first case.
    """
    cases = [Case(case) for case in pairwise(factors)]
    for values in every:
        combinations = itertools.product(*values.values())
        cases += [Case(cases[0] | dict(zip(values, case, strict=True))) for case in combinations]

    def add(call: Callable[[Case], None]) -> Callable[[Case], None]:
        CALLS[call.__name__.rstrip("_")] = call, cases
        return call

    return add


def widths(operand: str, dtype: str = "dtype", **more: Sequence[Any]) -> tuple[Factors, ...]:
    """Every width of rows, in float64 every third, and narrow rows that are strided."""
    narrow, wide = WIDE[:1], WIDE[1:]
    strided = {"shape": [*WIDTHS][:5], operand: ["strided"], dtype: narrow, **more}
    return {"shape": [*WIDTHS], dtype: narrow, **more}, {"shape": [*WIDTHS][::3], dtype: wide, **more}, strided


KL_DIV: Factors = {"shape": ALL, "target": BROADCAST, "x_dtype": FLOATS, "target_dtype": FLOATS, "log_target": BOOL}


@calls(
    {"x": BROADCAST, **KL_DIV, "dtype": (None, *FLOATS), "reduce": BOOL},
    {"x_dtype": FLOATS, "log_target": BOOL, "reduce": BOOL},
)
def kl_div_forward(case: Case) -> None:
    options = {name: case[name] for name in ("log_target", "reduce", "dtype")}
    tk.kl_div_forward(case.tensor("x"), case.tensor("target"), **options)


DLOSS: Factors = {"dloss": ("dense", "row", "column", "number", "strided"), "dloss_dtype": FLOATS}


@calls(
    {"x": (None, *BROADCAST), **KL_DIV, **DLOSS, "dx_dtype": (*FLOATS, None)},
    {"x": (None, "dense"), "target_dtype": FLOATS, "log_target": BOOL},
)
def kl_div_backward(case: Case) -> None:
    x, target, dloss = (case.tensor(name) for name in ("x", "target", "dloss"))
    dx, dtarget = case["dx_dtype"], None if x is None else target.dtype
    options = {"dx_dtype": dx if dx or dtarget else target.dtype, "dtarget_dtype": dtarget}
    tk.kl_div_backward(x, target, dloss, shape=case.shape, log_target=case["log_target"], **options)


#: A divergence; the inverse temperature and the weight of hard labels; `unused`: columns of the student alone.
KINDS: Factors = {"kind": ("forward_kl", "reverse_kl", "js", "total_variation")}
KINDS |= {"hard": ((1.0, 0.0), (1.0, 0.5), (0.5, 0.5))}
DISTILLATION: Factors = {"shape": ALL, **KINDS, "student": LAYOUTS, "teacher": LAYOUTS, "unused": (0, 3)}
DISTILLATION |= {"student_dtype": FLOATS, "teacher_dtype": FLOATS, "labels": TOKENS, "labels_dtype": INTEGERS}
#: A scale and a softcap of logits.
MAPS = ((1.0, None), (0.5, None), (1.0, 30.0))
DISTILLATION |= {"student_map": MAPS, "teacher_map": MAPS}
DISTILLED = (
    {"shape": PLAIN, **KINDS, "dtype": WIDE[:1]},
    {"shape": PLAIN[1:], **KINDS, "hard": [(0.5, 0.5)], "dtype": WIDE[1:]},
    *widths("student", kind=["js"], hard=[(1.0, 0.0)]),
)
#: Softcapped logits in rows of several chunks, in float32, which takes the most registers.
CAPPED: Factors = {
    "shape": PLAIN[1:],
    **KINDS,
    "dtype": WIDE[:1],
    "student_map": MAPS[2:],
    "teacher_map": MAPS[2:],
}
WEIGHTS: Factors = {"weight": TOKENS, "weight_dtype": (None, torch.bool, *FLOATS)}
TO_LOGITS = ("student", "teacher", "both", "in place", "both in place")


def _distillation(case: Case) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Logits, and options of both directions."""
    *lead, v = case.shape
    columns = max(1, v - case["unused"])
    inv_temperature, hard = case["hard"]
    if "dtype" in case:  # of both
        case = Case(case | {"student_dtype": case["dtype"], "teacher_dtype": case["dtype"]})
    options = {"divergence": case["kind"], "inv_temperature": inv_temperature, "hard_label_weight": hard}
    options |= {"labels": case.tokens("labels") if hard else None, "vocab_size": columns if case["unused"] else None}
    for who in ("student", "teacher"):
        options |= dict(zip((f"{who}_scale", f"{who}_softcap"), case[f"{who}_map"], strict=True))
    return case.tensor("student"), case.tensor("teacher", (*lead, columns)), options


@calls(
    DISTILLATION | WEIGHTS | {"gradients": (None, *TO_LOGITS), "factor": BOOL},
    *(factors | {"gradients": (None, "student")} for factors in DISTILLED),
    CAPPED | {"gradients": ["both in place"]},
)
def divergence_forward(case: Case) -> None:
    s, t, options = _distillation(case)
    gradients, dtype = case["gradients"], launch.compute_dtype(s.dtype, t.dtype)
    tk.divergence_forward(
        s, t, weight=case.tokens("weight"), **options,
        gradient_factor=tensor((), "number", dtype) if case["factor"] else None,
        dstudent=_written(s, gradients, "student"),
        dteacher=_written(t, gradients, "teacher"),
    )  # fmt: skip


def _written(logits: torch.Tensor, gradients: str | None, of: str) -> torch.Tensor | None:
    """Where the gradient to logits of student or teacher is written."""
    if gradients == "both in place" or (gradients == "in place" and of == "student"):
        return logits
    return tk.strides.empty_as(logits) if gradients in (of, "both") else None


UPSTREAM: Factors = {"dloss": TOKENS, "factor": BOOL}


@calls(DISTILLATION | UPSTREAM | {"gradients": TO_LOGITS}, *DISTILLED, CAPPED | {"gradients": ["both in place"]})
def divergence_backward(case: Case) -> None:
    s, t, options = _distillation(case)
    gradients = case["gradients"]
    tk.divergence_backward(
        s, t, **_upstream(case, tk.divergence_forward, s, t, **options), **options,
        dstudent_dtype=s.dtype if gradients in ("student", "both") else None,
        dteacher_dtype=t.dtype if gradients in ("teacher", "both") else None,
        student_out=s if gradients in ("in place", "both in place") else None,
        teacher_out=t if gradients == "both in place" else None,
    )  # fmt: skip


def _upstream(case: Case, forward: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
    """Statistics of rows, of a forward pass that is not launched, and what is multiplied with the gradient."""
    with launch.dry_run(lambda _: None):
        statistics = forward(*args, **options)[1]
    dloss = tensor(case.shape[:-1], case["dloss"], statistics.dtype)
    factor = tensor((), "number", statistics.dtype) if case["factor"] else None
    return {"statistics": statistics, "dloss": dloss, "dloss_factor": factor}


LOGITS: Factors = {"shape": ALL, "x": LAYOUTS, "x_dtype": FLOATS, "label_smoothing": (0.0, 0.1)}
MAPPED: Factors = {"map": MAPS}
LOGITS |= {"class_weight": ["row"], "class_weight_dtype": (None, *FLOATS)}
LABELS: Factors = {"labels": FEW, "labels_dtype": INTEGERS}
PROBABILITIES: Factors = {"y": LAYOUTS, "y_dtype": FLOATS}
GRADIENTS: Factors = {"gradients": ("x", "y", "both")}
SMOOTHED: Factors = {"shape": PLAIN, "x_dtype": WIDE, "label_smoothing": (0.0, 0.1)}


def _cross_entropy(case: Case) -> dict[str, Any]:
    return {"class_weight": case.tensor("class_weight"), "label_smoothing": case["label_smoothing"]}


def _map(case: Case) -> dict[str, Any]:
    return dict(zip(("logit_scale", "softcap"), case["map"], strict=True))


@calls(
    LOGITS | LABELS | MAPPED | {"gradient": (None, "new", "in place"), "factor": BOOL},
    *(factors | {"gradient": (None, "new")} for factors in (SMOOTHED, *widths("x", "x_dtype"))),
    SMOOTHED | {"map": MAPS[2:], "gradient": ["in place"]},
)
def cross_entropy_forward(case: Case) -> None:
    x, gradient = case.tensor("x"), case["gradient"]
    dx = x if gradient == "in place" else tk.strides.empty_as(x) if gradient else None
    options = _cross_entropy(case) | _map(case) | {"dx": dx}
    if case["factor"]:
        options["gradient_factor"] = tensor((), "number", launch.compute_dtype(x.dtype))
    tk.cross_entropy_forward(x, case.tokens("labels"), **options)


@calls(
    LOGITS | LABELS | MAPPED | UPSTREAM | {"in_place": BOOL},
    SMOOTHED,
    *widths("x", "x_dtype"),
    SMOOTHED | {"map": MAPS[2:], "in_place": [True]},
)
def cross_entropy_backward(case: Case) -> None:
    x = case.tensor("x")
    args, options = (x, case.tokens("labels")), _cross_entropy(case) | _map(case)
    upstream = _upstream(case, tk.cross_entropy_forward, *args, **options)
    tk.cross_entropy_backward(*args, **upstream, **options, out=x if case["in_place"] else None)


@calls(LOGITS | PROBABILITIES | {"gradient": BOOL}, SMOOTHED, *widths("x", "x_dtype"))
def soft_cross_entropy_forward(case: Case) -> None:
    x = case.tensor("x")
    dx = tk.strides.empty_as(x) if case["gradient"] else None
    tk.soft_cross_entropy_forward(x, case.tensor("y"), **_cross_entropy(case), dx=dx)


@calls(LOGITS | PROBABILITIES | GRADIENTS | UPSTREAM, SMOOTHED | GRADIENTS, *widths("x", "x_dtype"))
def soft_cross_entropy_backward(case: Case) -> None:
    args, options = (case.tensor("x"), case.tensor("y")), _cross_entropy(case)
    options |= _upstream(case, tk.soft_cross_entropy_forward, *args, **options)
    options |= {"dx_dtype": None if case["gradients"] == "y" else case["x_dtype"]}
    tk.soft_cross_entropy_backward(*args, **options, dy_dtype=None if case["gradients"] == "x" else case["y_dtype"])


@calls(
    {"shape": ALL, "labels": TOKENS, "labels_dtype": (None, *INTEGERS), "dtype": WIDE, "unused": (0, 3)}
    | WEIGHTS | {"class_weight": ["row"], "class_weight_dtype": (None, *FLOATS)}
)  # fmt: skip
def token_weights(case: Case) -> None:
    """Weights of classes go with labels."""
    logits, labels = tensor(case.shape, "dense", torch.float32), case.tokens("labels")
    options = {"class_weight": case.tensor("class_weight") if labels is not None else None, "dtype": case["dtype"]}
    options["vocab_size"] = max(1, case.shape[-1] - case["unused"]) if case["unused"] else None
    tk.token_weights(logits, weight=case.tokens("weight"), labels=labels, **options)


@calls(
    {"shape": ALL, "gradient": LAYOUTS, "gradient_dtype": FLOATS, "dloss": TOKENS, "dloss_dtype": FLOATS}
    | {"weights": (None, torch.bool, *WIDE), "unused": (0, 3), "in_place": BOOL},
    {"shape": PLAIN, "gradient_dtype": WIDE, "dloss": ("dense", "number"), "in_place": BOOL},
    *widths("gradient", "gradient_dtype"),
)
def scale_gradient(case: Case) -> None:
    gradient, columns = case.tensor("gradient"), case.shape[-1]
    weights = tensor((gradient[..., 0].numel(),), "dense", case["weights"]) if case["weights"] else None
    options = {"vocab_size": max(1, columns - case["unused"]) if case["unused"] else None, "weights": weights}
    tk.scale_gradient(gradient, case.tokens("dloss"), in_place=case["in_place"], **options)


NUMBERS: Factors = {"tokens": (1, 2**20), "weights": BOOL}


@calls(
    {"tokens": (1, 100, 2**20), "losses_dtype": WIDE, "weights": BOOL, "denominator": ["number"], "factor": BOOL}
    | {"denominator_dtype": (None, *FLOATS, *INTEGERS), "dtype": (None, *FLOATS)},
    NUMBERS | {"denominator_dtype": [None]},
    NUMBERS | {"denominator_dtype": [torch.float32]},
)
def token_mean(case: Case) -> None:
    losses = tensor((case["tokens"],), "dense", case["losses_dtype"])
    weights, denominator = losses if case["weights"] else None, case.tensor("denominator", ())
    factor = tensor((), "number", case["losses_dtype"]) if case["factor"] else None
    tk.token_mean(losses, weights=weights, denominator=denominator, factor=factor, dtype=case["dtype"])


SOFTMAX: Factors = {"shape": ALL, "dtype": FLOATS, "dim": (-1, 0), "log": BOOL}


@calls(SOFTMAX | {"x": LAYOUTS}, *widths("x"))
def softmax_forward(case: Case) -> None:
    tk.softmax_forward(case.tensor("x"), case["dim"] % len(case.shape), log=case["log"])


@calls(SOFTMAX | {"y": LAYOUTS, "dy": LAYOUTS}, *widths("y"))
def softmax_backward(case: Case) -> None:
    tk.softmax_backward(case.tensor("y"), case.tensor("dy"), case["dim"] % len(case.shape), log=case["log"])


OPTIMIZER: Factors = {"shape": ALL, "param": LAYOUTS, "grad": LAYOUTS, "dtype": FLOATS}


@calls(OPTIMIZER | {"momentum": (0.0, 0.9), "dampening": (0.0, 0.5), "nesterov": BOOL, "maximize": BOOL, "skips": BOOL})
def sgd_step(case: Case) -> None:
    param, momentum = case.tensor("param"), case["momentum"]
    dampening = case["dampening"] if momentum else 0.0
    options = {"momentum": momentum, "nesterov": case["nesterov"] and momentum != 0 and not dampening, "lr": 0.1}
    steps, found_inf = [torch.zeros(())] if dampening else None, torch.zeros(()) if case["skips"] else None
    options |= {"dampening": dampening, "maximize": case["maximize"], "found_inf": found_inf}
    tk.sgd_step([param], [case.tensor("grad")], [_state(param)] if momentum else None, steps, **options)


@calls(OPTIMIZER | {"amsgrad": BOOL, "decoupled": BOOL, "maximize": BOOL, "skips": BOOL})
def adam_step(case: Case) -> None:
    param, *moments = case.tensor("param"), *(_state(case.tensor("param")) for _ in range(3 if case["amsgrad"] else 2))
    tk.adam_step(
        *([tensor] for tensor in (param, case.tensor("grad"), *moments)),
        step=[torch.zeros(())],
        lr=0.1,
        betas=(0.9, 0.999),
        eps=1e-8,
        decoupled=case["decoupled"],
        maximize=case["maximize"],
        found_inf=torch.zeros(()) if case["skips"] else None,
    )


GRADIENT: Factors = {"shape": ALL, "grad": LAYOUTS, "dtype": FLOATS}


@calls(GRADIENT | {"order": (1.0, 2.0, 3.0, math.inf)})
def total_norm(case: Case) -> None:
    tk.total_norm([case.tensor("grad")], case["order"])


@calls(GRADIENT)
def clip_by_norm(case: Case) -> None:
    grad = case.tensor("grad")
    tk.clip_by_norm([grad], torch.zeros((), dtype=launch.compute_dtype(grad.dtype)), 1.0)


@calls(GRADIENT)
def clip_by_value(case: Case) -> None:
    tk.clip_by_value([case.tensor("grad")], 1.0)


@calls(GRADIENT)
def unscale(case: Case) -> None:
    tk.unscale([case.tensor("grad")], torch.zeros(()), torch.zeros(()))


@calls({"flags": (1, 3)})
def update_scale(case: Case) -> None:
    scale, tracker = torch.zeros(()), torch.zeros((), dtype=torch.int32)
    options: dict[str, Any] = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    tk.update_scale(scale, tracker, torch.zeros(case["flags"]), **options)


def _state(param: torch.Tensor) -> torch.Tensor:
    """What an optimizer keeps of a parameter."""
    return torch.zeros_like(param, dtype=launch.compute_dtype(param.dtype))
