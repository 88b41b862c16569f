"""Precision of floating-point types: beyond it, distinct ids or times become equal."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

# A long number written by a spreadsheet: 1.23457E+12, with digits lost.
_SCIENTIFIC = re.compile(r"[+-]?\d(?:\.(\d*))?[eE]\+?(\d+)")


def float_type(values: Any) -> np.dtype[Any] | None:
    """The narrowest floating-point type in which values were stored, or None.

    Args:
        values: an array, a series or an index; of objects, all are looked at.
    """
    dtype = getattr(values.dtype, "numpy_dtype", values.dtype)  # of nullable types, the one within
    if isinstance(dtype, np.dtype) and dtype.kind == "f":
        return dtype
    if dtype != np.dtype(object):
        return None
    kinds = {type(value) for value in values}
    found = [np.dtype(kind) for kind in kinds if issubclass(kind, np.floating)]
    if any(issubclass(kind, float) for kind in kinds):
        found.append(np.dtype(np.float64))
    return min(found, key=lambda kind: kind.itemsize, default=None)


def shared_from(dtype: np.dtype[Any]) -> int:
    """The integer from which on a value of a type may represent several integers."""
    return 2 ** (np.finfo(dtype).nmant + 1)


def step_at(dtype: np.dtype[Any], value: float) -> float:
    """The spacing of values of a type, near one of them."""
    return float(2.0 ** (np.frexp(abs(value))[1] - np.finfo(dtype).nmant - 1))


def digits_lost(text: str, min_exponent: int = 0) -> bool:
    """Whether an integer is written with fewer digits than it has, such as ``1.7E+09``.

    Args:
        text: without spaces around it.
        min_exponent: the exponent below which it is taken for something else.
    """
    match = _SCIENTIFIC.fullmatch(text)
    return match is not None and max(len(match[1] or ""), min_exponent - 1) < int(match[2])
