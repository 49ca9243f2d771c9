"""Optimizers: one fused kernel launch per parameter and step."""

from lucid._docs import listing
from lucid.optim.adam import Adam
from lucid.optim.optimizer import Optimizer
from lucid.optim.sgd import SGD

__all__ = ["SGD", "Adam", "Optimizer"]

__dir__ = listing(__all__)
