"""User errors, and what a provider does not support."""

from __future__ import annotations


class UsageError(Exception):
    """Printed as one line, without a traceback; the message names the option, what came and what is accepted."""


class UnsupportedError(Exception):
    """Why a provider does not take a point; its row is skipped with this reason."""


class WrongResultError(Exception):
    """A result that is further from the truth than arithmetic in its dtype explains."""

    def __init__(self, error: float) -> None:
        super().__init__(f"wrong by {error:.3g} times what it may be")
