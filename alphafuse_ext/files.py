"""Atomic files and folders: safetensors for tensors, JSON for the rest.

Everything is written under a temporary name in the same folder, flushed to disk and renamed, so
that a crash, a full disk or Ctrl-C leaves the old file or none, but never a partial one. Temporary
files of a killed process, whose names begin with a dot, are removed by the next process that writes
the same file or folder. Reading fails with one :class:`UnreadableFileError` that names the file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from alphafuse_ext.checks import invalid

PathLike = str | os.PathLike[str]

# The one entry of a safetensors header: JSON, as a header holds strings only.
_HEADER = "alphafuse_ext"

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors names them."""

_UNFINISHED = ".alphafuse-unfinished"
"""How the name of a folder of :func:`atomic_folder` ends until it is whole."""

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp(\..+)?")
"""Names of :func:`atomic_path`."""


class UnreadableFileError(ValueError):
    """A file that is damaged, truncated or of another kind than expected.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: PathLike, reason: object) -> None:
        super().__init__(f"{os.fspath(path)}: cannot be read: {reason}")
        self.path = Path(path)
        self.reason = str(reason)

    def __reduce__(self) -> tuple[type[UnreadableFileError], tuple[Path, str]]:
        # By default, worker processes unpickle exceptions from their message alone.
        return type(self), (self.path, self.reason)


V = TypeVar("V")


class Record(dict[str, V]):
    """The content of a file by name; a missing name is an error that names the file.

    Args:
        path: the file.
        values: what it holds.
    """

    def __init__(self, path: PathLike, values: Mapping[str, V]) -> None:
        super().__init__(values)
        self.path = Path(path)

    def __missing__(self, key: str) -> NoReturn:
        raise UnreadableFileError(self.path, f"it has no {key!r}")


@contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """What refuses the content of ``path`` in the body becomes an :class:`UnreadableFileError`."""
    try:
        yield
    except (FileNotFoundError, UnreadableFileError):
        raise
    except (
        *(SafetensorError, OSError, TypeError, ValueError),
        *(LookupError, AttributeError, RuntimeError),  # of values that are of another kind
    ) as error:
        raise UnreadableFileError(path, error) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: PathLike, new: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, which replaces ``path`` on a clean exit.

    Temporary files of killed processes are removed first.

    Args:
        path: the file to write or to replace; its folder must exist.
        new: never replace an existing file.

    Yields:
        The name to write to, an empty file in the same folder (a rename across file systems would
        be a copy). It has the suffix of ``path``, as some writers choose the format by it.

    Raises:
        FileExistsError: ``path`` is a folder, a pipe or a device; with ``new``, it exists.
        OSError: what the file system says. Nothing at ``path`` has changed then, nor if the body
            raises, and the temporary file is gone.
    """
    path = Path(path)
    _check_replaceable(path)
    _remove_dead_files(path)
    descriptor, temporary = _locked_file(path)
    try:
        yield temporary
        _flush(temporary)
        if new:
            _take_name(temporary, path)
        else:
            os.replace(temporary, path)
        temporary.unlink(missing_ok=True)  # still there where both were names of one file
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        _add_filename(error, path)
        raise
    finally:
        os.close(descriptor)
    with suppress(OSError):  # some file systems cannot flush a folder; the file itself is flushed
        _flush(path.parent)


def _add_filename(error: BaseException, path: Path) -> None:
    """Add the file name to an ``OSError`` that has none."""
    if isinstance(error, OSError) and error.errno and error.filename is None:
        error.filename = os.fspath(path)


def _check_replaceable(path: Path) -> None:
    # /dev/stdout is a link to whatever it is, also to a file; a name put in its place is lost.
    open_file = path.is_symlink() and os.readlink(path).startswith("/proc/")
    if open_file or (path.exists() and not path.is_file()):
        given = f"{path}, which is none"
        raise invalid("file to write", given, "a file, or a new name", FileExistsError)


def _take_name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _taken(path) from None
    except OSError:  # no hard links on this file system
        if path.exists():
            raise _taken(path) from None
        os.rename(temporary, path)


def _locked_file(path: Path) -> tuple[int, Path]:
    """A new file beside ``path`` that this process holds; the lock goes with the descriptor."""
    while True:
        temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp{path.suffix}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        # Until it is locked, another process may take it for a dead one's and remove it.
        if _locked(descriptor, unknown=True) and temporary.exists():
            return descriptor, temporary
        os.close(descriptor)


