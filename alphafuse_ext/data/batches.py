"""Batches of rows of similar length: on real histories most padding is waste."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alphafuse_ext.checks import invalid


def length_batches(
    lengths: npt.ArrayLike,
    batch_size: int,
    generator: np.random.Generator | None,
    pool: int | None = None,
) -> list[npt.NDArray[np.int64]]:
    """Cut rows into batches of similar length, each row exactly once.

    With a generator the rows are shuffled, cut into pools, sorted by length within a pool (rows
    of one length stay shuffled), cut into batches, and the batches shuffled: a row meets other
    companions in every epoch. Without one, all rows are sorted by length, ties by row.

    A batch then is a biased sample of the rows: a loss that is averaged over the batch's own
    positions gives those of short rows a greater weight. Divide by a constant instead.

    Args:
        lengths: length of each row, shape `(R,)`.
        batch_size: rows in a batch; the last batch may be smaller.
        generator: source of the shuffling, or None for one fixed order.
        pool: rows sorted together, a multiple of `batch_size`; `64 * batch_size` unless given.

    Returns:
        Row indices of each batch, int64.

    Raises:
        ValueError: `lengths` not one-dimensional, `batch_size` below 1, `pool` no multiple of it.
    """
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
