"""Launches that users can reach: for each launcher a covering array of options, in which any two values meet.

Launches depend on shapes, strides, dtypes and alignment, not on values. So they are called with tensors without
memory, and their launches are recorded instead of executed.
"""

from __future__ import annotations

import functools
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

import triton_kernels as tk
from perf.static import pool
from triton_kernels.devtools import aot
from triton_kernels.runtime import launch

#: The target that every launch is compiled for; one in `OTHERS` is compiled for another, too.
MAIN, OTHERS = "cuda:90", 4

#: Tensors that kernels write over what they read.
REWRITTEN = {"_sgd_kernel": ("param", "momentum_buffer"), "_adam_kernel": ("param", "exp_avg", "exp_avg_sq")}

#: Kernels that add up or merge few numbers, where the width of accesses matters little.
SMALL = ("_finalize_kernel", "_token_mean_kernel", "_token_sum_kernel")

BOOL = (False, True)
FLOATS = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32)

Shape = tuple[int, ...]

#: Rows of one chunk and of several, of aligned and other lengths; one; several dimensions; 64-bit offsets.
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
}
#: Of which all options of a loss run, not only all pairs.
PLAIN = ("chunks", "odd chunks")

#: One for each size of a tile of columns, and for each number of chunks to merge.
WIDTHS = {f"{2**power} columns": (40, 2**power) for power in range(1, 19)}
NARROW = [*WIDTHS][:5]

#: Tensors without gaps, and as slices and permutations leave them; operands that broadcast; one value a row.
LAYOUTS = ("dense", "offset", "padded", "rows", "strided", "transposed")
BROADCAST = (*LAYOUTS, "row", "column", "number")
TOKENS = ("dense", "offset", "strided", "number")


