"""Errors in one form: the argument, what was given, what is allowed."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)


def invalid(argument: str, given: object, allowed: str, kind: type[E] = ValueError) -> E:  # type: ignore[assignment]
    """The exception to raise for a bad argument.

    Args:
        argument: its name as the caller wrote it, ``"k"`` or ``"--null-dim"``.
        given: the offending value, or a short description of it.
        allowed: what would have been accepted.
        kind: ``ValueError`` by default; ``TypeError`` or ``IndexError`` where Python raises these.

    Example:
        >>> raise invalid("k", 0, "1 <= k <= 12101")
        Traceback (most recent call last):
        ValueError: k: got 0; expected 1 <= k <= 12101
    """
    return kind(f"{argument}: got {given}; expected {allowed}")


def refuse_masked(argument: str, given: object) -> None:
    """Raises ``ValueError`` for a NumPy array with masked entries: their values are undefined.

    Call it before the array is converted, which drops the mask.
    """
    numpy = sys.modules.get("numpy")  # without which nothing is one of its arrays
    if numpy is not None and isinstance(given, numpy.ma.MaskedArray) and numpy.ma.is_masked(given):
        found = f"a masked array, {int(numpy.ma.count_masked(given))} of its entries masked"
        raise invalid(argument, found, "an array without any")


def integer(argument: str, value: Any, allowed: str = "an integer") -> int:
    """An integer of any library, such as ``np.int64(3)``; not a bool.

    Raises:
        TypeError: it is not an integer.
    """
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise invalid(argument, repr(value), allowed, TypeError) from None


def check_count(
    argument: str, given: Any, maximum: int | None = None, what: str | None = None
) -> None:
    """Raises ``TypeError`` or ``ValueError`` for what is no integer from 1 to ``maximum``.

    Args:
        argument: its name as the caller wrote it.
        given: what should be a count.
        maximum: the largest allowed; ``None``: there is none.
        what: what the largest is, ``"the number of items"``.
    """
    allowed = f"{argument} >= 1" if maximum is None else f"1 <= {argument} <= {maximum}, {what}"
    count = integer(argument, given, f"an integer, {allowed}")
    if count < 1 or (maximum is not None and count > maximum):
        raise invalid(argument, given, allowed)


def check_share(argument: str, value: float) -> None:
    """Raises ``ValueError`` for what is not above 0, or above 1."""
    if not 0 < value <= 1:
        raise invalid(argument, value, f"0 < {argument} <= 1")


def listed(argument: str, given: Any, members: str) -> list[Any]:
    """The members of a list, an array, a column or another iterable.

    Strings, mappings and tables are refused: iterating over them gives characters, keys or column
    names.

    Args:
        argument: its name as the caller wrote it.
        given: what should be a list.
        members: what it should hold, ``"user ids"``.

    Raises:
        TypeError: it is not a list.
        ValueError: an array with masked entries.
    """
    refuse_masked(argument, given)
    names = isinstance(given, (str, bytes, Mapping)) or hasattr(given, "columns")
    if names or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        text = isinstance(given, (str, bytes))
        found = repr(given) if text else f"a value of type {type(given).__name__}"
        raise invalid(argument, found, f"a list of {members}", TypeError)
    # Python's own numbers are faster to iterate over than an array's.
    return given.tolist() if hasattr(given, "tolist") else list(given)


def check_flag(argument: str, given: Any) -> None:
    """Raises ``TypeError`` for what is neither true nor false by its type."""
    numpy = sys.modules.get("numpy")
    if not isinstance(given, bool) and not (numpy is not None and isinstance(given, numpy.bool_)):
        raise invalid(argument, repr(given), "True or False", TypeError)
