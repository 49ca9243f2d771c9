"""Launches that users can reach: for each launcher a covering array of options, in which any two values meet.

Launchers look at shapes, strides, dtypes and alignment, never at values. So they are called with tensors without
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

#: What kernels write over what they read.
REWRITTEN = {"_sgd_kernel": ("param", "buffer"), "_adam_kernel": ("param", "m", "v")}

FLOATS = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32)
BOOL = (False, True)

#: Rows of one chunk and of several, of aligned and other lengths; one; several dimensions; 64-bit offsets.
SHAPES = {
    "one chunk": (256, 4096),
    "odd": (7, 1271),
    "chunks": (8192, 131072),
    "odd chunks": (2, 50257),
    "short": (64, 96),
    "one": (1, 1),
    "batch": (3, 5, 7, 33),
    "batch of rows": (3, 37, 5008),
    "64-bit": (2**16, 2**15 + 16),
}

#: Tensors without gaps, and as slices and permutations leave them.
LAYOUTS = ("dense", "offset", "padded", "rows", "strided", "transposed")
#: Operands that broadcast.
BROADCAST = ("row", "column", "number")

Shape = tuple[int, ...]


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
        case "row":
            return empty(v)
        case "column":
            return empty(*lead, 1)
        case "number":
            return empty()
    return empty(*shape)


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


CALLS: dict[str, tuple[dict[str, Sequence[Any]], Callable[..., Any]]] = {}


def covering(**factors: Sequence[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that calls a launcher with a value of each factor."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        CALLS[function.__name__.removeprefix("_")] = factors, function
        return function

    return register


def launches() -> Iterator[tuple[str, launch.Launch]]:
    """All launches, as a GPU would get them, each with its call in words."""
    for name, (factors, function) in CALLS.items():
        for case in pairwise(factors):
            made: list[launch.Launch] = []
            with launch.dry_run(made.append):
                function(**case)
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
    reports = pool.answers(
        ["triton_kernels.devtools.aot"], [(label, description) for label, _, description in tasks], jobs
    )
    found = [
        f"{label}: {fault}"
        for (label, launched, _), answer in zip(tasks, reports, strict=True)
        if (fault := _fault(launched, answer))
    ]
    print(f"{len(tasks)} launches compiled, {len(found)} of them with faults")
    return found


def _fault(launched: launch.Launch, answer: dict[str, Any]) -> str | None:
    if "error" in answer:
        return str(answer["error"])
    report = answer["report"]
    if report["spills"]:
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
    full = [(name, t) for name, t in tensors if t.numel() == size]
    tiles = launched.config.tiles
    elements = tiles.get("BLOCK", tiles.get("BLOCK_N", 1) * tiles.get("BLOCK_V", 0)) // (32 * launched.config.num_warps)
    if any(not t.is_contiguous() or t.data_ptr() % 16 or (t.shape or (1,))[-1] % 16 for _, t in full):
        return 0
    if any(elements * t.dtype.itemsize < 16 for _, t in full):
        return 0
    twice = REWRITTEN.get(launched.kernel.__name__, ())
    return sum(elements * t.dtype.itemsize * (2 if name.removesuffix("_ptr") in twice else 1) for name, t in full)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _statistics(forward: Callable[..., Any], *args: Any, **options: Any) -> torch.Tensor:
    """Statistics of rows, from a forward pass whose launches are not recorded."""
    with launch.dry_run(lambda _: None):
        return forward(*args, **options)[1]


@covering(
    shape=list(SHAPES),
    x=LAYOUTS + BROADCAST,
    target=LAYOUTS + BROADCAST,
    x_dtype=FLOATS,
    target_dtype=FLOATS,
    log_target=BOOL,
    reduce=BOOL,
    dtype=(None, *FLOATS),
)
def _kl_div_forward(
    shape: str, x: str, target: str, x_dtype: torch.dtype, target_dtype: torch.dtype, **options: Any
) -> None:
    tk.kl_div_forward(tensor(SHAPES[shape], x, x_dtype), tensor(SHAPES[shape], target, target_dtype), **options)


@covering(
    shape=list(SHAPES),
    x=(None, *LAYOUTS, *BROADCAST),
    target=LAYOUTS + BROADCAST,
    dloss=("number", "dense", "row", "column", "strided"),
    x_dtype=FLOATS,
    target_dtype=FLOATS,
    dloss_dtype=FLOATS,
    dx_dtype=(*FLOATS, None),
    log_target=BOOL,
)
def _kl_div_backward(
    shape: str,
    x: str | None,
    target: str,
    dloss: str,
    x_dtype: torch.dtype,
    target_dtype: torch.dtype,
    dloss_dtype: torch.dtype,
    dx_dtype: torch.dtype | None,
    log_target: bool,
) -> None:
    given = SHAPES[shape]
    tk.kl_div_backward(
        tensor(given, x, x_dtype) if x else None,
        tensor(given, target, target_dtype),
        tensor(given, dloss, dloss_dtype),
        shape=given,
        log_target=log_target,
        dx_dtype=dx_dtype,
        dtarget_dtype=target_dtype if x else None,
    )


#: Of rows: weights, labels, gradients.
TOKENS = ("dense", "offset", "strided", "number")


def _tokens(shape: Shape, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """One value a row."""
    return tensor(shape[:-1], layout, dtype)


@covering(
    shape=list(SHAPES),
    student=LAYOUTS,
    teacher=LAYOUTS,
    student_dtype=FLOATS,
    teacher_dtype=FLOATS,
    divergence=("forward_kl", "reverse_kl", "js", "total_variation"),
    inv_temperature=(1.0, 0.5),
    hard_label_weight=(0.0, 0.5),
    labels=(None, *INTEGERS),
    labels_layout=("dense", "offset", "strided"),
    weight=(None, torch.bool, *FLOATS),
    weight_layout=("dense", "offset", "strided", "number"),
    unused=(0, 3),
)
def _divergence_forward(shape: str, **options: Any) -> None:
    s, t, options = _distillation(SHAPES[shape], **options)
    tk.divergence_forward(s, t, **options)


@covering(
    shape=list(SHAPES),
    student=LAYOUTS,
    teacher=LAYOUTS,
    student_dtype=FLOATS,
    teacher_dtype=FLOATS,
    divergence=("forward_kl", "reverse_kl", "js", "total_variation"),
    inv_temperature=(1.0, 0.5),
    hard_label_weight=(0.0, 0.5),
    labels=INTEGERS,
    labels_layout=("dense", "offset", "strided"),
    unused=(0, 3),
    gradients=("student", "teacher", "both", "in place"),
    dloss=TOKENS,
    factor=BOOL,
)
def _divergence_backward(shape: str, gradients: str, dloss: str, factor: bool, **options: Any) -> None:
    s, t, options = _distillation(SHAPES[shape], **options, weight=None, weight_layout="dense")
    statistics = _statistics(tk.divergence_forward, s, t, **options)
    tk.divergence_backward(
        s,
        t,
        statistics,
        _dloss(SHAPES[shape], dloss, statistics.dtype),
        dloss_factor=_dloss((), "number", statistics.dtype) if factor else None,
        dstudent_dtype=s.dtype if gradients in ("student", "both") else None,
        dteacher_dtype=t.dtype if gradients in ("teacher", "both") else None,
        student_out=s if gradients == "in place" else None,
        **{name: value for name, value in options.items() if name != "weight"},
    )


def _distillation(
    shape: Shape,
    student: str,
    teacher: str,
    student_dtype: torch.dtype,
    teacher_dtype: torch.dtype,
    labels: torch.dtype | None,
    labels_layout: str,
    weight: torch.dtype | None,
    weight_layout: str,
    unused: int,
    hard_label_weight: float,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Logits, and options of both directions. `unused`: columns of the student alone."""
    columns = max(1, shape[-1] - unused)
    s, t = tensor(shape, student, student_dtype), tensor((*shape[:-1], columns), teacher, teacher_dtype)
    if labels:
        options |= {"labels": _tokens(shape, labels_layout, labels), "hard_label_weight": hard_label_weight}
    if weight:
        options |= {"weight": _dloss(shape, weight_layout, weight)}
    return s, t, options | {"vocab_size": columns if unused else None}


