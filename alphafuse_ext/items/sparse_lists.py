"""Lists of items with numbers, one for each of some rows, and what is done with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alphafuse_ext.checks import invalid

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

IntArray = npt.NDArray[np.int64]

ENTRIES = 1 << 22
"""How many numbers a block of anything holds."""

LONG = 100_000
"""From so many items on there is a progress bar."""

_LAST_ID = 2**31 - 1


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
        offsets = offsets_of(np.minimum(lengths, limits))
        return SparseLists(offsets, self.ids[kept], self.values[kept])

    def extended(self, num_rows: int) -> SparseLists:
        """With empty lists behind, up to so many."""
        missing = np.full(num_rows - len(self), self.offsets[-1])
        return SparseLists(np.concatenate([self.offsets, missing]), self.ids, self.values)

    def matrix(self, columns: int) -> csr_matrix:
        """As SciPy has it; it shares the memory."""
        return csr(self.values, self.ids, self.offsets, columns)


def offsets_of(counts: IntArray) -> IntArray:
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def shares(rows: IntArray, sizes: IntArray, most: int) -> Iterator[IntArray]:
    """Runs of rows of at most so many entries together, each of one row at least."""
    start, total = 0, 0
    for end, size in enumerate(sizes.tolist()):
        total += size
        if total > most and end > start:
            yield rows[start:end]
            start, total = end, size
    if start < len(rows):
        yield rows[start:]


def csr(values: Any, ids: Any, offsets: IntArray, columns: int) -> csr_matrix:
    from scipy.sparse import csr_matrix

    kind = np.int32 if max(int(offsets[-1]), columns) <= _LAST_ID else np.int64
    arrays = (values, ids.astype(kind, copy=False), offsets.astype(kind, copy=False))
    return csr_matrix(arrays, shape=(len(offsets) - 1, columns))


def lists_of(matrix: csr_matrix) -> SparseLists:
    """Of a matrix of non-negative numbers, those above 0, in order."""
    matrix.sort_indices()
    matrix.eliminate_zeros()
    return unsorted(matrix)


def unsorted(matrix: csr_matrix) -> SparseLists:
    """Of a matrix, as it is."""
    values = matrix.data.astype(np.float32, copy=False)
    return SparseLists(matrix.indptr.astype(np.int64), matrix.indices, values)


def joined(parts: Sequence[SparseLists]) -> SparseLists:
    """Rows of several, one behind another."""
    counts = [np.diff(part.offsets) for part in parts]
    return SparseLists(
        offsets_of(np.concatenate(counts)),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def summed(rows: Any, columns: Any, weights: Any, shape: tuple[int, int]) -> csr_matrix:
    """A matrix of entries, those of one place added up."""
    from scipy.sparse import coo_matrix

    kind = np.int32  # ids are below
    pairs = rows.astype(kind, copy=False), columns.astype(kind, copy=False)
    return coo_matrix((weights, pairs), shape=shape).tocsr()


def check_ids(argument: str, ids: IntArray, num_items: int) -> None:
    if not 1 <= num_items <= _LAST_ID:
        raise invalid("num_items", num_items, f"1 <= num_items <= {_LAST_ID}")
    if ids.size and not 0 <= ids.min() <= ids.max() < num_items:
        found = f"ids from {ids.min()} to {ids.max()}"
        raise invalid(argument, found, f"0 <= id < {num_items}, the number of items", IndexError)
