"""Errors of this package: what is a user's to mend, and what a provider does not do."""

from __future__ import annotations

import importlib.util


class UsageError(Exception):
    """Printed as one line, without a traceback; the message names the option, what came and what is accepted."""


class NotOfferedError(Exception):
    """Why a provider does not take a point."""


def require_liger() -> None:
    """Raise a `NotOfferedError` where liger-kernel is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise NotOfferedError('liger-kernel is not installed: pip install ".[perf]"')
