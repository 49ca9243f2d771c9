"""Teach the student what the teacher knows, and measure how much of it arrived."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid.examples.char_lm.student import Student, log_probabilities
from lucid.examples.char_lm.teacher import NGramTeacher, Probabilities
from lucid.examples.char_lm.text import Tokens, contexts_at

LogProbabilities = Callable[[Tokens], NDArray[np.float64]]
"""Maps contexts ``(batch, length)`` to the log-distribution after each, ``(batch, V)``."""

BITS_PER_NAT = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class Setup:
    """Sizes of the student and of its training."""

    context_length: int
    """How many characters back the student looks; at least as many as the teacher."""
    embedding_dim: int
    hidden: int
    batch: int
    steps: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's."""
    evaluations: int = 10
    """How often to score the student on held-out text, before the first and after the last step included."""
    held_out_positions: int = 4096


# Without a GPU a kernel launch costs milliseconds, whatever it computes: few steps, a high learning rate, and moments
# that forget early gradients soon.
CPU_SETUP = Setup(
    context_length=4,
    embedding_dim=32,
    hidden=256,
    batch=512,
    steps=330,
    learning_rate=3.5e-2,
    betas=(0.7, 0.99),
    evaluations=6,
)
GPU_SETUP = Setup(context_length=4, embedding_dim=64, hidden=4096, batch=4096, steps=2000, learning_rate=6e-3)


@dataclass(frozen=True)
class HeldOut:
    """Fixed positions to judge models by: what came before, what came next, and what the teacher says."""

    contexts: Tokens
    next_tokens: Tokens
    teacher: Probabilities


@dataclass(frozen=True)
class Score:
    """Averages over held-out positions, in bits per character."""

    kl: float
    """KL(teacher || model)."""
    cross_entropy: float
    """What the model needs to encode the text itself: -log2 of what it gave the character that came."""


@dataclass
class History:
    """What training did, in bits per character."""

    train_kl: list[float] = field(default_factory=list)
    """The loss of every step, on that step's batch."""
    evaluated_at: list[int] = field(default_factory=list)
    """Numbers of steps after which the student was scored; starts with 0."""
    scores: list[Score] = field(default_factory=list)


def sample_held_out(tokens: Tokens, teacher: NGramTeacher, setup: Setup, rng: np.random.Generator) -> HeldOut:
    """Pick different positions of a text, as many as `setup` asks for or the text has."""
    candidates = np.arange(setup.context_length, len(tokens))
    positions = rng.choice(candidates, min(setup.held_out_positions, len(candidates)), replace=False)
    contexts = contexts_at(tokens, positions, setup.context_length)
    return HeldOut(contexts, tokens[positions], teacher.probabilities(contexts))


def score(log_q: NDArray[np.float64], held_out: HeldOut) -> Score:
    """Score natural log-probabilities, ``(positions, V)`` or one distribution ``(V,)`` for all positions."""
    p = held_out.teacher
    log_q = np.broadcast_to(log_q, p.shape)
    kl = np.sum(p * (np.log(p) - log_q), axis=1).mean()
    nll = -log_q[np.arange(len(p)), held_out.next_tokens].mean()
    return Score(kl=float(kl) * BITS_PER_NAT, cross_entropy=float(nll) * BITS_PER_NAT)


def distil(
    student: Student,
    teacher: NGramTeacher,
    tokens: Tokens,
    held_out: HeldOut,
    setup: Setup,
    device: lucid.device,
    rng: np.random.Generator,
    on_step: Callable[[float], None],
    on_evaluation: Callable[[int, Score], None],
) -> History:
    """Train `student` on random positions of `tokens`.

    The loss is the batch's mean KL(teacher || student). `on_step` gets each step's loss in bits, `on_evaluation` each
    held-out score and the number of steps before it.
    """
    criterion = nn.KLDivLoss(reduction="batchmean")
    optimizer = lucid.optim.Adam(student.parameters(), lr=setup.learning_rate, betas=setup.betas)
    history = History()

    def evaluate(step: int) -> None:
        history.evaluated_at.append(step)
        history.scores.append(score(log_probabilities(student, held_out.contexts, device), held_out))
        on_evaluation(step, history.scores[-1])

    evaluate_after = set(np.linspace(0, setup.steps, setup.evaluations).round().astype(int).tolist())
    length = setup.context_length
    evaluate(0)
    for step in range(1, setup.steps + 1):
        optimizer.param_groups[0]["lr"] = learning_rate(step, setup)
        contexts = contexts_at(tokens, rng.integers(length, len(tokens), setup.batch), length)
        probabilities = teacher.probabilities(contexts).astype(np.float32)

        optimizer.zero_grad()
        logits = student(lucid.tensor(contexts, device=device))
        loss = criterion(F.log_softmax(logits, dim=-1), lucid.tensor(probabilities, device=device))
        loss.backward()
        optimizer.step()

        history.train_kl.append(loss.item() * BITS_PER_NAT)
        on_step(history.train_kl[-1])
        if step in evaluate_after:
            evaluate(step)
    return history


def learning_rate(step: int, setup: Setup) -> float:
    """Rise linearly over the first twentieth of the steps, then fall linearly, to 0 after the last."""
    warm_up = max(1, setup.steps // 20)
    if step <= warm_up:
        return setup.learning_rate * step / warm_up
    return setup.learning_rate * (setup.steps + 1 - step) / (setup.steps + 1 - warm_up)


def sample_text(model: LogProbabilities, prompt: Tokens, length: int, rng: np.random.Generator) -> Tokens:
    """Continue `prompt` by `length` characters, each drawn from the model's distribution."""
    tokens = prompt
    for _ in range(length):
        cumulative = np.cumsum(np.exp(model(tokens[None, -len(prompt) :])[0]))
        drawn = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        tokens = np.append(tokens, drawn)
    return tokens
