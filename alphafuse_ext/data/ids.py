"""Ids of users and items, with type and value preserved from the source to the recommendations.

An id is an integer, a float that is a whole number, a string or a UUID, and is returned as it was
read: integers of any width as int64 (uint64 where they need it), floats as float64, strings and
UUIDs as objects. Nullable and categorical columns hold one of these. Dates, booleans and bytes are
not ids, and a missing id is an error with its row number.

- A text file has no types. Spaces around an id are not part of it; a column of nothing but plain
  integers (no leading zeros) is one of integers, one of those and of floats that end in ".0" is one
  of floats, as `pandas.read_csv` would have them, and every other column is one of strings.
- In a source with types, spaces are part of an id; two ids that differ in nothing else are refused.
- Strings mixed with numbers become strings, which is logged: such a column comes from a file that
  was read in chunks, and its 5 and "5" are the same.
- An id is looked up by value: 1, 1.0 and "1" are equal, and so are a UUID and its string. "1.0"
  equals the float only, and "01" only itself.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import MISSING, first_few
from alphafuse_ext.data._precision import digits_lost, float_type, shared_from
from alphafuse_ext.data.sequences import IntArray
from alphafuse_ext.logs import Log

Ids: TypeAlias = npt.NDArray[Any]
Codes: TypeAlias = npt.NDArray[np.int32]

EVERY_ROW = "an id in every row"
MAY_BE_DROPPED = f"{EVERY_ROW}, or missing_ids=drop (--missing-ids drop), which leaves out others"
_ALLOWED = "strings, integers, whole floats or UUIDs"
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_NUMBER = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?")
# The exponent from which on spreadsheets leave digits out.
_SPREADSHEET = 10
_WHOLE_FLOAT = re.compile(r"(0|-?[1-9][0-9]*)(\.0)?")
# From here on a float may stand for several integers.
_SHARED_FLOATS = 2**53
_INT64 = np.iinfo(np.int64)


def has_id(column: pd.Series, typed: bool = True) -> npt.NDArray[np.bool_]:
    """Which rows of a column of ids have one, bool, shape `(R,)`; see `encode_ids`."""
    if typed:
        return column.notna().to_numpy()
    codes, distinct = pd.factorize(column)
    bare = [value.strip() for value in distinct.tolist()]
    return ~np.isin(np.array([*bare, ""], dtype=object), MISSING)[codes]  # -1: the last, missing


def encode_ids(
    argument: str,
    column: pd.Series,
    typed: bool = True,
    log: Log | None = None,
    every_row: str = EVERY_ROW,
) -> tuple[Codes, Ids]:
    """Number the distinct ids of a column.

    Args:
        argument: the column's name in messages.
        column: ids, shape `(R,)`.
        typed: whether the source has types; a text file has none, and its ids are strings.
        log: called with a line about ids that were converted.
        every_row: what is allowed, for the message about a missing id.

    Returns:
        The code of each row, int32, shape `(R,)`; and the ids in order of first appearance,
        shape `(T,)`.

    Raises:
        ValueError: a missing id, with the number of its row, or ids that differ only in spaces.
        TypeError: values that are not ids.
    """
    try:
        codes, distinct = pd.factorize(column)
    except TypeError as error:  # lists, arrays and the like
        raise invalid(argument, "values that cannot be compared", _ALLOWED, TypeError) from error
    codes = codes.astype(np.int32)  # tables have a hundred million rows, and fewer ids
    if isinstance(distinct.dtype, pd.CategoricalDtype):
        distinct = distinct.astype(distinct.categories.dtype)
    if typed:
        _refuse_missing(argument, codes, every_row)
        # Of float16, pandas makes a wider type.
        dtype = None if column.dtype == object else float_type(column)
        ids = _typed_ids(argument, distinct, dtype or float_type(distinct), log)
        _refuse_near_twins(argument, ids)
    else:
        bare = np.array([value.strip() for value in distinct.tolist()], dtype=object)
        missing = np.isin(bare, MISSING)
        if missing.any():
            codes[missing[codes]] = -1
        _refuse_missing(argument, codes, every_row)
        padded = bare != np.asarray(distinct, dtype=object)
        if log is not None and padded.any():
            rows = int(padded[codes].sum())
            log(f"{argument}: spaces around the id left out in {rows:,} of {len(codes):,} rows")
        ids = _written_ids(argument, bare.tolist())
    # What was written in two ways may have become one.
    merged, ids = pd.factorize(ids)
    if len(ids) < len(merged):
        codes = merged.astype(np.int32)[codes]
    return codes, ids


def _refuse_missing(argument: str, codes: IntArray, allowed: str) -> None:
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        others = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        found = f"no value in row {missing[0] + 1} of {len(codes)}{others}"
        raise invalid(argument, found, allowed)


def _typed_ids(
    argument: str, distinct: pd.Index, floats: np.dtype[Any] | None, log: Log | None
) -> Ids:
    """The ids of a source with types; `floats` is the narrowest type of its floats."""
    dtype = distinct.dtype
    if pd.api.types.is_bool_dtype(dtype):
        raise invalid(argument, "booleans", _ALLOWED, TypeError)
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        raise invalid(argument, "dates or times", _ALLOWED, TypeError)
    if pd.api.types.is_integer_dtype(dtype):
        unsigned = int(distinct.max()) > _INT64.max
        return distinct.to_numpy(dtype=np.uint64 if unsigned else np.int64)
    if pd.api.types.is_float_dtype(dtype):
        return _whole_floats(argument, distinct.to_numpy(dtype=np.float64), floats)

    values = distinct.astype(object).tolist()
    _refuse_other_kinds(argument, values)
    kinds = {_kind(value) for value in values}
    if kinds == {int}:
        return _integers(argument, values)
    if kinds <= {int, float}:
        return _whole_floats(argument, np.array(values, dtype=np.float64), floats)
    if kinds == {uuid.UUID}:
        return np.array(values, dtype=object)
    if log is not None and kinds != {str}:
        names = " and ".join(sorted(kind.__name__ for kind in kinds if kind is not None))
        log(f"{argument}: values of types {names} are read as strings")
    return np.array([_as_string(value) for value in values], dtype=object)


def _kind(value: Any) -> type | None:
    """The kind of id a value is, or None."""
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, np.integer)):
        return int
    if isinstance(value, (float, np.floating)):
        return float if np.isfinite(value) else None
    return next((kind for kind in (str, uuid.UUID) if isinstance(value, kind)), None)


def _refuse_other_kinds(argument: str, values: Iterable[Any]) -> None:
    for value in values:
        kind = _kind(value)
        if kind is None:
            raise invalid(argument, f"{value!r}, a {type(value).__name__}", _ALLOWED, TypeError)
        if kind is float:
            _refuse_shared_float(argument, value, np.dtype(type(value)))


def _integers(argument: str, values: Sequence[int]) -> Ids:
    # NumPy 1 wraps around what does not fit into uint64, and says nothing.
    values, lowest, highest = list(map(int, values)), min(values), max(values)
    for dtype in (np.int64, np.uint64):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return np.array(values, dtype=dtype)
    largest = max(values, key=abs)
    raise invalid(argument, f"the integer {largest}", "integers of 64 bits, or strings", TypeError)


def _whole_floats(
    argument: str, values: npt.NDArray[np.float64], dtype: np.dtype[Any] | None
) -> Ids:
    """Floats that are ids; `dtype` is the narrowest that they were stored in."""
    dtype = dtype or values.dtype
    whole = (np.abs(values) < shared_from(dtype)) & (values == np.trunc(values))
    if not whole.all():
        found = f"the float {values[~whole][0]} ({dtype})"
        allowed = f"whole {dtype} below 2^{np.finfo(dtype).nmant + 1}: beyond, ids are merged"
        raise invalid(argument, found, allowed, TypeError)
    return values


def _refuse_shared_float(argument: str, value: float, dtype: np.dtype[Any]) -> None:
    """Refuse a float that may stand for several ids; `dtype` is what it was stored in.

    Beyond 64 bits it stands for none.
    """
    if shared_from(dtype) <= abs(float(value)) < 2.0**64:
        allowed = f"{dtype} below 2^{np.finfo(dtype).nmant + 1}: beyond, ids are merged"
        raise invalid(argument, f"the float {value} ({dtype})", allowed, TypeError)


def _refuse_near_twins(argument: str, ids: Ids) -> None:
    """Refuse ids that differ only in spaces around them: one would be taken for two."""
    if ids.dtype != object:
        return
    padded = [value for value in map(str, ids) if value != value.strip()]
    written = set(map(str, ids)) if padded else set()
    for value in padded:
        bare = value.strip()
        if bare in written:
            found = f"{value!r} beside {bare!r}"
            raise invalid(argument, found, "ids that differ in more than spaces around them")


def _written_ids(argument: str, strings: list[str]) -> Ids:
    """The ids that a text file means by its strings, refused where a spreadsheet cut them off."""
    if all(map(_INTEGER.fullmatch, strings)):
        numbers = list(map(int, strings))
        if _INT64.min <= min(numbers) and max(numbers) <= _INT64.max:
            return np.array(numbers, dtype=np.int64)
    elif all(map(_WHOLE_FLOAT.fullmatch, strings)):
        floats = np.array(list(map(float, strings)))
        if np.abs(floats).max() < _SHARED_FLOATS:
            return floats
    elif all(map(_NUMBER.fullmatch, strings)):
        lost = next((text for text in strings if digits_lost(text, _SPREADSHEET)), None)
        if lost is not None:
            found = f"{lost!r}, by fewer digits than it has, as spreadsheets write long numbers"
            raise invalid(argument, found, "ids with all their digits, or strings in Parquet")
    return np.array(strings, dtype=object)


class IdIndex:
    """Finds the positions of ids by hashing.

    Args:
        ids: distinct, shape `(N,)`, as :func:`encode_ids` returns them.
    """

    def __init__(self, ids: Ids) -> None:
        self._kind = ids.dtype.kind
        if self._kind == "f":
            ids = ids.astype(np.int64)
        if self._kind == "O":
            self._index = pd.Index([str(name) for name in ids], dtype=object)
        else:
            self._index = pd.Index(ids)

    def find(self, argument: str, wanted: Iterable[Any], strict: bool = False) -> IntArray:
        """Positions, int64, -1 for an id that is not there; see the module for what is equal.

        Args:
            argument: the ids' name in messages.
            wanted: ids of any type.
            strict: refuse ids that are not there.

        Raises:
            TypeError: a single string, or values that are no ids.
            ValueError: `strict`, and an unknown id.
        """
        if isinstance(wanted, (str, bytes)):
            raise invalid(argument, repr(wanted), "a list or an array of ids", TypeError)
        array = isinstance(wanted, (np.ndarray, pd.Series))
        floats = float_type(wanted) if array else None
        wanted = wanted.tolist() if isinstance(wanted, (np.ndarray, pd.Series)) else list(wanted)
        _refuse_other_kinds(argument, wanted)
        if floats is not None:  # in a list, a float is one of 64 bits
            for value in wanted:
                if isinstance(value, float):
                    _refuse_shared_float(argument, value, floats)
        # Keys have the index's own type: of any other, pandas would convert the whole index.
        if self._kind == "O":
            keys = pd.Index([_as_string(value) for value in wanted], dtype=object)
            positions = self._index.get_indexer(keys).astype(np.int64)
        else:
            written = _WHOLE_FLOAT if self._kind == "f" else _INTEGER
            numbers = [_as_integer(value, written) for value in wanted]
            bounds = np.iinfo(self._index.dtype)
            fit = [n is not None and bounds.min <= n <= bounds.max for n in numbers]
            known = [number for number, fits in zip(numbers, fit, strict=True) if fits]
            keys = pd.Index(np.array(known, dtype=self._index.dtype))
            positions = np.full(len(wanted), -1, dtype=np.int64)
            positions[fit] = self._index.get_indexer(keys)
        if strict and (positions < 0).any():
            unknown = [wanted[row] for row in np.flatnonzero(positions < 0)]
            found, count = f"unknown {first_few(unknown)}", len(self._index)
            raise invalid(argument, found, f"ids among the {count} known")
        return positions


def _as_string(value: Any) -> str:
    """How an id is written; whole floats as integers are."""
    if isinstance(value, (float, np.floating)) and value == np.trunc(value):
        return str(int(value))
    return str(value)


def _as_integer(value: Any, written: re.Pattern[str]) -> int | None:
    """The integer an id is, of a string where it is `written` so, or None."""
    if isinstance(value, str):
        return int(value.removesuffix(".0")) if written.fullmatch(value) else None
    if isinstance(value, uuid.UUID) or value != int(value):
        return None
    return int(value)


def asked_ids(ids: Ids, found: IntArray, wanted: Sequence[Any]) -> Ids:
    """What was looked up, in the type of the ids where unknown ones can have it, else as strings.

    Args:
        ids: that were looked through.
        found: positions of :meth:`IdIndex.find`.
        wanted: what it was given.
    """
    unknown = np.flatnonzero(found < 0).tolist()
    if not unknown:
        return ids[found]
    if ids.dtype != object:
        written = _WHOLE_FLOAT if ids.dtype.kind == "f" else _INTEGER
        numbers = [_as_integer(wanted[place], written) for place in unknown]
        bounds = np.iinfo(np.int64 if ids.dtype.kind == "f" else ids.dtype)
        if all(n is not None and bounds.min <= n <= bounds.max for n in numbers):
            names = ids[np.maximum(found, 0)]
            names[unknown] = numbers
            return names
    both = (ids[at] if at >= 0 else name for at, name in zip(found, wanted, strict=True))
    return np.array([_as_string(name) for name in both], dtype=object)


def storable(ids: Ids) -> Ids:
    """Ids as a Parquet column holds them: UUIDs, which not every version can write, as bytes."""
    if ids.dtype == object and len(ids) and isinstance(ids[0], uuid.UUID):
        return np.array([value.bytes for value in ids], dtype=object)
    return ids


def stored(column: pd.Series) -> Ids:
    """The ids that :func:`storable` made a column of."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy()
    values = column.to_numpy(dtype=object)
    if len(values) and isinstance(values[0], bytes):
        return np.array([uuid.UUID(bytes=value) for value in values], dtype=object)
    return values