def tensor(shape: Shape, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """A tensor without memory that lies as `layout` says, of the shape or broadcasting to it."""
    *lead, v = shape or (1,)

    def empty(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    match layout:
        case "offset":  # not aligned
            return empty(torch.Size(shape).numel() + 1)[1:].view(shape)
        case "padded":  # a vocabulary that is padded to a multiple
            return empty(*lead, v + 16)[..., :v]
        case "rows":  # logits without the first position
            return empty(*lead[:-1], lead[-1] + 1, v)[..., 1:, :]
        case "strided":
            return empty(*lead, 2 * v)[..., ::2]
        case "transposed":
            return empty(*shape[:-2], v, shape[-2]).transpose(-1, -2)
        case "row" | "column" | "number":
            return empty(*{"row": [v], "column": [*lead, 1], "number": []}[layout])
    return empty(*shape)


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

    def only(self, *names: str) -> dict[str, Any]:
        """Some of the values."""
        return {name: self[name] for name in names}


def pairwise(factors: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Cases in which any two values of different factors meet; few, but not the fewest.

    >>> ["".join(case.values()) for case in pairwise({"a": "xy", "b": "xy", "c": "xy"})]  # 4 of 8
    ['xxx', 'xyy', 'yxy', 'yyx']
    """
    options = {name: [(name, number) for number in range(len(values))] for name, values in factors.items()}
    left = {pair: None for a, b in itertools.combinations(options.values(), 2) for pair in itertools.product(a, b)}
    uses: Counter[tuple[str, int]] = Counter()
    cases = []
    while left:
        case = dict(next(iter(left)))
        for name in factors:
            if name not in case:
                gains = {
                    option: sum((option, other) in left or (other, option) in left for other in case.items())
                    for option in options[name]
                }
                case[name] = max(gains, key=lambda option: (gains[option], -uses[option]))[1]
        chosen = [(name, case[name]) for name in factors]
        uses.update(chosen)
        for pair in itertools.combinations(chosen, 2):
            left.pop(pair, None)
        cases.append({name: factors[name][number] for name, number in chosen})
    return cases


#: Functions that call a launcher, by its name, with their cases.
CALLS: dict[str, tuple[Callable[[Case], Any], list[dict[str, Any]]]] = {}

Call = Callable[[Case], Any]


def covering(**factors: Sequence[Any]) -> Callable[[Call], Call]:
    """Add the cases of a covering array to a function that calls the launcher of its name.

    Factors that are not named have the values of the function's first case.
    """
    return lambda call: _add(call, pairwise(factors))


def every(**factors: Sequence[Any]) -> Callable[[Call], Call]:
    """Add all combinations of a few values in the same way."""
    return lambda call: _add(
        call, [dict(zip(factors, case, strict=True)) for case in itertools.product(*factors.values())]
    )


def _add(call: Call, cases: list[dict[str, Any]]) -> Call:
    _, known = CALLS.setdefault(call.__name__.rstrip("_"), (call, []))
    known += [(known[0] if known else {}) | case for case in cases]
    return call


def launches() -> Iterator[tuple[str, launch.Launch]]:
    """All launches, as a GPU would get them, each with its call in words."""
    for name, (call, cases) in CALLS.items():
        for case in cases:
            made: list[launch.Launch] = []
            with launch.dry_run(made.append):
                call(Case(case))
            words = f"{name} {' '.join(f'{key}={value}' for key, value in case.items())}"
            yield from ((words, launched) for launched in made)


def faults(calls: Iterable[tuple[str, launch.Launch]], targets: Sequence[str] | None, jobs: int) -> list[str]:
    """Compile launches; a line for each that is refused, spills, or has narrow accesses where wide ones fit.

    `targets` are those that each is compiled for; by default `MAIN`, and for one launch in four one of the others.
    """
    distinct: dict[str, tuple[str, launch.Launch]] = {}
    for words, launched in calls:
        distinct.setdefault(json.dumps(aot.describe(launched)), (words, launched))
    tasks = [
        (f"{words}, {launched.kernel.__name__}, {target}", launched, json.loads(description) | {"targets": [target]})
        for description, (words, launched) in distinct.items()
        for target in targets or some_targets(description)
    ]
    reports = pool.answers(["triton_kernels.devtools.aot"], [(label, task) for label, _, task in tasks], jobs)
    found = [
        f"{label}: {fault}"
        for (label, launched, _), answer in zip(tasks, reports, strict=True)
        if (fault := _fault(launched, answer))
    ]
    print(f"{len(tasks)} launches compiled, {len(found)} of them with faults")
    return found


#: Bytes that ptxas may spill, as it does in a few of these launches with registers to spare; shipped variants have 0.
FEW_BYTES = 24


def _fault(launched: launch.Launch, answer: dict[str, Any]) -> str | None:
    if "error" in answer:
        return str(answer["error"])
    report = answer["report"]
    if report["spills"] > FEW_BYTES:
        return f"{report['spills']} bytes of spills with {report['registers']} registers"
    accesses = (*report["loads"].items(), *report["stores"].items())
    moved = sum(int(width) * count for width, count in accesses if int(width) >= 16)
    least = least_wide(launched)
    if accesses and moved < least:
        return f"{moved} bytes a thread in 128-bit accesses, at least {least} expected"
    return None


def some_targets(description: str) -> tuple[str, ...]:
    """`MAIN`, and for some launches one of the others, always the same: launches that are alike see all of them."""
    number, others = zlib.crc32(description.encode()), [target for target in aot.TARGETS if target != MAIN]
    return (MAIN,) if number % OTHERS else (MAIN, others[number // OTHERS % len(others)])


def least_wide(launched: launch.Launch) -> int:
    """Bytes that a thread moves in 128-bit accesses, where all tensors of full size are aligned and without gaps.

    0 where one is not, or where a thread has less than 128 bits of one.
    """
    tensors = [(name, t) for name, value in launched.args.items() for t in _flat(value) if isinstance(t, torch.Tensor)]
    size = max(t.numel() for _, t in tensors)
    full = [(name, t) for name, t in tensors if t.numel() > size // 2]  # teachers may have fewer columns
    tiles = launched.config.tiles
    elements = tiles.get("BLOCK", tiles.get("BLOCK_N", 1) * tiles.get("BLOCK_V", 0)) // (32 * launched.config.num_warps)
    if launched.kernel.__name__ in SMALL:
        return 0
    for _, t in full:
        if not t.is_contiguous() or t.data_ptr() % 16 or (t.shape or (1,))[-1] % 16 or elements * t.itemsize < 16:
            return 0
    for name, value in launched.args.items():
        # An operand of rows is a tensor, strides between rows, the stride between columns unless it is 1, and a unit.
        if isinstance(value, tuple) and len(value) == 4 and value[2] is not None:
            return 0
        if name.endswith("column_strides") and value is not None and value[-1] != 1:
            return 0
    twice = REWRITTEN.get(launched.kernel.__name__, ())
    return sum(elements * t.itemsize * (2 if name.removesuffix("_ptr") in twice else 1) for name, t in full)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


# Losses


@every(x_dtype=FLOATS, log_target=BOOL, reduce=BOOL)
@covering(
    shape=[*SHAPES], x=BROADCAST, target=BROADCAST, x_dtype=FLOATS, target_dtype=FLOATS, dtype=(None, *FLOATS),
    log_target=BOOL, reduce=BOOL,
)  # fmt: skip
def kl_div_forward(case: Case) -> None:
    tk.kl_div_forward(case.tensor("x"), case.tensor("target"), **case.only("log_target", "reduce", "dtype"))


@every(x=(None, "dense"), target_dtype=FLOATS, log_target=BOOL)
@covering(
    shape=[*SHAPES], x=(None, *BROADCAST), target=BROADCAST, dloss=("dense", "row", "column", "number", "strided"),
    x_dtype=FLOATS, target_dtype=FLOATS, dloss_dtype=FLOATS, dx_dtype=(*FLOATS, None), log_target=BOOL,
)  # fmt: skip
def kl_div_backward(case: Case) -> None:
    x, target, dloss = (case.tensor(name) for name in ("x", "target", "dloss"))
    dx, dtarget = case["dx_dtype"], None if x is None else target.dtype
    options = {"dx_dtype": dx if dx or dtarget else target.dtype, "dtarget_dtype": dtarget}
    tk.kl_div_backward(x, target, dloss, shape=case.shape, log_target=case["log_target"], **options)


#: A divergence, the inverse temperature, and the weight of hard labels.
DISTILLATION: dict[str, Sequence[Any]] = {
    "shape": [*SHAPES],
    "kind": [
        (kind, *options)
        for kind in ("forward_kl", "reverse_kl", "js", "total_variation")
        for options in ((1.0, 0.0), (1.0, 0.5), (0.5, 0.5))
    ],
    **{"student": LAYOUTS, "teacher": LAYOUTS, "student_dtype": FLOATS, "teacher_dtype": FLOATS},
    **{"labels": TOKENS, "labels_dtype": INTEGERS, "unused": (0, 3)},
}


def _distillation(case: Case) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Logits, and options of both directions. `unused`: columns of the student alone."""
    *lead, v = case.shape
    columns = max(1, v - case["unused"])
    kind, inv_temperature, hard = case["kind"]
    if "dtype" in case:  # of both
        case |= {"student_dtype": case["dtype"], "teacher_dtype": case["dtype"]}
    options = {"divergence": kind, "inv_temperature": inv_temperature, "hard_label_weight": hard}
    options |= {"labels": case.tokens("labels") if hard else None, "vocab_size": columns if case["unused"] else None}
    return case.tensor("student"), case.tensor("teacher", (*lead, columns)), options


@every(shape=NARROW, student=["strided"], dtype=FLOATS[1::2])
@every(shape=[*WIDTHS], kind=[("js", 1.0, 0.0)], dtype=FLOATS[1::2])
@every(shape=PLAIN, kind=DISTILLATION["kind"], dtype=FLOATS[1::2])
@covering(**DISTILLATION, weight=TOKENS, weight_dtype=(None, torch.bool, *FLOATS))
def divergence_forward(case: Case) -> None:
    s, t, options = _distillation(case)
    tk.divergence_forward(s, t, weight=case.tokens("weight"), **options)


@every(shape=NARROW, student=["strided"], dtype=FLOATS[1::2])
@every(shape=[*WIDTHS], kind=[("js", 1.0, 0.0)], dtype=FLOATS[1::2])
@every(shape=PLAIN, kind=DISTILLATION["kind"], dtype=FLOATS[1::2])
@covering(**DISTILLATION, gradients=("student", "teacher", "both", "in place"), dloss=TOKENS, factor=BOOL)
def divergence_backward(case: Case) -> None:
    s, t, options = _distillation(case)
    statistics, gradients = _statistics(tk.divergence_forward, s, t, **options), case["gradients"]
    tk.divergence_backward(
        s, t, **_upstream(case, statistics), **options,
        dstudent_dtype=s.dtype if gradients in ("student", "both") else None,
        dteacher_dtype=t.dtype if gradients in ("teacher", "both") else None,
        student_out=s if gradients == "in place" else None,
    )  # fmt: skip


def _statistics(forward: Callable[..., Any], *args: Any, **options: Any) -> torch.Tensor:
    """Statistics of rows, from a forward pass whose launches are not recorded."""
    with launch.dry_run(lambda _: None):
        return forward(*args, **options)[1]


def _upstream(case: Case, statistics: torch.Tensor) -> dict[str, Any]:
    """Statistics and what is multiplied with the gradient, for the backward pass of a loss of rows."""
    dloss = tensor(case.shape[:-1], case["dloss"], statistics.dtype)
    factor = tensor((), "number", statistics.dtype) if case["factor"] else None
    return {"statistics": statistics, "dloss": dloss, "dloss_factor": factor}


CROSS_ENTROPY: dict[str, Sequence[Any]] = {
    **{"shape": [*SHAPES], "x": LAYOUTS, "x_dtype": FLOATS},
    **{"class_weight": ["row"], "class_weight_dtype": (None, *FLOATS), "label_smoothing": (0.0, 0.1)},
}
LABELS: dict[str, Sequence[Any]] = {"labels": ("dense", "offset", "strided"), "labels_dtype": INTEGERS}
UPSTREAM: dict[str, Sequence[Any]] = {"dloss": TOKENS, "factor": BOOL}


def _cross_entropy(case: Case) -> dict[str, Any]:
    return {"class_weight": case.tensor("class_weight"), "label_smoothing": case["label_smoothing"]}


@every(shape=NARROW, x=["strided"], x_dtype=FLOATS[1::2])
@every(shape=[*WIDTHS], x_dtype=FLOATS[1::2])
@every(shape=PLAIN, x_dtype=FLOATS[1::2], label_smoothing=(0.0, 0.1))
@covering(**CROSS_ENTROPY, **LABELS)
def cross_entropy_forward(case: Case) -> None:
    tk.cross_entropy_forward(case.tensor("x"), case.tokens("labels"), **_cross_entropy(case))


@every(shape=NARROW, x=["strided"], x_dtype=FLOATS[1::2])
@every(shape=[*WIDTHS], x_dtype=FLOATS[1::2])
@every(shape=PLAIN, x_dtype=FLOATS[1::2], label_smoothing=(0.0, 0.1))
@covering(**CROSS_ENTROPY, **LABELS, **UPSTREAM)
def cross_entropy_backward(case: Case) -> None:
    args, options = (case.tensor("x"), case.tokens("labels")), _cross_entropy(case)
    statistics = _statistics(tk.cross_entropy_forward, *args, **options)
    tk.cross_entropy_backward(*args, **_upstream(case, statistics), **options)


@every(shape=NARROW, x=["strided"], x_dtype=FLOATS[1::2])
@every(shape=[*WIDTHS], x_dtype=FLOATS[1::2])
@every(shape=PLAIN, x_dtype=FLOATS[1::2], label_smoothing=(0.0, 0.1))
@covering(**CROSS_ENTROPY, y=LAYOUTS, y_dtype=FLOATS)
def soft_cross_entropy_forward(case: Case) -> None:
    tk.soft_cross_entropy_forward(case.tensor("x"), case.tensor("y"), **_cross_entropy(case))


@every(shape=NARROW, x=["strided"], x_dtype=FLOATS[1::2])
@every(shape=[*WIDTHS], x_dtype=FLOATS[1::2])
@every(shape=PLAIN, x_dtype=FLOATS[1::2], label_smoothing=(0.0, 0.1), gradients=("x", "y", "both"))
@covering(**CROSS_ENTROPY, y=LAYOUTS, y_dtype=FLOATS, gradients=("x", "y", "both"), **UPSTREAM)
def soft_cross_entropy_backward(case: Case) -> None:
    args, options = (case.tensor("x"), case.tensor("y")), _cross_entropy(case)
    options |= _upstream(case, _statistics(tk.soft_cross_entropy_forward, *args, **options))
    options |= {"dx_dtype": None if case["gradients"] == "y" else case["x_dtype"]}
    tk.soft_cross_entropy_backward(*args, **options, dy_dtype=None if case["gradients"] == "x" else case["y_dtype"])


@every(tokens=(1, 2**20), weights=BOOL, denominator_dtype=FLOATS[1:2])
@every(tokens=(1, 2**20), weights=BOOL)
@covering(
    tokens=(1, 100, 2**20), losses_dtype=FLOATS[1::2], weights=BOOL, denominator=["number"],
    denominator_dtype=(None, *FLOATS, *INTEGERS), dtype=(None, *FLOATS),
)  # fmt: skip
def token_mean(case: Case) -> None:
    losses = tensor((case["tokens"],), "dense", case["losses_dtype"])
    below = None if case["denominator_dtype"] is None else case.tensor("denominator", ())
    tk.token_mean(losses, weights=losses if case["weights"] else None, denominator=below, dtype=case["dtype"])


# What the facade needs beside them


@every(shape=NARROW, x=["strided"], dtype=FLOATS[1::2])
@every(shape=[*WIDTHS], dtype=FLOATS[1::2])
@covering(shape=[*SHAPES], dtype=FLOATS, dim=(-1, 0), log=BOOL, x=LAYOUTS)
def softmax_forward(case: Case) -> None:
    tk.softmax_forward(case.tensor("x"), case["dim"] % len(case.shape), log=case["log"])


@every(shape=NARROW, y=["strided"], dtype=FLOATS[1::2])
@every(shape=[*WIDTHS], dtype=FLOATS[1::2])
@covering(shape=[*SHAPES], dtype=FLOATS, dim=(-1, 0), log=BOOL, y=LAYOUTS, dy=LAYOUTS)
def softmax_backward(case: Case) -> None:
    tk.softmax_backward(case.tensor("y"), case.tensor("dy"), case["dim"] % len(case.shape), log=case["log"])


UNARY = ("neg", "exp", "log", "sqrt", "abs", "sign", "tanh", "relu")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
INTEGER_OPS = ("add", "sub", "mul", "pow", "where", *COMPARISONS, "neg", "abs", "sign", "relu")


@every(op=(*COMPARISONS, "where", "add", "div", "pow"), a_dtype=FLOATS[1::2], b_dtype=FLOATS[1:2])
@covering(
    shape=["odd"], op=INTEGER_OPS, a=("dense", "strided", "number"), b=["dense"],
    a_dtype=(*INTEGERS, torch.int8, torch.int16, torch.bool), b_dtype=(*INTEGERS, torch.bool), number=(None, 0, 1),
)  # fmt: skip
@covering(
    shape=[*SHAPES], op=(*UNARY, "add", "sub", "mul", "div", "pow", "tanh_grad", "relu_grad", *COMPARISONS, "where"),
    a=BROADCAST, b=("dense", "transposed", "row", "column", "number"), a_dtype=FLOATS,
    b_dtype=(*FLOATS, torch.int64, torch.bool), number=(None, 0, 1),
)  # fmt: skip
def pointwise(case: Case) -> None:
    """Operations as the facade asks for them: of tensors of two dtypes, or of a tensor and a number."""
    op, first, second = case["op"], case.tensor("a"), case.tensor("b")
    operands: list[Any] = [first] if op in UNARY else [first, second]
    if case["number"] is not None and len(operands) == 2:
        operands[case["number"]] = 2
    dtypes = [operand.dtype for operand in operands if isinstance(operand, torch.Tensor)]
    dtype = functools.reduce(torch.promote_types, dtypes)
    if op in ("exp", "log", "sqrt", "tanh", "div", "tanh_grad", "relu_grad") and not dtype.is_floating_point:
        dtype = torch.float32
    compute = torch.int32 if dtype is torch.bool else None
    if op in COMPARISONS:
        compute = launch.compute_dtype(dtype) if dtype.is_floating_point else torch.int64
    if op == "where":
        operands = [tensor(case.shape, case["b"], torch.bool), *operands]
    tk.pointwise(op, *operands, dtype=torch.bool if op in COMPARISONS else dtype, compute=compute)


@every(shape=[*WIDTHS], x_dtype=FLOATS[1::2], dims=[slice(-1, None)])
@covering(
    shape=[*SHAPES], x=LAYOUTS, x_dtype=(*FLOATS, torch.int64, torch.bool), dtype=(None, *FLOATS),
    dims=(slice(None), slice(1), slice(-1, None), slice(0), slice(None, None, 2)),
)  # fmt: skip
def sum_(case: Case) -> None:
    x = case.tensor("x")
    dtype = case["dtype"] if case["x_dtype"].is_floating_point else None
    tk.sum(x, range(len(case.shape))[case["dims"]], dtype=dtype)


@covering(
    m=(1, 33, 4096),
    n=(1, 70, 4096),
    k=(1, 45, 4096),
    a=LAYOUTS,
    b=LAYOUTS,
    bias=(None, "dense", "strided"),
    dtype=FLOATS,
)
def matmul(case: Case) -> None:
    m, n, k = (case[name] for name in "mnk")
    tk.matmul(case.tensor("a", (m, k)), case.tensor("b", (k, n)), case.tensor("bias", (n,)))


@covering(width=(1, 4, 33, 1024), table=LAYOUTS, of=("dense", "offset", "strided"), dtype=FLOATS, of_dtype=INTEGERS)
def embedding_forward(case: Case) -> None:
    tk.embedding_forward(case.tensor("of", (50,)), case.tensor("table", (97, case["width"])))


@covering(
    width=(1, 4, 33, 1024),
    dout=LAYOUTS,
    tokens=(50, 8192),
    rows=(97, 50304),
    of=["dense"],
    dtype=FLOATS,
    of_dtype=INTEGERS,
)
def embedding_backward(case: Case) -> None:
    tokens = case["tokens"]
    tk.embedding_backward(case.tensor("of", (tokens,)), case.tensor("dout", (tokens, case["width"])), case["rows"])


@covering(shape=[*SHAPES], param=LAYOUTS, grad=LAYOUTS, dtype=FLOATS, momentum=(0.0, 0.9), nesterov=BOOL)
def sgd_step(case: Case) -> None:
    param, momentum = case.tensor("param"), case["momentum"]
    options = {"momentum": momentum, "nesterov": case["nesterov"] and momentum != 0, "lr": 0.1}
    tk.sgd_step(param, case.tensor("grad"), _state(param) if momentum else None, **options)


@covering(shape=[*SHAPES], param=LAYOUTS, grad=LAYOUTS, dtype=FLOATS)
def adam_step(case: Case) -> None:
    param, m, v = case.tensor("param"), *(_state(case.tensor("param")) for _ in range(2))
    tk.adam_step(param, case.tensor("grad"), m, v, step=1, lr=0.1, betas=(0.9, 0.999), eps=1e-8)


def _state(param: torch.Tensor) -> torch.Tensor:
    """What an optimizer keeps of a parameter."""
    return torch.empty_like(param, dtype=launch.compute_dtype(param.dtype))
