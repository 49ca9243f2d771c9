"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch

import triton_kernels as tk
from lucid._arguments import check_bool
from lucid.optim.optimizer import FusedOptimizer, check_number


class Adam(FusedOptimizer):
    """Adam (D. Kingma and J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1).

    With g = ±grad + weight_decay·param: m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g², and
    param ← param − lr·(m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps).

    Parameters
    ----------
    params
        Leaf Tensors, or dicts of groups of them.
    lr, eps, weight_decay : float
        Non-negative.
    betas : tuple of float
        Two numbers in [0, 1).
    amsgrad : bool
        Divide by the root of the largest v so far (S. Reddi et al., "On the convergence of Adam and beyond", 2018).
    maximize : bool
        Ascend: g has −grad.

    Raises
    ------
    ValueError
        If an option has an impossible value.

    Notes
    -----
    The state of a parameter is ``"step"``, t, as a 0-d float32 Tensor; ``"exp_avg"``, m; ``"exp_avg_sq"``, v; and with
    `amsgrad` ``"max_exp_avg_sq"``.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> (x * 3).sum().backward()
    >>> lucid.optim.Adam([x], lr=0.1).step()
    >>> x
    tensor([0.9], requires_grad=True)
    """

    _STATE = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _REQUIRED = _STATE[:3]
    _DECOUPLED: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "amsgrad": amsgrad, "maximize": maximize})

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_number(name, group[name])
        if not isinstance(group["betas"], tuple | list) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, got {group['betas']!r}")
        for i, beta in enumerate(group["betas"]):
            check_number(f"betas[{i}]", beta, high=1.0)
        for name in ("amsgrad", "maximize"):
            check_bool(name, group[name])

    def _state_names(self, group: dict[str, Any]) -> list[str]:
        return list(self._STATE if group["amsgrad"] else self._REQUIRED)

    def _update(
        self,
        group: dict[str, Any],
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        **kept: Any,
    ) -> None:
        tk.adam_step(
            params,
            grads,
            kept["exp_avg"],
            kept["exp_avg_sq"],
            kept.get("max_exp_avg_sq"),
            step=kept["step"],
            lr=float(group["lr"]),
            betas=(float(group["betas"][0]), float(group["betas"][1])),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            decoupled=self._DECOUPLED,
            maximize=bool(group["maximize"]),
            found_inf=kept["found_inf"],
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019).

    With g = ±grad: m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g², and
    param ← (1 − lr·weight_decay)·param − lr·(m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps).

    Parameters
    ----------
    params
        Leaf Tensors, or dicts of groups of them.
    lr, eps, weight_decay : float
        Non-negative.
    betas : tuple of float
        Two numbers in [0, 1).
    amsgrad : bool
        Divide by the root of the largest v so far (S. Reddi et al., "On the convergence of Adam and beyond", 2018).
    maximize : bool
        Ascend: g has −grad.

    Raises
    ------
    ValueError
        If an option has an impossible value.

    Notes
    -----
    The state of a parameter is that of `Adam`.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> (x * 3).sum().backward()
    >>> lucid.optim.AdamW([x], lr=0.1, weight_decay=1.0).step()
    >>> f"{x.item():.4f}"
    '0.8000'
    """

    _DECOUPLED = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
