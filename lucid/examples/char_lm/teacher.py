"""The teacher: an n-gram model of all orders, interpolated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lucid.examples.char_lm.text import Tokens

Probabilities = NDArray[np.float64]


class NGramTeacher:
    r"""Interpolated Kneser-Ney n-gram model over characters.

    For a context :math:`h` and the same context without its oldest character, :math:`h'`,

    .. math::
        p(c \mid h) = \frac{\max(n(hc) - D, 0) + D\, T(h)\, p(c \mid h')}{\sum_{c'} n(hc')}

    :math:`T(h)` is the number of different characters that follow :math:`h`: what the discount :math:`D`
    takes from each of them, the shorter context shares out. For the longest contexts :math:`n` counts
    occurrences in the text. For shorter ones it counts the different characters before :math:`hc`: a shorter
    context is asked where the longer one knew little, and there a character that is frequent after a single
    longer context is no likelier than others. Each order has its own :math:`D = n_1 / (n_1 + 2 n_2)`, from
    the numbers of n-grams counted once and twice. The recursion ends in the uniform distribution, so no
    probability is 0. A context that never occurred has :math:`p(c \mid h) = p(c \mid h')`. The text's first
    ``order - 1`` characters serve as context only.

    The distribution after every context that occurs is worked out once, at construction; a query is one
    binary search per order and one row lookup.

    Parameters
    ----------
    tokens : int64 array, shape ``(n,)``
        The training text.
    vocabulary_size : int
        Number of different tokens, V.
    order : int, default 5
        Length of the longest n-gram: the next character and the ``order - 1`` before it. ``V ** order`` must
        fit in 63 bits.

    Attributes
    ----------
    table : float64 array, shape ``(rows, V)``
        One distribution per context that occurs, shortest contexts first. Row 0 is the one without context.

    References
    ----------
    R. Kneser, H. Ney, *Improved backing-off for m-gram language modeling*, ICASSP 1995;
    S. F. Chen, J. Goodman, *An empirical study of smoothing techniques for language modeling*, Harvard
    TR-10-98, 1998, for the interpolated form.
    """

    def __init__(self, tokens: Tokens, vocabulary_size: int, order: int = 5) -> None:
        if order < 1 or vocabulary_size**order >= 2**63:
            raise ValueError(f"order must be at least 1, and V**order below 2**63, got {order}")
        if len(tokens) < order:
            raise ValueError(f"a text for order {order} needs {order} tokens or more, got {len(tokens)}")
        self.order = order
        self.vocabulary_size = vocabulary_size

        keys, counts = _count_occurrences(tokens, vocabulary_size, order - 1)
        all_keys, all_counts = [keys], [counts]
        for length in range(order - 2, -1, -1):
            keys, counts = _count_continuations(keys, counts, vocabulary_size**length)
            all_keys.insert(0, keys)
            all_counts.insert(0, counts)

        tables: list[Probabilities] = []
        shorter = np.full((1, vocabulary_size), 1.0 / vocabulary_size)
        for length, (keys, counts) in enumerate(zip(all_keys, all_counts, strict=True)):
            if length > 0:
                # The shorter contexts were made from these, so every one is found.
                parent = np.searchsorted(all_keys[length - 1], keys % vocabulary_size ** (length - 1))
                shorter = shorter[parent]
            shorter = _interpolate(counts, shorter)
            tables.append(shorter)
        self._keys = all_keys
        self._first_row = np.cumsum([0] + [len(table) for table in tables])
        self.table = np.concatenate(tables)

    @property
    def context_length(self) -> int:
        """How many characters back the teacher looks."""
        return self.order - 1

    def rows(self, contexts: Tokens) -> Tokens:
        """The row of `table` for each context: that of its longest suffix that occurs in the training text.

        Parameters
        ----------
        contexts : int64 array, shape ``(batch, length)``
            Oldest character first; at least ``order - 1`` characters, of which the last ``order - 1`` count.
        """
        if contexts.ndim != 2 or contexts.shape[1] < self.context_length:
            raise ValueError(f"contexts need {self.context_length} characters or more each, got shape {contexts.shape}")
        rows = np.zeros(len(contexts), dtype=np.int64)
        key = np.zeros(len(contexts), dtype=np.int64)
        for length in range(1, self.order):
            key += contexts[:, -length] * self.vocabulary_size ** (length - 1)
            known = self._keys[length]
            place = np.minimum(np.searchsorted(known, key), len(known) - 1)
            rows = np.where(known[place] == key, self._first_row[length] + place, rows)
        return rows

    def probabilities(self, contexts: Tokens) -> Probabilities:
        """The distribution of the next character after each context, shape ``(batch, V)``."""
        return self.table[self.rows(contexts)]


def unigram_model(tokens: Tokens, vocabulary_size: int) -> Probabilities:
    """Relative frequencies, each count plus one so that no probability is 0, shape ``(V,)``."""
    counts = np.bincount(tokens, minlength=vocabulary_size) + 1
    return counts / counts.sum()


def _count_occurrences(tokens: Tokens, vocabulary_size: int, length: int) -> tuple[Tokens, Tokens]:
    """Count what follows each context of `length` characters.

    Returns
    -------
    keys : int64 array, shape ``(contexts,)``
        The contexts that occur, ascending, as numbers in base V with the newest character as the last digit.
    counts : int64 array, shape ``(contexts, V)``
        How often each character follows.
    """
    n_positions = len(tokens) - length
    key_at = np.zeros(n_positions, dtype=np.int64)
    for i in range(length):
        key_at = key_at * vocabulary_size + tokens[i : i + n_positions]
    keys, context = np.unique(key_at, return_inverse=True)
    cells = context * vocabulary_size + tokens[length:]
    counts = np.bincount(cells, minlength=len(keys) * vocabulary_size)
    return keys, counts.reshape(len(keys), vocabulary_size)


def _count_continuations(keys: Tokens, counts: Tokens, modulus: int) -> tuple[Tokens, Tokens]:
    """Drop each context's oldest character and count by how many different ones each n-gram was preceded."""
    shorter_keys, parent = np.unique(keys % modulus, return_inverse=True)
    shorter_counts = np.zeros((len(shorter_keys), counts.shape[1]), dtype=np.int64)
    np.add.at(shorter_counts, parent, counts > 0)
    return shorter_keys, shorter_counts


def _interpolate(counts: Tokens, shorter: Probabilities) -> Probabilities:
    """One order of the recursion, row by row; both arguments and the result have shape ``(contexts, V)``."""
    # On a text with no such n-grams one of each is assumed, which keeps D inside (0, 1).
    once = max(1, int(np.count_nonzero(counts == 1)))
    twice = max(1, int(np.count_nonzero(counts == 2)))
    discount = once / (once + 2 * twice)
    n_different = np.count_nonzero(counts, axis=1)[:, None]
    return (np.maximum(counts - discount, 0) + discount * n_different * shorter) / counts.sum(axis=1)[:, None]
