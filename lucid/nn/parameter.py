"""Parameters: the tensors a module trains."""

from __future__ import annotations

from lucid._arguments import type_name
from lucid.tensor import Tensor

__all__ = ["Parameter"]


class Parameter(Tensor):
    """A tensor that registers itself when it is assigned to an attribute of a module.

    Parameters
    ----------
    data : Tensor
        The values, any shape; the parameter shares their memory.
    requires_grad : bool
        Whether gradients are to be computed for it.

    Raises
    ------
    TypeError
        If `data` is no Tensor.
    RuntimeError
        If it is to require grad, but is not of a floating dtype.

    Examples
    --------
    >>> import lucid
    >>> lucid.nn.Parameter(lucid.zeros(2), requires_grad=False)
    Parameter containing:
    tensor([0., 0.])
    """

    def __init__(self, data: Tensor, requires_grad: bool = True) -> None:
        if not isinstance(data, Tensor):
            raise TypeError(f"data must be a lucid.Tensor, got {type_name(data)}")
        # Not Tensor's own, which copies.
        self._attach(data._buffer)
        self.requires_grad_(requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"