def _remove_dead_files(path: Path) -> None:
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None or found["name"] != path.name:
                continue
            with suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDONLY)
                try:
                    if _locked(descriptor, unknown=False):
                        os.unlink(entry.path)
                finally:
                    os.close(descriptor)


def link(source: PathLike, path: PathLike) -> None:
    """Link ``path`` to the file ``source``, atomically.

    Without hard links in the file system, the content is copied.

    Args:
        source: an existing file, never changed in place.
        path: the name to make or to replace, on the same file system.
    """
    with atomic_path(path) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextmanager
def lock_folder(folder: PathLike) -> Iterator[bool]:
    """Lock a folder for this process; the lock is released when the process ends.

    Args:
        folder: an existing folder. It may be renamed meanwhile.

    Yields:
        Whether it is locked: False if another process holds the lock; True on file systems
        without locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(descriptor, unknown=True)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, unknown: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return unknown
    return True


@contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, which is renamed to ``path`` on a clean exit.

    Temporary folders of killed processes are removed first.

    Args:
        path: the folder to make; the one above it is made where it is missing.

    Yields:
        The folder to write to. All that it holds is flushed before it takes its name.

    Raises:
        FileExistsError: there is something at ``path``, at the latest when it would be renamed.
        OSError: what the file system says. In either case, and if the body raises, the temporary
            folder is gone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead_folders(path.parent)
    descriptor, temporary = _locked_folder(path)
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            _flush(written)
        if path.exists():  # rename would replace an empty folder without a word
            raise _taken(path)
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise _taken(path) from None
            raise
        with suppress(OSError):
            _flush(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _add_filename(error, path)
        raise
    finally:
        os.close(descriptor)


def _taken(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))


def _locked_folder(path: Path) -> tuple[int, Path]:
    """A new folder beside ``path`` that this process holds; the lock goes with the descriptor."""
    while True:
        temporary = path.with_name(f".{path.name}.{token_hex(4)}{_UNFINISHED}")
        temporary.mkdir()
        # Until it is locked, another process may take it for a dead one's and remove it.
        with suppress(FileNotFoundError):
            descriptor = os.open(temporary, os.O_RDONLY)
            if _locked(descriptor, unknown=True) and temporary.exists():
                return descriptor, temporary
            os.close(descriptor)


def _remove_dead_folders(parent: Path) -> None:
    for folder in parent.glob(f".*{_UNFINISHED}"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                if _locked(descriptor, unknown=False):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def check_writable(name: str, path: PathLike) -> None:
    """Raises ``PermissionError``, naming the argument, where nothing can be made at ``path``."""
    folder = Path(path).absolute()
    above = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise invalid(name, path, f"a place to write: {above} is none", PermissionError)


def remove_leftovers(folder: PathLike) -> None:
    """Remove temporary files of killed processes from ``folder``, which this process has locked."""
    for path in Path(folder).iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _plain(value: object) -> object:
    """The JSON form of a NumPy scalar or array, a one-element tensor, or a path."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _json(path: PathLike, value: object, indent: int | None = None) -> str:
    """``value`` as JSON; an error says that ``path`` was not written."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False, default=_plain)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: not written: {error}") from error


def write_json(path: PathLike, value: object, new: bool = False) -> None:
    """Write ``value`` as indented JSON, atomically.

    Args:
        path: the file to write or to replace.
        value: what ``json`` takes; NumPy scalars and arrays and paths are converted.
        new: never replace a file; of several processes that come at once, one writes.

    Raises:
        FileExistsError: with ``new``, there is something at ``path``.
        ValueError: NaN or an infinity, which JSON does not have. Nothing is written then.
        TypeError: something else that JSON does not have. Nothing is written then.
    """
    text = _json(path, value, indent=2)
    with atomic_path(path, new) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableFileError: it is not whole or not JSON.
    """
    with reading(path):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def read_json_lines(path: PathLike) -> list[Any]:
    """The values of a file of JSON lines; none, where there is no such file.

    Raises:
        UnreadableFileError: a line is not JSON.
    """
    if not Path(path).exists():
        return []
    with reading(path):
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def save_tensors(
    path: PathLike,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors and metadata as one safetensors file, atomically.

    Args:
        path: the file to write or to replace; ``.safetensors`` is added where it is missing. Its
            folder is made where there is none.
        kind: what the file holds, checked by :func:`load_tensors`.
        tensors: by name; of any device and layout in memory, in the types of :data:`_DTYPES`.
        facts: metadata, as JSON; stored in the header.

    Raises:
        ValueError, TypeError: facts that JSON does not have. Nothing is written then.
    """
    path = _tensors_path(path)
    # Large elements first: each tensor then begins at a multiple of its own.
    ordered = sorted(tensors.items(), key=lambda one: (-one[1].element_size(), one[0]))
    described = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered]
    head, _ = _head(_json(path, {"kind": kind, **(facts or {})}), described)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "r+b") as file:
        file.write(head)
        for _, tensor in ordered:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _head(
    facts: str, tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]
) -> tuple[bytes, int]:
    """What a safetensors file of these begins with, and the size of the whole file."""
    described: dict[str, Any] = {"__metadata__": {_HEADER: facts}}
    end = 0
    for name, dtype, shape in tensors:
        if dtype not in _DTYPES:
            raise invalid(name, dtype, ", ".join(map(str, _DTYPES)), TypeError)
        start, end = end, end + math.prod(shape) * dtype.itemsize
        described[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(described).encode()
    header += b" " * (-(8 + len(header)) % 64)  # where vectors are loaded from
    return struct.pack("<Q", len(header)) + header, 8 + len(header) + end


@contextmanager
def new_tensor_file(
    path: PathLike, kind: str, name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """A file as :func:`save_tensors` writes it, of one tensor that is filled in place.

    Args:
        path, kind: as for :func:`save_tensors`.
        name, shape, dtype: of the tensor.

    Yields:
        The tensor, of zeros, memory-mapped: it may be larger than memory. The file appears on a
        clean exit; the tensor is of no use after it.
    """
    path = _tensors_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    head, size = _head(_json(path, {"kind": kind}), [(name, dtype, shape)])
    with atomic_path(path) as temporary:
        with open(temporary, "r+b") as file:
            file.write(head)
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # a full disk raises here, instead of SIGBUS later
                os.posix_fallocate(file.fileno(), 0, size)
        mapped = np.memmap(temporary, np.uint8, "r+", len(head), (size - len(head),))
        yield torch.from_numpy(mapped).view(dtype).view(shape)
        mapped.flush()


def load_tensors(path: PathLike, kind: str) -> tuple[Record[torch.Tensor], Record[Any]]:
    """Read what :func:`save_tensors` wrote, onto the CPU, memory-mapped.

    Nothing is read before it is needed, processes share what they have read, and what a process
    writes to a tensor is its own.

    Args:
        path: as given to :func:`save_tensors`.
        kind: as given to :func:`save_tensors`.

    Returns:
        The tensors by name, and the facts; a name that the file lacks is an error that says so.

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableFileError: it is truncated, damaged, no safetensors file, or not of that kind.
    """
    path = _tensors_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    with reading(path), safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {}).get(_HEADER, "null"))
        if not isinstance(facts, dict) or facts.pop("kind", None) != kind:
            raise UnreadableFileError(path, f"it does not hold a {kind}")
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    return Record(path, tensors), Record(path, facts)


def check_schema(path: PathLike, schema: Any) -> None:
    """Refuse a file with values that would be decoded by another package's code.

    Whoever reads a Parquet file gives its columns the types of its choice, among those that any
    package has registered in the process; Ray's type of Python objects unpickles its values.

    Args:
        path: the file.
        schema: its columns, as pyarrow has read them.

    Raises:
        UnreadableFileError: a column has a type that is neither Arrow's nor pandas'.
    """
    for field in schema:
        for name in _extension_types(field.type):
            if not name.startswith(("arrow.", "pandas.")):
                raise UnreadableFileError(path, f"its column {field.name} is of type {name}")


def _extension_types(kind: Any) -> Iterator[str]:
    """Names of types that are not built into Arrow, in a type and in those that it is made of."""
    if hasattr(kind, "extension_name"):
        yield kind.extension_name
    made_of = ("storage_type", "value_type", "key_type", "item_type")
    parts = [getattr(kind, name) for name in made_of if hasattr(kind, name)]
    if hasattr(kind, "get_field_index"):  # a struct
        parts += [field.type for field in kind]
    for part in parts:
        yield from _extension_types(part)


def _tensors_path(path: PathLike) -> Path:
    """With its suffix; other dots in the name stay, unlike with ``Path.with_suffix``."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")
