"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

import triton_kernels as tk
from lucid._arguments import check_bool
from lucid.optim.optimizer import FusedOptimizer, check_number
from lucid.tensor import Tensor


class SGD(FusedOptimizer):
    """Stochastic gradient descent with momentum.

    With g = ±grad + weight_decay·param: buffer ← momentum·buffer + (1 − dampening)·g (the first time, buffer = g), and
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
    maximize : bool
        Ascend: g has −grad.

    Raises
    ------
    ValueError
        If an option has an impossible value.

    Notes
    -----
    The state of a parameter is ``"momentum_buffer"`` with momentum; with dampening also ``"step"``.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> (x * 3).sum().backward()
    >>> lucid.optim.SGD([x], lr=0.1).step()
    >>> x
    tensor([0.7], requires_grad=True)
    """

    _STATE = ("step", "momentum_buffer")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov, "maximize": maximize})

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            check_number(name, group[name])
        check_bool("maximize", group["maximize"])
        if check_bool("nesterov", group["nesterov"]) and (not group["momentum"] or group["dampening"]):
            raise ValueError("nesterov needs a momentum above 0 and no dampening")

    def _state_names(self, group: dict[str, Any]) -> list[str]:
        if not group["momentum"]:
            return []
        return ["step", "momentum_buffer"] if group["dampening"] else ["momentum_buffer"]

    def _state_buffer(self, param: Tensor, name: str) -> torch.Tensor:
        state = self.state[param]
        if name == "step" and name not in state and "momentum_buffer" in state:
            # Made without dampening, or by PyTorch: the next step is not the first.
            state[name] = Tensor._wrap(torch.ones((), dtype=torch.float32, device=param._buffer.device))
        return super()._state_buffer(param, name)

    def _update(
        self,
        group: dict[str, Any],
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        **kept: Any,
    ) -> None:
        tk.sgd_step(
            params,
            grads,
            kept.get("momentum_buffer"),
            kept.get("step"),
            lr=float(group["lr"]),
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
            found_inf=kept["found_inf"],
        )
