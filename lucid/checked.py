"""Whether to wait for the device, to say at once what kernels find wrong in values."""

from __future__ import annotations

from lucid.modes import Block, Mode

_mode = Mode(False)


class check_values(Block):
    """Wait for each kernel that looks at values, as a context manager (``with lucid.check_values():``) or a decorator.

    A label or an index out of range, or a normalizer in device memory that is not positive, is found by the kernel that
    meets it. On a GPU nobody waits for that: the result is NaN, and the error comes when values are next read back.
    Within, it comes from the call itself. Where kernels run on the CPU it always does. Per thread.

    Parameters
    ----------
    enabled : bool
        Whether to wait within. Nobody does, unless said otherwise.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> with lucid.check_values():
    ...     F.cross_entropy(lucid.tensor([[0.0, 1.0]]), lucid.tensor([2]))
    Traceback (most recent call last):
    IndexError: labels must lie in 0 to 1, the columns of the logits, or be ignore_index, got 2
    """

    _mode = _mode

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)


def is_checking() -> bool:
    """Whether this thread waits for what kernels find wrong."""
    return _mode.enabled
