"""Times: the column that has them, and the meaning of its numbers, dates or strings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.tseries.api import guess_datetime_format

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import Table, find_column, first_few, words
from alphafuse_ext.data._precision import (
    digits_lost,
    float_type,
    shared_from,
    step_at,
)
from alphafuse_ext.logs import Log

_ALLOWED = (
    "a number, a date of the years 1678 to 2261, or a string of one of them in every row, dates as "
    "in 2024-12-31 or as time_format says"
)

_EVENTS = (
    *("", "unix", "utc", "server", "event", "action", "interaction", "transaction", "log"),
    *("review", "unixreview", "rating", "order", "purchase", "click", "visit", "checkin", "post"),
    *("request", "invoice", "create", "creation", "created"),
)
# Followed by "time", each of these is a duration.
_DONE = (
    "view",
    "viewed",
    "play",
    "played",
    "listen",
    "watch",
    "watched",
    "read",
    "rated",
    "posted",
)
_TIME_COLUMNS = (
    *(event + moment for event in _EVENTS for moment in ("time", "timestamp", "date", "datetime")),
    *(event + moment for event in _DONE for moment in ("timestamp", "date", "datetime")),
    *(event + moment for event in (*_EVENTS[1:], *_DONE) for moment in ("at", "ts")),
    *("ts", "tdat"),
)
_TIME_WORDS = {"time", "timestamp", "date", "datetime", "ts"}

# Numbers that are times since 1970 in seconds, in the years 1973 to 2103; and other units of these.
_SECONDS = (10**8, 42 * 10**8)
_UNITS = (1, 10**3, 10**6, 10**9)
# The least length of a written date, and how many are looked at.
_DATE_LENGTH = 8
_DATES_LOOKED_AT = 20
# Maximum number of columns searched for times.
_LOOKED_AT = 500
_TIME_COLUMN = "the column of times, or '' where the rows are in the order of time"
_NANOSECONDS = np.iinfo(np.int64).max
_UNIT_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def pick_times(table: Table, given: str | None, used: Sequence[str], log: Log | None) -> str | None:
    """The column of times, or None if the rows are in time order.

    That is the column `given`; else one with a usual name; else the only one with a date type. If
    another column may be one by its name or its first rows, an error asks for `time_column`.

    Args:
        table: the source.
        given: a name, "" for no column, or None.
        used: columns that are something else.
        log: called with a line if the column was found by its type.

    Raises:
        ValueError: no such column, or one or more that could be meant.
    """
    if given == "":
        return None
    usual = find_column(table, "time_column", given, _TIME_COLUMNS)
    if usual is not None:
        return usual
    lists = ("list", "numbers")
    others = [n for n in table.columns if n and n not in used and table.kinds[n] not in lists]
    dates = [name for name in others if table.kinds[name] == "time"]
    if len(dates) == 1:
        if log is not None:
            log(f"time_column: {dates[0]!r} is the only column of dates")
        return dates[0]
    possible = dates or [name for name in others if _TIME_WORDS & set(words(name))]
    if not possible:
        candidates = [
            name
            for name in others
            if table.kinds[name] in ("unknown", "number") and "id" not in words(name)
        ]
        if len(candidates) > _LOOKED_AT:
            found = f"None, and {len(candidates):,} columns that could be meant by what they hold"
            raise invalid("time_column", found, _TIME_COLUMN)
        first_rows = table.preview(candidates) if candidates else pd.DataFrame()
        possible = [name for name in candidates if _look_like_times(first_rows[name])]
    if possible:
        found = f"None, while {first_few(possible)} could be meant"
        raise invalid("time_column", found, _TIME_COLUMN)
    return None


def _look_like_times(column: pd.Series) -> bool:
    """Whether all values are dates, or numbers in the range of recent times."""
    column = column.dropna()
    if column.empty or pd.api.types.is_bool_dtype(column.dtype):
        return False
    numbers = _numbers(column)
    if numbers is not None:
        recent = [(numbers >= _SECONDS[0] * u) & (numbers < _SECONDS[1] * u) for u in _UNITS]
        return bool(np.any(recent, axis=0).all())
    first = column.astype(str).iloc[:_DATES_LOOKED_AT]
    if (first.str.len() < _DATE_LENGTH).any():
        return False
    return bool(pd.to_datetime(first, errors="coerce", utc=True, format="mixed").notna().all())


def parse_times(column: pd.Series, time_format: str | None = None) -> npt.NDArray[Any]:
    """Times as int64 or float64, shape `(R,)`; dates as nanoseconds since 1970 (UTC).

    Args:
        column: numbers in one unit, dates, or strings of one of them; dates in ISO 8601.
        time_format: of dates in another format, as in `strptime`: "%d/%m/%Y %H:%M".

    Raises:
        ValueError: a missing value, or one that is no time or in another format than the others,
            with its row; floats that are not exact; or a format of what is a date already.
        TypeError: booleans, durations or complex numbers.
    """
    dtype = column.dtype
    for found, is_found in (
        ("booleans", pd.api.types.is_bool_dtype),
        ("durations", pd.api.types.is_timedelta64_dtype),
        ("complex numbers", pd.api.types.is_complex_dtype),
    ):
        if is_found(dtype):
            raise invalid("time_column", found, _ALLOWED, TypeError)
    if isinstance(dtype, pd.CategoricalDtype):
        column = column.astype(dtype.categories.dtype)
    if isinstance(dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    is_date = pd.api.types.is_datetime64_any_dtype(column.dtype)
    if time_format is not None:
        if "%" not in time_format or is_date:
            found = repr(time_format) + (" for a column of dates" if is_date else "")
            allowed = "a format such as '%d/%m/%Y', of a column of strings"
            raise invalid("time_format", found, allowed)
        strings = column.astype(str).str.strip()
        return _nanoseconds(column, _read(strings, time_format))
    if is_date:
        return _nanoseconds(column, column)
    numbers = _numbers(column)
    if numbers is not None:
        _refuse(column, ~np.isfinite(numbers))
        _refuse_lost_order(column, numbers)
        return numbers
    return _nanoseconds(column, _dates(column), _fitting_formats)


def _fitting_formats(column: pd.Series) -> str:
    """For a message about strings that are no dates in ISO 8601: the formats that read them all."""
    strings = column.astype(str).str.strip()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, that the first guess has the day first
        guesses = {guess_datetime_format(strings.iloc[0], dayfirst=first) for first in (0, 1)}
    fitting = [one for one in sorted(filter(None, guesses)) if _read(strings, one).notna().all()]
    named = " or ".join(f"time_format={one!r}" for one in fitting)
    return f"; all are dates by {named}" if fitting else ""


def _refuse(
    column: pd.Series,
    wrong: npt.NDArray[np.bool_],
    hint: Callable[[pd.Series], str] = lambda column: "",
) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        others = f" and {int(wrong.sum()) - 1:,} more" if wrong.sum() > 1 else ""
        found = f"{column.iloc[row]} in row {row + 1} of {len(column)}{others}"
        raise invalid("time_column", found, _ALLOWED + hint(column))


def _numbers(column: pd.Series) -> npt.NDArray[Any] | None:
    """The column as int64 or float64, NaN for non-numbers; None if it has no numbers."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        if pd.api.types.is_integer_dtype(column.dtype) and not column.isna().any():
            _refuse(column, (column > np.iinfo(np.int64).max).to_numpy(dtype=bool))
            return column.to_numpy(dtype=np.int64)
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    try:
        strings = pc.utf8_trim_whitespace(pa.array(column, pa.string(), from_pandas=True))
    except (pa.ArrowException, TypeError):  # cells that are no strings
        return _coerced(column)
    for kind in (pa.int64(), pa.float64()):
        if strings.null_count == 0:
            try:
                return np.asarray(pc.cast(strings, kind))
            except pa.ArrowException:
                continue
    return _coerced(column)


