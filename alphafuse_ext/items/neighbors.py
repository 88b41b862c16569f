"""Neighbors of items: by language, and by who took what together.

:class:`Neighbors` are the nearest by language, which a softmax's targets are shared with: what a
user took next is one draw of what they might have taken, and of the others what reads almost alike
is the likeliest. Sharing a target with its neighbors in language tells the loss so, whatever the
item embeddings are made of.

:class:`ItemNeighbors` say by themselves what comes next: item-to-item co-occurrence, and language
for what has not been taken often, or at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

import alphafuse_ext.ops as ops
from alphafuse_ext.checks import integer, invalid
from alphafuse_ext.files import PathLike, load_tensors, reading, save_tensors
from alphafuse_ext.items.embedding_rows import EmbeddingRows, Embeddings
from alphafuse_ext.items.item_embeddings import INT8_PAYS_FROM

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NEIGHBORS, TEMPERATURE = 10, 0.05
"""How many, and what their cosines are divided by before a softmax makes weights of them."""

_KIND = "neighbors"
_CHUNK = 1024
_LONG = 100_000
"""From so many items on there is a progress bar."""


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
    return len(rows) > _LONG


# --- lists


IntArray = npt.NDArray[np.int64]


class Histories(Protocol):
    """What :class:`alphafuse_ext.data.Sequences` and ``Slices`` are: runs of item ids."""

    @property
    def lengths(self) -> IntArray: ...

    def __len__(self) -> int: ...

    def select(self, index: npt.ArrayLike) -> Any: ...

    def last(self, n: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class SparseLists:
    """A list of items and numbers for each of some rows, stored end to end (CSR).

    Attributes:
        offsets: int64, shape (rows + 1,): row ``r`` has ``offsets[r] .. offsets[r + 1]``.
        ids: int64 (int32 where they are kept), ascending within a row.
        values: float32, of the shape of ``ids``.
    """

    offsets: IntArray
    ids: npt.NDArray[Any]
    values: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """Ids and values of a row, by value downward, then by id."""
        if not 0 <= row < len(self):
            raise invalid("row", row, f"0 <= row < {len(self)}", IndexError)
        where = slice(self.offsets[row], self.offsets[row + 1])
        ids, values = self.ids[where], self.values[where]
        order = np.argsort(-values, kind="stable")
        return ids[order], values[order]

    @property
    def rows(self) -> IntArray:
        """The row of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def best(self, most: int | IntArray) -> SparseLists:
        """Of each row at most so many, by value downward, then by id; ``most`` may be per row."""
        lengths, limits = np.diff(self.offsets), np.broadcast_to(most, len(self))
        long = np.flatnonzero(lengths > limits)
        if not len(long):
            return self
        kept = np.ones(len(self.ids), dtype=bool)
        bounds = (self.offsets[long], self.offsets[long + 1], limits[long])
        for start, end, limit in zip(*(part.tolist() for part in bounds), strict=True):
            values = self.values[start:end]
            least = np.partition(values, end - start - limit)[end - start - limit]
            np.greater_equal(values, least, out=kept[start:end])
            excess = np.count_nonzero(kept[start:end]) - limit
            if excess:
                ties = start + np.flatnonzero(values == least)
                kept[ties[np.argsort(self.ids[ties])[-excess:]]] = False
        offsets = _offsets(np.minimum(lengths, limits))
        return SparseLists(offsets, self.ids[kept], self.values[kept])

    def extended(self, num_rows: int) -> SparseLists:
        """With empty lists behind, up to so many."""
        missing = np.full(num_rows - len(self), self.offsets[-1])
        return SparseLists(np.concatenate([self.offsets, missing]), self.ids, self.values)

    def _matrix(self, columns: int) -> csr_matrix:
        """As SciPy has it; it shares the memory."""
        return _csr(self.values, self.ids, self.offsets, columns)


MOST = 200
"""Neighbors of a history that are kept."""

_QUERIES = 500
"""Histories at a time."""

