"""Delimited text: RecBole atomic files, CSV, TSV and similar, with every line accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import MISSING, PREVIEWED, Kind, Names, Table
from alphafuse_ext.data._text import (
    BLOCKS,
    Quoted,
    Text,
    count_filled_lines,
    find_quoted,
    line_of,
    quoted_value,
    records,
    refuse_other_encodings,
)
from alphafuse_ext.logs import Log

DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}

# RecBole's field types: a `_seq` has values separated by spaces.
_FIELD_KINDS: dict[str, Kind] = {
    "token": "unknown",
    "token_seq": "list",
    "float": "number",
    "float_seq": "numbers",
}
# Replaces a delimiter of several bytes, which pyarrow does not support; it does not occur in texts.
_UNIT_SEPARATOR = b"\x1f"
# If lines inside a quoted value would be rows without the quotes, and have at least this many
# delimiters in total, this is not a coincidence.
_EVIDENCE = 4


@dataclass(frozen=True)
class Layout:
    """How a text file is laid out, where it differs from the format's default.

    Attributes:
        delimiter: one character or more; default: a comma in `.csv` files, a tab in `.tsv`,
            `.inter` and `.item` files.
        header: column names of a file without a header line.
        quotes: whether values may be quoted. Default: not in `.inter` and `.item` files nor with
            a delimiter of several characters; with tabs only if all quotation marks of the file
            are paired; otherwise yes.
        encoding: its name in Python; default: UTF-8, or that of a byte order mark.
    """

    delimiter: str | None = None
    header: Sequence[str] | None = None
    quotes: bool | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (
            not self.delimiter or any(mark in self.delimiter for mark in '"\r\n')
        ):
            allowed = "one character or more, no quotation mark and no line end"
            raise invalid("delimiter", repr(self.delimiter), allowed)
        if self.header is not None and (
            isinstance(self.header, str) or len(set(self.header)) < len(self.header)
        ):
            raise invalid("header", repr(self.header), "a list of distinct column names")
        if self.quotes and self.delimiter is not None and len(self.delimiter.encode()) > 1:
            found = f"True beside the delimiter {self.delimiter!r}"
            raise invalid("quotes", found, "False, or a delimiter of one byte")


def open_delimited(
    argument: str, name: str, suffix: str, text: Text, layout: Layout, log: Log | None
) -> Table:
    """The table of a delimited text.

    Args:
        argument: the file's in messages.
        name: the file's in messages.
        suffix: of the file's name, in lower case, which determines the dialect where `layout` does
            not.
        text: content in UTF-8.
        layout: of the file.
        log: called with lines about quotation marks, and lines that are not rows.

    Raises:
        ValueError: quotation marks that do not pair up, or a header that does not fit.
    """
    delimiter = (layout.delimiter or DELIMITERS[suffix]).encode()
    quotes = layout.quotes
    if len(delimiter) > 1:
        if text.find(_UNIT_SEPARATOR) >= 0:
            raise invalid(argument, f"{name}, which holds the character 0x1F", "text without it")
        text, delimiter = bytes(text).replace(delimiter, _UNIT_SEPARATOR), _UNIT_SEPARATOR
        quotes = False
    if quotes is None and suffix in (".inter", ".item"):
        # RecBole does not quote titles.
        quotes = False
    file = _File(argument, name, text, delimiter)
    quoted = file.quoted(quotes, certain=delimiter != b"\t", log=log)
    return file.table(quoted, layout.header, atomic=suffix in (".inter", ".item"), log=log)


@dataclass(frozen=True)
class _File:
    """A text and the byte between its values; `argument` and `name` are its own in messages."""

    argument: str
    name: str
    text: Text
    delimiter: bytes

    def quoted(self, quotes: bool | None, certain: bool, log: Log | None) -> Quoted | None:
        """The quoted values; None if quotation marks are part of the values.

        Args:
            quotes: True or False if given.
            certain: whether files of this kind always support quotes.
            log: called with a line if quotation marks are read as part of the values.
        """
        if quotes is False or self.text.find(b'"') < 0:
            return None
        quoted = find_quoted(self.text, self.delimiter)
        if quotes is None and not certain:
            rows_of_lines = bool(quoted.spans) and self._uneven(None) is None
            if quoted.fault is not None or rows_of_lines:
                if log is not None:
                    log(f"{self.argument}: quotation marks are taken for part of the values")
                return None
        allowed = "marks that pair up, doubled inside a value, or quotes=False (--no-quotes)"
        if quoted.fault is not None:
            position, how = quoted.fault
            line = line_of(self.text, position)
            found = f"{self.name}, where line {line} opens a value with a quotation mark that {how}"
            raise invalid(self.argument, found, allowed)
        if quotes is None and (line_with_rows := self._swallowed(quoted)) is not None:
            found = f"{self.name}, where the quoted value that line {line_with_rows} opens holds"
            raise invalid(self.argument, f"{found} whole rows", f"{allowed}, or quotes=True")
        return quoted

    def _swallowed(self, quoted: Quoted) -> int | None:
        """The line of a quoted value that seems to contain rows, if there is one."""
        delimiters = len(self._header(quoted)) - 1
        for start, end in quoted.spans:
            line_start = self.text.rfind(b"\n", 0, start) + 1
            line_end = self.text.find(b"\n", end)
            lines = self.text[line_start : line_end if line_end >= 0 else len(self.text)]
            rows = [line.count(self.delimiter) == delimiters for line in lines.split(b"\n")]
            swallowed = len(rows) - 1 if all(rows) else len(rows) - 2 if all(rows[1:-1]) else 0
            if swallowed * delimiters >= _EVIDENCE:
                return line_of(self.text, start)
        return None

    def table(
        self, quoted: Quoted | None, header: Sequence[str] | None, atomic: bool, log: Log | None
    ) -> Table:
        """The table, with column names from `header` or the first line.

        Args:
            quoted: of :meth:`quoted`.
            header: column names, unless the file has a header.
            atomic: whether names have RecBole's types.
            log: called with a line about lines that are not rows.
        """
        fields = self._header(quoted)
        if header is not None:
            fields = self._checked(list(header), fields)
        types = [field.rpartition(":")[2] for field in fields]
        atomic = atomic or all(kind in _FIELD_KINDS for kind in types)
        names = [(field.split(":")[0] if atomic else field).strip() for field in fields]
        kinds: dict[str, Kind] = {
            name: _FIELD_KINDS.get(kind, "unknown") if atomic else "unknown"
            for name, kind in zip(names, types, strict=True)
        }
        field_of = dict(zip(names, fields, strict=True))

        def load(tokens: Names, texts: Names, others: Names) -> pd.DataFrame:
            columns = [*tokens, *texts, *others]
            convert_options = pa_csv.ConvertOptions(
                include_columns=[field_of[name] for name in columns],
                column_types={
                    **{field_of[name]: pa.dictionary(pa.int32(), pa.string()) for name in tokens},
                    **{field_of[name]: pa.string() for name in texts},
                },
                null_values=MISSING,
            )
            table = self._read(quoted, header, convert_options)
            self._account(table, quoted, header is None, log)
            return table.rename_columns(columns).to_pandas()

        def preview(columns: Names) -> pd.DataFrame:
            lines = islice(records(self.text, quoted.spans if quoted else []), PREVIEWED)
            text = b"\n".join(line for _, line in lines)
            convert_options = pa_csv.ConvertOptions(
                include_columns=[field_of[name] for name in columns],
                column_types={field_of[name]: pa.string() for name in columns},
            )
            table = replace(self, text=text)._read(quoted, header, convert_options)
            return table.rename_columns(list(columns)).to_pandas()

        return Table(self.name, names, kinds, load, preview, typed=False)

    def _header(self, quoted: Quoted | None) -> list[str]:
        """The values of the first non-blank line."""
        _, record = next(records(self.text, quoted.spans if quoted else []), (0, b""))
        if not record:
            raise invalid(self.argument, f"{self.name}, which is empty", "a header and rows")
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(record + b"\n"),
                read_options=pa_csv.ReadOptions(block_size=len(record) + 1),
                parse_options=self._parse_options(quoted),
            )
            return table.column_names
        except (pa.ArrowException, UnicodeDecodeError) as error:
            refuse_other_encodings(self.argument, self.name, self.text)
            found = f"{self.name}, whose first line is unreadable: {error}"
            raise invalid(self.argument, found, "the names of the columns") from error

    def _checked(self, header: list[str], first: list[str]) -> list[str]:
        """`header`, if it can be that of a file with `first` as its first row."""
        if len(header) != len(first):
            found = f"{len(header)} names for the {len(first)} values of a line of {self.name}"
            raise invalid("header", found, "as many names as values")
        if any(a.strip().lower() == b.strip().lower() for a, b in zip(header, first, strict=True)):
            found = f"{header} for {self.name}, which begins with {first}"
            raise invalid("header", found, "None for a file that begins with its header")
        return header

    def _parse_options(self, quoted: Quoted | None) -> pa_csv.ParseOptions:
        return pa_csv.ParseOptions(
            delimiter=self.delimiter.decode("latin-1"),
            quote_char=False if quoted is None else '"',
            newlines_in_values=quoted is not None and bool(quoted.spans),
        )

    def _read(
        self,
        quoted: Quoted | None,
        header: Sequence[str] | None,
        convert_options: pa_csv.ConvertOptions,
    ) -> pa.Table:
        # A row must fit into a pyarrow block.
        for block in BLOCKS:
            try:
                return pa_csv.read_csv(
                    pa.BufferReader(self.text),
                    pa_csv.ReadOptions(block_size=block, column_names=header),
                    self._parse_options(quoted),
                    convert_options,
                )
            except pa.ArrowException as error:
                if block < min(len(self.text), BLOCKS[-1]):
                    continue
                width = len(self._header(quoted))
                uneven = self._uneven(quoted)
                if uneven is not None:
                    line, count = line_of(self.text, uneven[0]), uneven[1]
                    found = f"{self.name}, where line {line} splits into {count}"
                    allowed = f"{width} values in every line, as in the first"
                    raise invalid(self.argument, found, allowed) from error
                refuse_other_encodings(self.argument, self.name, self.text)
                found = f"{self.name}, which is unreadable: {error}"
                raise invalid(self.argument, found, "delimited text") from error
        raise AssertionError("the last block is never passed over")

    def _uneven(self, quoted: Quoted | None) -> tuple[int, int] | None:
        """The first line with more or fewer values than the header, and their number."""
        value = quoted_value(self.delimiter)
        width = None
        for position, record in records(self.text, quoted.spans if quoted else []):
            bare = record if quoted is None else value.sub(b"", record)
            count = bare.count(self.delimiter) + 1
            width = width or count
            if count != width:
                return position, count
        return None

    def _account(
        self, table: pa.Table, quoted: Quoted | None, has_header: bool, log: Log | None
    ) -> None:
        """Refuse a table with fewer or more rows than the text has lines that are rows."""
        inside = quoted.filled_lines_inside if quoted else 0
        rows = count_filled_lines(self.text) - inside - has_header
        if table.num_rows != rows:
            found = f"{self.name}, of whose {rows:,} rows {table.num_rows:,} were read"
            raise invalid(self.argument, found, "lines that end with a line feed")
        if log is not None and inside:
            log(f"{self.argument}: {inside:,} lines of {self.name} belong to quoted values")