def _coerced(column: pd.Series) -> npt.NDArray[Any] | None:
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.isna().all():
        return None
    is_integer = pd.api.types.is_integer_dtype(numbers.dtype)
    return numbers.to_numpy(dtype=np.int64 if is_integer else np.float64)


def _refuse_lost_order(column: pd.Series, numbers: npt.NDArray[Any]) -> None:
    """Refuse times in a type or notation that does not preserve their order."""
    if numbers.dtype == np.float64:
        dtype = float_type(column) or numbers.dtype
        largest = float(np.abs(numbers).max(initial=0.0))
        if largest >= shared_from(dtype):
            found = f"{dtype} times up to {largest:.10g}, of which it has one in {{:,.0f}}"
            allowed = f"integers, or {dtype} below {shared_from(dtype):,}, to which it has them all"
            raise invalid("time_column", found.format(step_at(dtype, largest)), allowed)
    if pd.api.types.is_numeric_dtype(column.dtype) or numbers.dtype != np.float64:
        return
    strings = column.astype(str).str.strip()
    lost = strings.map(digits_lost).to_numpy(dtype=bool)
    if 2 * lost.sum() > len(lost):
        row = int(lost.argmax())
        found = f"{strings.iloc[row]} in row {row + 1}, and {int(lost.sum()) - 1:,} more like it"
        raise invalid("time_column", found, "times with all their digits")


def _dates(column: pd.Series) -> pd.Series:
    """Dates of strings, all in one format, and of Python's objects; in UTC unless they say more."""
    if not any(isinstance(value, str) for value in column):
        try:
            return pd.to_datetime(column, errors="coerce", utc=True)
        except (TypeError, ValueError) as error:
            found = f"values such as {column.iloc[0]!r}"
            raise invalid("time_column", found, _ALLOWED, TypeError) from error
    return _read(column.astype(str).str.strip(), "ISO8601")


def _read(column: pd.Series, written: str) -> pd.Series:
    return pd.to_datetime(column, errors="coerce", utc=True, format=written)


def _nanoseconds(
    column: pd.Series, dates: pd.Series, hint: Callable[[pd.Series], str] = lambda column: ""
) -> npt.NDArray[np.int64]:
    """Dates as nanoseconds since 1970; `column` is what they were read from."""
    if isinstance(dates.dtype, pd.DatetimeTZDtype):
        dates = dates.dt.tz_convert(None)
    stamps = dates.to_numpy()
    size = _UNIT_NANOSECONDS[np.datetime_data(stamps.dtype)[0]]
    numbers = stamps.astype(np.int64)
    # "Not a time" is the smallest integer, so that it lies outside as well.
    outside = (numbers < -_NANOSECONDS // size) | (numbers > _NANOSECONDS // size)
    _refuse(column, outside | np.isnat(stamps), hint)
    return numbers * size
