"""Tabular sources, read by column: delimited text, JSON lines, Parquet, data frames and tables."""

from __future__ import annotations

import datetime
import lzma
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import PREVIEWED, Kind, Names, Table
from alphafuse_ext.data._delimited import DELIMITERS, Layout, open_delimited
from alphafuse_ext.data._text import (
    BLOCK,
    COMPRESSIONS,
    Text,
    count_filled_lines,
    decode,
    first_beyond_depth,
    line_of,
    read_bytes,
    refuse_other_encodings,
)
from alphafuse_ext.files import UnreadableFileError, check_schema
from alphafuse_ext.logs import Log

# A path, a pandas or polars DataFrame, a pyarrow table, or anything else with Arrow columns.
Source: TypeAlias = Any

# Maximum nesting depth of JSON: column types are processed recursively, here and in pyarrow.
_DEEPEST = 100
_JSON = (".jsonl", ".ndjson", ".json")
_FORMATS = (
    f"a data frame, a file {', '.join((*DELIMITERS, *_JSON))} or .parquet, each of them also with "
    f"{', '.join(COMPRESSIONS)}, a folder of .parquet files, or a "
    "Dataset of Hugging Face, which a DatasetDict has as one of its splits"
)
_TEXT_FORMATS = f"{_FORMATS}; any other text file with a delimiter"
# What the libraries raise on damaged files.
_UNREADABLE = (pa.ArrowException, OSError, EOFError, lzma.LZMAError)


def _is_hugging_face(source: object) -> bool:
    """Whether a source is a `datasets.Dataset`, without importing that package."""
    kind = type(source)
    return kind.__name__ == "Dataset" and kind.__module__.partition(".")[0] == "datasets"


def is_table(source: object) -> bool:
    """Whether a source is a table by its type, or by the name of its file, no layout given."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return path.is_dir() or _suffixes(path)[0] in (*DELIMITERS, *_JSON, ".parquet")
    ways = ("__arrow_c_stream__", "__arrow_c_array__", "to_arrow")
    if isinstance(source, pd.DataFrame) or _is_hugging_face(source):
        return True
    return any(hasattr(source, way) for way in ways)


def is_delimited(source: Source) -> bool:
    """Whether a source is a file to which a :class:`Layout` applies."""
    if not isinstance(source, (str, os.PathLike)) or Path(source).is_dir():
        return False
    return _suffixes(Path(source))[0] not in (*_JSON, ".parquet")


def open_table(
    argument: str, source: Source, layout: Layout | None = None, log: Log | None = None
) -> Table:
    """Find the columns of a source.

    Args:
        argument: the source's name in messages.
        source: a path or a table.
        layout: of a delimited text file.
        log: called with a line about lines of a text file that are not rows.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: `source` is neither a path nor a table.
        ValueError: an unknown suffix, an empty or unreadable file, a column named twice, or a
            layout of what is no delimited text.
    """
    if layout is not None and not is_delimited(source):
        found = f"{layout} for {origin(source)}"
        raise invalid("layout", found, "None, or a delimited text file")
    if isinstance(source, (str, os.PathLike)):
        table = _open_path(argument, Path(source), layout or Layout(), log)
    elif isinstance(source, pd.DataFrame):
        table = _open_frame(argument, source)
    else:
        table = _open_arrow_object(argument, source)
    # Spreadsheets write unnamed columns at the end of lines.
    named = [name for name in table.columns if name]
    twice = sorted(name for name, count in Counter(named).items() if count > 1)
    if twice:
        found = f"{table.name} with columns named twice: {twice[:5]}"
        raise invalid(argument, found, "distinct names")
    return table


def origin(source: object) -> str:
    """The origin of a source, for a run's record: an absolute path, or the object's type."""
    if isinstance(source, (str, os.PathLike)):
        return os.path.abspath(source)
    return type(source).__name__


def same_source(one: object, other: object) -> bool:
    """Whether two sources are one object, or paths of one file."""
    if isinstance(one, (str, os.PathLike)) and isinstance(other, (str, os.PathLike)):
        return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
    return one is not None and one is other


def _suffixes(path: Path) -> tuple[str, str | None]:
    """The suffix that determines the format, in lower case, and the compression."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return path.with_suffix("").suffix.lower(), COMPRESSIONS[suffix]
    return suffix, None


