"""Embedding: a table of vectors, indexed by integers."""

from __future__ import annotations

from lucid.autograd import no_grad
from lucid.device import device as Device
from lucid.dtype import dtype as DType
from lucid.nn import functional as F
from lucid.nn import init
from lucid.nn.functional import padding_row
from lucid.nn.module import Module
from lucid.nn.modules._arguments import empty_parameter, positive_int
from lucid.nn.parameter import Parameter
from lucid.tensor import Tensor

__all__ = ["Embedding"]


class Embedding(Module):
    """Table of vectors, indexed by integers.

    Parameters
    ----------
    num_embeddings : int
        Number of vectors.
    embedding_dim : int
        Length of each.
    padding_idx : int, optional
        A vector that starts at zeros and gets no gradient; counted from the end if negative. Default: none.
    device : device or str, optional
        Where the table lives; the default device if None.
    dtype : dtype or str, optional
        Floating dtype of the table; float32 if None.

    Attributes
    ----------
    weight : Parameter, shape ``(num_embeddings, embedding_dim)``
        The table; starts standard normal.

    Raises
    ------
    TypeError, ValueError
        If a size is no positive int, `padding_idx` no row, or `dtype` not floating.

    Examples
    --------
    >>> import lucid
    >>> table = lucid.nn.Embedding(10, 3)
    >>> table
    Embedding(10, 3)
    >>> table(lucid.tensor([[1, 2], [3, 4]])).shape
    (2, 2, 3)
    """

    weight: Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: str | Device | None = None,
        dtype: str | DType | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = positive_int("num_embeddings", num_embeddings)
        self.embedding_dim = positive_int("embedding_dim", embedding_dim)
        self.padding_idx = padding_row(padding_idx, self.num_embeddings)
        self.weight = empty_parameter(self.num_embeddings, self.embedding_dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0

    def forward(self, indices: Tensor) -> Tensor:
        """Return the vectors at `indices`, integers of any shape: ``(*indices.shape, embedding_dim)``."""
        return F.embedding(indices, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
