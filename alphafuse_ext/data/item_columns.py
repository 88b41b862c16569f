"""Columns of the catalog that recommendations are filtered by, and counted by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import MISSING

MOST_COLUMNS, MOST_VALUES, LONGEST = 100, 10_000, 200
"""What is kept of a catalog: columns, different strings of one (or a tenth of the items, if that is
more), characters of a string."""


def as_text(cell: Any) -> str:
    """One cell of a text column: a string, a list of strings (as Parquet has them), or nothing."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, (list, tuple, np.ndarray)):
        return " ".join(filter(None, map(as_text, cell)))
    return "" if pd.isna(cell) else str(cell)


def bounded(columns: Mapping[str, pd.Series]) -> pd.DataFrame | None:
    """Those that are kept: numbers, and strings as categories, "" and NaN as missing.

    Args:
        columns: by name, of equal lengths.

    Returns:
        ``None``: none is kept.
    """
    found = {}
    for name, cells in columns.items():
        column = cells.reset_index(drop=True)
        if pd.api.types.is_numeric_dtype(column.dtype):
            nullable = pd.api.types.is_extension_array_dtype(column.dtype)
            found[name] = column.astype(np.float64) if nullable else column
            continue
        if pd.api.types.is_datetime64_any_dtype(column.dtype):
            column = column.map(lambda time: "" if pd.isna(time) else time.isoformat())
        strings = pd.Series([as_text(cell) or None for cell in column], dtype=object)
        distinct = strings.dropna().unique()
        most = max(MOST_VALUES, len(column) // 10)
        if 0 < len(distinct) <= most and max(map(len, distinct)) <= LONGEST:
            found[name] = pd.Series(pd.Categorical(strings, sorted(distinct)))
    return pd.DataFrame(dict(list(found.items())[:MOST_COLUMNS])) if found else None


def written(cells: pd.Series) -> pd.Series:
    """The numbers or strings of a column of a text file, which has no types."""
    bare = cells.str.strip()
    strings = bare.where(~bare.isin([*MISSING, ""]))
    numbers = pd.to_numeric(strings, errors="coerce")
    return strings if (numbers.isna() & strings.notna()).any() else numbers


def extended(columns: pd.DataFrame, others: pd.DataFrame | None, count: int) -> pd.DataFrame:
    """Columns of a catalog with those of ``count`` new items behind; what these lack is missing.

    Raises:
        TypeError: strings in a column of numbers.
    """
    found = {}
    for name, column in columns.items():
        new = pd.Series([None] * count, dtype=object)
        if others is not None and name in others:
            new = others[name].astype(object)
        if isinstance(column.dtype, pd.CategoricalDtype):
            strings = [None if pd.isna(cell) else str(cell) for cell in new]
            both = [*column.astype(object), *strings]
            known = {*column.cat.categories, *strings} - {None}
            found[name] = pd.Series(pd.Categorical(both, sorted(known)))
            continue
        numbers = pd.to_numeric(new, errors="coerce")
        if (numbers.isna() & new.notna()).any():
            text = new[numbers.isna() & new.notna()].iloc[0]
            allowed = "numbers, as in the catalog"
            raise invalid("items", f"{text!r} in column {name!r}", allowed, TypeError)
        found[name] = pd.concat([column, numbers.astype(np.float64)], ignore_index=True)
    return pd.DataFrame(found)


def named_column(argument: str, columns: pd.DataFrame | None, name: Any) -> pd.Series:
    """A column of the catalog.

    Raises:
        ValueError: there is none of that name.
    """
    if columns is None:
        allowed = "None: the run has kept no columns of its catalog"
        raise invalid(argument, repr(name), allowed)
    if name not in columns:
        raise invalid(argument, repr(name), f"one of the item columns {list(columns)}")
    return columns[name]


def matching(
    columns: pd.DataFrame | None, where: Mapping[str, Any]
) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Which items fit all conditions, and the values that no item has, with their columns.

    Args:
        columns: of the catalog.
        where: by column a value, a list of values of which an item has one, or
            ``{"min": ..., "max": ...}``, or one of the two. A missing value fits nothing.

    Raises:
        TypeError, ValueError: no mapping, an unknown column, or values that it cannot have.
    """
    if not isinstance(where, Mapping) or not where:
        found = "none" if where == {} else f"a value of type {type(where).__name__}"
        raise invalid("where", found, "values, or min and max, by item column", TypeError)
    fits: npt.NDArray[np.bool_] | None = None
    absent = []
    for name, wanted in where.items():
        column = named_column("where", columns, name)
        if isinstance(wanted, Mapping):
            one = _within(name, column, wanted)
        else:
            several = isinstance(wanted, (list, tuple, set, np.ndarray))
            values = list(wanted) if several else [wanted]
            cells = [_cell(name, column, value) for value in values]
            known = column.cat.categories if hasattr(column, "cat") else column.unique()
            for value, cell in zip(values, cells, strict=True):
                absent += [] if cell in known else [f"{name} {value!r}"]
            one = column.isin(cells).to_numpy()
        fits = one if fits is None else fits & one
    assert fits is not None, "of one condition or more"
    return fits, absent


def _within(name: str, column: pd.Series, bounds: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    if not bounds or not set(bounds) <= {"min", "max"}:
        raise invalid("where", f"{name} with {list(bounds)}", "min, max or both")
    fits = column.notna().to_numpy()
    compared = column.astype(object).where(column.notna(), "") if hasattr(column, "cat") else column
    for bound, value in bounds.items():
        cell = _cell(name, column, value)
        fits = fits & (compared >= cell if bound == "min" else compared <= cell).to_numpy()
    return fits


def _cell(name: str, column: pd.Series, value: Any) -> Any:
    """A value that is asked for, in the type of its column."""
    if hasattr(column, "cat"):
        if isinstance(value, (str, int, float, np.generic)) and not isinstance(value, bool):
            return str(value)
        raise invalid("where", f"{name} {value!r}", "a string", TypeError)
    if column.dtype == bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if np.isnan(number):
        raise invalid("where", f"{name} {value!r}", "a number: the column holds numbers", TypeError)
    return number
