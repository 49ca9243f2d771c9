"""Differentiable operations: each a `Function` over the launchers of `triton_kernels`."""

from lucid._docs import listing
from lucid.ops import arithmetic, joining
from lucid.ops.arithmetic import *  # noqa: F403
from lucid.ops.attention import attention
from lucid.ops.divergence import cross_entropy, distillation_loss
from lucid.ops.embedding import embedding
from lucid.ops.extremes import all, amax, amin, any, argmax, argmin, max, min
from lucid.ops.in_place import reconnect
from lucid.ops.indexing import flip, gather
from lucid.ops.joining import *  # noqa: F403
from lucid.ops.kl_div import kl_div
from lucid.ops.linear import bmm, linear, matmul
from lucid.ops.linear_losses import linear_cross_entropy, linear_distillation_loss
from lucid.ops.memory import (
    clone,
    contiguous,
    flatten,
    on_host,
    permute,
    reshape,
    squeeze,
    to,
    transpose,
    unsqueeze,
    view,
)
from lucid.ops.normalization import normalize
from lucid.ops.power import pow
from lucid.ops.random import dropout
from lucid.ops.reduction import expand, mean, sum, sum_to
from lucid.ops.softmax import softmax
from lucid.ops.statistics import logsumexp, norm, prod, std, var

from lucid.ops import methods as methods  # isort: skip

__all__ = [
    *arithmetic.__all__,
    *joining.__all__,
    "attention",
    "bmm",
    "clone",
    "contiguous",
    "cross_entropy",
    "distillation_loss",
    "dropout",
    "embedding",
    "expand",
    "flatten",
    "flip",
    "gather",
    "kl_div",
    "linear",
    "linear_cross_entropy",
    "linear_distillation_loss",
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "logsumexp",
    "max",
    "min",
    "norm",
    "prod",
    "std",
    "var",
    "matmul",
    "mean",
    "normalize",
    "on_host",
    "permute",
    "pow",
    "reconnect",
    "reshape",
    "softmax",
    "squeeze",
    "sum",
    "sum_to",
    "to",
    "transpose",
    "unsqueeze",
    "view",
]

__dir__ = listing(__all__)
