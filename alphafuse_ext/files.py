"""Files that are either whole or absent: safetensors for tensors, JSON for the rest.

Everything is written to a temporary name in the same folder, flushed to the disk and renamed, so
that a crash, a full disk or Ctrl-C leaves the old file, or none, but never half of a new one.
Reading fails with one :class:`UnreadableFileError` that names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

PathLike = str | os.PathLike[str]


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
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # some file systems cannot flush a folder; the file itself is flushed
        _flush(path.parent)


def _plain(value: object) -> object:
    """The JSON form of a NumPy scalar or array, a one-element tensor, or a path."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_json(path: PathLike, value: object) -> None:
    """Write ``value`` as indented JSON, atomically.

    Args:
        path: the file to write or to replace.
        value: what ``json`` takes; NumPy scalars and arrays and paths are converted.

    Raises:
        ValueError: NaN or an infinity, which JSON does not have. Nothing is written then.
        TypeError: something else that JSON does not have. Nothing is written then.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False, default=_plain)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: not written: {error}") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFileError: it is not whole or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UnreadableFileError(path, error) from error


def save_tensors(
    path: PathLike,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as one safetensors file, atomically.

    Args:
        path: the file to write or to replace.
        tensors: by name; of any device and layout in memory. Tensors that share memory are
            written one by one.
        metadata: goes into the header; :func:`load_metadata` reads it back.
    """
    storages: set[int] = set()
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory.
        if tensor.numel() and tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    with atomic_path(path) as temporary:
        save_file(plain, temporary, None if metadata is None else dict(metadata))


def load_tensors(path: PathLike) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file, onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFileError: it is truncated, damaged, or no safetensors file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{os.fspath(path)}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnreadableFileError(path, error) from error


def load_metadata(path: PathLike) -> dict[str, str]:
    """Read what :func:`save_tensors` put into the header of a file, without its tensors.

    Raises:
        FileNotFoundError, UnreadableFileError: as :func:`load_tensors`.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{os.fspath(path)}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise UnreadableFileError(path, error) from error


def open_array(path: PathLike) -> np.ndarray:
    """Map a ``.npy`` file into memory, without reading it.

    Returns:
        The array, read-only. Its rows come from the disk as they are used, so it may be far
        larger than memory.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFileError: it is truncated, no ``.npy`` file, or holds pickled objects.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableFileError(path, error) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UnreadableFileError(path, "an archive of several arrays (.npz), not one array")
    return array


def _pair(path: PathLike) -> tuple[Path, Path]:
    """The two files of a bundle; dots in the name stay, unlike with ``Path.with_suffix``."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_bundle(
    path: PathLike, kind: str, tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]
) -> None:
    """Write one object as two files: ``path.safetensors`` and ``path.json``.

    The JSON file holds the SHA-256 of the other one, so that halves of two different saves are
    never taken for one whole.

    Args:
        path: the common name of the two files, with or without either suffix. Its folder is made
            where it is missing.
        kind: what the object is, checked by :func:`load_bundle`.
        tensors: the object's tensors by name.
        description: everything else, as JSON.
    """
    tensors_path, json_path = _pair(path)
    tensors_path.parent.mkdir(parents=True, exist_ok=True)
    # Both files are complete before either gets its name; the JSON file, which vouches for the
    # other, leaves the stack last.
    with ExitStack() as stack:
        json_temporary = stack.enter_context(atomic_path(json_path))
        tensors_temporary = stack.enter_context(atomic_path(tensors_path))
        save_tensors(tensors_temporary, tensors)
        write_json(
            json_temporary,
            {"kind": kind, **description, "tensors_sha256": _digest(tensors_temporary)},
        )


def load_bundle(path: PathLike, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_bundle` wrote.

    Args:
        path: as given to :func:`save_bundle`.
        kind: as given to :func:`save_bundle`.

    Returns:
        The tensors by name, and the description.

    Raises:
        FileNotFoundError: either file is missing.
        UnreadableFileError: either file is damaged, is of another kind, or the two do not belong
            together.
    """
    tensors_path, json_path = _pair(path)
    description = read_json(json_path)
    if not isinstance(description, dict) or description.pop("kind", None) != kind:
        raise UnreadableFileError(json_path, f"it does not describe a {kind}")
    tensors = load_tensors(tensors_path)
    if description.pop("tensors_sha256", None) != _digest(tensors_path):
        raise UnreadableFileError(tensors_path, f"it is damaged, or not of the save {json_path}")
    return tensors, description
