"""Tabular sources, read by column: RecBole atomic files, CSV, TSV, Parquet and DataFrames."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from alphafuse_ext.checks import invalid

Source: TypeAlias = str | os.PathLike[str] | pd.DataFrame
Log: TypeAlias = Callable[[str], object]

# How the text formats write "no value" where one is needed. A user or an item of such a name is
# far rarer than a missing one, and taking it as a name would merge unrelated rows in silence.
MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "<NA>", "NULL", "null", "None"]

# Compared as `find_column` compares; both interactions and catalogs have this column.
ITEM_COLUMNS = (
    *("itemid", "item", "iid", "asin", "parentasin", "productid", "product", "sku"),
    *("movieid", "movie", "bookid", "isbn", "songid", "trackid", "gameid", "articleid", "newsid"),
    *("businessid", "venueid"),
)

_FORMATS = "a DataFrame, or a file .inter, .item, .csv, .tsv or .parquet"


@dataclass(frozen=True)
class Table:
    """A source whose columns are known and whose rows are yet unread.

    Attributes:
        name: how messages call it.
        columns: the columns' names; a RecBole file's without their types.
        may_be_text: for each column, False where the header says that it holds numbers.
        load: reads the columns named in three lists: tokens, texts and others. Where the format
            has no types, tokens and texts arrive as strings, the others as pandas infers them;
            `MISSING` is null, save in tokens and texts.
        typed: whether the format has types; where it has none, a token is what its text says.
    """

    name: str
    columns: list[str]
    may_be_text: dict[str, bool]
    load: Callable[[Sequence[str], Sequence[str], Sequence[str]], pd.DataFrame]
    typed: bool = True


def open_table(argument: str, source: Source) -> Table:
    """Find the columns of a source, which the caller was given as `argument`.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `source` is neither a path nor a DataFrame.
        ValueError: an unknown suffix, an empty or unreadable file, or a column named twice.
    """
    if isinstance(source, pd.DataFrame):
        table = _open_frame(source)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise invalid(argument, f"{path}, which does not exist", _FORMATS, FileNotFoundError)
        if path.suffix not in {".inter", ".item", ".csv", ".tsv", ".parquet"} or not path.is_file():
            raise invalid(argument, path, _FORMATS)
        if path.stat().st_size == 0:
            raise invalid(argument, f"{path}, which is empty", "a file with a header and rows")
        open_file = _open_parquet if path.suffix == ".parquet" else _open_delimited
        table = open_file(argument, path)
    else:
        raise invalid(argument, type(source).__name__, _FORMATS, TypeError)
    twice = sorted({name for name in table.columns if table.columns.count(name) > 1})
    if twice:
        raise invalid(argument, f"{table.name} with columns named twice: {twice}", "distinct names")
    return table


def _open_frame(frame: pd.DataFrame) -> Table:
    frame = frame.rename(columns=str)

    def load(tokens: Sequence[str], texts: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
        return frame[[*tokens, *texts, *others]].reset_index(drop=True)

    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]
    may_be_text = {name: not number for name, number in zip(frame.columns, numeric, strict=True)}
    return Table("the DataFrame", list(frame.columns), may_be_text, load)


def _open_parquet(argument: str, path: Path) -> Table:
    with _readable(argument, path, "a whole Parquet file"):
        schema = pq.read_schema(path)

    def load(tokens: Sequence[str], texts: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
        with _readable(argument, path, "a whole Parquet file"):
            table = pq.read_table(path, columns=[*tokens, *texts, *others])
        return table.to_pandas(ignore_metadata=True)

    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    may_be_text = {
        field.name: not any(is_kind(field.type) for is_kind in numeric) for field in schema
    }
    return Table(str(path), schema.names, may_be_text, load)


def _open_delimited(argument: str, path: Path) -> Table:
    atomic = path.suffix in {".inter", ".item"}
    # RecBole writes titles as they are: a lone quotation mark must not swallow lines.
    parse_options = pa_csv.ParseOptions(
        delimiter="," if path.suffix == ".csv" else "\t",
        quote_char=False if atomic else '"',
        newlines_in_values=not atomic,
    )
    expected = "UTF-8, with as many fields in every row as in the header"
    with _readable(argument, path, expected):
        fields = pa_csv.open_csv(path, parse_options=parse_options).schema.names
    names = [field.split(":")[0].strip() if atomic else field.strip() for field in fields]
    field_of = dict(zip(names, fields, strict=True))
    may_be_text = {
        name: not (atomic and field.endswith((":float", ":float_seq")))
        for name, field in field_of.items()
    }

    def load(tokens: Sequence[str], texts: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
        columns = [*tokens, *texts, *others]
        convert_options = pa_csv.ConvertOptions(
            include_columns=[field_of[name] for name in columns],
            column_types={field_of[name]: pa.string() for name in [*tokens, *texts]},
            null_values=MISSING,
        )
        with _readable(argument, path, expected):
            table = pa_csv.read_csv(
                path, parse_options=parse_options, convert_options=convert_options
            )
        return table.rename_columns(columns).to_pandas()

    return Table(str(path), names, may_be_text, load, typed=False)


def origin(source: object) -> str:
    """Where a source came from, for a run's record: a file's whole path, or the object's type."""
    if isinstance(source, (str, os.PathLike)):
        return os.path.abspath(source)
    return type(source).__name__


@contextmanager
def _readable(argument: str, path: Path, expected: str) -> Iterator[None]:
    """Turn the reader's own errors into one about the argument."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise invalid(argument, f"{path}, which is unreadable: {error}", expected) from error


def find_column(
    table: Table, argument: str, given: str | None, candidates: Sequence[str]
) -> str | None:
    """The column `given`, else the one whose name is among `candidates`, else None.

    Names are compared in lower case, letters and digits only: `User_ID` is `userid`.

    Raises:
        ValueError: `given` is no column, or several columns could be meant.
    """
    if given is not None:
        if given not in table.columns:
            raise invalid(
                argument, repr(given), f"one of the columns {table.columns} of {table.name}"
            )
        return given
    fitting = [name for name in table.columns if _plain(name) in candidates]
    if len(fitting) > 1:
        found = f"None, while each of {fitting} could be meant"
        raise invalid(argument, found, f"one of the columns {table.columns} of {table.name}")
    return fitting[0] if fitting else None


def pick_column(table: Table, argument: str, given: str | None, candidates: Sequence[str]) -> str:
    """As `find_column`, where there has to be one."""
    name = find_column(table, argument, given, candidates)
    if name is None:
        found = "None, and no column has a name that tells"
        raise invalid(argument, found, f"one of the columns {table.columns} of {table.name}")
    return name


def pick_texts(table: Table, candidates: Sequence[str]) -> list[str]:
    """Every column that may hold text and has a name among `candidates`, in their order."""
    fitting = [
        name for name in table.columns if table.may_be_text[name] and _plain(name) in candidates
    ]
    return sorted(fitting, key=lambda name: candidates.index(_plain(name)))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def first_few(tokens: Sequence[Any] | npt.NDArray[Any], count: int = 5) -> str:
    """The first tokens and how many there are, for a message."""
    shown = ", ".join(repr(str(token)) for token in tokens[:count])
    return f"{shown}, ... ({len(tokens)} in all)" if len(tokens) > count else shown
