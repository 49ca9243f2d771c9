"""Training that can be stopped at any step, and continues from its checkpoint bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid.examples.distill_transformer.model import Transformer
from lucid.examples.distill_transformer.text import Texts
from lucid.optim.lr_scheduler import OneCycleLR

BITS_PER_NAT = 1 / math.log(2)

Loss = Callable[[lucid.Tensor, lucid.Tensor], lucid.Tensor]


@dataclass(frozen=True)
class Plan:
    """Sizes of a training."""

    steps: int
    batch: int
    length: int
    """Tokens of a window."""
    learning_rate: float
    weight_decay: float = 0.05
    most_gradient: float = 1.0
    """Norm to which gradients are clipped."""
    evaluations: int = 5
    """Number of scores on held-out text, each followed by a checkpoint."""
    held_out: int = 16
    """Windows of the held-out text."""


@dataclass
class History:
    """What was measured, in bits per token."""

    losses: list[float] = field(default_factory=list)
    """Of each step, on its batch."""
    evaluated_at: list[int] = field(default_factory=list)
    """Steps before each score."""
    cross_entropies: list[float] = field(default_factory=list)
    """Of held-out text."""
    divergences: list[float] = field(default_factory=list)
    """KL(teacher || model) of held-out text; empty for the teacher."""


def loss_of_labels(model: Transformer) -> Loss:
    """The cross-entropy of the next tokens."""

    def loss(inputs: lucid.Tensor, targets: lucid.Tensor) -> lucid.Tensor:
        logits = model(inputs)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    return loss


def loss_of_teacher(model: Transformer, teacher: Transformer) -> Loss:
    """The divergence from the teacher's distributions; computed from the logits of both, in one kernel."""
    criterion = nn.KLDivLoss(reduction="batchmean")

    def loss(inputs: lucid.Tensor, targets: lucid.Tensor) -> lucid.Tensor:
        with lucid.no_grad():
            teacher_logits = teacher(inputs).view(-1, teacher.tokens.weight.shape[0])
        logits = model(inputs).view(-1, teacher_logits.shape[-1])
        return criterion(F.log_softmax(logits, dim=-1), F.softmax(teacher_logits, dim=-1))

    return loss


class Training:
    """Steps of AdamW with a learning rate that rises and falls, and their checkpoint.

    Parameters
    ----------
    model
        What is trained.
    loss
        The loss of a batch, of inputs and next tokens (batch, length).
    texts, plan, seed
        The text, the sizes, and the seed of batches.
    path
        Of the checkpoint.
    teacher
        A model whose divergence is measured.
    """

    def __init__(
        self,
        model: Transformer,
        loss: Loss,
        texts: Texts,
        plan: Plan,
        seed: int,
        path: Path,
        teacher: Transformer | None = None,
    ) -> None:
        self.model, self.loss, self.texts, self.plan, self.seed, self.path = model, loss, texts, plan, seed, path
        self.teacher = teacher
        self.optimizer = lucid.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        self.scheduler = OneCycleLR(
            self.optimizer, plan.learning_rate, total_steps=plan.steps + 1, pct_start=0.1, cycle_momentum=False
        )
        self.history = History()
        self.device = next(model.parameters()).device

    @property
    def step(self) -> int:
        """Number of steps made."""
        return len(self.history.losses)

    def run(self) -> Iterator[float]:
        """Make the steps that are left; yields the loss of each, in bits."""
        evaluate_at = set(np.linspace(0, self.plan.steps, self.plan.evaluations).round().astype(int).tolist())
        if not self.step:
            self.evaluate()
        while self.step < self.plan.steps:
            self.history.losses.append(self._train(self.step) * BITS_PER_NAT)
            if self.step in evaluate_at:
                self.evaluate()
                self.save()
            yield self.history.losses[-1]

    def _train(self, step: int) -> float:
        self.model.train()
        inputs, targets = self._tensors(self.texts.batch(self.seed, step, self.plan.batch, self.plan.length))
        with lucid.amp.autocast(dtype="bfloat16", enabled=self.device.type == "cuda"):
            loss = self.loss(inputs, targets)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.most_gradient)
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def evaluate(self) -> None:
        """Score the model on held-out text."""
        self.model.eval()
        with lucid.no_grad():
            inputs, targets = self._tensors(self.texts.held_out_windows(self.plan.held_out, self.plan.length))
            cross_entropy = loss_of_labels(self.model)(inputs, targets)
            self.history.cross_entropies.append(cross_entropy.item() * BITS_PER_NAT)
            if self.teacher is not None:
                divergence = loss_of_teacher(self.model, self.teacher)(inputs, targets)
                self.history.divergences.append(divergence.item() * BITS_PER_NAT)
        self.history.evaluated_at.append(self.step)

    def _tensors(self, arrays: tuple[Any, Any]) -> tuple[lucid.Tensor, lucid.Tensor]:
        inputs, targets = (lucid.tensor(array, device=self.device) for array in arrays)
        return inputs, targets

    def save(self) -> None:
        """Write the checkpoint: all that the steps to come depend on, and what was measured."""
        state = {
            "plan": asdict(self.plan),
            "seed": self.seed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": lucid.random.get_rng_state(),
            "history": asdict(self.history),
        }
        lucid.save(state, self.path)

    def resume(self) -> None:
        """Continue from the checkpoint.

        Raises
        ------
        ValueError
            If it is of a training with other sizes or another seed.
        """
        state = lucid.load(self.path)
        expected = {"plan": asdict(self.plan), "seed": self.seed}
        for name, value in expected.items():
            if state[name] != value:
                raise ValueError(f"{self.path} is of a training with {name} {state[name]}, not {value}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        lucid.random.set_rng_state(state["random"])
        self.history = History(**state["history"])
