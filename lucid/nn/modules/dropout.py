"""Dropout as a module."""

from __future__ import annotations

from lucid.nn import functional as F
from lucid.nn.checks import check_probability
from lucid.nn.module import Module
from lucid.tensor import Tensor

__all__ = ["Dropout"]


class Dropout(Module):
    """In training mode, zero elements at a probability of p, and divide the others by 1 − p; see `dropout`.

    Parameters
    ----------
    p : float
        Probability of a zero, from 0 to 1. Default: 0.5.

    Raises
    ------
    TypeError
        If `p` is no number.
    ValueError
        If `p` is not from 0 to 1.

    Examples
    --------
    >>> import lucid
    >>> layer = lucid.nn.Dropout(p=0.25)
    >>> layer
    Dropout(p=0.25)
    >>> layer.eval()(lucid.ones(2))
    tensor([1., 1.])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_probability("p", p)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with elements dropped, in training mode; else `x`."""
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
