"""Modules of neural networks."""

from typing import TYPE_CHECKING

from lucid._docs import left_out, listing
from lucid.nn import functional, init, utils
from lucid.nn.module import Module
from lucid.nn.modules import (
    GELU,
    CrossEntropyLoss,
    DistillationLoss,
    Dropout,
    Embedding,
    Identity,
    KLDivLoss,
    LayerNorm,
    Linear,
    LinearDistillationLoss,
    LogSoftmax,
    ModuleDict,
    ModuleList,
    MSELoss,
    ReLU,
    RMSNorm,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from lucid.nn.parameter import Parameter

__all__ = [
    "CrossEntropyLoss",
    "DistillationLoss",
    "Dropout",
    "Embedding",
    "GELU",
    "Identity",
    "KLDivLoss",
    "LayerNorm",
    "Linear",
    "LinearDistillationLoss",
    "LogSoftmax",
    "MSELoss",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Sequential",
    "Softmax",
    "Tanh",
    "functional",
    "init",
    "utils",
]

__dir__ = listing(__all__)

if not TYPE_CHECKING:
    __getattr__ = left_out(__name__)
