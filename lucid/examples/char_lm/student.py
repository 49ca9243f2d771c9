"""The student: a small network over the previous characters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
from lucid.examples.char_lm.text import Tokens


class Student(nn.Module):
    """Embed the previous characters, put them side by side, and map them to logits through one hidden layer.

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


def log_probabilities(student: Student, contexts: Tokens, device: lucid.device) -> NDArray[np.float64]:
    """The student's log-distribution of the next character after each context, shape ``(batch, V)``."""
    with lucid.no_grad():
        logits = student(lucid.tensor(contexts, device=device))
        log_q: NDArray[np.float64] = F.log_softmax(logits, dim=-1).numpy().astype(np.float64)
    return log_q