def _open_path(argument: str, path: Path, layout: Layout, log: Log | None) -> Table:
    if not path.exists():
        raise invalid(argument, f"{path}, which does not exist", _FORMATS, FileNotFoundError)
    if path.is_dir():
        return _open_folder(argument, path)
    if path.is_char_device() or path.is_block_device():
        raise invalid(argument, f"{path}, which is a device", "a file or a pipe")
    if not is_table(path) and layout.delimiter is None:
        raise invalid(argument, path, _TEXT_FORMATS)
    suffix, compression = _suffixes(path)
    try:
        data = read_bytes(path, compression)
    except _UNREADABLE as error:
        raise _unreadable(argument, path, error) from error
    if len(data) == 0:
        raise invalid(argument, f"{path}, which is empty", "a file with columns and rows")
    if suffix == ".parquet":
        return _open_parquet(argument, path, data)
    text = decode(argument, str(path), data, layout.encoding)
    if suffix in _JSON:
        return _open_json(argument, path, text)
    return open_delimited(argument, str(path), suffix, text, layout, log)


def _unreadable(argument: str, path: Path, error: object) -> ValueError:
    reason = str(error) or type(error).__name__
    return invalid(argument, f"{path}, which is unreadable: {reason}", "a whole file of its format")


def _open_frame(argument: str, frame: pd.DataFrame) -> Table:
    several = next((name for name in frame.columns if isinstance(name, tuple)), None)
    if several is not None:
        found = f"a DataFrame with a column named {several}"
        raise invalid(argument, found, "a string for the name of every column")
    # A table indexed by user, item or time has them in its index.
    if isinstance(frame.index, pd.DatetimeIndex) or any(frame.index.names):
        levels = [name for name in frame.index.names if name is None or name not in frame.columns]
        frame = frame.reset_index(level=levels)
    frame = frame.copy(deep=False)
    frame.columns = pd.Index([str(name) for name in frame.columns])

    def load(tokens: Names, texts: Names, others: Names) -> pd.DataFrame:
        return as_numpy(frame[[*tokens, *texts, *others]].reset_index(drop=True))

    def preview(columns: Names) -> pd.DataFrame:
        return as_numpy(frame[list(columns)].head(PREVIEWED))

    def as_numpy(part: pd.DataFrame) -> pd.DataFrame:
        arrow = [name for name in part if isinstance(part[name].dtype, pd.ArrowDtype)]
        if not arrow:
            return part
        table = pa.Table.from_pandas(part[arrow], preserve_index=False)
        return part.assign(**dict(_to_pandas(argument, "the DataFrame", table).items()))

    kinds = {name: _kind_of_series(column) for name, column in frame.items()}
    return Table("the DataFrame", list(frame.columns), kinds, load, preview)


def _kind_of_series(column: pd.Series) -> Kind:
    if isinstance(column.dtype, pd.ArrowDtype):
        return _kind_of_type(column.dtype.pyarrow_dtype)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return "number"
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return "time"
    if column.dtype != object:
        return "unknown"
    first = next((cell for cell in column if cell is not None and cell is not pd.NA), None)
    if isinstance(first, datetime.date):
        return "time"
    if isinstance(first, (list, tuple, np.ndarray)):
        return "numbers" if len(first) and isinstance(first[0], (float, np.floating)) else "list"
    return "unknown"


def _open_arrow_object(argument: str, source: object) -> Table:
    """A pyarrow table, a polars frame, or anything else with Arrow columns."""
    if _is_hugging_face(source):
        return _open_hugging_face(argument, source)
    try:
        if hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
            table = pa.table(source)
        elif hasattr(source, "to_arrow"):
            table = pa.table(source.to_arrow())
        else:
            raise TypeError("no Arrow columns")
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise invalid(argument, f"a {type(source).__name__}", _FORMATS, TypeError) from error
    return _open_arrow(argument, f"the {type(source).__name__}", table.schema, table.select)


def _open_hugging_face(argument: str, source: Any) -> Table:
    """A `datasets.Dataset`, whose rows may be some of those of the table below, in any order."""

    def read(columns: list[str]) -> pa.Table:
        return source.select_columns(columns).with_format("arrow")[:]

    return _open_arrow(argument, "the datasets.Dataset", source.features.arrow_schema, read)


def _open_parquet(argument: str, path: Path, data: Text) -> Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except _UNREADABLE as error:
        raise _unreadable(argument, path, error) from error

    def read(columns: list[str]) -> pa.Table:
        try:
            return file.read(columns)
        except _UNREADABLE as error:
            raise _unreadable(argument, path, error) from error

    _check_schema(argument, path, file.schema_arrow)
    return _open_arrow(argument, str(path), file.schema_arrow, read)


def _open_folder(argument: str, path: Path) -> Table:
    """A folder of Parquet files, as Spark writes it; its subfolders may be `column=value`."""
    files = sorted(
        str(file)
        for file in path.rglob("*.parquet")
        if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
    )
    if not files:
        raise invalid(argument, f"{path}, a folder without .parquet files", _FORMATS)
    partitioning = pa_dataset.partitioning(flavor="hive")
    try:
        folder = pa_dataset.dataset(
            files, format="parquet", partitioning=partitioning, partition_base_dir=str(path)
        )
    except _UNREADABLE as error:
        raise _unreadable(argument, path, error) from error

    def read(columns: list[str]) -> pa.Table:
        try:
            return folder.to_table(columns)
        except _UNREADABLE as error:
            raise _unreadable(argument, path, error) from error

    _check_schema(argument, path, folder.schema)
    return _open_arrow(argument, str(path), folder.schema, read)


