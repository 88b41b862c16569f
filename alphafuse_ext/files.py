"""Files and folders that are either whole or absent: safetensors for tensors, JSON for the rest.

Everything is written to a temporary name beside its own, flushed to the disk and renamed, so that a
crash, a full disk or Ctrl-C leaves the old file, or none, but never half of a new one. What a
killed process was writing stays under its temporary name, which begins with a dot, until
:func:`remove_leftovers` or the next :func:`atomic_folder` finds it. Reading fails with one
:class:`UnreadableFileError` that names the file.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from alphafuse_ext.checks import invalid

PathLike = str | os.PathLike[str]

# The one entry of a safetensors header: JSON, as a header holds strings only.
_HEADER = "alphafuse_ext"

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

_UNFINISHED = ".alphafuse-unfinished"
"""How the name of a folder of :func:`atomic_folder` ends until it is whole."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\..+)?|\.tmp\w{6}")
"""Names of :func:`atomic_path`, and of the file that safetensors puts in the place of one."""


class UnreadableFileError(ValueError):
    """A file that exists but is damaged, half-written or of another kind than expected.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: PathLike, reason: object) -> None:
        super().__init__(f"{os.fspath(path)}: cannot be read: {reason}")
        self.path = Path(path)
        self.reason = str(reason)

    def __reduce__(self) -> tuple[type[UnreadableFileError], tuple[Path, str]]:
        # Exceptions are rebuilt from their message alone unless told, as worker processes do it.
        return type(self), (self.path, self.reason)


V = TypeVar("V")


class Record(dict[str, V]):
    """What a file holds by name; a name that it lacks is an error that names the file.

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
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise UnreadableFileError(path, error) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; it takes the place of ``path`` on a clean exit.

    Args:
        path: the file to write or to replace; its folder must exist.

    Yields:
        The name to write to, an empty file in the same folder (a rename across file systems would
        be a copy). It has the suffix of ``path``, as some writers choose the format by it.

    Raises:
        OSError: what the file system says. Nothing at ``path`` has changed then, nor if the body
            raises, and the temporary file is gone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, for its owner alone
        _flush(temporary)
        os.replace(temporary, path)
        temporary.unlink(missing_ok=True)  # still there where both were names of one file
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # some file systems cannot flush a folder; the file itself is flushed
        _flush(path.parent)


def link(source: PathLike, path: PathLike) -> None:
    """Give the file ``source`` a second name, atomically: no byte is written.

    Where the file system has no hard links, the content is copied.

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
    """Hold a folder for this process alone; a process that ends lets go, however it ends.

    Args:
        folder: an existing folder. It may be renamed meanwhile.

    Yields:
        Whether it is held: not where another process holds it. A file system that cannot lock
        yields True: nothing is known of other processes then.
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
    """Yield a new folder beside ``path``; it takes that name on a clean exit.

    Folders that killed processes left unfinished in the same place are removed first.

    Args:
        path: the folder to make; the one above it is made where it is missing.

    Yields:
        The folder to write to. Files in it must be flushed by whoever writes them.

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
        _flush(temporary)
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
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
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
    """Remove what a killed process was writing into ``folder``, which this process holds."""
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


def write_json(path: PathLike, value: object) -> None:
    """Write ``value`` as indented JSON, atomically.

    Args:
        path: the file to write or to replace.
        value: what ``json`` takes; NumPy scalars and arrays and paths are converted.

    Raises:
        ValueError: NaN or an infinity, which JSON does not have. Nothing is written then.
        TypeError: something else that JSON does not have. Nothing is written then.
    """
    text = _json(path, value, indent=2)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_new_json(path: PathLike, value: object) -> None:
    """Write ``value`` as :func:`write_json` does, of several processes by the first alone.

    Args:
        path, value: as for :func:`write_json`.

    Raises:
        FileExistsError: there is something at ``path``, which stays.
        ValueError, TypeError: as :func:`write_json`.
    """
    whole = Path(path).with_name(f".{Path(path).name}.{token_hex(4)}.tmp")
    try:
        write_json(whole, value)
        try:
            os.link(whole, path)
        except FileExistsError:
            raise
        except OSError:  # no hard links on this file system
            if Path(path).exists():
                raise _taken(Path(path)) from None
            os.replace(whole, path)
    finally:
        whole.unlink(missing_ok=True)


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFileError: it is not whole or not JSON.
    """
    with reading(path):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def save_tensors(
    path: PathLike,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors and what they are as one safetensors file, atomically.

    Args:
        path: the file to write or to replace; ``.safetensors`` is added where it is missing. Its
            folder is made where there is none.
        kind: what the file holds, checked by :func:`load_tensors`.
        tensors: by name; of any device and layout in memory. Tensors that share memory are
            written one by one.
        facts: what else belongs to them, as JSON; goes into the header.

    Raises:
        ValueError, TypeError: facts that JSON does not have. Nothing is written then.
    """
    path = _tensors_path(path)
    header = {_HEADER: _json(path, {"kind": kind, **(facts or {})})}
    storages: set[int] = set()
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory.
        if tensor.numel() and tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(plain, temporary, header)


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
    size = math.prod(shape) * dtype.itemsize
    described = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {_HEADER: _json(path, {"kind": kind})}, name: described})
    header += " " * (-(8 + len(header)) % 64)  # where vectors are loaded from
    with atomic_path(path) as temporary:
        with open(temporary, "r+b") as file:
            start = file.write(struct.pack("<Q", len(header)) + header.encode())
            file.truncate(start + size)
        mapped = np.memmap(temporary, np.uint8, "r+", start, (size,))
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
        FileNotFoundError: there is no such file.
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


def _tensors_path(path: PathLike) -> Path:
    """With its suffix; other dots in the name stay, unlike with ``Path.with_suffix``."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")
