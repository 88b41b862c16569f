"""The bytes of a text file: decompressed and in UTF-8, with every line accounted for."""

from __future__ import annotations

import codecs
import lzma
import mmap
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from alphafuse_ext.checks import invalid

# Both support `find` and regular expressions; a memory map leaves the file on disk.
Text: TypeAlias = bytes | mmap.mmap

# Block sizes of pyarrow in bytes: the smallest that fits all rows is used.
BLOCKS = (1 << 23, 1 << 26, (1 << 31) - 1)
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHER_FILES = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\xfd7zXZ": ".xz",
    b"PAR1": ".parquet",
    b"PK\x03\x04": ".zip or .xlsx",
}
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FILLED_LINE_INSIDE = re.compile(rb"\n(?!\r?\n)")
_CHUNK = 64 << 20
# The bytes that say how deep JSON is, and what each does to the depth.
_STRUCTURE = list(b'"[]{}\n')
_VALUES = bytes(set(range(256)) - set(_STRUCTURE))
_STEPS = np.zeros(256, dtype=np.int64)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_DEPTH_CHUNK = 4 << 20


def is_pipe(path: Path) -> bool:
    """Whether a path can be read only once, such as a pipe."""
    mode = path.stat().st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """The path itself, or a temporary file with the content of a pipe."""
    if not is_pipe(path):
        yield path
        return
    with tempfile.NamedTemporaryFile() as kept:
        with path.open("rb") as pipe:
            shutil.copyfileobj(pipe, kept)
        kept.flush()
        yield Path(kept.name)


def compression_of(path: Path) -> str | None:
    """How a file is compressed, by its first bytes; one of the values of `COMPRESSIONS`."""
    with path.open("rb") as file:
        begins = file.read(max(map(len, _OTHER_FILES)))
    found = (suffix for mark, suffix in _OTHER_FILES.items() if begins.startswith(mark))
    return COMPRESSIONS.get(next(found, ""))


def read_bytes(path: Path, compression: str | None) -> Text:
    """All bytes of a file that is not empty; `compression` is a value of `COMPRESSIONS`.

    Raises:
        OSError, EOFError, lzma.LZMAError, pa.ArrowException: a damaged or truncated file.
    """
    if compression is None:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if compression == "xz":
        with lzma.open(path) as file:
            return file.read()
    with pa.input_stream(str(path), compression=compression) as stream:
        return stream.read()


