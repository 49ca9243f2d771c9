"""Normalization of the last dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from lucid._arguments import check_bool, check_real
from lucid.device import device as Device
from lucid.dtype import dtype as DType
from lucid.nn import functional as F
from lucid.nn import init
from lucid.nn.module import Module
from lucid.nn.modules._arguments import empty_parameter
from lucid.nn.normalization import normalized_sizes
from lucid.nn.parameter import Parameter
from lucid.tensor import Tensor

__all__ = ["LayerNorm", "RMSNorm"]


class LayerNorm(Module):
    r"""Layer normalization, :math:`(x - \mathrm{mean}) / \sqrt{\mathrm{var} + eps} \cdot weight + bias`.

    (J. Ba, J. Kiros and G. Hinton, "Layer normalization", 2016.) Mean and variance are over the last dimensions.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of the last dimensions.
    eps : float
        What is added to the variance.
    elementwise_affine : bool
        Whether there is a weight.
    bias : bool
        Whether there is a bias, too.
    device : device or str, optional
        Where the parameters live; the default device if None.
    dtype : dtype or str, optional
        Floating dtype of the parameters; float32 if None.

    Attributes
    ----------
    weight : Parameter, of `normalized_shape`, or None
        Starts with ones.
    bias : Parameter, of `normalized_shape`, or None
        Starts with zeros.

    Raises
    ------
    TypeError, ValueError
        If a size is no positive int, or an option of the wrong type.

    Examples
    --------
    >>> import lucid
    >>> layer = lucid.nn.LayerNorm(2)
    >>> layer
    LayerNorm((2,), eps=1e-05, elementwise_affine=True)
    >>> layer(lucid.tensor([[1.0, 3.0]]))
    tensor([[-1., 1.]], requires_grad=True)
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str | Device | None = None,
        dtype: str | DType | None = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = normalized_sizes(normalized_shape)
        self.eps = check_real("eps", eps, "a number of at least 0", lambda e: e >= 0)
        self.elementwise_affine = check_bool("elementwise_affine", elementwise_affine)
        with_bias = check_bool("bias", bias) and elementwise_affine
        for name, wanted in (("weight", elementwise_affine), ("bias", with_bias)):
            made = empty_parameter(*self.normalized_shape, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the weight with ones and the bias with zeros."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalized."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(Module):
    r"""Normalization by the root mean square, :math:`x / \sqrt{\mathrm{mean}(x^2) + eps} \cdot weight`.

    (B. Zhang and R. Sennrich, "Root mean square layer normalization", 2019.) The mean is over the last dimensions.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of the last dimensions.
    eps : float, optional
        What is added to the mean; by default the distance of 1 from the next number of float32, or of float64 where
        the input is.
    elementwise_affine : bool
        Whether there is a weight.
    device : device or str, optional
        Where the weight lives; the default device if None.
    dtype : dtype or str, optional
        Floating dtype of the weight; float32 if None.

    Attributes
    ----------
    weight : Parameter, of `normalized_shape`, or None
        Starts with ones.

    Raises
    ------
    TypeError, ValueError
        If a size is no positive int, or an option of the wrong type.

    Examples
    --------
    >>> import lucid
    >>> layer = lucid.nn.RMSNorm(2, eps=0.0)
    >>> layer
    RMSNorm((2,), eps=0.0, elementwise_affine=True)
    >>> layer(lucid.tensor([[3.0, 3.0]]))
    tensor([[1., 1.]], requires_grad=True)
    """

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: str | Device | None = None,
        dtype: str | DType | None = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = normalized_sizes(normalized_shape)
        self.eps = None if eps is None else check_real("eps", eps, "a number of at least 0", lambda e: e >= 0)
        self.elementwise_affine = check_bool("elementwise_affine", elementwise_affine)
        made = empty_parameter(*self.normalized_shape, device=device, dtype=dtype) if elementwise_affine else None
        self.register_parameter("weight", made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the weight with ones."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalized."""
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
