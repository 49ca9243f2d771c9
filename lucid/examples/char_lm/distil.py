"""Train a student and evaluate it: batches, schedule and scores, in NumPy, for students of any framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lucid.examples.char_lm.teacher import NGramTeacher, Probabilities
from lucid.examples.char_lm.text import Tokens, contexts_at

LogProbabilities = Callable[[Tokens], NDArray[np.float64]]
"""Maps contexts ``(batch, length)`` to the log-distribution after each, ``(batch, V)``."""

BITS_PER_NAT = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class Setup:
    """Sizes of the student and of its training."""

    context_length: int
    """Number of previous characters that the student sees; at least the teacher's."""
    embedding_dim: int
    hidden: int
    batch: int
    steps: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's."""
    evaluations: int = 10
    """Number of scores on held-out text, those before the first and after the last step included."""
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


class Batch(NamedTuple):
    """The input of one training step."""

    contexts: Tokens
    """``(batch, context_length)``"""
    probabilities: NDArray[np.float32]
    """The teacher's, ``(batch, V)``."""
    learning_rate: float


@dataclass(frozen=True)
class HeldOut:
    """Fixed positions to evaluate models at: the context, the next character, the teacher's distribution."""

    contexts: Tokens
    next_tokens: Tokens
    teacher: Probabilities


@dataclass(frozen=True)
class Score:
    """Averages over held-out positions, in bits per character."""

    kl: float
    """KL(teacher || model)."""
    cross_entropy: float
    """-log2 of the model's probability of the next character in the text."""


@dataclass
class History:
    """Losses and scores of a training, in bits per character."""

    train_kl: list[float] = field(default_factory=list)
    """The loss of every step, on that step's batch."""
    evaluated_at: list[int] = field(default_factory=list)
    """Numbers of steps before each score; starts with 0."""
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


def train_batches(tokens: Tokens, teacher: NGramTeacher, setup: Setup, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield the batch of each training step: random positions of `tokens`."""
    for step in range(1, setup.steps + 1):
        positions = rng.integers(setup.context_length, len(tokens), setup.batch)
        contexts = contexts_at(tokens, positions, setup.context_length)
        yield Batch(contexts, teacher.probabilities(contexts).astype(np.float32), learning_rate(step, setup))


def distil(
    losses: Iterable[float],
    model: LogProbabilities,
    held_out: HeldOut,
    setup: Setup,
    on_step: Callable[[float], None],
    on_evaluation: Callable[[int, Score], None],
) -> History:
    """Train a student and score it on held-out text at even distances, before the first and after the last step too.

    Parameters
    ----------
    losses : iterable of float
        The loss of each step, in nats; a step is made when its loss is taken.
    model : callable
        The student that is trained thereby.
    on_step, on_evaluation : callable
        Called with each step's loss in bits, and with each score and the number of steps before it.
    """
    history = History()

    def evaluate(step: int) -> None:
        history.evaluated_at.append(step)
        history.scores.append(score(model(held_out.contexts), held_out))
        on_evaluation(step, history.scores[-1])

    evaluate_after = set(np.linspace(0, setup.steps, setup.evaluations).round().astype(int).tolist())
    evaluate(0)
    for step, loss in enumerate(losses, start=1):
        history.train_kl.append(loss * BITS_PER_NAT)
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