def decode(argument: str, name: str, data: Text, encoding: str | None) -> tuple[Text, str]:
    """The text in UTF-8 with line ends of `\\n` or `\\r\\n`, and the encoding it was in.

    Args:
        argument: the file's in messages.
        name: the file's in messages.
        data: its bytes.
        encoding: any that Python knows; None for UTF-8, or what a byte order mark says.

    Raises:
        ValueError: an unknown encoding, or bytes that are not in it, with their line.
    """
    found = encoding
    if found is None:
        for mark, suffix in _OTHER_FILES.items():
            if data[: len(mark)] == mark:
                raise invalid(argument, f"{name}, which begins as a {suffix} file does", "a text")
        marks = (name for mark, name in _MARKS.items() if data[: len(mark)] == mark)
        found = next(marks, "utf-8")
        if found == "utf-8" and b"\0" in data[:4096]:
            raise invalid(argument, f"{name}, which holds zero bytes", _other_encoding("utf-16-le"))
    try:
        if codecs.lookup(found).name == "utf-8" and data[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8:
            found = "utf-8-sig"
        if codecs.lookup(found).name != "utf-8":
            data = bytes(data).decode(found).encode()
    except LookupError as error:
        allowed = "an encoding that Python knows, such as latin-1"
        raise invalid("encoding", repr(encoding), allowed) from error
    except UnicodeDecodeError as error:
        raise _undecodable(argument, name, bytes(data), error) from error
    if data.find(b"\n") < 0 and data.find(b"\r") >= 0:
        data = bytes(data).replace(b"\r", b"\n")
    return data, found


def refuse_other_encodings(argument: str, name: str, text: Text) -> None:
    """Raise the `ValueError` that names the first line that is not UTF-8, if there is one."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), _CHUNK):
            decoder.decode(text[start : start + _CHUNK], start + _CHUNK >= len(text))
    except UnicodeDecodeError:
        pass
    else:
        return
    try:  # again, for its place in the whole
        bytes(text).decode()
    except UnicodeDecodeError as error:
        raise _undecodable(argument, name, bytes(text), error) from error


def _undecodable(argument: str, name: str, data: bytes, error: UnicodeDecodeError) -> ValueError:
    line = data.count(b"\n", 0, error.start) + 1
    allowed = _other_encoding("latin-1") if error.encoding == "utf-8" else "another encoding"
    return invalid(argument, f"{name}, which is not {error.encoding} in line {line}", allowed)


def _other_encoding(example: str) -> str:
    return f"UTF-8, or a given encoding, such as {example}"


def count_filled_lines(text: Text) -> int:
    """The number of non-blank lines; a line ends with `\\n`, the last one with the text."""
    data = np.frombuffer(text, dtype=np.uint8)
    filled, line_start = 0, 0
    for start in range(0, len(data), _CHUNK):
        ends = np.flatnonzero(data[start : start + _CHUNK] == ord("\n")) + start
        starts = np.concatenate(([line_start], ends + 1))
        lengths = ends - starts[:-1]
        # Of one byte: the carriage return of a blank line, or a value.
        single = starts[:-1][lengths == 1]
        blank = np.sum(lengths == 0) + np.sum(data[single] == ord("\r"))
        filled += len(ends) - int(blank)
        line_start = int(starts[-1])
    return filled + (bytes(data[line_start:]) not in (b"", b"\r"))


def first_beyond_depth(text: Text, max_depth: int) -> int | None:
    """Where JSON opens a list or an object within more than `max_depth` others; None: nowhere.

    Args:
        text: JSON lines; brackets within strings do not count.
        max_depth: how many may be open at once.
    """
    depth, start = 0, 0
    while start < len(text):
        # A string ends before its line does.
        end = text.find(b"\n", min(start + _DEPTH_CHUNK, len(text))) + 1 or len(text)
        chunk = text[start:end]
        if b"\\" in chunk:
            # From the left, as escapes are read; of the same length, so that places stay.
            chunk = chunk.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
        marks = np.frombuffer(chunk.translate(None, _VALUES), dtype=np.uint8)
        quotes = np.cumsum(marks == ord('"'))
        before_line = np.maximum.accumulate(np.where(marks == ord("\n"), quotes, 0))
        outside = (quotes - before_line) % 2 == 0
        opened = np.cumsum(np.where(outside, _STEPS[marks], 0)) + depth
        # What closes more than is open closes nothing.
        opened -= np.minimum(np.minimum.accumulate(opened), 0)
        deep = opened > max_depth
        if deep.any():
            data = np.frombuffer(chunk, dtype=np.uint8)
            return start + int(np.flatnonzero(np.isin(data, _STRUCTURE))[deep.argmax()])
        depth = int(opened[-1]) if len(opened) else depth
        start = end
    return None


def line_of(text: Text, position: int) -> int:
    """The number, from 1, of the line that holds a byte."""
    data = np.frombuffer(text, dtype=np.uint8, count=position)
    return int(np.count_nonzero(data == ord("\n"))) + 1


@dataclass(frozen=True)
class Quoted:
    """The quoted values of a delimited text.

    Attributes:
        spans: where values of several lines begin and end.
        filled_lines_inside: lines that hold something and begin inside such a value.
        fault: the position of the first value that is opened and not properly closed, and how.
    """

    spans: list[tuple[int, int]]
    filled_lines_inside: int
    fault: tuple[int, str] | None


def quoted_value(delimiter: bytes) -> re.Pattern[bytes]:
    """Matches a quoted value; group 1 is the mark that closes it, None where nothing does.

    Args:
        delimiter: one byte.
    """
    beside = re.escape(delimiter) + rb"\r\n"
    # The mark stands before the look at what precedes it, so that marks alone are searched for.
    opened = rb'"(?<![^' + beside + rb']")'
    return re.compile(opened + rb'[^"]*(?:""[^"]*)*("(?=[' + beside + rb"]|\Z))?")


def find_quoted(text: Text, delimiter: bytes) -> Quoted:
    """Parse the quotation marks of a text strictly.

    A mark opens a value where it is its first byte, and closes it where a delimiter, a line's or
    the text's end comes next; two of them inside stand for one. Others are part of a value.

    Args:
        text: UTF-8.
        delimiter: one byte.
    """
    spans: list[tuple[int, int]] = []
    inside = 0
    for match in quoted_value(delimiter).finditer(text):
        start, end = match.span()
        if match[1] is None:
            how = "nothing closes"
            if end < len(text):
                line = line_of(text, end)
                how = f"the next one, in line {line}, cannot close: more text follows it"
            return Quoted(spans, inside, (start, how))
        if text.find(b"\n", start, end) >= 0:
            spans.append((start, end))
            inside += len(_FILLED_LINE_INSIDE.findall(text, start, end))
    return Quoted(spans, inside, None)


def records(text: Text, spans: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """The position and bytes of each non-blank line, including quoted line ends."""
    ends_inside = iter([*spans, (len(text), len(text))])
    span_start, span_end = next(ends_inside)
    start = 0
    for match in _LINE_END.finditer(text):
        while match.start() >= span_end and span_end < len(text):
            span_start, span_end = next(ends_inside)
        if span_start < match.start() < span_end:
            continue
        if match.start() > start:
            yield start, text[start : match.start()]
        start = match.end()
    if start < len(text):
        yield start, text[start:]
