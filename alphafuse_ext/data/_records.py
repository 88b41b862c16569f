"""Files of one object per line, in JSON or as Python dictionaries, read line by line."""

from __future__ import annotations

import ast
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from tqdm import tqdm

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._text import COMPRESSIONS

_DAMAGED = (pa.ArrowException, OSError, EOFError, lzma.LZMAError)


def read_records(argument: str, path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, with a progress bar in a terminal.

    Args:
        argument: the file's name in messages.
        path: a text file in UTF-8, one object a line, compressed or not. The older releases of
            Amazon and Steam are not JSON, but printed Python 2 dictionaries.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a damaged file, or a line that is no object, by its number.
    """
    if not path.is_file():
        raise invalid(argument, f"{path}, which is no file", "an existing file", FileNotFoundError)
    number = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(tqdm(lines, path.name, unit=" lines", disable=None), 1):
                if line.strip():
                    yield _parse(argument, path, number, line)
    except _DAMAGED as error:
        found = f"{path}, which is damaged behind line {number}: {error}"
        raise invalid(argument, found, "a whole file") from error


def _open(path: Path) -> IO[bytes]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    if compression == "xz":
        return lzma.open(path)
    return io.BufferedReader(pa.input_stream(str(path), compression=compression), 1 << 20)


def _parse(argument: str, path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = ast.literal_eval(line.decode().strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        found = f"{path}, whose line {number} cannot be read: {line[:60]!r}"
        raise invalid(argument, found, "a JSON object or a Python dictionary a line") from error
    if not isinstance(record, dict):
        found = f"{path}, whose line {number} is a {type(record).__name__}"
        raise invalid(argument, found, "a JSON object or a Python dictionary a line")
    return record
