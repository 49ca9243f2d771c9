"""Activations: functions of :mod:`lucid.nn.functional` as modules."""

from __future__ import annotations

from lucid.nn import functional as F
from lucid.nn.module import Module
from lucid.nn.modules._arguments import optional_dim
from lucid.tensor import Tensor

__all__ = ["LogSoftmax", "ReLU", "Softmax", "Tanh"]


class Tanh(Module):
    """Hyperbolic tangent of every element; the shape stays.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.Tanh()(lucid.zeros(2))
    tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the hyperbolic tangent of `x`."""
        return F.tanh(x)


class ReLU(Module):
    """The larger of every element and 0; the shape stays.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.ReLU()(lucid.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` where it is positive, 0 elsewhere."""
        return F.relu(x)


class Softmax(Module):
    r"""Softmax along a dimension, :math:`\exp(x_i) / \sum_j \exp(x_j)`; the shape stays.

    Parameters
    ----------
    dim : int, optional
        The dimension; the last if None.

    Raises
    ------
    TypeError
        If `dim` is neither an int nor None.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.Softmax(dim=-1)(lucid.zeros(4))
    tensor([0.25, 0.25, 0.25, 0.25])
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = optional_dim(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the softmax of `x`."""
        return F.softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Module):
    r"""Logarithm of the softmax along a dimension, :math:`x_i - \log \sum_j \exp(x_j)`; the shape stays.

    Parameters
    ----------
    dim : int, optional
        The dimension; the last if None.

    Raises
    ------
    TypeError
        If `dim` is neither an int nor None.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.LogSoftmax(dim=-1)(lucid.zeros(1, 1))
    tensor([[0.]])
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = optional_dim(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the softmax of `x`."""
        return F.log_softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