_LAST_ID = 2**31 - 1
_ENTRIES = 1 << 22
"""How many numbers a block of anything holds."""


def _offsets(counts: IntArray) -> IntArray:
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _shares(rows: IntArray, sizes: IntArray, most: int) -> Iterator[IntArray]:
    """Runs of rows of at most so many entries together, each of one row at least."""
    start, total = 0, 0
    for end, size in enumerate(sizes.tolist()):
        total += size
        if total > most and end > start:
            yield rows[start:end]
            start, total = end, size
    if start < len(rows):
        yield rows[start:]


def _csr(values: Any, ids: Any, offsets: IntArray, columns: int) -> csr_matrix:
    from scipy.sparse import csr_matrix

    kind = np.int32 if max(int(offsets[-1]), columns) <= _LAST_ID else np.int64
    arrays = (values, ids.astype(kind, copy=False), offsets.astype(kind, copy=False))
    return csr_matrix(arrays, shape=(len(offsets) - 1, columns))


def _lists(matrix: csr_matrix) -> SparseLists:
    """Of a matrix of non-negative numbers, those above 0, in order."""
    matrix.sort_indices()
    matrix.eliminate_zeros()
    return _unsorted(matrix)


def _unsorted(matrix: csr_matrix) -> SparseLists:
    """Of a matrix, as it is."""
    values = matrix.data.astype(np.float32, copy=False)
    return SparseLists(matrix.indptr.astype(np.int64), matrix.indices, values)


def _stacked(kinds: tuple[csr_matrix, csr_matrix]) -> csr_matrix:
    """Two matrices side by side."""
    from scipy.sparse import hstack

    return hstack(kinds, format="csr")


