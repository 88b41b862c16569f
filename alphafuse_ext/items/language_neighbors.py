"""Neighbors of items by language.

:class:`Neighbors` are the nearest by language, which a softmax's targets are shared with: what a
user took next is one draw of what they might have taken, and of the others what reads almost alike
is the likeliest. Sharing a target with its neighbors in language tells the loss so, whatever the
item embeddings are made of.

:class:`Language` are embeddings of which :class:`alphafuse_ext.ItemNeighbors` takes such lists to
rank by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import alphafuse_ext.ops as ops
from alphafuse_ext.checks import integer, invalid
from alphafuse_ext.files import PathLike, load_tensors, save_tensors
from alphafuse_ext.items.embedding_rows import EmbeddingRows, Embeddings
from alphafuse_ext.items.item_embeddings import INT8_PAYS_FROM
from alphafuse_ext.items.sparse_lists import (
    ENTRIES,
    LONG,
    SparseLists,
    csr,
    joined,
    lists_of,
    summed,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NEIGHBORS, TEMPERATURE = 10, 0.05
"""How many, and what their cosines are divided by before a softmax makes weights of them."""

_KIND = "neighbors"
_CHUNK = 1024


class Neighbors(NamedTuple):
    """Neighbors of each item by language, with which a loss shares its target.

    Attributes:
        ids: int64, shape (N, K), none of which is the item itself.
        weights: float32, shape (N, K), of sum 1; of an item without text 0.
    """

    ids: Tensor
    weights: Tensor

    @classmethod
    def of(cls, language_embeddings: Embeddings, count: int = NEIGHBORS) -> Neighbors:
        """By cosine about the mean; exact, by ``topk``, so that no (N, N) scores are held.

        Args:
            language_embeddings: shape (N, d_l), as for :meth:`SemanticSpace.from_embeddings`; a row
                of zeros is an item without text, which has no neighbors and is none. Held in memory
                once, in float32.
            count: K; fewer where there are no more items.
        """
        rows = _float32_rows(language_embeddings)
        ids = torch.zeros(len(rows), count, dtype=torch.int64)
        weights = torch.zeros(len(rows), count)
        known = rows.any(1).nonzero()[:, 0]
        rows = rows[known]
        rows -= rows.mean(0)
        for own, values, places in _nearest(rows, rows, count, first=0):
            found = places.shape[1]
            ids[known[own], :found] = known[places]
            weights[known[own], :found] = (values / TEMPERATURE).softmax(1)
        return cls(ids, weights)

    def extended(self, num_items: int) -> Neighbors:
        """Of a catalog that has grown: new items have none."""
        more = num_items - len(self.ids)
        pad = torch.nn.functional.pad
        return Neighbors(*(pad(part, (0, 0, 0, more)) for part in self))

    def save(self, path: PathLike) -> None:
        """Write ``path.safetensors``."""
        save_tensors(path, _KIND, self._asdict())

    @classmethod
    def load(cls, path: PathLike) -> Neighbors:
        """Load a file of :meth:`save`.

        Raises:
            FileNotFoundError, UnreadableFileError: there is none, or it is damaged.
        """
        found, _ = load_tensors(path, _KIND)
        return cls(found["ids"], found["weights"])


class Language(NamedTuple):
    """Embeddings of items' texts, of which language neighbors are found.

    Attributes:
        rows: shape (N, d_l): an array, a tensor or a memory map, as for :class:`SemanticSpace`,
            held in memory in float32; or a SciPy sparse matrix, such as one of TF-IDF. Rows of
            zeros are items without text, which have no neighbors and are none.
        share: beside those of other embeddings; what is given to a neighbor is the sum over these.
        power: what cosines are raised to, below 0 taken as 0, before a row is divided by its sum.
        center: take cosines about the mean of the rows; ``None``: of dense ones.
        neighbors: how many of each item.
    """

    rows: Any
    share: float = 1.0
    power: float = 6.0
    center: bool | None = None
    neighbors: int = 100


@dataclass(frozen=True, eq=False)
class LanguageLists:
    """The nearest items of one embedding, with their cosines (float32, above 0)."""

    cosines: SparseLists
    share: float
    power: float
    neighbors: int
    mean: Tensor | None

    @classmethod
    def of(cls, language: Language, name: str) -> LanguageLists:
        if not 0 <= language.share < math.inf:
            raise invalid(f"{name}.share", language.share, "a finite number, 0 or more")
        if not 0 < language.power < math.inf:
            raise invalid(f"{name}.power", language.power, "a finite number above 0")
        if integer(f"{name}.neighbors", language.neighbors) < 1:
            raise invalid(f"{name}.neighbors", language.neighbors, "neighbors >= 1")
        rows = _read(language.rows, name)
        sparse = not isinstance(rows, Tensor)
        centered = not sparse if language.center is None else language.center
        if sparse and centered:
            raise invalid(f"{name}.center", True, "None or False of a sparse matrix")
        mean = None
        if isinstance(rows, Tensor) and centered:
            known = rows.any(1)
            mean = rows[known].mean(0) if known.any() else torch.zeros(rows.shape[1])
        empty = SparseLists(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        none = cls(empty, language.share, language.power, language.neighbors, mean)
        return none._extended(rows)

    def extended(self, rows: Any, name: str) -> LanguageLists:
        """With the items that come after those it has.

        Args:
            rows: of all items, the first ones as they were.
        """
        rows = _read(rows, name)
        if rows.shape[0] < len(self.cosines):
            allowed = f"at least those of the {len(self.cosines)} items that there are"
            raise invalid(name, f"{rows.shape[0]} rows", allowed)
        width = None if self.mean is None else len(self.mean)
        if width is not None and (not isinstance(rows, Tensor) or rows.shape[1] != width):
            raise invalid(name, f"shape {tuple(rows.shape)}", f"a dense array (N, {width})")
        return self._extended(rows)

    def _extended(self, rows: Any) -> LanguageLists:
        old, total = len(self.cosines), rows.shape[0]
        own = self._nearest(rows, old, total, 0, total)
        if old and total > old:
            closer = self._nearest(rows, 0, old, old, total)
            pairs = [part.matrix(total) for part in (self.cosines, closer)]
            cosines = joined([lists_of(pairs[0] + pairs[1]).best(self.neighbors), own])
        else:
            cosines = joined([self.cosines, own])
        return dataclasses.replace(self, cosines=cosines)

    def _nearest(self, rows: Any, first: int, end: int, begin: int, stop: int) -> SparseLists:
        """The nearest among the items ``begin .. stop`` to each of ``first .. end``."""
        if isinstance(rows, Tensor):
            return self._nearest_dense(rows, first, end, begin, stop)
        return self._nearest_sparse(rows, first, end, begin, stop)

    def _nearest_dense(
        self, rows: Tensor, first: int, end: int, begin: int, stop: int
    ) -> SparseLists:
        has_text = rows.any(1)
        among = begin + has_text[begin:stop].nonzero()[:, 0]
        asked = first + has_text[first:end].nonzero()[:, 0]
        candidates, queries = rows[among], rows[asked]
        if self.mean is not None:
            candidates, queries = candidates - self.mean, queries - self.mean
        # Whether queries are among the candidates, all in one run.
        shift = int(torch.searchsorted(among, asked[0])) if len(asked) and first >= begin else None
        parts: list[Any] = [(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))]
        for own, values, places in _nearest(queries, candidates, self.neighbors, shift):
            near = values > 0
            numbers = asked[own][:, None].expand_as(places)[near] - first
            ids = among[places[near]]
            parts.append((numbers.numpy(), ids.int().numpy(), values[near].numpy()))
        lines, columns, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
        return lists_of(summed(lines, columns, cosines, (end - first, rows.shape[0])))

    def _nearest_sparse(
        self, rows: csr_matrix, first: int, end: int, begin: int, stop: int
    ) -> SparseLists:
        others = rows[begin:stop].T.tocsr()
        width = max(1, ENTRIES // max(1, stop - begin))
        parts = []
        starts = range(first, end, width)
        bar = tqdm(starts, "neighbors", leave=False, disable=None if end - first > LONG else True)
        for start in bar:
            last = min(start + width, end)
            block = rows[start:last] @ others
            if begin:
                block = csr(block.data, block.indices + begin, block.indptr, stop)
            numbers = np.repeat(np.arange(start, last), np.diff(block.indptr))
            block.data[(block.indices == numbers) | (block.data < 0)] = 0.0
            parts.append(lists_of(block).best(self.neighbors))
        if not parts:
            parts = [SparseLists(np.zeros(1, np.int64), np.empty(0), np.empty(0, np.float32))]
        found = joined(parts)
        return SparseLists(found.offsets, found.ids.astype(np.int32), found.values)

    def weights(self) -> SparseLists:
        """What each neighbor is given, of sum ``share``."""
        found = self.cosines
        rows, largest = found.rows, np.zeros(len(found), np.float32)
        np.maximum.at(largest, rows, found.values)
        # Of the largest, that none is lost to a high power.
        raised = (found.values / largest[rows]).astype(np.float64) ** self.power
        sums = np.bincount(rows, raised, minlength=len(found))
        values = (self.share * raised / sums[rows]).astype(np.float32)
        return SparseLists(found.offsets, found.ids, values)


def _read(rows: Any, name: str) -> Any:
    """Embeddings as a tensor, or as a sparse matrix of rows of norm 1."""
    if not hasattr(rows, "tocsr"):
        return _float32_rows(rows, name)
    matrix = rows.tocsr().astype(np.float32)
    if not np.isfinite(matrix.data).all():
        raise invalid(name, "NaN or an infinity", "finite numbers only")
    matrix.sum_duplicates()
    numbers = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    squares = np.bincount(numbers, matrix.data.astype(np.float64) ** 2, minlength=matrix.shape[0])
    norms = np.sqrt(squares)[numbers]
    matrix.data /= np.where(norms > 0, norms, 1.0).astype(np.float32)
    return matrix


def _float32_rows(embeddings: Embeddings, argument: str = "language_embeddings") -> Tensor:
    """Language embeddings in memory, checked."""
    given = EmbeddingRows(embeddings, argument=argument)
    rows = torch.empty(given.num_rows, given.width)
    for where, chunk in given.chunks("reading"):
        rows[where] = torch.from_numpy(chunk)
    return rows


def _nearest(
    queries: Tensor, rows: Tensor, count: int, first: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The nearest of ``rows`` to each query by cosine, block by block, exactly.

    Args:
        queries, rows: float32, shapes (Q, d) and (N, d).
        count: how many, at most.
        first: query ``i`` is row ``first + i`` itself, which is not among its own; ``None``: none.

    Yields:
        Which queries, their cosines downward, and the places in ``rows``; the last two of shape
        (queries of the block, at most count).
    """
    found = min(count, len(rows) - (first is not None))
    if found < 1 or not len(queries):
        return
    compressed = None
    if len(rows) >= INT8_PAYS_FROM:
        compressed = ops.CompressedTables(None, rows, similarity="cosine")
    starts = range(0, len(queries), _CHUNK)
    for start in tqdm(starts, "neighbors", leave=False, disable=None if _is_long(rows) else True):
        own = torch.arange(start, min(start + _CHUNK, len(queries)))
        values, places = ops.topk(
            queries[own],
            found,
            None,
            rows,
            similarity="cosine",
            exclude=None if first is None else first + own[:, None],
            first_pass=compressed,
        )
        yield own, values, places


def _is_long(rows: Tensor) -> bool:
    return len(rows) > LONG
