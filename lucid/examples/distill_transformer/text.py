"""The demo's text in tokens of a byte-pair encoding, in windows to learn from and windows to evaluate with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lucid.examples.char_lm.text import language_reference, load_corpus

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Token numbers, and what encodes them."""

    encoding: object
    """A `tokenizers.Tokenizer`."""
    vocabulary: int
    train: Tokens
    held_out: Tokens

    def batch(self, seed: int, step: int, size: int, length: int) -> tuple[Tokens, Tokens]:
        """Return the windows of a training step, and the tokens after each of theirs; the same for a seed and step."""
        starts = np.random.default_rng([seed, step]).integers(0, len(self.train) - length, size)
        windows = self.train[starts[:, None] + np.arange(length + 1)]
        return windows[:, :-1], windows[:, 1:]

    def held_out_windows(self, most: int, length: int) -> tuple[Tokens, Tokens]:
        """Return windows of the held-out text that do not overlap, and the tokens after each of theirs."""
        count = min(most, (len(self.held_out) - 1) // length)
        inputs, targets = (self.held_out[shift : shift + count * length].reshape(count, length) for shift in (0, 1))
        return inputs, targets


def load_texts(vocabulary: int) -> Texts:
    """Learn a byte-pair encoding from Python's language reference, and encode it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    corpus = load_corpus(language_reference())
    parts = [corpus.vocabulary.decode(part) for part in (corpus.train, corpus.held_out)]
    encoding = Tokenizer(models.BPE())
    encoding.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    encoding.train_from_iterator(parts[:1], trainer)
    train, held_out = (np.array(encoding.encode(part).ids, np.int64) for part in parts)
    return Texts(encoding, encoding.get_vocab_size(), train, held_out)
