"""A decoder-only transformer. With `torch` in place of `lucid` in the imports it is a model of PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lucid
from lucid import nn

F: Any = nn.functional


@dataclass(frozen=True)
class Size:
    """Sizes of a transformer."""

    vocabulary: int
    context: int
    """Tokens that it sees at most."""
    width: int
    """Of hidden states; four times as many in the middle of a feed-forward layer."""
    heads: int
    layers: int
    dropout: float = 0.0


class Attention(nn.Module):
    """Causal self-attention of several heads (A. Vaswani et al., "Attention is all you need", 2017, section 3.2)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)

    def forward(self, x: Any) -> Any:
        """Map hidden states (batch, length, width)."""
        batch, length, width = x.shape
        parts = self.qkv(x).split(width, -1)
        query, key, value = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention and a feed-forward layer, each of normalized hidden states, and added to them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(size.width, eps=1e-6)
        self.attention = Attention(size)
        self.feed_forward_norm = nn.RMSNorm(size.width, eps=1e-6)
        self.feed_forward = nn.Sequential(
            nn.Linear(size.width, 4 * size.width, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * size.width, size.width, bias=False),
        )
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Any) -> Any:
        """Map hidden states (batch, length, width)."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """Logits of the token after each one; the embedding of tokens is the head's weight, too."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.dropout = nn.Dropout(size.dropout)
        self.blocks = nn.ModuleList([Block(size) for _ in range(size.layers)])
        self.norm = nn.RMSNorm(size.width, eps=1e-6)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.5 / size.width**0.5)

    def forward(self, tokens: Any) -> Any:
        """Map tokens (batch, length) to logits (batch, length, vocabulary)."""
        x = self.tokens(tokens) + self.positions(lucid.arange(tokens.shape[1], device=tokens.device))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)
