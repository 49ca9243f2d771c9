"""The student in `lucid`: a small network over the previous characters. `torch_student.py` has the same in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid import optim
from lucid.examples.char_lm.distil import Batch
from lucid.examples.char_lm.text import Tokens


class Student(nn.Module):
    """Embed the previous characters, concatenate them, and map them to logits through one hidden layer.

    The shape of Bengio et al., *A neural probabilistic language model*, JMLR 2003.
    """

    def __init__(self, vocabulary_size: int, context_length: int, embedding_dim: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.layers = nn.Sequential(
            nn.Linear(context_length * embedding_dim, hidden, bias=False),  # the embeddings can learn an offset
            nn.Tanh(),
            nn.Linear(hidden, vocabulary_size),
        )

    def forward(self, contexts: lucid.Tensor) -> lucid.Tensor:
        """Map ``int64`` contexts ``(batch, context_length)`` to logits ``(batch, V)``."""
        embedded = self.embedding(contexts)
        return self.layers(embedded.reshape(contexts.shape[0], -1))


def train(student: Student, batches: Iterable[Batch], betas: tuple[float, float]) -> Iterator[float]:
    """Train with Adam and yield each step's loss: the mean KL(teacher || student) of a batch, in nats."""
    device = student.embedding.weight.device
    criterion = nn.KLDivLoss(reduction="batchmean")
    optimizer = optim.Adam(student.parameters(), betas=betas)
    for batch in batches:
        optimizer.param_groups[0]["lr"] = batch.learning_rate
        contexts = lucid.tensor(batch.contexts, device=device)
        targets = lucid.tensor(batch.probabilities, device=device)

        optimizer.zero_grad()
        logits = student(contexts)
        loss = criterion(F.log_softmax(logits, dim=-1), targets)
        loss.backward()
        optimizer.step()
        yield loss.item()


def log_probabilities(student: Student, contexts: Tokens) -> NDArray[np.float64]:
    """Return the student's log-distribution of the next character after each context, shape ``(batch, V)``."""
    with lucid.no_grad():
        logits = student(lucid.tensor(contexts, device=student.embedding.weight.device))
        log_q: NDArray[np.float64] = F.log_softmax(logits, dim=-1).numpy().astype(np.float64)
    return log_q
