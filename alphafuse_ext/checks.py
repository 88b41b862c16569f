"""Errors in one form: the argument, what was given, what is allowed."""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=Exception)


def invalid(argument: str, given: object, allowed: str, kind: type[E] = ValueError) -> E:  # type: ignore[assignment]
    """The exception to raise for a bad argument.

    Args:
        argument: its name as the caller wrote it, ``"k"`` or ``"--null-dim"``.
        given: the offending value, or a short description of it.
        allowed: what would have been accepted.
        kind: ``ValueError`` unless told; ``TypeError`` and ``IndexError`` where Python would.

    Example:
        >>> raise invalid("k", 0, "1 <= k <= 12101")
        Traceback (most recent call last):
        ValueError: k: got 0; expected 1 <= k <= 12101
    """
    return kind(f"{argument}: got {given}; expected {allowed}")
