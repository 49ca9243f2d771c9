"""The demo's text: where it comes from, its vocabulary, and which part is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]

UNKNOWN: Final = "\ufffd"
PARAGRAPH_BREAK: Final = "\n\n"

# The reference is ASCII but for its typography. What is left after this table becomes UNKNOWN.
_TYPOGRAPHY: Final = str.maketrans({
    "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "...", "\xa0": " ", "\t": "    ",
})  # fmt: skip


class Vocabulary:
    """A fixed set of characters: newline, printable ASCII and one stand-in for everything else.

    It does not depend on the text, so a model has the same shape under every version of Python.
    """

    def __init__(self) -> None:
        self.characters: str = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1))) + UNKNOWN
        self._index = {character: i for i, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tokens:
        """Turn text into token numbers, ``int64`` of shape ``(len(text),)``."""
        unknown = self._index[UNKNOWN]
        return np.fromiter((self._index.get(c, unknown) for c in text), dtype=np.int64, count=len(text))

    def decode(self, tokens: Tokens) -> str:
        """Turn token numbers back into text."""
        return "".join(self.characters[i] for i in tokens)


@dataclass(frozen=True)
class Corpus:
    """The text as token numbers, split into a part to learn from and a part for evaluation."""

    vocabulary: Vocabulary
    train: Tokens
    held_out: Tokens
    n_characters: int
    """Length of the text as shipped, before repeated paragraphs were dropped."""


def language_reference() -> dict[str, str]:
    """Python's language reference by topic, the text behind ``help()``."""
    from pydoc_data.topics import topics

    return dict(topics)


def load_corpus(topics: Mapping[str, str], hold_out_every: int = 10) -> Corpus:
    """Split a text into training and held-out paragraphs.

    Topics quote each other at length. Each paragraph is kept once, or much of the held-out text would also be
    in the training text, and a model that merely remembers would look good. In order of topic, every
    `hold_out_every`-th paragraph is held out.
    """
    paragraphs = dict.fromkeys(
        paragraph.rstrip()
        for name in sorted(topics)
        for paragraph in topics[name].translate(_TYPOGRAPHY).split(PARAGRAPH_BREAK)
        if paragraph.strip()
    )
    train, held_out = [""], [""]
    for i, paragraph in enumerate(paragraphs):
        (held_out if i % hold_out_every == hold_out_every - 1 else train).append(paragraph.strip("\n"))
    vocabulary = Vocabulary()
    return Corpus(
        vocabulary=vocabulary,
        train=vocabulary.encode(PARAGRAPH_BREAK.join(train)),
        held_out=vocabulary.encode(PARAGRAPH_BREAK.join(held_out)),
        n_characters=sum(map(len, topics.values())),
    )


def contexts_at(tokens: Tokens, positions: Tokens, length: int) -> Tokens:
    """The `length` characters before each position, oldest first.

    Positions, ``int64`` of shape ``(n,)``, must be at least `length`; the result has shape ``(n, length)``.
    """
    return tokens[positions[:, None] + np.arange(-length, 0)]
