"""The student in PyTorch, trained through `lucid.torch`: line by line that of `student.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn, optim

import lucid.torch
from lucid.examples.char_lm.distil import Batch
from lucid.examples.char_lm.text import Tokens


class Student(nn.Module):
    """The network of `student.Student`, with the same names of parameters."""

    def __init__(self, vocabulary_size: int, context_length: int, embedding_dim: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.layers = nn.Sequential(
            nn.Linear(context_length * embedding_dim, hidden, bias=False),
            nn.Tanh(),
            nn.Linear(hidden, vocabulary_size),
        )

    def forward(self, contexts: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(contexts)
        return self.layers(embedded.reshape(contexts.shape[0], -1))


def train(student: Student, batches: Iterable[Batch], betas: tuple[float, float]) -> Iterator[float]:
    """Train with Adam and yield each step's loss: the mean KL(teacher || student) of a batch, in nats."""
    device = student.embedding.weight.device
    criterion = lucid.torch.KLDivLoss(reduction="batchmean")
    optimizer = optim.Adam(student.parameters(), betas=betas)
    for batch in batches:
        optimizer.param_groups[0]["lr"] = batch.learning_rate
        contexts = torch.tensor(batch.contexts, device=device)
        targets = torch.tensor(batch.probabilities, device=device)

        optimizer.zero_grad()
        logits = student(contexts)
        loss = criterion(F.log_softmax(logits, dim=-1), targets)
        loss.backward()
        optimizer.step()
        yield loss.item()


def log_probabilities(student: Student, contexts: Tokens) -> NDArray[np.float64]:
    """Return the student's log-distribution of the next character after each context, shape ``(batch, V)``."""
    with torch.no_grad():
        logits = student(torch.tensor(contexts, device=student.embedding.weight.device))
        log_q: NDArray[np.float64] = F.log_softmax(logits, dim=-1).cpu().numpy().astype(np.float64)
    return log_q
