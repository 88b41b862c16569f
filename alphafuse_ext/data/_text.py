"""The bytes of a text file: decompressed, in UTF-8, and with their lines counted."""

from __future__ import annotations

import codecs
import lzma
import mmap
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from alphafuse_ext.checks import invalid

Text: TypeAlias = bytes | mmap.mmap  # a memory map leaves the file on disk

# Block size of pyarrow in bytes: a row or an object has to fit into it.
BLOCK = 1 << 26
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}

_OTHER_FILES = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\xfd7zXZ": ".xz",
    b"PAR1": ".parquet",
    b"PK\x03\x04": ".zip or .xlsx",
}
_CHUNK = 64 << 20
# The bytes that say how deep JSON is, and what each does to the depth.
_STRUCTURE = list(b'"[]{}\n')
_VALUES = bytes(set(range(256)) - set(_STRUCTURE))
_STEPS = np.zeros(256, dtype=np.int64)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_DEPTH_CHUNK = 4 << 20


def read_bytes(path: Path, compression: str | None) -> Text:
    """All bytes of a file or a pipe; `compression` is a value of `COMPRESSIONS`.

    Raises:
        OSError, EOFError, lzma.LZMAError, pa.ArrowException: a damaged or truncated file.
    """
    with path.open("rb") as file:
        if compression is None and path.is_file() and path.stat().st_size:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = file.read()
    if compression is None or not data:
        return data
    if compression == "xz":
        return lzma.decompress(data)
    with pa.CompressedInputStream(pa.BufferReader(data), compression) as stream:
        return stream.read()


def decode(argument: str, name: str, data: Text, encoding: str | None) -> Text:
    """The text in UTF-8.

    Args:
        argument: the file's in messages.
        name: the file's in messages.
        data: its bytes.
        encoding: any that Python knows; None for UTF-8, with or without a byte order mark.

    Raises:
        ValueError: an unknown encoding, or bytes that are not in it, with their line.
    """
    if encoding is None:
        for mark, suffix in _OTHER_FILES.items():
            if data[: len(mark)] == mark:
                raise invalid(argument, f"{name}, which begins as a {suffix} file does", "a text")
        if b"\0" in data[:4096]:
            allowed = _other_encoding("utf-16 or utf-16-le")
            raise invalid(argument, f"{name}, which holds zero bytes", allowed)
    try:
        if encoding is not None and codecs.lookup(encoding).name != "utf-8":
            data = bytes(data).decode(encoding).encode()
    except LookupError as error:
        allowed = "an encoding that Python knows, such as latin-1"
        raise invalid("encoding", repr(encoding), allowed) from error
    except UnicodeDecodeError as error:
        raise _undecodable(argument, name, bytes(data), error) from error
    begins = data[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8
    return data[len(codecs.BOM_UTF8) :] if begins else data


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
