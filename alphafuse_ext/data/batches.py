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
    """

    def __init__(self, train: Sequences, history: int, targets: str) -> None:
        self.last_only = targets == "last"
        step = 1 if self.last_only else history
        counts = -(-np.maximum(train.lengths - 1, 0) // step)
        sequences = np.repeat(np.arange(len(train)), counts)
        # The newest row of a sequence comes first.
        ends = train.lengths[sequences] - step * count_up(counts)
        lengths = np.minimum(ends, history + 1)
        self.rows = Slices(train.values, train.starts[sequences] + ends - lengths, lengths)

    @property
    def num_targets(self) -> int:
        """Targets in all rows."""
        rows = self.rows
        return len(rows) if self.last_only else int(rows.lengths.sum()) - len(rows)

    def targets_of(self, index: npt.NDArray[np.int64]) -> int:
        """Targets in some rows."""
        return len(index) if self.last_only else int(self.rows.lengths[index].sum()) - len(index)

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
        if self.last_only:
            newest = np.arange(targets.shape[1]) == self.rows.lengths[index, None] - 2
            targets = np.where(newest, targets, padding)
        return ids, np.ascontiguousarray(targets)


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
