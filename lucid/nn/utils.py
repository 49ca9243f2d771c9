"""Utilities for training: clipping of gradients."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

from lucid._arguments import check_bool, type_name
from lucid._docs import listing
from lucid.ops import gradients
from lucid.tensor import Tensor

__all__ = ["clip_grad_norm_", "clip_grad_value_"]

__dir__ = listing(__all__)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale gradients in place so that the norm of all of them, taken as one vector, is at most `max_norm`.

    With n = (Σ |g|^norm_type)^(1/norm_type) over all elements of all gradients, each becomes
    g·min(max_norm / (n + 1e-6), 1) (R. Pascanu et al., "On the difficulty of training recurrent neural networks",
    2013, algorithm 1). The norm is summed in float32, float64 for float64 gradients, in a fixed order, and squares do
    not overflow where the norm does not. Three launches for all gradients of a dtype; the host does not wait for the
    device.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those without a gradient are left out.
    max_norm : float
        Not negative; infinity to compute the norm alone.
    norm_type : float
        Above 0; infinity for the largest magnitude. Default: 2.
    error_if_nonfinite : bool
        Wait for the norm, and raise an error if it is infinite or NaN. By default gradients are scaled by it.

    Returns
    -------
    Tensor
        The norm before clipping, 0-d, float32, or float64 if a gradient is. 0 without a gradient.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be.
    RuntimeError
        If the norm is not finite, with `error_if_nonfinite`; gradients are unchanged then.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([0.0, 0.0], requires_grad=True)
    >>> (x * lucid.tensor([3.0, 4.0])).sum().backward()
    >>> lucid.nn.utils.clip_grad_norm_([x], 2.5).item()
    5.0
    >>> [f"{g:.4f}" for g in x.grad.tolist()]
    ['1.5000', '2.0000']
    """
    largest = _check_bound("max_norm", max_norm)
    order = _check_bound("norm_type", math.inf if norm_type == "inf" else norm_type)
    if not order:
        raise ValueError("norm_type must be a number above 0, or infinity, got 0")
    check_bool("error_if_nonfinite", error_if_nonfinite)
    grads = _gradients(parameters)
    if not grads:
        return Tensor(0.0)
    norm = gradients.total_norm(grads, order)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise RuntimeError(
            f"the norm of order {order:g} of the gradients must be finite to clip by it, got {norm.item()}: with "
            "error_if_nonfinite=False they are scaled by it all the same"
        )
    gradients.clip_by_norm(grads, norm, largest)
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clamp the elements of gradients in place to the interval from −clip_value to clip_value; one launch for all.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those without a gradient are left out.
    clip_value : float
        Not negative. A NaN stays.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([0.0, 0.0], requires_grad=True)
    >>> (x * lucid.tensor([3.0, -0.5])).sum().backward()
    >>> lucid.nn.utils.clip_grad_value_([x], 1.0)
    >>> x.grad.tolist()
    [1.0, -0.5]
    """
    bound = _check_bound("clip_value", clip_value)
    gradients.clip_by_value(_gradients(parameters), bound)


def _gradients(parameters: Any) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    if not isinstance(parameters, Iterable):
        raise TypeError(f"parameters must be a lucid.Tensor or an iterable of them, got {type_name(parameters)}")
    found = []
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameters must be lucid.Tensors, got {type_name(parameter)}")
        if parameter.grad is not None:
            found.append(parameter.grad)
    return found


def _check_bound(name: str, value: Any) -> float:
    """Return a bound as a float; raise unless it is a number of at least 0, or infinity."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type_name(value)}")
    if not float(value) >= 0:
        raise ValueError(f"{name} must be a number of at least 0, got {value}")
    return float(value)
