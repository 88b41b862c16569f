"""Batches of rows of similar length, to reduce padding."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from alphafuse_ext.checks import invalid, refuse_masked
from alphafuse_ext.data.sequences import Sequences, Slices, count_up


class NextItemRows:
    """Training rows: a history and its last target.

    Args:
        train: training sequences; those with fewer than two items hold no target.
        history: longest history; a row has at most one item more.
        targets: ``"all"``: rows of ``history + 1`` items, each but the first a target. The newest
            items of a sequence make one row, what is older others, so that every item but the
            oldest is a target once; ``"last"``: a row per prefix, its last item the target.
        baskets: of each training item, aligned with ``train.values``, the place in its sequence
            where its basket begins. An item's history then ends before its basket, and those of the
            first basket are no targets. A row is there once for each item of the largest basket
            that follows one of its positions.
        weights: of each training item as a target, aligned with ``train.values``, 0 or more.
    """

    def __init__(
        self,
        train: Sequences,
        history: int,
        targets: str,
        baskets: npt.NDArray[np.int64] | None = None,
        weights: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.last_only = targets == "last"
        self._copies: npt.NDArray[np.int64] | None = None
        if baskets is not None and self.last_only:
            self._each_of_baskets(train, history, baskets)
        else:
            step = 1 if self.last_only else history
            counts = -(-np.maximum(train.lengths - 1, 0) // step)
            sequences = np.repeat(np.arange(len(train)), counts)
            # The newest row of a sequence comes first.
            ends = train.lengths[sequences] - step * count_up(counts)
            lengths = np.minimum(ends, history + 1)
            self.rows = Slices(train.values, train.starts[sequences] + ends - lengths, lengths)
            if baskets is not None:
                self._followed_by_baskets(train, baskets)
        self.weights: npt.NDArray[np.float32] | None = None
        if weights is not None:
            wanted = (count_up(train.lengths) if baskets is None else baskets) > 0
            mean = float(weights[wanted].mean(dtype=np.float64)) if wanted.any() else 1.0
            if not mean > 0:
                raise invalid("weights", "0 for every target", "some above 0")
            self.weights = (weights / mean).astype(np.float32)

    def _followed_by_baskets(self, train: Sequences, baskets: npt.NDArray[np.int64]) -> None:
        """Repeat rows, so that each of a basket's items is a target after the item before it."""
        self._following = _sizes_of_following(train, baskets)
        rows = self.rows
        spans = np.stack([rows.starts, rows.starts + rows.lengths - 1], 1).ravel()
        copies = np.maximum.reduceat(self._following, spans)[::2] if len(rows) else spans
        index = np.repeat(np.arange(len(rows)), copies)
        self.rows = Slices(rows.values, rows.starts[index], rows.lengths[index])
        self._copies = count_up(copies)
        self._counts = np.zeros(len(index), dtype=np.int64)
        for copy in range(int(copies.max(initial=0))):
            before = np.concatenate([[0], np.cumsum(self._following > copy)])
            of = np.flatnonzero(self._copies == copy)
            starts = self.rows.starts[of]
            self._counts[of] = before[starts + self.rows.lengths[of] - 1] - before[starts]

    def _each_of_baskets(
        self, train: Sequences, history: int, baskets: npt.NDArray[np.int64]
    ) -> None:
        """A row for each item that a basket comes before, whose history ends with that."""
        self._following = _sizes_of_following(train, baskets)
        queries = np.flatnonzero(self._following)
        copies = self._following[queries]
        queries = np.repeat(queries, copies)
        first = np.repeat(train.starts, train.lengths)[queries]
        starts = np.maximum(first, queries + 1 - history)
        self.rows = Slices(train.values, starts, queries + 2 - starts)
        self._copies = count_up(copies)

    @property
    def num_targets(self) -> int:
        """Targets in all rows."""
        return self.targets_of(np.arange(len(self.rows)))

    def targets_of(self, index: npt.NDArray[np.int64]) -> int:
        """Targets in some rows."""
        if self.last_only:
            return len(index)
        if self._copies is not None:
            return int(self._counts[index].sum())
        return int(self.rows.lengths[index].sum()) - len(index)

    def targets_per_batch(self, batch_size: int) -> float:
        """Their mean number, to divide a batch's summed loss by: see :func:`length_batches`."""
        return self.num_targets / math.ceil(len(self.rows) / batch_size)

    def batches(
        self, batch_size: int, generator: np.random.Generator
    ) -> list[npt.NDArray[np.int64]]:
        """The rows of an epoch's batches, see :func:`length_batches`."""
        return length_batches(self.rows.lengths, batch_size, generator)

    def batch(
        self, index: npt.NDArray[np.int64], padding: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Histories and the items that follow each position, as ``SequenceModel.loss`` takes them.

        Args:
            index: rows.
            padding: id that fills histories up on the right, and stands where there is no target.
        """
        rows = self.rows.pad(index, padding=padding)
        ids, targets = rows[:, :-1], rows[:, 1:]
        # A row's newest item is a target only.
        ids = np.where(targets == padding, padding, ids)
        if self._copies is not None:
            places, there = self._places(index)
            targets = np.where(there, self.rows.values[places], padding)
        elif self.last_only:
            targets = np.where(self._newest(index), targets, padding)
        return ids, np.ascontiguousarray(targets)

    def batch_weights(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """Weights of the targets of :meth:`batch`, of mean 1 over all of an epoch; ``None``: they
        have none."""
        if self.weights is None:
            return None
        places, there = self._places(index)
        return np.where(there, self.weights[places], np.float32(0))

    def _newest(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Where the newest item of each history is, ``(b, L)``."""
        lengths = self.rows.lengths[index, None]
        return np.arange(int(lengths.max(initial=1)) - 1) == lengths - 2

    def _places(
        self, index: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Where the targets lie among all values, and which positions have one, ``(b, L)``."""
        lengths = self.rows.lengths[index, None]
        steps = np.arange(int(lengths.max(initial=1)) - 1)
        queries = self.rows.starts[index, None] + steps
        there = steps < lengths - 1
        queries = np.where(there, queries, 0)
        places = queries + 1
        if self._copies is not None:
            copies = self._copies[index, None]
            there &= self._following[queries] > copies
            places = places + copies
        if self.last_only:
            there &= self._newest(index)
        return np.where(there, places, 0), there


def _sizes_of_following(train: Sequences, baskets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Behind the last item of a basket, how many items the next one has; 0 behind others."""
    begins = np.repeat(train.starts, train.lengths) + baskets
    first = np.flatnonzero(begins == np.arange(len(begins)))
    sizes = np.diff(np.append(first, len(begins)))
    found = np.zeros(len(begins), dtype=np.int64)
    behind = baskets[first] > 0  # the others are their users' first
    found[first[behind] - 1] = sizes[behind]
    return found


def length_batches(
    lengths: npt.ArrayLike,
    batch_size: int,
    generator: np.random.Generator | None,
    pool: int | None = None,
) -> list[npt.NDArray[np.int64]]:
    """Cut rows into batches of similar length, each row exactly once.

    With a generator the rows are shuffled, cut into pools, sorted by length within a pool (rows
    of one length stay shuffled), cut into batches, and the batches shuffled: the composition of
    batches changes in every epoch. Without one, all rows are sorted by length, ties by row.

    Batches are biased samples: averaging a loss over the positions of a batch gives short rows a
    higher weight. Divide by a constant instead.

    Args:
        lengths: length of each row, shape `(R,)`.
        batch_size: rows in a batch; the last batch may be smaller.
        generator: source of the shuffling, or None for one fixed order.
        pool: rows sorted together, a multiple of `batch_size`; default: `64 * batch_size`.

    Returns:
        Row indices of each batch, int64.

    Raises:
        ValueError: `lengths` not one-dimensional, `batch_size` below 1, `pool` no multiple of it.
    """
    refuse_masked("lengths", lengths)
    lengths = np.asarray(lengths)
    if lengths.ndim != 1:
        raise invalid("lengths", f"an array of shape {lengths.shape}", "shape (rows,)")
    if batch_size < 1:
        raise invalid("batch_size", batch_size, "batch_size >= 1")
    if pool is None:
        pool = 64 * batch_size
    if pool < batch_size or pool % batch_size:
        raise invalid("pool", pool, f"a multiple of batch_size = {batch_size}")

    if generator is None:
        pools = [np.argsort(lengths, kind="stable")]
    else:
        shuffled = generator.permutation(len(lengths))
        pools = [shuffled[start : start + pool] for start in range(0, len(shuffled), pool)]
        pools = [rows[np.argsort(lengths[rows], kind="stable")] for rows in pools]
    batches = [
        rows[start : start + batch_size].astype(np.int64, copy=False)
        for rows in pools
        for start in range(0, len(rows), batch_size)
    ]
    if generator is not None:
        batches = [batches[i] for i in generator.permutation(len(batches))]
    return batches
