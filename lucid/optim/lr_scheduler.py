"""Learning rate schedulers, by PyTorch's names and arguments.

Each sets ``group["lr"]`` of an optimizer's parameter groups when it is made, and at each ``step()``, after the
optimizer's. State dicts are plain numbers and lists. To resume training, make optimizer and scheduler as before, then
load the state of both.
"""

from lucid._docs import listing
from lucid.optim._composed import ChainedScheduler, ReduceLROnPlateau, SequentialLR
from lucid.optim._cycles import CosineAnnealingWarmRestarts, CyclicLR, NoamScheduler, OneCycleLR
from lucid.optim._schedules import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "NoamScheduler",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]

__dir__ = listing(__all__)
