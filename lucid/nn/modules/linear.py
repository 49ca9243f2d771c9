"""Linear: an affine map of the last dimension."""

from __future__ import annotations

import math

from lucid._arguments import type_name
from lucid.device import device as Device
from lucid.dtype import dtype as DType
from lucid.nn import functional as F
from lucid.nn import init
from lucid.nn.module import Module
from lucid.nn.modules._arguments import empty_parameter, positive_int
from lucid.nn.parameter import Parameter
from lucid.tensor import Tensor

__all__ = ["Linear"]


class Linear(Module):
    r"""Affine map of the last dimension, :math:`y = x W^T + b`.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last dimension of input and output.
    bias : bool
        Whether to add :math:`b`.
    device : device or str, optional
        Where the parameters live; the default device if None.
    dtype : dtype or str, optional
        Floating dtype of the parameters; float32 if None. The input must have it too.

    Attributes
    ----------
    weight : Parameter, shape ``(out_features, in_features)``
    bias : Parameter, shape ``(out_features,)``, or None

    Raises
    ------
    TypeError, ValueError
        If a size is no positive int, `bias` no bool, or `dtype` not floating.

    Notes
    -----
    Weight and bias start uniform on :math:`\pm 1/\sqrt{\mathtt{in\_features}}`.

    Examples
    --------
    >>> import lucid
    >>> layer = lucid.nn.Linear(3, 2)
    >>> layer
    Linear(in_features=3, out_features=2, bias=True)
    >>> layer(lucid.zeros(5, 3)).shape
    (5, 2)
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: str | Device | None = None,
        dtype: str | DType | None = None,
    ) -> None:
        super().__init__()
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be a bool, got {type_name(bias)}")
        self.weight = empty_parameter(self.out_features, self.in_features, device=device, dtype=dtype)
        self.register_parameter(
            "bias", empty_parameter(self.out_features, device=device, dtype=dtype) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        bound = 1 / math.sqrt(self.in_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of `x`, shape ``(..., in_features)`` to ``(..., out_features)``."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"
