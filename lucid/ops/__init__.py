"""Differentiable operations: each a `Function` over the launchers of `triton_kernels`."""

from lucid._docs import listing
from lucid.ops.arithmetic import abs, add, compare, div, exp, log, mul, neg, relu, sqrt, sub, tanh, where
from lucid.ops.divergence import cross_entropy, distillation_loss
from lucid.ops.embedding import embedding
from lucid.ops.in_place import setitem, write_result
from lucid.ops.kl_div import kl_div
from lucid.ops.linear import linear, matmul
from lucid.ops.linear_losses import linear_cross_entropy, linear_distillation_loss
from lucid.ops.memory import (
    clone,
    contiguous,
    getitem,
    on_host,
    permute,
    reshape,
    squeeze,
    to,
    transpose,
    unsqueeze,
)
from lucid.ops.power import pow
from lucid.ops.reduction import expand, mean, sum, sum_to
from lucid.ops.softmax import softmax

__all__ = [
    "abs",
    "add",
    "clone",
    "compare",
    "contiguous",
    "cross_entropy",
    "distillation_loss",
    "div",
    "embedding",
    "exp",
    "expand",
    "getitem",
    "kl_div",
    "linear",
    "linear_cross_entropy",
    "linear_distillation_loss",
    "log",
    "matmul",
    "mean",
    "mul",
    "neg",
    "on_host",
    "permute",
    "pow",
    "relu",
    "reshape",
    "setitem",
    "softmax",
    "sqrt",
    "squeeze",
    "sub",
    "sum",
    "sum_to",
    "tanh",
    "to",
    "transpose",
    "unsqueeze",
    "where",
    "write_result",
]

__dir__ = listing(__all__)
