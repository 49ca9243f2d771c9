"""Generalized knowledge distillation with TRL's GKDTrainer, by `lucid.torch.distillation_loss`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl.experimental import gkd

from lucid.examples.trainer import DistillationTrainer
from lucid.torch import DistillationLoss


class GKDTrainer(DistillationTrainer, gkd.GKDTrainer):
    """TRL's `GKDTrainer` with the loss of `lucid.torch`, divided as by `lucid.examples.trainer.DistillationTrainer`.

    Where texts are generated (``lmbda`` above 0, or ``seq_kd``), the number of tokens is known batch by batch only: the
    loss of a training step is then the mean over accumulated batches of the mean over their tokens, those of all
    processes.

    Parameters
    ----------
    *args, **kwargs
        As for TRL's. Of `GKDConfig`, ``beta`` selects the divergence; ``temperature`` is that of sampling, as there.

    Raises
    ------
    ValueError
        For a `label_smoothing_factor`, and context or sequence parallelism.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        gkd.GKDTrainer.__init__(self, *args, **kwargs)
        self._set_loss(self.teacher_model.eval(), criterion(self.beta))

    def model_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Tokens without their prompts, which are there twice."""
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As `DistillationTrainer`'s, with the number of tokens after generation."""
        if model.training and (self.lmbda > 0 or self.seq_kd):
            num_items_in_batch = self.tokens([inputs]) * self.current_gradient_accumulation_steps
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def criterion(beta: float) -> DistillationLoss:
    """The loss that TRL calls by its ``beta``: 0 is the forward, 1 the reverse KL divergence."""
    if beta in (0, 1):
        return DistillationLoss("reverse_kl" if beta else "forward_kl")
    return DistillationLoss("js", beta=beta)
