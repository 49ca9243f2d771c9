"""Adam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

import triton_kernels as tk
from lucid.optim.optimizer import Optimizer, check_number, state_like
from lucid.tensor import Tensor


class Adam(Optimizer):
    """Adam (D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1).

    With g = grad + weight_decay·param: m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g², and
    param ← param − lr·(m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps).

    Parameters
    ----------
    params
        Leaf Tensors, or dicts of groups of them.
    lr, eps, weight_decay : float
        Non-negative.
    betas : tuple of float
        Two numbers in [0, 1).

    Raises
    ------
    ValueError
        If an option has an impossible value.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> (x * 3).sum().backward()
    >>> lucid.optim.Adam([x], lr=0.1).step()
    >>> x
    tensor([0.9], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_number(name, group[name])
        if not isinstance(group["betas"], tuple | list) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, got {group['betas']!r}")
        for i, beta in enumerate(group["betas"]):
            check_number(f"betas[{i}]", beta, high=1.0)

    def _update(self, param: Tensor, grad: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        if not state:
            state.update(step=0, m=state_like(param), v=state_like(param))
        state["step"] += 1
        tk.adam_step(
            param._buffer_for_write(),
            grad,
            state["m"],
            state["v"],
            step=state["step"],
            lr=float(group["lr"]),
            betas=(float(group["betas"][0]), float(group["betas"][1])),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
        )