def _dloss(shape: Shape, layout: str, dtype: torch.dtype) -> torch.Tensor:
    return tensor(shape[:-1], layout, dtype)


_CROSS_ENTROPY: dict[str, Sequence[Any]] = {
    "shape": list(SHAPES),
    "x": LAYOUTS,
    "dtype": FLOATS,
    "class_weight": (None, *FLOATS),
    "label_smoothing": (0.0, 0.1),
}


def _class_weight(shape: Shape, dtype: torch.dtype | None) -> torch.Tensor | None:
    return None if dtype is None else tensor(shape, "row", dtype)


@covering(**_CROSS_ENTROPY, labels=("dense", "offset", "strided"), labels_dtype=INTEGERS)
def _cross_entropy_forward(
    shape: str,
    x: str,
    dtype: torch.dtype,
    labels: str,
    labels_dtype: torch.dtype,
    class_weight: torch.dtype | None,
    label_smoothing: float,
) -> None:
    given = SHAPES[shape]
    options: dict[str, Any] = {"class_weight": _class_weight(given, class_weight), "label_smoothing": label_smoothing}
    tk.cross_entropy_forward(tensor(given, x, dtype), _tokens(given, labels, labels_dtype), **options)


@covering(**_CROSS_ENTROPY, labels=("dense", "offset", "strided"), labels_dtype=INTEGERS, dloss=TOKENS, factor=BOOL)
def _cross_entropy_backward(
    shape: str,
    x: str,
    dtype: torch.dtype,
    labels: str,
    labels_dtype: torch.dtype,
    dloss: str,
    factor: bool,
    class_weight: torch.dtype | None,
    label_smoothing: float,
) -> None:
    given = SHAPES[shape]
    options: dict[str, Any] = {"class_weight": _class_weight(given, class_weight), "label_smoothing": label_smoothing}
    args = tensor(given, x, dtype), _tokens(given, labels, labels_dtype)
    statistics = _statistics(tk.cross_entropy_forward, *args, **options)
    options["dloss_factor"] = _dloss((), "number", statistics.dtype) if factor else None
    tk.cross_entropy_backward(*args, statistics, _dloss(given, dloss, statistics.dtype), **options)