def _check_schema(argument: str, path: Path, schema: pa.Schema) -> None:
    try:
        check_schema(path, schema)
    except UnreadableFileError as error:
        raise _unreadable(argument, path, error.reason) from error


def _open_json(argument: str, path: Path, text: Text) -> Table:
    """A file of one JSON object a line."""
    refuse_other_encodings(argument, str(path), text)
    place = first_beyond_depth(text, _DEEPEST)
    if place is not None:
        found = f"{path}, whose line {line_of(text, place)} nests more than {_DEEPEST} deep"
        raise invalid(argument, found, "one JSON object a line, of values or lists")
    table = _read_json(argument, path, text, pa.schema([]))
    # JSON has no dates: strings that pyarrow parses as dates may be titles.
    dates = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if dates:
        strings = pa.schema([(name, pa.string()) for name in dates])
        table = _read_json(argument, path, text, strings)
    lines = count_filled_lines(text)
    if table.num_rows != lines:
        found = f"{path}, with {table.num_rows:,} objects in {lines:,} lines"
        raise invalid(argument, found, "one JSON object a line")
    return _open_arrow(argument, str(path), table.schema, table.select)


def _read_json(argument: str, path: Path, text: Text, schema: pa.Schema) -> pa.Table:
    try:
        return pa_json.read_json(
            pa.BufferReader(text),
            pa_json.ReadOptions(block_size=BLOCK),
            pa_json.ParseOptions(explicit_schema=schema),
        )
    except pa.ArrowException as error:
        found = f"{path}, which is unreadable: {error}"
        raise invalid(argument, found, "one JSON object a line, alike in types") from error


def _open_arrow(
    argument: str, name: str, schema: pa.Schema, read: Callable[[list[str]], pa.Table]
) -> Table:
    def load(tokens: Names, texts: Names, others: Names) -> pd.DataFrame:
        return _to_pandas(argument, name, read([*tokens, *texts, *others]), tokens)

    def preview(columns: Names) -> pd.DataFrame:
        return _to_pandas(argument, name, read(list(columns)).slice(0, PREVIEWED))

    kinds = {field.name: _kind_of_type(field.type) for field in schema}
    return Table(name, schema.names, kinds, load, preview)


def _to_pandas(argument: str, name: str, table: pa.Table, tokens: Names = ()) -> pd.DataFrame:
    """The frame, in types of NumPy, of a table that messages call `name`.

    Strings among the `tokens` become categories: a Python string for each row would be too much.
    """
    try:
        table.validate(full=True)
    except pa.ArrowException as error:  # strings that are not UTF-8, or what is damaged
        raise invalid(argument, f"{name}, which is unreadable: {error}", "valid columns") from error
    plain = [field.with_type(_plain_type(field.type)) for field in table.schema]
    try:
        cast = table.cast(pa.schema(plain))
        del table
        release = pa.default_memory_pool().release_unused  # what reading needed for a while
        release()
        kinds = {field.name: field.type for field in cast.schema}
        strings = [each for each in tokens if kinds[each] in (pa.string(), pa.large_string())]
        plain_columns = cast.drop_columns(strings)
        frame = plain_columns.to_pandas(ignore_metadata=True, date_as_object=False)
        for each in strings:
            frame[each] = _as_categories(cast[each])
        del cast, plain_columns
        release()
        return frame
    except pa.ArrowException as error:
        found = f"{name}, with columns of types that are not understood: {error}"
        raise invalid(argument, found, "strings, numbers, dates or lists of these") from error


def _as_categories(column: pa.ChunkedArray) -> pd.Categorical:
    """Strings by number. pyarrow would make them with several copies of each distinct one."""
    encoded = column.dictionary_encode().combine_chunks()
    codes = encoded.indices.fill_null(-1).to_numpy()
    strings = pd.Index(encoded.dictionary.to_numpy(zero_copy_only=False), dtype=object)
    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(strings), validate=False)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that pandas knows a column in; databases write integers as decimals."""
    if pa.types.is_decimal(kind):
        return pa.int64() if kind.scale == 0 else pa.float64()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    # Older versions of pyarrow have no name for this one.
    return pa.large_string() if str(kind) == "string_view" else kind


def _kind_of_type(kind: pa.DataType) -> Kind:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_kind(kind) for is_kind in is_list):
        return "numbers" if pa.types.is_floating(kind.value_type) else "list"
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    if any(is_kind(kind) for is_kind in numeric):
        return "number"
    return "time" if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else "unknown"
