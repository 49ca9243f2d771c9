"""The layers, by name."""

from lucid.nn.modules.activation import LogSoftmax, ReLU, Softmax, Tanh
from lucid.nn.modules.container import ModuleDict, ModuleList, Sequential
from lucid.nn.modules.embedding import Embedding
from lucid.nn.modules.linear import Linear
from lucid.nn.modules.loss import CrossEntropyLoss, DistillationLoss, KLDivLoss, LinearDistillationLoss

__all__ = [
    "CrossEntropyLoss",
    "DistillationLoss",
    "Embedding",
    "KLDivLoss",
    "Linear",
    "LinearDistillationLoss",
    "LogSoftmax",
    "ModuleDict",
    "ModuleList",
    "ReLU",
    "Sequential",
    "Softmax",
    "Tanh",
]