@covering(**_CROSS_ENTROPY, y=LAYOUTS, y_dtype=FLOATS)
def _soft_cross_entropy_forward(
    shape: str, x: str, dtype: torch.dtype, y: str, y_dtype: torch.dtype, class_weight: Any, label_smoothing: float
) -> None:
    given = SHAPES[shape]
    options: dict[str, Any] = {"class_weight": _class_weight(given, class_weight), "label_smoothing": label_smoothing}
    tk.soft_cross_entropy_forward(tensor(given, x, dtype), tensor(given, y, y_dtype), **options)


@covering(
    **_CROSS_ENTROPY,
    y=LAYOUTS,
    y_dtype=FLOATS,
    gradients=("x", "y", "both"),
    dloss=TOKENS,
    factor=BOOL,
)
def _soft_cross_entropy_backward(
    shape: str,
    x: str,
    dtype: torch.dtype,
    y: str,
    y_dtype: torch.dtype,
    gradients: str,
    dloss: str,
    factor: bool,
    class_weight: torch.dtype | None,
    label_smoothing: float,
) -> None:
    given = SHAPES[shape]
    options: dict[str, Any] = {"class_weight": _class_weight(given, class_weight), "label_smoothing": label_smoothing}
    args = tensor(given, x, dtype), tensor(given, y, y_dtype)
    statistics = _statistics(tk.soft_cross_entropy_forward, *args, **options)
    options["dloss_factor"] = _dloss((), "number", statistics.dtype) if factor else None
    options["dx_dtype"] = dtype if gradients != "y" else None
    options["dy_dtype"] = y_dtype if gradients != "x" else None
    tk.soft_cross_entropy_backward(*args, statistics, _dloss(given, dloss, statistics.dtype), **options)


