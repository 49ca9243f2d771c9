"""Activations: functions of :mod:`lucid.nn.functional` as modules."""

from __future__ import annotations

from typing import Any

from lucid._arguments import check_choice
from lucid.nn import functional as F
from lucid.nn.module import Module
from lucid.nn.modules._arguments import optional_dim
from lucid.tensor import Tensor

__all__ = ["GELU", "Identity", "LogSoftmax", "ReLU", "SiLU", "Sigmoid", "Softmax", "Tanh"]


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


class Sigmoid(Module):
    """1/(1 + exp(−x)) of every element; the shape stays.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.Sigmoid()(lucid.zeros(2))
    tensor([0.5, 0.5])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the sigmoid of `x`."""
        return F.sigmoid(x)


class SiLU(Module):
    """x·sigmoid(x) of every element (S. Elfwing, E. Uchibe and K. Doya, 2018); the shape stays.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.SiLU()(lucid.tensor([0.0, 2.0]))
    tensor([0., 1.7616])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` times its sigmoid."""
        return F.silu(x)


class GELU(Module):
    """x·Φ(x) of every element, with the distribution function Φ of the normal distribution; the shape stays.

    Parameters
    ----------
    approximate : {'none', 'tanh'}
        'tanh': x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).

    Raises
    ------
    ValueError
        If `approximate` is another word.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.GELU()(lucid.tensor([0.0, 2.0]))
    tensor([0., 1.9545])
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        check_choice("approximate", approximate, ("none", "tanh"))
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Return x·Φ(x)."""
        return F.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Identity(Module):
    """Returns its argument; takes any arguments when it is made, so that it can stand for another layer.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.Identity(54, unused=True)(lucid.ones(1))
    tensor([1.])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


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
