"""Losses."""

from __future__ import annotations

from lucid.nn import functional as F
from lucid.nn.module import Module
from lucid.tensor import Tensor


class KLDivLoss(Module):
    """The Kullback-Leibler divergence of a target distribution from a predicted one, as a module.

    See `lucid.nn.functional.kl_div` for the formula, shapes, dtypes and errors.

    Parameters
    ----------
    reduction : {'mean', 'none', 'sum', 'batchmean'}
        'batchmean' is the divergence per row of x (N, V); the default 'mean' also divides by V.
    log_target : bool
        Whether targets are log-probabilities.

    Attributes
    ----------
    reduction, log_target
        Read, and checked, at every call.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn as nn
    >>> import lucid.nn.functional as F
    >>> x = F.log_softmax(lucid.tensor([[0.5, 1.0, 0.2]], dtype="float64"), dim=1)
    >>> target = F.softmax(lucid.tensor([[0.3, 0.9, 0.4]], dtype="float64"), dim=1)
    >>> loss = nn.KLDivLoss(reduction="batchmean")(x, target)
    >>> f"{loss.item():.10f}"
    '0.0117040804'

    Log-probabilities on both sides:

    >>> x = F.log_softmax(lucid.tensor([[1.0, 2.0, 0.5]], dtype="float64"), dim=1)
    >>> target = F.log_softmax(lucid.tensor([[0.8, 1.5, 0.9]], dtype="float64"), dim=1)
    >>> loss = nn.KLDivLoss(reduction="batchmean", log_target=True)(x, target)
    >>> f"{loss.item():.10f}"
    '0.0630953940'
    >>> nn.KLDivLoss()
    KLDivLoss(reduction='mean', log_target=False)
    """

    reduction: str
    log_target: bool

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__()
        self.reduction = reduction
        self.log_target = log_target

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The divergence of log-probabilities x from the target."""
        return F.kl_div(x, target, reduction=self.reduction, log_target=self.log_target)

    def extra_repr(self) -> str:
        """The two options, as the constructor takes them."""
        return f"reduction={self.reduction!r}, log_target={self.log_target}"