@covering(
    tokens=(1, 100, 2**20),
    weights=BOOL,
    denominator=(None, *FLOATS, *INTEGERS),
    losses_dtype=(torch.float32, torch.float64),
    dtype=(None, *FLOATS),
)
def _token_mean(
    tokens: int, weights: bool, denominator: torch.dtype | None, losses_dtype: torch.dtype, dtype: torch.dtype | None
) -> None:
    losses = torch.empty(tokens, dtype=losses_dtype, device="meta")
    below = None if denominator is None else tensor((), "number", denominator)
    tk.token_mean(losses, weights=losses if weights else None, denominator=below, dtype=dtype)


_ROWS: dict[str, Sequence[Any]] = {
    "shape": [*SHAPES, "few chunks", "few odd chunks"],
    "dtype": FLOATS,
    "dim": (-1, 0),
    "log": BOOL,
}
_FEW = {"few chunks": (16, 131072), "few odd chunks": (3, 50257)}


@covering(**_ROWS, x=LAYOUTS)
def _softmax_forward(shape: str, x: str, dtype: torch.dtype, dim: int, log: bool) -> None:
    tk.softmax_forward(tensor((SHAPES | _FEW)[shape], x, dtype), dim % len((SHAPES | _FEW)[shape]), log=log)


@covering(**_ROWS, y=LAYOUTS, dy=LAYOUTS)
def _softmax_backward(shape: str, y: str, dy: str, dtype: torch.dtype, dim: int, log: bool) -> None:
    given = (SHAPES | _FEW)[shape]
    tk.softmax_backward(tensor(given, y, dtype), tensor(given, dy, dtype), dim % len(given), log=log)


UNARY = ("neg", "exp", "log", "sqrt", "abs", "sign", "tanh", "relu")
BINARY = ("add", "sub", "mul", "div", "pow", "tanh_grad", "relu_grad")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
INTEGER_OPS = ("neg", "abs", "sign", "relu", "add", "sub", "mul", "pow", *COMPARISONS, "where")


@covering(
    op=(*UNARY, *BINARY, *COMPARISONS, "where"),
    dtype=FLOATS,
    other=(*FLOATS, torch.int64, torch.bool),
    number=(None, 0, 1),
    shape=list(SHAPES),
    a=LAYOUTS + BROADCAST,
    b=LAYOUTS + BROADCAST,
)
def _pointwise(op: str, dtype: torch.dtype, other: torch.dtype, number: int | None, shape: str, a: str, b: str) -> None:
    """Operations as the facade asks for them: of tensors of two dtypes, or of a tensor and a number."""
    first, second = tensor(SHAPES[shape], a, dtype), tensor(SHAPES[shape], b, other)
    if op in UNARY:
        operands: list[Any] = [first]
    else:
        operands = [first, second]
        if number is not None:
            operands[number] = 0.5
        if op == "where":
            operands = [tensor(SHAPES[shape], b, torch.bool), *operands]
    tensors = [operand for operand in operands[op == "where" :] if isinstance(operand, torch.Tensor)]
    promoted = functools.reduce(torch.promote_types, [t.dtype for t in tensors])
    floating = promoted if promoted.is_floating_point else torch.float32
    if op in COMPARISONS:
        compute = launch.compute_dtype(promoted) if promoted.is_floating_point else torch.int64
        tk.pointwise(op, *operands, dtype=torch.bool, compute=compute)
    else:
        tk.pointwise(op, *operands, dtype=floating)


