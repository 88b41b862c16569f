"""Delimited text: RecBole atomic files, CSV, TSV and similar, with every line accounted for."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import MISSING, PREVIEWED, Kind, Names, Table
from alphafuse_ext.data._text import BLOCK, Text, count_filled_lines, refuse_other_encodings
from alphafuse_ext.logs import Log

DELIMITERS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}

# RecBole's field types: a `_seq` has values separated by spaces.
_FIELD_KINDS: dict[str, Kind] = {
    "token": "unknown",
    "token_seq": "list",
    "float": "number",
    "float_seq": "numbers",
}
# If lines inside a quoted value would be rows without the quotes, and have at least this many
# delimiters in total, this is not a coincidence.
_EVIDENCE = 4
_PAIRED = "marks that pair up, doubled inside a value, or quotes=False (--no-quotes)"


@dataclass(frozen=True)
class Layout:
    """How a text file is laid out, where it differs from the format's default.

    Attributes:
        delimiter: one byte; default: a comma in `.csv` files, a tab in `.tsv`, `.inter` and `.item`
            files.
        header: column names of a file without a header line.
        quotes: whether values may be quoted; default: yes, but in `.inter` and `.item` files.
        encoding: its name in Python; default: UTF-8, with or without a byte order mark.
    """

    delimiter: str | None = None
    header: Sequence[str] | None = None
    quotes: bool | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (
            len(self.delimiter.encode()) != 1 or self.delimiter in '"\r\n'
        ):
            allowed = "one ASCII character, no quotation mark and no line end"
            raise invalid("delimiter", repr(self.delimiter), allowed)
        if self.header is not None and (
            isinstance(self.header, str) or len(set(self.header)) < len(self.header)
        ):
            raise invalid("header", repr(self.header), "a list of distinct column names")


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
        log: called with a line about lines that are not rows.

    Raises:
        ValueError: an empty file, or a header that does not fit.
    """
    recbole = suffix in (".inter", ".item")
    delimiter = layout.delimiter or DELIMITERS[suffix]
    # RecBole does not quote titles.
    quotes = not recbole if layout.quotes is None else layout.quotes
    sure = layout.quotes is True
    file = _File(argument, name, text, delimiter, quotes and text.find(b'"') >= 0, sure)
    return file.table(layout.header, recbole, log)


@dataclass(frozen=True)
class _File:
    """A text, and how it is read.

    pyarrow reads it. Python's `csv` names the columns, and where values are quoted it reads all
    rows beforehand, so that none is lost to a quotation mark.

    Attributes:
        argument, name: the file's in messages.
        text: UTF-8.
        delimiter: one byte.
        quotes: whether values may be quoted, and some seem to be.
        sure: whether a quoted value may look as if it held rows.
    """

    argument: str
    name: str
    text: Text
    delimiter: str
    quotes: bool
    sure: bool

    def table(self, header: Sequence[str] | None, atomic: bool, log: Log | None) -> Table:
        """The table, with column names from `header` or the first line.

        Args:
            header: column names, unless the file has a header.
            atomic: whether names have RecBole's types.
            log: called with a line about lines that are not rows.
        """
        _, _, fields = next(self._rows(), (0, 0, None))
        if fields is None:
            raise invalid(self.argument, f"{self.name}, which is empty", "a header and rows")
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
            table = self._read(header, convert_options, log)
            return table.rename_columns(columns).to_pandas()

        def preview(columns: Names) -> pd.DataFrame:
            first = islice(self._rows(), header is None, PREVIEWED + 1)
            rows = [row for _, _, row in first if len(row) == len(names)]
            return pd.DataFrame(rows, columns=names)[list(columns)]

        return Table(self.name, names, kinds, load, preview, typed=False)

    def _checked(self, header: list[str], first: list[str]) -> list[str]:
        """`header`, if it can be that of a file with `first` as its first row."""
        if len(header) != len(first):
            found = f"{len(header)} names for the {len(first)} values of a line of {self.name}"
            raise invalid("header", found, "as many names as values")
        if any(a.strip().lower() == b.strip().lower() for a, b in zip(header, first, strict=True)):
            found = f"{header} for {self.name}, which begins with {first}"
            raise invalid("header", found, "None for a file that begins with its header")
        return header

    def _rows(self) -> Iterator[tuple[int, int, list[str]]]:
        """The first and the last line, and the values, of each row that is not blank."""
        csv.field_size_limit(max(csv.field_size_limit(), BLOCK))
        reader = csv.reader(
            io.TextIOWrapper(pa.BufferReader(self.text), "utf-8", newline=""),
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
            strict=True,
        )
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader, None)
            except UnicodeDecodeError:
                refuse_other_encodings(self.argument, self.name, self.text)
                raise
            except csv.Error as error:
                how = "nothing closes"
                if "end of data" not in str(error):
                    how = f"the next one, in line {reader.line_num}, cannot close: {error}"
                found = f"where line {line} opens a value with a quotation mark that {how}"
                raise invalid(self.argument, f"{self.name}, {found}", _PAIRED) from error
            if values is None:
                return
            if values:
                yield line, reader.line_num, values

    def _check_rows(self) -> tuple[int, bool]:
        """How many rows there are, with the header, and whether one has several lines.

        Raises:
            ValueError: a row of more or fewer values than the first, quotation marks that do not
                pair up, or a quoted value that seems to hold rows.
        """
        count, width, several = 0, 0, False
        for line, last, values in self._rows():
            count, width = count + 1, width or len(values)
            if len(values) != width:
                found = f"{self.name}, where line {line} splits into {len(values)}"
                allowed = f"{width} values in every line, as in the first"
                raise invalid(self.argument, found, allowed)
            if last > line:
                several = True
                if not self.sure and any(map(self._holds_rows, values, repeat(width - 1))):
                    found = f"{self.name}, where the quoted value that line {line} opens holds"
                    raise invalid(
                        self.argument, f"{found} whole rows", f"{_PAIRED}, or quotes=True"
                    )
        return count, several

    def _holds_rows(self, value: str, delimiters: int) -> bool:
        """Whether the lines inside a value would all be rows, too many to be a coincidence."""
        inside = value.split("\n")[1:-1]
        rows = all(line.count(self.delimiter) == delimiters for line in inside)
        return rows and len(inside) * delimiters >= _EVIDENCE

    def _read(
        self,
        header: Sequence[str] | None,
        convert_options: pa_csv.ConvertOptions,
        log: Log | None,
    ) -> pa.Table:
        """The table; an error where it has fewer or more rows than the text."""
        lines = rows = count_filled_lines(self.text)
        several = False
        if self.quotes:
            rows, several = self._check_rows()
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(self.text),
                pa_csv.ReadOptions(block_size=BLOCK, column_names=header),
                pa_csv.ParseOptions(
                    delimiter=self.delimiter,
                    quote_char='"' if self.quotes else False,
                    newlines_in_values=several,
                ),
                convert_options,
            )
        except pa.ArrowException as error:
            self._check_rows()
            refuse_other_encodings(self.argument, self.name, self.text)
            found = f"{self.name}, which is unreadable: {error}"
            raise invalid(self.argument, found, "delimited text") from error
        rows -= header is None
        if table.num_rows != rows or rows > lines:
            found = f"{self.name}, of whose {rows:,} rows {table.num_rows:,} were read"
            raise invalid(self.argument, found, "lines that end with a line feed")
        if log is not None and several:
            inside = lines - rows - (header is None)
            log(f"{self.argument}: {inside:,} lines of {self.name} belong to quoted values")
        return table
