"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

import triton_kernels as tk
from lucid._arguments import check_bool
from lucid.optim.optimizer import Optimizer, check_number, state_like
from lucid.tensor import Tensor


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    With g = grad + weight_decay·param: buffer ← momentum·buffer + (1 − dampening)·g (the first time, buffer = g), and
    param ← param − lr·buffer, or param − lr·(g + momentum·buffer) for Nesterov's variant (I. Sutskever et al., "On the
    importance of initialization and momentum in deep learning", 2013, with lr taken out of the buffer).

    Parameters
    ----------
    params
        Leaf Tensors, or dicts of groups of them.
    lr, momentum, dampening, weight_decay : float
        Non-negative.
    nesterov : bool
        Needs momentum, and no dampening.

    Raises
    ------
    ValueError
        If an option has an impossible value.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> (x * 3).sum().backward()
    >>> lucid.optim.SGD([x], lr=0.1).step()
    >>> x
    tensor([0.7], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov})

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            check_number(name, group[name])
        if check_bool("nesterov", group["nesterov"]) and (not group["momentum"] or group["dampening"]):
            raise ValueError("nesterov needs a momentum above 0 and no dampening")

    def _update(self, param: Tensor, grad: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        dampening = group["dampening"]
        if group["momentum"] and "buffer" not in state:
            state["buffer"] = state_like(param)
            dampening = 0.0
        tk.sgd_step(
            param._buffer_for_write(),
            grad,
            state.get("buffer"),
            lr=float(group["lr"]),
            momentum=float(group["momentum"]),
            dampening=float(dampening),
            weight_decay=float(group["weight_decay"]),
            nesterov=bool(group["nesterov"]),
        )
