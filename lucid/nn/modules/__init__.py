"""The layers, by name."""

from lucid.nn.modules.activation import GELU, Identity, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Tanh
from lucid.nn.modules.container import ModuleDict, ModuleList, Sequential
from lucid.nn.modules.dropout import Dropout
from lucid.nn.modules.embedding import Embedding
from lucid.nn.modules.linear import Linear
from lucid.nn.modules.loss import CrossEntropyLoss, DistillationLoss, KLDivLoss, LinearDistillationLoss, MSELoss
from lucid.nn.modules.normalization import LayerNorm, RMSNorm

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
    "ModuleDict",
    "ModuleList",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Sequential",
    "Softmax",
    "Tanh",
]
