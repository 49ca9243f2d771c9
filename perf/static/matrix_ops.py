"""Calls of launchers of the facade's own operations, which are added to those of `matrix`."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

import triton_kernels as tk
from perf.static.matrix import (
    ALL,
    BOOL,
    BROADCAST,
    FEW,
    FLOATS,
    INTEGERS,
    LAYOUTS,
    WIDE,
    WIDTHS,
    Case,
    Factors,
    calls,
    tensor,
)
from perf.static.matrix import CALLS as CALLS
from perf.static.pairs import pairwise
from triton_kernels.ops import random
from triton_kernels.ops.attention import most_columns
from triton_kernels.runtime import launch

UNARY = ("neg", "exp", "log", "sqrt", "abs", "sign", "tanh", "relu")
#: Compiled for float32 and float64, which all their arithmetic is in.
ACTIVATIONS = ("rsqrt", "square", "sigmoid", "silu", "gelu", "gelu_tanh")
ACTIVATION_GRADIENTS = tuple(f"{name}_grad" for name in ACTIVATIONS if name != "square")
BITS = ("bitwise_and", "bitwise_or", "bitwise_xor")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
INTEGER_OPS = ("add", "sub", "mul", "pow", "where", *COMPARISONS, "neg", "abs", "sign", "relu")
FLOAT_OPS = (*UNARY, "add", "sub", "mul", "div", "pow", "tanh_grad", "relu_grad", *COMPARISONS, "where")
OPERANDS: Factors = {"b": ("dense", "transposed", "row", "column", "number"), "number": (None, 0, 1)}
OF_INTEGERS: Factors = {"shape": ["odd"], "op": INTEGER_OPS, "a": (*FEW, "number"), "b": ["dense"]}
OF_INTEGERS |= {"a_dtype": (*INTEGERS, torch.int8, torch.int16, torch.bool), "b_dtype": (*INTEGERS, torch.bool)}


@calls(
    {"shape": ALL, "op": FLOAT_OPS, "a": BROADCAST, **OPERANDS, "a_dtype": FLOATS}
    | {"b_dtype": (*FLOATS, torch.int64, torch.bool)},
    {"op": (*COMPARISONS, "where", "add", "div", "pow"), "a_dtype": WIDE, "b_dtype": [torch.float32]},
    {
        "op": (*ACTIVATIONS, *ACTIVATION_GRADIENTS, "maximum", "minimum", "maximum_grad"),
        "a_dtype": WIDE,
        "b_dtype": [torch.float32],
    },
    {"op": (*BITS, "maximum"), "a_dtype": (torch.int64, torch.bool), "b_dtype": [torch.int64]},
    *({name: [value] for name, value in case.items()} for case in pairwise(OF_INTEGERS | {"number": (None, 0, 1)})),
)
def pointwise(case: Case) -> None:
    """Operations as the facade asks for them: of tensors of two dtypes, or of a tensor and a number."""
    op, first, second = case["op"], case.tensor("a"), case.tensor("b")
    operands: list[Any] = [first] if op in (*UNARY, *ACTIVATIONS) else [first, second]
    operands += [second] if op == "maximum_grad" else []
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


#: What is summed: of each element, and of the last two, of a centre.
MAPS = ("value", "square", "abs", "squared_deviation", "exp_difference")


@calls(
    {"shape": ALL, "x": LAYOUTS, "x_dtype": (*FLOATS, torch.int64, torch.bool), "dtype": (None, *FLOATS)}
    | {"dims": (slice(None), slice(1), slice(-1, None), slice(0), slice(None, None, 2))},
    {"shape": [*WIDTHS], "x_dtype": WIDE, "dims": [slice(-1, None)]},
    {"of": MAPS, "x_dtype": FLOATS, "dims": [slice(-1, None)]},
)
def sum_(case: Case) -> None:
    x, dims, options = case.tensor("x"), _dims(case), {"dtype": case["dtype"], "of": case.get("of", "value")}
    if not x.dtype.is_floating_point:
        options = {}
    elif options["of"] in MAPS[3:]:
        options["centre"] = torch.zeros(case.shape[:-1], dtype=launch.compute_dtype(x.dtype))
    tk.sum(x, dims, **options)


#: Rows of one chunk and of several, of several dimensions, and of 64-bit offsets.
REDUCED = ("odd", "chunks", "batch", "64-bit")
REDUCTION: Factors = {"shape": REDUCED, "x": ("dense", "strided", "transposed")}
REDUCTION |= {"x_dtype": (*FLOATS[1:], torch.int64, torch.bool), "dims": (slice(None), slice(-1, None), slice(0, 1))}


@calls(REDUCTION)
def prod(case: Case) -> None:
    tk.prod(case.tensor("x"), _dims(case))


@calls(REDUCTION | {"smallest": BOOL})
def extreme(case: Case) -> None:
    tk.extreme(case.tensor("x"), _dims(case), smallest=case["smallest"])


@calls(REDUCTION | {"smallest": BOOL})
def extreme_index(case: Case) -> None:
    tk.extreme_index(case.tensor("x"), _dims(case), smallest=case["smallest"])


def _dims(case: Case) -> range:
    """Dimensions that are reduced."""
    return range(len(case.shape))[case["dims"]]


@calls(
    {"m": (1, 33, 4096), "n": (1, 70, 4096), "k": (1, 45, 4096), "a": LAYOUTS, "b": LAYOUTS}
    | {"bias": (None, "dense", "strided"), "dtype": FLOATS, "out": (None, *FEW), "out_dtype": FLOATS, "tf32": BOOL}
    | {"a_batch": ((), (5,)), "b_batch": ((), (5,))},
    {"m": [4096], "n": [4096], "k": [4096], "a": ("dense", "transposed"), "b": ("dense", "transposed")}
    | {"dtype": FLOATS[:2], "tf32": BOOL},
)
def matmul(case: Case) -> None:
    """Added to what is there, where `out` is strided."""
    m, n, k, batch = (case[name] for name in ("m", "n", "k", "a_batch"))
    operands = case.tensor("a", (*batch, m, k)), case.tensor("b", (*case["b_batch"], k, n)), case.tensor("bias", (n,))
    out = case.tensor("out", (*(batch or case["b_batch"]), m, n))
    tk.matmul(*operands, out=out, accumulate=case["out"] == "strided", tf32=case["tf32"])


#: Layouts of (batch, heads, rows, columns): contiguous, and heads in columns, as a linear layer leaves them.
HEADS = ("dense", "of columns", "strided")
#: Columns of keys and of values; of float64 at most 128.
SIZES = ((16, 64), (64, 64), (80, 80), (128, 128), (192, 128), (256, 256))
ATTENTION: Factors = {"queries": (33, 1024), "keys": (70, 1024), "sizes": SIZES}
ATTENTION |= {"q": HEADS, "k": HEADS, "v": HEADS, "dtype": FLOATS, "causal": BOOL, "tf32": BOOL}


@calls(ATTENTION)
def attention_forward(case: Case) -> None:
    tk.attention_forward(*_attended(case), **_attention(case))


@calls(ATTENTION | {"dout": HEADS})
def attention_backward(case: Case) -> None:
    q, k, v = _attended(case)
    with launch.dry_run(lambda _: None):
        out, lse = tk.attention_forward(q, k, v, **_attention(case))
    tk.attention_backward(q, k, v, out, lse, _heads(case, "dout", case["queries"], v.shape[-1]), **_attention(case))


def _attended(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    head, value = (min(size, most_columns(case["dtype"])) for size in case["sizes"])
    sizes = (case["queries"], head), (case["keys"], head), (case["keys"], value)
    q, k, v = (_heads(case, name, *size) for name, size in zip("qkv", sizes, strict=True))
    return q, k, v


def _heads(case: Case, name: str, rows: int, columns: int) -> torch.Tensor:
    if case[name] == "of columns":
        return torch.zeros(2, rows, 3, columns, dtype=case["dtype"]).transpose(1, 2)
    return tensor((2, 3, rows, columns), case[name], case["dtype"])


def _attention(case: Case) -> dict[str, Any]:
    return {"scale": 1 / math.sqrt(case["sizes"][0]), "causal": case["causal"], "tf32": case["tf32"]}


EMBEDDING: Factors = {"width": (1, 4, 33, 1024), "dtype": FLOATS, "of_dtype": INTEGERS}


@calls(EMBEDDING | {"table": LAYOUTS, "of": FEW})
def embedding_forward(case: Case) -> None:
    tk.embedding_forward(case.tensor("of", (50,)), case.tensor("table", (97, case["width"])))


@calls(EMBEDDING | {"dout": LAYOUTS, "tokens": (50, 8192), "rows": (97, 50304), "of": ["dense"]})
def embedding_backward(case: Case) -> None:
    tokens = case["tokens"]
    tk.embedding_backward(case.tensor("of", (tokens,)), case.tensor("dout", (tokens, case["width"])), case["rows"])


@calls(
    {"lines": (1, 7), "tokens": (50, 8192), "rows": (97, 50304), "width": (1, 33), "dtype": FLOATS}
    | {"of": ["dense"], "of_dtype": INTEGERS, "values": FEW}
)
def scatter_add(case: Case) -> None:
    index = case.tensor("of", (case["lines"], case["tokens"]))
    tk.scatter_add(index, case.tensor("values", (*index.shape, case["width"])), case["rows"])


#: Shapes of 32-bit and of 64-bit offsets, of a part of a tile, and of several dimensions where they are strided.
FILLED: Factors = {"shape": ("one chunk", "odd", "64-bit"), "out": ("dense", "offset", "padded", "transposed")}


@calls(FILLED | {"dtype": FLOATS})
def fill_uniform(case: Case) -> None:
    random.fill_uniform(case.tensor("out"), 1, 2)


@calls(FILLED | {"dtype": FLOATS})
def fill_normal(case: Case) -> None:
    random.fill_normal(case.tensor("out"), 1, 2)


@calls(FILLED | {"dtype": (*INTEGERS, torch.int16, torch.int8, torch.uint8)})
def fill_randint(case: Case) -> None:
    random.fill_randint(case.tensor("out"), 1, 2, 0, 100)


@calls({"shape": FILLED["shape"], "x": LAYOUTS, "dtype": FLOATS})
def dropout(case: Case) -> None:
    random.dropout(case.tensor("x"), 0.1, 1 / 0.9, 1, 2)


NORMALIZED: Factors = {"rows": (3, 8192), "columns": (1, 128, 1000, 4096, 20000), "x": ("dense", "strided")}
NORMALIZED |= {"weight": (None, "dense"), "centred": BOOL, "dtype": FLOATS}


@calls(NORMALIZED | {"bias": (None, "dense")})
def normalize_forward(case: Case) -> None:
    columns = case["columns"]
    x, weight, bias = _normalized(case, "x"), case.tensor("weight", (columns,)), case.tensor("bias", (columns,))
    tk.normalize_forward(x, weight, bias, columns=columns, eps=1e-5, centred=case["centred"])


@calls(NORMALIZED | {"dout": ("dense", "strided"), "to_weight": BOOL, "to_bias": BOOL})
def normalize_backward(case: Case) -> None:
    x, dout, weight = _normalized(case, "x"), _normalized(case, "dout"), case.tensor("weight", (case["columns"],))
    rstd = torch.empty(case["rows"], dtype=launch.compute_dtype(x.dtype))
    mean = torch.empty_like(rstd) if case["centred"] else None
    wanted = {"to_weight": case["to_weight"], "to_bias": case["to_bias"]}
    tk.normalize_backward(x, dout, weight, mean, rstd, columns=case["columns"], **wanted)


def _normalized(case: Case, name: str) -> torch.Tensor:
    return case.tensor(name, (case["rows"], case["columns"]))
