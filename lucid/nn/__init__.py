"""Modules of neural networks."""

from lucid._docs import listing
from lucid.nn import functional, init
from lucid.nn.module import Module
from lucid.nn.modules import (
    CrossEntropyLoss,
    DistillationLoss,
    Embedding,
    KLDivLoss,
    Linear,
    LinearDistillationLoss,
    LogSoftmax,
    ModuleDict,
    ModuleList,
    ReLU,
    Sequential,
    Softmax,
    Tanh,
)
from lucid.nn.parameter import Parameter

__all__ = [
    "CrossEntropyLoss",
    "DistillationLoss",
    "Embedding",
    "KLDivLoss",
    "Linear",
    "LinearDistillationLoss",
    "LogSoftmax",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Sequential",
    "Softmax",
    "Tanh",
    "functional",
    "init",
]

__dir__ = listing(__all__)