def _joined(parts: Sequence[SparseLists]) -> SparseLists:
    """Rows of several, one behind another."""
    counts = [np.diff(part.offsets) for part in parts]
    return SparseLists(
        _offsets(np.concatenate(counts)),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


# --- item-to-item co-occurrence

DIRECTIONS = ("both", "after")


@dataclass(frozen=True)
class Cooccurrence:
    """How lists of what is taken together are made.

    ``K[i, j] = C[i, j] / sqrt((r_i + shrinkage) (c_j + shrinkage))``, where ``C`` adds up, over all
    pairs of different items in a history, ``decay ** (steps - 1)``, and ``r`` and ``c`` are the
    sums of its rows and columns.

    Attributes:
        window: the most steps between two items.
        decay: of a pair's weight with each step, in (0, 1].
        shrinkage: what is added to the sums, so that a few pairs prove little; at least 0.
        direction: ``"both"``: what was taken before and after an item; ``"after"``: after it alone.
        max_neighbors: the longest list, of the largest ``K``; ``None``: any length.
    """

    window: int = 8
    decay: float = 0.7
    shrinkage: float = 8.0
    direction: str = "both"
    max_neighbors: int | None = 1000

    def __post_init__(self) -> None:
        if integer("window", self.window) < 1:
            raise invalid("window", self.window, "window >= 1")
        _check_share("decay", self.decay)
        if not 0 <= self.shrinkage < math.inf:
            raise invalid("shrinkage", self.shrinkage, "a finite number, 0 or more")
        if self.direction not in DIRECTIONS:
            raise invalid("direction", repr(self.direction), " or ".join(map(repr, DIRECTIONS)))
        if self.max_neighbors is not None and integer("max_neighbors", self.max_neighbors) < 1:
            raise invalid("max_neighbors", self.max_neighbors, "None or max_neighbors >= 1")

    def lists(self, histories: Histories, num_items: int) -> SparseLists:
        """Of each item, what was taken together with it.

        Items are taken up block by block: beside the histories and the lists there are four numbers
        for each interaction and some hundred MB.

        Args:
            histories: item ids in order of time, one history for each training user.
            num_items: N.
        """
        whole = histories.select(np.arange(len(histories)))
        values = np.asarray(whole.values)
        _check_ids("histories", values, num_items)
        of_history = np.repeat(np.arange(len(whole), dtype=np.int32), whole.lengths)
        backward = range(-self.window, 0) if self.direction == "both" else ()
        steps = [*backward, *range(1, self.window + 1)]
        counts = np.bincount(values, minlength=num_items)
        order = np.argsort(values, kind="stable")
        firsts = _offsets(counts)

        def pairs(where: IntArray) -> Iterator[tuple[IntArray, IntArray, float]]:
            """By the number of steps from some places: which of these, the item there, a weight."""
            for step in steps:
                there = where + step
                inside = (there >= 0) & (there < len(values))
                own, there = where[inside], there[inside]
                others = values[there]
                meet = (of_history[own] == of_history[there]) & (values[own] != others)
                yield own[meet], others[meet], self.decay ** (abs(step) - 1)

        sums = np.zeros((2, num_items))
        for start in range(0, len(values), _ENTRIES):
            for own, others, weight in pairs(np.arange(start, min(start + _ENTRIES, len(values)))):
                sums[0] += weight * np.bincount(values[own], minlength=num_items)
                sums[1] += weight * np.bincount(others, minlength=num_items)
        # An item without a pair has no entry that this divides.
        scales = 1 / np.sqrt(np.where(sums > 0, sums + self.shrinkage, 1.0))

        found = []
        blocks = list(_shares(np.arange(num_items), counts * len(steps), _ENTRIES))
        bar = tqdm(blocks, "pairs", leave=False, disable=None if num_items > _LONG else True)
        for items in bar:
            first, end = items[0], items[-1] + 1
            triples = [
                (values[own] - first, others, np.full(len(own), weight))
                for own, others, weight in pairs(order[firsts[first] : firsts[end]])
            ]
            rows, columns, weights = (np.concatenate(parts) for parts in zip(*triples, strict=True))
            block = _summed(rows, columns, weights, (len(items), num_items))
            block.data *= np.repeat(scales[0, first:end], np.diff(block.indptr))
            block.data *= scales[1, block.indices]
            lists = _lists(block)
            lists = SparseLists(lists.offsets, lists.ids.astype(np.int32), lists.values)
            found.append(lists if self.max_neighbors is None else lists.best(self.max_neighbors))
        return _joined(found)


def _summed(rows: Any, columns: Any, weights: Any, shape: tuple[int, int]) -> csr_matrix:
    """A matrix of entries, those of one place added up."""
    from scipy.sparse import coo_matrix

    kind = np.int32  # ids are below
    pairs = rows.astype(kind, copy=False), columns.astype(kind, copy=False)
    return coo_matrix((weights, pairs), shape=shape).tocsr()


def _check_ids(argument: str, ids: IntArray, num_items: int) -> None:
    if not 1 <= num_items <= _LAST_ID:
        raise invalid("num_items", num_items, f"1 <= num_items <= {_LAST_ID}")
    if ids.size and not 0 <= ids.min() <= ids.max() < num_items:
        found = f"ids from {ids.min()} to {ids.max()}"
        raise invalid(argument, found, f"0 <= id < {num_items}, the number of items", IndexError)


def _check_share(argument: str, value: float) -> None:
    if not 0 < value <= 1:
        raise invalid(argument, value, f"0 < {argument} <= 1")


# --- language


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
class _LanguageLists:
    """The nearest items of one embedding, with their cosines (float32, above 0)."""

    cosines: SparseLists
    share: float
    power: float
    neighbors: int
    mean: Tensor | None

    @classmethod
    def of(cls, language: Language, name: str) -> _LanguageLists:
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

    def extended(self, rows: Any, name: str) -> _LanguageLists:
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

    def _extended(self, rows: Any) -> _LanguageLists:
        old, total = len(self.cosines), rows.shape[0]
        own = self._nearest(rows, old, total, 0, total)
        if old and total > old:
            closer = self._nearest(rows, 0, old, old, total)
            pairs = [part._matrix(total) for part in (self.cosines, closer)]
            cosines = _joined([_lists(pairs[0] + pairs[1]).best(self.neighbors), own])
        else:
            cosines = _joined([self.cosines, own])
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
        return _lists(_summed(lines, columns, cosines, (end - first, rows.shape[0])))

    def _nearest_sparse(
        self, rows: csr_matrix, first: int, end: int, begin: int, stop: int
    ) -> SparseLists:
        others = rows[begin:stop].T.tocsr()
        width = max(1, _ENTRIES // max(1, stop - begin))
        parts = []
        starts = range(first, end, width)
        bar = tqdm(starts, "neighbors", leave=False, disable=None if end - first > _LONG else True)
        for start in bar:
            last = min(start + width, end)
            block = rows[start:last] @ others
            if begin:
                block = _csr(block.data, block.indices + begin, block.indptr, stop)
            numbers = np.repeat(np.arange(start, last), np.diff(block.indptr))
            block.data[(block.indices == numbers) | (block.data < 0)] = 0.0
            parts.append(_lists(block).best(self.neighbors))
        if not parts:
            parts = [SparseLists(np.zeros(1, np.int64), np.empty(0), np.empty(0, np.float32))]
        found = _joined(parts)
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


# --- what comes next


@dataclass(frozen=True, eq=False)
class NextItems(SparseLists):
    """What :meth:`ItemNeighbors.probabilities` finds; ``values`` are the probabilities.

    Attributes:
        mass: float32, shape (rows, 2): what the co-occurrence lists and the language lists summed
            up to before they were divided by their sum; both 0 of a history without neighbors.
    """

    mass: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ItemNeighbors:
    """Item-to-item neighbors: probabilities of what comes next, without a model.

    For a history, ``knn = mean of K[item] + language_weight * mean of L[item]``, divided by its sum
    over all items. The means are over the items of the history, weighted by ``decay ** age`` and by
    ``language_decay ** age``; ages count back from the last item, 0. ``K`` are the lists of items
    taken together (:class:`Cooccurrence`), ``L`` those of the nearest by language
    (:class:`Language`). On its own a strong baseline; beside a model, see ``mixture`` of
    :func:`alphafuse_ext.topk`.

    Attributes:
        num_items: N.
        together: of each item what is taken together with it, ``K``.
        language: the nearest by each of the embeddings.
        cooccurrence: how ``together`` was made.
        decay: of an item's weight with each step back in a history, in (0, 1].
        language_decay: the same for language.
        language_weight: of the language lists, beside those of ``together``; at least 0.
        last: how many items of a history count, from its end.
    """

    num_items: int
    together: SparseLists
    language: tuple[_LanguageLists, ...] = ()
    cooccurrence: Cooccurrence = field(default_factory=Cooccurrence)
    decay: float = 0.85
    language_decay: float = 0.7
    language_weight: float = 1.0
    last: int = 50

    def __post_init__(self) -> None:
        _check_share("decay", self.decay)
        _check_share("language_decay", self.language_decay)
        _check_weight(self.language_weight)
        if integer("last", self.last) < 1:
            raise invalid("last", self.last, "last >= 1")

    @classmethod
    def from_histories(
        cls,
        histories: Histories,
        num_items: int,
        language: Sequence[Language] = (),
        cooccurrence: Cooccurrence | None = None,
        **options: Any,
    ) -> ItemNeighbors:
        """From training interactions and embeddings of texts.

        Args:
            histories: item ids in order of time, one history for each training user, such as
                ``split.train``.
            num_items: N.
            language: embeddings of all N items.
            cooccurrence: how pairs are counted; as :class:`Cooccurrence` has it unless given.
            **options: ``decay``, ``language_decay``, ``language_weight``, ``last``.

        Raises:
            ValueError, TypeError: an option out of range, or embeddings of another number of items.
            IndexError: an id outside ``0 .. N - 1``.
        """
        how = cooccurrence or Cooccurrence()
        num_items = integer("num_items", num_items)
        if isinstance(language, Language):
            raise invalid("language", "one", "a list of Language", TypeError)
        together = how.lists(histories, num_items)
        neighbors = cls(num_items, together, (), how, **options)
        found = []
        for place, one in enumerate(language):
            name = f"language[{place}]"
            lists = _LanguageLists.of(one, name)
            if len(lists.cosines) != num_items:
                found_rows = f"{len(lists.cosines)} rows"
                raise invalid(f"{name}.rows", found_rows, f"{num_items}, one for each item")
            found.append(lists)
        return dataclasses.replace(neighbors, language=tuple(found))

    def with_histories(self, histories: Histories) -> ItemNeighbors:
        """With other, or more, interactions: as :meth:`from_histories` has it of these at once.

        Args:
            histories: all of them, not the new ones alone.
        """
        together = self.cooccurrence.lists(histories, self.num_items)
        return dataclasses.replace(self, together=together)

    def with_items(self, language: Sequence[Any]) -> ItemNeighbors:
        """With new items behind, which have language neighbors at once, and are some of old items'.

        As :meth:`from_histories` has it of all items at once, but for the means about which cosines
        are taken: these stay.

        Args:
            language: the rows of each embedding, of all items; old ones as they were. A sparse
                matrix has the columns it had.
        """
        if not self.language or len(language) != len(self.language):
            allowed = f"{len(self.language)}, as many as there were, and at least one"
            raise invalid("language", f"{len(language)} embeddings", allowed)
        pairs = zip(self.language, language, strict=True)
        found = tuple(one.extended(rows, f"language[{i}]") for i, (one, rows) in enumerate(pairs))
        totals = {len(lists.cosines) for lists in found}
        if len(totals) > 1:
            raise invalid("language", f"embeddings of {sorted(totals)} items", "one number of them")
        total = totals.pop()
        together = self.together.extended(total)
        return dataclasses.replace(self, num_items=total, together=together, language=found)

    # --- files

    def save(self, path: PathLike) -> None:
        """Write ``path.safetensors``: the lists as tensors, the rest as JSON in its header."""
        tensors = _tensors("together", self.together)
        languages = []
        for place, one in enumerate(self.language):
            tensors |= _tensors(f"language.{place}", one.cosines)
            if one.mean is not None:
                tensors[f"language.{place}.mean"] = one.mean
            languages.append({"share": one.share, "power": one.power, "neighbors": one.neighbors})
        facts = {name: getattr(self, name) for name in _FACTS}
        how = dataclasses.asdict(self.cooccurrence)
        facts |= {"cooccurrence": how, "language": languages}
        save_tensors(path, _ITEM_KIND, tensors, facts)

    @classmethod
    def load(cls, path: PathLike) -> ItemNeighbors:
        """Read what :meth:`save` wrote, memory-mapped.

        Raises:
            FileNotFoundError, UnreadableFileError: there is none, or it is damaged.
        """
        tensors, facts = load_tensors(path, _ITEM_KIND)
        with reading(path):
            count = facts["num_items"]
            languages = []
            for place, how in enumerate(facts["language"]):
                cosines = _read_lists(tensors, f"language.{place}", count)
                mean = tensors.get(f"language.{place}.mean")
                languages.append(_LanguageLists(cosines, mean=mean, **how))
            return cls(
                together=_read_lists(tensors, "together", count),
                language=tuple(languages),
                cooccurrence=Cooccurrence(**facts["cooccurrence"]),
                **{name: facts[name] for name in _FACTS},
            )

    # --- what comes next

    def probabilities(
        self,
        histories: Histories,
        *,
        exclude: Histories | None = None,
        most: int | None = MOST,
        language_weight: float | None = None,
    ) -> NextItems:
        """What comes next after each history, by its neighbors.

        Args:
            histories: item ids in order of time, B of them; an empty one has no neighbors.
            exclude: B lists of ids that are left out, such as ``histories`` themselves or
                ``examples.seen``; the probabilities of the others stay as they are.
            most: the longest list, of the highest probabilities; ``None``: any length.
            language_weight: in place of the attribute.

        Returns:
            Ids and probabilities, at most 1 in sum: what is left out is missing from it.

        Raises:
            ValueError: a number out of range, or as many exclusions as there are no histories.
            IndexError: an id outside ``0 .. N - 1``.
        """
        weight = self.language_weight if language_weight is None else language_weight
        _check_weight(weight)
        if most is not None and integer("most", most) < 1:
            raise invalid("most", most, "None or most >= 1")
        if exclude is not None and len(exclude) != len(histories):
            found = f"{len(exclude)} lists"
            raise invalid("exclude", found, f"{len(histories)}, one for each history")
        parts, masses = [], []
        for start in range(0, max(1, len(histories)), _QUERIES):
            some = np.arange(start, min(start + _QUERIES, len(histories)))
            kinds = self._histories(histories.select(some), weight)
            mass = np.stack([h @ sums for h, sums in zip(kinds, self._sums, strict=True)], 1)
            total = _stacked(kinds) @ self._lists
            scales = mass.sum(1)
            scales = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales > 0)
            total.data *= np.repeat(scales.astype(np.float32), np.diff(total.indptr))
            left_out = None if exclude is None else exclude.select(some)
            if most is not None:  # and those that are left out: what is short is quickly sorted
                enough = most + (0 if left_out is None else left_out.lengths)
                total = _unsorted(total).best(enough)._matrix(self.num_items)
            total.sort_indices()
            if left_out is not None:
                self._leave_out(total, left_out)
            lists = _lists(total)
            parts.append(lists if most is None else lists.best(most))
            masses.append(mass.astype(np.float32))
        lists = _joined(parts)
        return NextItems(
            lists.offsets, lists.ids.astype(np.int64), lists.values, np.concatenate(masses)
        )

    def mixture(
        self,
        histories: Histories,
        weight: float | Tensor,
        *,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> ops.Mixture:
        """:meth:`probabilities` as ``mixture`` of :func:`alphafuse_ext.topk` and ``target_ranks``.

        Args:
            histories: B of them, one for each query.
            weight: of these probabilities, beside those of the model: ``0 <= weight < 1``, a
                number or (B,).
            temperature: of the model's softmax.
            device: of the queries.
            **options: of :meth:`probabilities`.
        """
        found = self.probabilities(histories, **options)
        arrays = (found.ids, found.values, found.offsets)
        ids, values, offsets = (torch.from_numpy(array).to(device) for array in arrays)
        return ops.Mixture(ids, values, weight, temperature, offsets)

    def language_share(
        self, histories: Histories, ids: npt.ArrayLike, language_weight: float | None = None
    ) -> npt.NDArray[np.float32]:
        """How much of items' probabilities is by language, and not by what was taken together.

        Args:
            histories: B of them.
            ids: shape (B, k); -1 for none.
            language_weight: as for :meth:`probabilities`.

        Returns:
            float32, shape (B, k), in 0 .. 1; NaN of items that are no neighbors.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or len(ids) != len(histories):
            raise invalid("ids", f"shape {ids.shape}", f"({len(histories)}, k)")
        _check_ids("ids", ids[ids >= 0], self.num_items)
        weight = self.language_weight if language_weight is None else language_weight
        _check_weight(weight)
        shares = np.full(ids.shape, np.nan, np.float32)
        for start in range(0, len(ids), _QUERIES):
            some = np.arange(start, min(start + _QUERIES, len(ids)))
            there = ids[some] >= 0
            rows, columns = np.nonzero(there)
            if not len(rows):  # which SciPy would index to a matrix
                continue
            kinds = self._histories(histories.select(some), weight)
            whole = _stacked(kinds) @ self._lists
            language = kinds[1] @ self._lists[self.num_items :]
            where = rows, ids[some][there]
            total, language = (np.asarray(one[where]).ravel() for one in (whole, language))
            found = np.divide(language, total, out=np.full_like(total, np.nan), where=total > 0)
            shares[some[rows], columns] = found
        return shares

    def matrices(self) -> tuple[csr_matrix, csr_matrix]:
        """The lists of items taken together and those by language, summed up; shapes (N, N)."""
        return self._lists[: self.num_items], self._lists[self.num_items :]

    def _histories(self, histories: Any, weight: float) -> tuple[csr_matrix, csr_matrix]:
        """The weight of each item of each history, for the two kinds of lists."""
        recent = histories.last(self.last)
        _check_ids("histories", np.asarray(recent.values), self.num_items)
        language = self._history(recent, self.language_decay) * np.float32(weight)
        return self._history(recent, self.decay), language

    def _history(self, histories: Any, decay: float) -> csr_matrix:
        """The weight of each item of each history."""
        offsets = np.asarray(histories.offsets)
        ages = np.repeat(offsets[1:], histories.lengths) - 1 - np.arange(offsets[-1])
        weights = decay ** ages.astype(np.float64)
        rows = np.repeat(np.arange(len(histories)), histories.lengths)
        weights /= np.bincount(rows, weights, minlength=len(histories))[rows]
        matrix = _csr(weights.astype(np.float32), histories.values, offsets, self.num_items)
        matrix.has_sorted_indices = matrix.has_canonical_format = False
        return matrix

    def _leave_out(self, total: csr_matrix, exclude: Any) -> None:
        """Zeros in place of what is left out, of a matrix in order."""
        _check_ids("exclude", np.asarray(exclude.values), self.num_items)
        rows = np.repeat(np.arange(total.shape[0]), np.diff(total.indptr))
        keys = rows * self.num_items + total.indices
        wanted = np.repeat(np.arange(len(exclude)), exclude.lengths) * self.num_items
        wanted += exclude.values
        if len(keys):
            places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            total.data[places[keys[places] == wanted]] = 0.0

    @cached_property
    def _lists(self) -> csr_matrix:
        """Those of items taken together, and below them those by language, summed up."""
        from scipy.sparse import vstack

        language: Any = _csr(
            np.empty(0, np.float32),
            np.empty(0, np.int32),
            np.zeros(self.num_items + 1, np.int64),
            self.num_items,
        )
        for one in self.language:
            language = language + one.weights()._matrix(self.num_items)
        return vstack([self.together._matrix(self.num_items), language], format="csr")

    @cached_property
    def _sums(self) -> npt.NDArray[np.float32]:
        """Of each list, shape (2, num_items)."""
        return np.asarray(self._lists.sum(1)).reshape(2, self.num_items)


_ITEM_KIND = "item neighbors"
_FACTS = ("num_items", "decay", "language_decay", "language_weight", "last")


def _check_weight(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise invalid("language_weight", weight, "a finite number, 0 or more")


def _tensors(name: str, lists: SparseLists) -> dict[str, Tensor]:
    return {
        f"{name}.offsets": torch.tensor(lists.offsets),
        f"{name}.ids": torch.tensor(lists.ids.astype(np.int32, copy=False)),
        f"{name}.values": torch.tensor(lists.values),
    }


def _read_lists(tensors: Any, name: str, count: int) -> SparseLists:
    """Of a file that may hold anything."""
    offsets, ids, values = (tensors[f"{name}.{part}"] for part in ("offsets", "ids", "values"))
    kinds = (offsets.dtype, ids.dtype, values.dtype)
    if kinds != (torch.int64, torch.int32, torch.float32) or offsets.shape != (count + 1,):
        raise ValueError(f"{name}: offsets {tuple(offsets.shape)} of {count} items, types {kinds}")
    lists = SparseLists(offsets.numpy(), ids.numpy(), values.numpy())
    rise = lists.offsets[0] == 0 and (np.diff(lists.offsets) >= 0).all()
    if not rise or not (lists.offsets[-1],) == lists.ids.shape == lists.values.shape:
        raise ValueError(f"{name}: lists that do not lie end to end")
    if lists.ids.size and not 0 <= lists.ids.min() <= lists.ids.max() < count:
        raise ValueError(f"{name}: ids outside 0 .. {count - 1}")
    if not (lists.values > 0).all():
        raise ValueError(f"{name}: values that are not above 0")
    return lists
