"""Mixed precision: products of matrices in half precision, and a scale that keeps small gradients in its range."""

from lucid._docs import listing
from lucid.amp.grad_scaler import GradScaler
from lucid.ops.autocast import autocast

__all__ = ["GradScaler", "autocast"]

__dir__ = listing(__all__)
