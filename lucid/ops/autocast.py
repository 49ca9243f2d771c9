"""Casts of operands to a shorter dtype, inside `autocast`."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from lucid._flags import FlagScope, ThreadLocalFlag
from lucid.device import get_default_device
from lucid.dtype import bfloat16, dtype, float16
from lucid.ops.memory import to
from lucid.tensor import Tensor

#: By type of device, the dtype to cast to; None outside of `autocast`.
_dtypes: dict[str, ThreadLocalFlag[dtype | None]] = {kind: ThreadLocalFlag(None) for kind in ("cpu", "cuda")}


class autocast(FlagScope):
    """Products of matrices in half precision, as a context manager (``with autocast():``) or decorator; per thread.

    Inside, `matmul`, `linear` and layers made of them cast operands on the device from float32 and other short dtypes
    to `dtype`; products are summed in float32. Gradients return to the dtype of what was cast. float64 stays. Losses of
    logits in half precision are float32. Other operations take the dtypes that they get: softmax, norms and reductions
    of half precision compute in float32. Backward needs no context.

    Parameters
    ----------
    device_type : {'cuda', 'cpu'}, optional
        Type of the devices whose tensors are cast. By default that of the default device.
    dtype : lucid.dtype or str, optional
        float16 or bfloat16. By default float16 on cuda and bfloat16 on the CPU.
    enabled : bool
        With False operands are not cast inside, as for a part of another context. Default: True.

    Raises
    ------
    ValueError, TypeError
        If an argument is not what it must be.

    Examples
    --------
    >>> import lucid
    >>> layer, x = lucid.nn.Linear(3, 2), lucid.ones(4, 3)
    >>> with lucid.amp.autocast(dtype="bfloat16"):
    ...     y = layer(x)
    >>> y.dtype
    lucid.bfloat16
    >>> y.sum().backward()
    >>> layer.weight.grad.dtype
    lucid.float32
    """

    def __init__(self, device_type: str | None = None, dtype: Any = None, enabled: bool = True) -> None:
        super().__init__(enabled)
        if device_type is None:
            device_type = get_default_device().torch.type
        if device_type not in _dtypes:
            raise ValueError(f"device_type must be one of {tuple(_dtypes)}, got {device_type!r}")
        kind = _dtype_of(device_type, dtype)
        if self._enabled and device_type == "cuda" and not torch.cuda.is_available():
            warnings.warn("autocast('cuda') casts nothing, as no GPU is available", stacklevel=2)
        self._flag = _dtypes[device_type]
        self._enabled = kind if self._enabled else None


def _dtype_of(device_type: str, given: Any) -> dtype:
    if given is None:
        return float16 if device_type == "cuda" else bfloat16
    kind = dtype.of(given)
    if kind not in (float16, bfloat16):
        raise ValueError(f"dtype must be float16 or bfloat16, got {kind}")
    return kind


def autocast_operands(*operands: Any) -> tuple[Any, ...]:
    """Return operands of a product, floating Tensors cast as `autocast` says, but float64; others unchanged."""
    return tuple(_cast(operand) if isinstance(operand, Tensor) else operand for operand in operands)


def loss_dtype(*operands: torch.Tensor) -> torch.dtype:
    """Return the dtype of a loss: the promoted one, but inside `autocast` at least float32."""
    promoted = operands[0].dtype
    for operand in operands[1:]:
        promoted = torch.promote_types(promoted, operand.dtype)
    return promoted if _target(operands[0].device) is None else torch.promote_types(promoted, torch.float32)


def loss_operands(*operands: Tensor) -> tuple[Tensor, ...]:
    """Return operands of a loss that operations compute; inside `autocast` in the dtype of the loss."""
    if _target(operands[0]._like.device) is None:
        return operands
    kind = dtype.of(loss_dtype(*(operand._like for operand in operands)))
    return tuple(to(operand, None, kind) for operand in operands)


def _target(device: torch.device) -> dtype | None:
    flag = _dtypes.get(device.type)
    return None if flag is None else flag.enabled


def _cast(tensor: Tensor) -> Tensor:
    like = tensor._like
    target = _target(like.device)
    if target is None or not like.dtype.is_floating_point or like.dtype is torch.float64:
        return tensor
    return to(tensor, None, target)
