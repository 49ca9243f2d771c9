"""Text representation of modules."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["indented", "layout"]


def indented(text: str) -> str:
    """Indent all lines of a submodule's text but the first, which its name stands in front of."""
    first, *rest = text.split("\n")
    return "\n".join([first, *(f"  {line}" if line.strip() else "" for line in rest)])


def layout(name: str, extra: str, children: Sequence[str]) -> str:
    """Return ``name(extra)`` where `extra` is one line and all, else one line per item."""
    extras = extra.split("\n") if extra else []
    if len(extras) == 1 and not children:
        return f"{name}({extra})"
    if not extras and not children:
        return f"{name}()"
    body = "\n  ".join([*extras, *children])
    return f"{name}(\n  {body}\n)"