@covering(op=INTEGER_OPS, dtype=(*INTEGERS, torch.uint8, torch.bool), layout=LAYOUTS + BROADCAST, number=BOOL)
def _pointwise_of_integers(op: str, dtype: torch.dtype, layout: str, number: bool) -> None:
    x = tensor(SHAPES["odd"], layout, dtype)
    operands: list[Any] = [x] if op in UNARY else [x, 2 if number else x]
    if op == "where":
        operands = [tensor(SHAPES["odd"], "dense", torch.bool), *operands]
    compute = torch.int64 if op in COMPARISONS else torch.int32 if dtype is torch.bool else None
    tk.pointwise(op, *operands, dtype=torch.bool if op in COMPARISONS else dtype, compute=compute)


@covering(
    shape=[*SHAPES, *_FEW],
    x=LAYOUTS,
    dtype=(*FLOATS, torch.int64, torch.bool),
    dims=("all", "first", "last", "none", "first and last"),
    wanted=(None, *FLOATS),
)
def _sum(shape: str, x: str, dtype: torch.dtype, dims: str, wanted: torch.dtype | None) -> None:
    given = (SHAPES | _FEW)[shape]
    last = len(given) - 1
    summed = {"all": range(len(given)), "first": [0], "last": [last], "none": [], "first and last": [0, last]}[dims]
    tk.sum(tensor(given, x, dtype), summed, dtype=wanted if dtype.is_floating_point else None)


@covering(
    m=(1, 33, 4096),
    n=(1, 70, 4096),
    k=(1, 45, 4096),
    a=LAYOUTS,
    b=LAYOUTS,
    bias=(None, "dense", "strided"),
    dtype=FLOATS,
)
def _matmul(m: int, n: int, k: int, a: str, b: str, bias: str | None, dtype: torch.dtype) -> None:
    added = None if bias is None else tensor((n,), bias, dtype)
    tk.matmul(tensor((m, k), a, dtype), tensor((k, n), b, dtype), added)


@covering(width=(1, 33, 1024), table=LAYOUTS, indices=("dense", "offset", "strided"), dtype=FLOATS, of=INTEGERS)
def _embedding_forward(width: int, table: str, indices: str, dtype: torch.dtype, of: torch.dtype) -> None:
    tk.embedding_forward(tensor((50,), indices, of), tensor((97, width), table, dtype))


@covering(width=(1, 33, 1024), dout=LAYOUTS, tokens=(50, 8192), rows=(97, 50304), dtype=FLOATS, of=INTEGERS)
def _embedding_backward(width: int, dout: str, tokens: int, rows: int, dtype: torch.dtype, of: torch.dtype) -> None:
    tk.embedding_backward(tensor((tokens,), "dense", of), tensor((tokens, width), dout, dtype), rows)


@covering(shape=list(SHAPES), param=LAYOUTS, grad=LAYOUTS, dtype=FLOATS, momentum=(None, "plain", "nesterov"))
def _sgd_step(shape: str, param: str, grad: str, dtype: torch.dtype, momentum: str | None) -> None:
    p, g = tensor(SHAPES[shape], param, dtype), tensor(SHAPES[shape], grad, dtype)
    buffer = torch.empty_like(p, dtype=launch.compute_dtype(dtype)) if momentum else None
    tk.sgd_step(p, g, buffer, lr=0.1, momentum=0.9 if momentum else 0.0, nesterov=momentum == "nesterov")


@covering(shape=list(SHAPES), param=LAYOUTS, grad=LAYOUTS, dtype=FLOATS)
def _adam_step(shape: str, param: str, grad: str, dtype: torch.dtype) -> None:
    p, g = tensor(SHAPES[shape], param, dtype), tensor(SHAPES[shape], grad, dtype)
    m, v = (torch.empty_like(p, dtype=launch.compute_dtype(dtype)) for _ in range(2))
    tk.adam_step(p, g, m, v, step=1, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
