"""Distil a character-level 5-gram model into a neural network.

The text is Python's own language reference, as the standard library ships it. The teacher counts it with
NumPy; the student, a small network in :mod:`lucid`, learns the teacher's next-character distributions with
:class:`lucid.nn.KLDivLoss`. The same student in PyTorch, trained with :class:`lucid.torch.KLDivLoss`, must come out
the same. Run it with ``python -m lucid.examples.char_lm`` or ``make demo``.
"""
