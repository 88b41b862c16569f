"""The frozen language embeddings of a catalog, matched to its items."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from alphafuse_ext.checks import invalid, refuse_masked
from alphafuse_ext.data._columns import ITEM_COLUMN_RANKS, find_column, first_few
from alphafuse_ext.data._tables import is_table, open_table, origin
from alphafuse_ext.data.ids import IdIndex, Ids, encode_ids
from alphafuse_ext.data.items import Items
from alphafuse_ext.data.sequences import IntArray
from alphafuse_ext.logs import Log, logged

if TYPE_CHECKING:
    from alphafuse_ext.data.tfidf import Tfidf

EmbeddingSource: TypeAlias = (
    str | os.PathLike[str] | npt.NDArray[Any] | torch.Tensor | pd.DataFrame | Mapping[Any, Any]
)
_Array: TypeAlias = npt.NDArray[Any] | torch.Tensor

_ARRAY_FILES = (".npy", ".npz", ".safetensors")
_FORMATS = (
    f"an array, a tensor or a file {', '.join(_ARRAY_FILES)}; or by item id a dict, a data frame, "
    "or a file of one, such as .parquet or .csv"
)
_WHOSE = (
    "a catalog (items) in the order of the rows, or embeddings by item id (a dict, a data frame, "
    "a .parquet, .npz or .safetensors file), or ids_are_rows, where item ids are row numbers"
)
# What NumPy, zipfile and safetensors raise on damaged files.
_UNREADABLE = (
    *(ValueError, OSError, EOFError, RuntimeError),
    *(SafetensorError, zipfile.BadZipFile, zlib.error),
)
_DIGEST_BYTES = 16 << 20

ROWS_IN_ORDER = "in the order of the catalog"
ROWS_BY_NUMBER = "by row number"
"""What a record says of rows without ids, and where `ids_are_rows` was said."""


@dataclass(frozen=True, eq=False)
class LanguageEmbeddings:
    """Language embeddings, one row for each item of a catalog.

    Attributes:
        rows: float16, float32 or float64, shape `(N, d_l)`; may be a read-only memory map.
        source: what they were made from, as JSON values.
        items: the catalog, where the embeddings brought their own.
        tfidf: what encoded them, where texts were encoded by TF-IDF.
    """

    rows: npt.NDArray[Any]
    source: dict[str, Any]
    items: Items | None = None
    tfidf: Tfidf | None = None

    def record(self) -> dict[str, Any]:
        """`source` with shape, dtype and the SHA-256 of the rows' bytes, which reads all of them.

        Equal rows in the same order have the same digest, whichever way they were given.
        """
        digest = hashlib.sha256()
        step = max(1, _DIGEST_BYTES // (self.rows.itemsize * self.rows.shape[1]))
        for start in range(0, len(self.rows), step):
            digest.update(np.ascontiguousarray(self.rows[start : start + step]).data)
        facts = {"shape": list(self.rows.shape), "dtype": str(self.rows.dtype)}
        return {**self.source, **facts, "sha256": digest.hexdigest()}

    def select(self, index: IntArray) -> LanguageEmbeddings:
        """The rows of some items: ids, int64, shape `(n,)`; in memory, also of a memory map."""
        items = None if self.items is None else self.items.select(index)
        return LanguageEmbeddings(self.rows[index], self.source, items, self.tfidf)


def read_embeddings(
    embeddings: EmbeddingSource,
    items: Items | None = None,
    ids_are_rows: bool = False,
    item_column: str | None = None,
    log: Log | None = None,
) -> LanguageEmbeddings:
    """The language embeddings of a catalog, in its order.

    The item of a row is never guessed: rows with ids belong to these items; rows without ids are
    in the order of `items`, or numbered by item ids with `ids_are_rows`.

    Values are not read here, so an array larger than memory stays on disk:
    `SemanticSpace.from_embeddings` refuses NaN and infinities.

    Args:
        embeddings: float16, float32 or float64 (tensors also bfloat16), as

            - rows without ids: an array or a tensor of shape `(N, d_l)`, a `.npy` file, or a
              `.npz` or `.safetensors` file that holds one array;
            - a dict from item id to vector, or a `.safetensors` file with one vector for each id;
            - a `.npz` or `.safetensors` file that holds two arrays: ids, `(N,)`, and rows;
            - a data frame, or a file of one, with a column of ids and either one column of vectors
              or columns numbered from 0 or 1, such as `e0`, `e1`, `e2`.
        items: the catalog. Where there is none, the items of the embeddings become it.
        ids_are_rows: of rows without ids: row `k` belongs to the item whose id is the integer `k`.
        item_column: of a data frame: the column of ids; guessed by its name where there is no
            such column.
        log: called with lines about the rows' ids, and rows that belong to no item.

    Returns:
        `N` rows; a read-only memory map for a `.npy` file that is in order.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: `embeddings` of another kind, or values that are no floating-point numbers.
        ValueError: rows of unknown items, an item without a row, an id given twice, a shape other
            than `(N, d_l)`, or an unreadable or truncated file.
    """
    log = logged(log)
    given = _open(embeddings, item_column)
    name, rows = given.name, given.rows
    ids, order = given.ids, f"by {given.ids_from}"
    every_item = "a row for every item of the catalog; of zeros for one that has no text"
    if ids_are_rows:
        if ids is not None:
            found = f"True beside {name}, whose rows have ids"
            raise invalid("ids_are_rows", found, "rows without ids, or False")
        ids, order = np.arange(len(rows)), ROWS_BY_NUMBER
        every_item = f"item ids that are integers from 0 to {len(rows) - 1}"

    said, own = "", None
    if ids is None:
        order = ROWS_IN_ORDER
        if items is None:
            found = f"{name}, and nothing that says whose its {len(rows)} rows are"
            raise invalid("embeddings", found, _WHOSE)
        if len(rows) != len(items):
            found = f"{name} with {len(rows)} rows"
            raise invalid("embeddings", found, f"one row for each of the {len(items)} items")
    elif items is None:
        own, said = Items(ids, None, None), "; their items are the catalog"
    else:
        places = IdIndex(ids).find("embeddings", items.tokens)
        missing = items.tokens[places < 0]
        if len(missing):
            found = f"{name}, without a row for {len(missing)} of {len(items)} items"
            raise invalid("embeddings", f"{found}: {first_few(missing)}", every_item)
        unused = len(rows) - len(items)
        said = f"; {unused:,} of no item of the catalog, left out" if unused else ""
        # Where nothing moves, a memory map stays one.
        moved = not np.array_equal(places, np.arange(len(items)))
        rows = rows[places] if moved else rows[: len(items)]
    if log is not None:
        count, dimensions = given.rows.shape
        what = f"{count:,} of {dimensions:,} dimensions ({rows.dtype})"
        log(f"embeddings: {what} from {name}, {order}{said}")
    return LanguageEmbeddings(rows, {"from": origin(embeddings), "rows": order}, own)


@dataclass(frozen=True, eq=False)
class _Opened:
    """Rows as they were given: `(R, d_l)`, with distinct ids `(R,)` or without."""

    name: str
    rows: npt.NDArray[Any]
    ids: Ids | None = None
    ids_from: str = "item id"


def _open(embeddings: EmbeddingSource, item_column: str | None) -> _Opened:
    if isinstance(embeddings, (np.ndarray, torch.Tensor)):
        name = type(embeddings).__name__
        return _Opened(name, _rows(name, embeddings))
    if isinstance(embeddings, Mapping):
        return _by_id("dict", embeddings.keys(), list(embeddings.values()))
    if isinstance(embeddings, (str, os.PathLike)):
        path = Path(embeddings)
        if not path.exists():
            found = f"{path}, which does not exist"
            raise invalid("embeddings", found, _FORMATS, FileNotFoundError)
        if path.is_fifo() and not is_table(path):
            found = f"{path}, a pipe, which cannot be mapped into memory"
            raise invalid("embeddings", found, _FORMATS)
        if path.suffix.lower() in _ARRAY_FILES and path.is_file():
            return _open_arrays(path, path.suffix.lower())
        if not is_table(path):
            raise invalid("embeddings", path, _FORMATS)
    elif not is_table(embeddings):
        raise invalid("embeddings", type(embeddings).__name__, _FORMATS, TypeError)
    return _open_table(embeddings, item_column)


def _open_arrays(path: Path, suffix: str) -> _Opened:
    """A file of arrays: one of rows, with or without one of ids, or a vector for each id."""
    arrays = _read_arrays(path, suffix)
    if len(arrays) == 1:
        return _Opened(str(path), _rows(str(path), *arrays.values()))
    dimensions = [array.ndim for array in arrays.values()]
    if sorted(dimensions) == [1, 2]:
        ids, rows = sorted(arrays.values(), key=lambda array: array.ndim)
        return _by_id(str(path), np.asarray(ids), rows)
    if suffix == ".safetensors" and set(dimensions) == {1}:
        return _by_id(str(path), list(arrays), list(arrays.values()), typed=False)
    shapes = [f"{name} {tuple(array.shape)}" for name, array in arrays.items()]
    raise invalid(
        "embeddings",
        f"{path} with arrays {first_few(shapes)}",
        "one array of rows, or one of ids (N,) and one of rows (N, d_l)"
        + (", or a vector for each id" if suffix == ".safetensors" else ""),
    )


def _read_arrays(path: Path, suffix: str) -> Mapping[str, _Array]:
    try:
        if suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            arrays = dict(loaded)
        # A zip archive of other files comes as their bytes.
        if others := [name for name, found in arrays.items() if not isinstance(found, np.ndarray)]:
            raise ValueError(f"it holds {first_few(others)}, which are no arrays")
        return arrays
    except _UNREADABLE as error:
        found = f"{path}, which is unreadable or truncated: {error}"
        raise invalid("embeddings", found, f"a whole {suffix} file") from error


def _open_table(source: str | os.PathLike[str] | pd.DataFrame, item_column: str | None) -> _Opened:
    table = open_table("embeddings", source)
    ids_from = item_column
    if ids_from not in table.columns:
        ids_from = find_column(table, "item_column", None, *ITEM_COLUMN_RANKS)
    if ids_from is None:
        found = f"{table.name} with columns {first_few(table.columns)}"
        raise invalid("embeddings", found, "a column of item ids, named by item_column or item_id")
    others = [name for name in table.columns if name != ids_from]
    frame = table.load([ids_from], [], others)
    vectors = [name for name in others if _holds_vectors(frame[name])]
    numbered = _numbered([name for name in others if pd.api.types.is_numeric_dtype(frame[name])])
    if len(vectors) == 1 and not numbered:
        rows, rows_from = frame[vectors[0]].tolist(), f"column {vectors[0]!r}"
    elif numbered and not vectors:
        rows = frame[numbered].to_numpy()
        rows_from = f"columns {numbered[0]!r} to {numbered[-1]!r}"
    else:
        found = f"{table.name} with columns {first_few(table.columns)}"
        raise invalid(
            "embeddings",
            found,
            "one column of vectors, or one numbered column for each of their numbers (e0, e1, ...)",
        )
    return _by_id(table.name, frame[ids_from], rows, f"{ids_from!r}, {rows_from}", table.typed)


def _holds_vectors(column: pd.Series) -> bool:
    """Whether the cells are lists of floating-point numbers, by the first that is not empty."""
    for cell in column:
        if isinstance(cell, (list, tuple, np.ndarray, torch.Tensor)) and len(cell):
            return _numpy(cell).dtype.kind == "f"
    return False


def _numbered(names: list[str]) -> list[str]:
    """The columns `e0`, `e1`, ... in the order of their numbers, where they are one series."""
    matches = [match for name in names if (match := re.fullmatch(r"(.*?)(\d+)", name))]
    matches.sort(key=lambda match: int(match[2]))
    numbers = [int(match[2]) for match in matches]
    one_series = len({match[1] for match in matches}) == 1 and numbers[0] in (0, 1)
    if len(matches) < 2 or not one_series or (np.diff(numbers) != 1).any():
        return []
    return [match[0] for match in matches]


def _by_id(
    name: str,
    ids: Iterable[Any],
    vectors: _Array | list[Any],
    ids_from: str = "item id",
    typed: bool = True,
) -> _Opened:
    tokens = pd.Series(ids if isinstance(ids, (pd.Series, np.ndarray)) else list(ids))
    if tokens.empty:
        raise invalid("embeddings", f"{name}, which is empty", "at least one item")
    codes, distinct = encode_ids("embeddings", tokens, typed)
    if len(distinct) < len(codes):
        repeated = first_few(distinct[np.bincount(codes) > 1])
        raise invalid("embeddings", f"{name} with ids given twice: {repeated}", "every id once")
    if isinstance(vectors, list):
        vectors = _stacked(name, distinct, vectors)
    rows = _rows(name, vectors)
    if len(rows) != len(distinct):
        raise invalid("embeddings", f"{name} with {len(distinct)} ids, {len(rows)} rows", "as many")
    return _Opened(name, rows, distinct, ids_from)


def _stacked(name: str, ids: Ids, vectors: list[Any]) -> npt.NDArray[Any]:
    arrays = [_numpy(vector) for vector in vectors]
    width = next((len(array) for array in arrays if array.ndim == 1), 1)
    for token, array in zip(ids, arrays, strict=True):
        if array.shape != (width,):
            found = f"shape {array.shape}" if array.ndim else repr(array.item())
            raise invalid(
                "embeddings", f"{name} with {found} for item {str(token)!r}", f"shape ({width},)"
            )
    return np.stack(arrays)


def _numpy(array: Any) -> npt.NDArray[Any]:
    refuse_masked("embeddings", array)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return array if isinstance(array, np.ndarray) else np.asarray(array)


def _rows(name: str, array: _Array) -> npt.NDArray[Any]:
    rows = _numpy(array)
    if rows.dtype not in (np.float16, np.float32, np.float64):
        found = f"{name} of dtype {rows.dtype}"
        raise invalid("embeddings", found, "float16, float32 or float64", TypeError)
    if rows.ndim != 2 or 0 in rows.shape:
        raise invalid("embeddings", f"{name} of shape {rows.shape}", "shape (items, d_l)")
    return rows
