"""Types of the words that losses take, for annotations.

Examples
--------
>>> from lucid.typing import Divergence
>>> def train(divergence: Divergence) -> None: ...
"""

from __future__ import annotations

from typing import Literal, get_args

from lucid._docs import listing

__all__ = ["DIVERGENCES", "LABEL_REDUCTIONS", "REDUCTIONS", "Divergence", "LabelReduction", "Reduction"]

__dir__ = listing(__all__)

#: Of `kl_div` and `distillation_loss`.
Reduction = Literal["none", "mean", "sum", "batchmean"]
#: Of `cross_entropy`.
LabelReduction = Literal["none", "mean", "sum"]
#: Of `distillation_loss`.
Divergence = Literal["forward_kl", "reverse_kl", "js", "total_variation"]

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
LABEL_REDUCTIONS: tuple[LabelReduction, ...] = get_args(LabelReduction)
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
